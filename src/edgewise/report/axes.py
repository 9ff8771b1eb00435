"""Axes: numbers to positions, and where the ticks go. Pure functions that have never heard of SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.report.quantities import MINUS


@dataclass(frozen=True)
class Scale:
    """Maps `[low, high]` onto `[start, end]`, linearly or by logarithm.

    Attributes:
        low: Value at `start`; above 0 where `log`.
        high: Value at `end`; above `low`.
        start: Position of `low`, in pixels. May be the larger one: y axes point up.
        end: Position of `high`.
        log: Whether equal ratios, rather than equal differences, are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the position of `value`, held to the axis: what lies outside sits on its end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            fraction = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            # Halves first: the difference of two very large numbers of opposite sign would overflow.
            fraction = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return self.start + fraction * (self.end - self.start)


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return a range that holds the finite `values` with `share` of its length free at either end.

    Equal values get a range around them; no values get 0 to 1.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    room = (high - low) * share
    return low - room, high + room


def padded_log(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return the same for a logarithmic axis: values that are not above 0 are left out; no values get 1 to 10."""
    finite = [math.log(value) for value in values if math.isfinite(value) and value > 0]
    if not finite:
        return 1.0, 10.0
    low, high = min(finite), max(finite)
    room = max((high - low) * share, 0.02)
    return math.exp(low - room), math.exp(high + room)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return about `wanted` round numbers (1, 2 or 5 times a power of ten apart) in `[low, high]`."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low] if math.isfinite(low) else []
    rough = span / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    # Rounded, because 3 * 0.1 is 0.30000000000000004; and + 0.0, because -0.0 would be written with a minus.
    return [round(index * step, decimals + 1) + 0.0 for index in range(first, last + 1)]


def log_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers for a logarithmic axis: equally spaced ones over a narrow range, else 1-2-5 or the like."""
    if high / low < 8:
        return [tick for tick in ticks(low, high, wanted) if tick > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [10.0**decade * factor for decade in decades for factor in factors]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= wanted + 2:
            return found
    return found[:: math.ceil(len(found) / (wanted + 1))]


def tick_labels(values: Sequence[float], factor: float = 1.0) -> list[str]:
    """Return `values` times `factor` with as few decimals as tell them apart, the same number for all."""
    scaled = [value * factor for value in values]
    largest = max((abs(value) for value in scaled), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-4:
        return [f"{value:g}".replace("-", MINUS) for value in scaled]
    for decimals in range(8):
        if all(abs(round(value, decimals) - value) <= 1e-9 * largest for value in scaled):
            break
    return [f"{value:,.{decimals}f}".replace("-", MINUS) for value in scaled]
