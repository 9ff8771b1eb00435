"""Numbers to words: each with its unit, and with as many digits as a reader can use.

Three significant digits for what was timed or counted in bytes; two decimals for percentages and points. Bounds are
rounded to the side that does not promise more than was proven.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Final

NONE: Final = "\N{EN DASH}"
"""Stands where a table has no number; the reason is said beside it or below the table."""
MINUS: Final = "\N{MINUS SIGN}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
_NOT_FINITE: Final = "not a finite number"
_PREFIXES: Final = ("", "k", "M", "G", "T", "P")


def count(number: int) -> str:
    """Return `number` with thousands set apart: `12,345`."""
    return f"{number:,}".replace("-", MINUS)


def significant(value: float, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits in positional notation; integers keep all of theirs.

    Magnitudes under 1e-4 and from 1e7 on are written as a power of ten.
    """
    if not math.isfinite(value):
        return _NOT_FINITE
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    decimals = max(0, digits - 1 - magnitude)
    text = f"{value:,.{decimals}f}"
    # Rounding can carry into a further digit: 9.996 with three digits is 10.0, not 10.00.
    if decimals and len(text.lstrip("-0.").replace(".", "").replace(",", "")) > digits:
        text = f"{value:,.{decimals - 1}f}"
    return text.replace("-", MINUS)


def duration(microseconds: float) -> str:
    """Return a time in the unit in which it has one to three digits before the point: `853 µs`, `4.21 ms`."""
    for limit, divisor, unit in ((999.5, 1.0, "µs"), (999.5e3, 1e3, "ms"), (float("inf"), 1e6, "s")):
        if abs(microseconds) < limit:
            return f"{significant(microseconds / divisor)} {unit}"
    return _NOT_FINITE


def wall_clock(seconds: float) -> str:
    """Return how long a run took: `45 s`, `3 min 12 s`, `2 h 5 min`."""
    if not math.isfinite(seconds):
        return _NOT_FINITE
    if seconds < 10:
        return f"{significant(seconds, 2)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: int) -> str:
    """Return bytes in decimal units (1 MB is 1,000,000 bytes): `812 bytes`, `3.41 MB`."""
    if abs(number) < 1000:
        return f"{count(number)} {'byte' if abs(number) == 1 else 'bytes'}"
    return f"{_prefixed(number)}B"


def amount(number: int) -> str:
    """Return a large count with three digits and an SI prefix: `125 M`, `1.24 G`."""
    return count(number) if abs(number) < 1000 else _prefixed(number)


def _prefixed(number: int) -> str:
    value, step = float(number), 0
    while abs(value) >= 999.5 and step < len(_PREFIXES) - 1:
        value, step = value / 1000, step + 1
    return f"{significant(value)} {_PREFIXES[step]}"


def energy(joules: float) -> str:
    """Return joules with a prefix: `3.21 mJ`."""
    for limit, divisor, unit in ((999.5e-6, 1e-6, "µJ"), (0.9995, 1e-3, "mJ"), (float("inf"), 1.0, "J")):
        if abs(joules) < limit:
            return f"{significant(joules / divisor)} {unit}"
    return _NOT_FINITE


def ratio(value: float) -> str:
    """Return how many times, with a multiplication sign: 2.41, 12.4 or 0.87 times."""
    if not math.isfinite(value):
        return _NOT_FINITE
    return f"{value:.2f}{TIMES}" if abs(value) < 9.995 else f"{significant(value)}{TIMES}"


def share(value: float) -> str:
    """Return a fraction of one as a percentage with two decimals at most, rounded to the nearest: `91.3 %`."""
    return f"{_hundredths(value, ROUND_HALF_EVEN)} %"


def confidence(level: float) -> str:
    """Return a confidence level: `95 %`."""
    return f"{_trimmed(Decimal(repr(level)) * 100)} %"


def drop(value: float, *, unit: str, rounding: str = "nearest") -> str:
    """Return a loss of accuracy.

    Args:
        value: The loss; 0.01 is one point or one per cent. Negative: a gain.
        unit: `points`, `%` or `% of answers`.
        rounding: `up` for upper bounds and `down` for lower ones, so that no more is promised than was proven.
    """
    if not math.isfinite(value):
        return _NOT_FINITE
    mode = {"nearest": ROUND_HALF_EVEN, "up": ROUND_CEILING, "down": ROUND_FLOOR}[rounding]
    number = _hundredths(value, mode)
    if unit == "points" and number in {"1", f"{MINUS}1"}:
        unit = "point"
    return f"{number} {unit}"


def _hundredths(value: float, mode: str) -> str:
    """Return 100 times `value` with two decimals at most.

    The shortest decimal that reads back as `value` is what is rounded: 0.0062 is 0.62 and not 0.6199999.
    """
    if not math.isfinite(value):
        return _NOT_FINITE
    return _trimmed((Decimal(repr(float(value))) * 100).quantize(Decimal("0.01"), rounding=mode))


def _trimmed(number: Decimal) -> str:
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text.replace("-", MINUS)


def plural(number: int, word: str) -> str:
    """Return `1 node`, `2 nodes`."""
    return f"{count(number)} {word}" if number == 1 else f"{count(number)} {word}s"
