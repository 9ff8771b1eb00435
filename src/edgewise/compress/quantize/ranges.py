"""From a histogram of an activation to the range that its integers cover. Pure functions.

Each takes what was observed and returns `(low, high)` with `low <= 0 <= high` inside of the observed extremes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from edgewise.compress.histogram import Histogram
from edgewise.errors import RecipeError
from edgewise.records.candidate import HistogramMethod

Range: TypeAlias = tuple[float, float]

LEVELS: Final = 256
"""Integers of an 8-bit type."""

KEPT_SHARE: Final = 0.9999
"""Share of the values that `percentile` keeps.

One of the shares that Wu et al. 2020, "Integer Quantization for Deep Learning Inference", compare. Empirical: 99.9 %
cuts into the values that matter, and 99.999 % differs little from `min_max` with a few hundred samples.
"""

FRACTIONS: Final = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the extremes that `candidates` tries, besides what the methods choose.

Empirical: each was the best for 4 to 35 of 186 tensors of five networks, a half for 12 of them; less was not tried.
"""

_CANDIDATES: Final = 128


def choose(method: HistogramMethod, histogram: Histogram, low: float, high: float, levels: int = LEVELS) -> Range:
    """Return the range that `method` chooses.

    Args:
        method: One of `HistogramMethod`.
        histogram: Counts of (a share of) the values.
        low: Exact smallest value.
        high: Exact largest value.
        levels: Integers of the type, >= 2.

    Returns:
        `(low, high)`, `low <= 0 <= high`.

    Raises:
        RecipeError: If there is no such method.
    """
    if method not in _METHODS:
        raise RecipeError(
            f"A range method has to be one of {', '.join(f'`{name}`' for name in get_args(HistogramMethod))}. "
            f"Received `{method}`."
        )
    low, high = min(low, 0.0), max(high, 0.0)
    if histogram.count == 0 or low == high:
        return low, high
    chosen_low, chosen_high = _METHODS[method](histogram, low, high, levels)
    return max(low, min(chosen_low, 0.0)), min(high, max(chosen_high, 0.0))


def min_max(_histogram: Histogram, low: float, high: float, _levels: int = LEVELS) -> Range:
    """Return everything that was observed: nothing is clipped, outliers cost resolution."""
    return low, high


def percentile(histogram: Histogram, low: float, high: float, _levels: int = LEVELS) -> Range:
    """Return the range outside of which lie `(1 - KEPT_SHARE) / 2` of the values on either side.

    The result is the edge of a bin: at least the share asked for is kept, at most one bin width too much.

    Args:
        histogram: Counts.
        low: Exact smallest value, <= 0.
        high: Exact largest value, >= 0.
    """
    tail = (1.0 - KEPT_SHARE) / 2 * histogram.count
    below = np.cumsum(histogram.counts)
    above = np.cumsum(histogram.counts[::-1])[::-1]
    edges = histogram.edges
    # The first bin up to which more than the tail lies keeps it inside, likewise from above.
    first = int(np.argmax(below > tail))
    last = len(above) - 1 - int(np.argmax(above[::-1] > tail))
    return max(low, float(edges[first])), min(high, float(edges[last + 1]))


def mse(histogram: Histogram, low: float, high: float, levels: int = LEVELS) -> Range:
    """Return the range with the least expected squared error, both ends searched independently.

    A value inside of the range has the error of a uniform rounding, `step ** 2 / 12`, an exact zero has none, a value
    outside has its distance to the range. (Banner et al. 2019, "Post training 4-bit quantization of convolutional
    networks for rapid-deployment", with the observed histogram in place of a fitted distribution.)

    Args:
        histogram: Counts.
        low: Exact smallest value, <= 0.
        high: Exact largest value, >= 0.
        levels: Integers of the type, >= 2.
    """
    counts = histogram.counts.astype(np.float64)
    edges = histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    # The outermost bins are cut at the extremes, so that an unclipped range costs nothing.
    centres = np.clip(centres, low, high)
    lows = _thresholds(edges[edges <= 0.0], low)
    highs = _thresholds(edges[edges >= 0.0], high)
    clipped_low = np.array([_excess(counts, centres, edge, -1.0) for edge in lows])
    clipped_high = np.array([_excess(counts, centres, edge, 1.0) for edge in highs])
    rounded = max(counts.sum() - histogram.zeros, 0.0)
    step = (highs[None, :] - lows[:, None]) / (levels - 1)
    error = clipped_low[:, None] + clipped_high[None, :] + rounded * np.square(step) / 12.0
    row, column = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[row]), float(highs[column])


def entropy(histogram: Histogram, low: float, high: float, levels: int = LEVELS) -> Range:
    """Return the range whose quantized distribution has the least Kullback-Leibler divergence from the observed one.

    The threshold runs over magnitudes, as in Migacz 2017, "8-bit Inference with TensorRT" (GTC): the
    values beyond it are put into the outermost bin, the rest is spread evenly within each of the integer's steps.
    Where values have both signs the threshold holds for both and each sign has half of the levels.

    Args:
        histogram: Counts.
        low: Exact smallest value, <= 0.
        high: Exact largest value, >= 0.
        levels: Integers of the type, >= 2.
    """
    magnitudes = _magnitudes(histogram)
    # Exact zeros, which are many after a Relu, are represented exactly and would hide all the rest.
    magnitudes[0] = max(magnitudes[0] - histogram.zeros, 0)
    levels = levels if low == 0.0 or high == 0.0 else levels // 2
    if len(magnitudes) <= levels or magnitudes.sum() == 0:
        return low, high
    best, least = len(magnitudes), np.inf
    for end in np.unique(np.linspace(levels, len(magnitudes), _CANDIDATES).astype(int)):
        divergence = _divergence(magnitudes, int(end), levels)
        if divergence <= least:  # Equal: the wider range clips less.
            best, least = int(end), divergence
    threshold = best * histogram.width
    return max(low, -threshold), min(high, threshold)


def candidates(histogram: Histogram, low: float, high: float, levels: int = LEVELS) -> tuple[Range, ...]:
    """Return the ranges that are worth trying on the layers that read a tensor, without repetitions.

    They are what each method chooses, and the extremes times `FRACTIONS`: both ends, the lower one and the upper one.

    Args:
        histogram: Counts of (a share of) the values.
        low: Exact smallest value.
        high: Exact largest value.
        levels: Integers of the type, >= 2.

    Returns:
        Ranges as `choose` gives them, the widest first: everything that was observed.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if histogram.count == 0 or low == high:
        return ((low, high),)
    found = {choose(method, histogram, low, high, levels) for method in get_args(HistogramMethod)}
    for fraction in FRACTIONS:
        found |= {(low * fraction, high * fraction), (low, high * fraction), (low * fraction, high)}
    # Widths can be equal in float64 where one end is tiny: then the one that holds the other comes first.
    return tuple(sorted(found, key=lambda one: (one[0] - one[1], one[0], -one[1])))


def clipping_error(histogram: Histogram, chosen: Range) -> float:
    """Return the mean over all values of the squared distance to the range `chosen`, in the values' unit squared.

    Values are known up to a bin, and a bin counts as its edge that is nearer to zero: rather too little than too much.
    """
    if histogram.count == 0:
        return 0.0
    counts, edges = histogram.counts.astype(np.float64), histogram.edges
    inner = np.where(edges[:-1] >= 0.0, edges[:-1], edges[1:])
    beyond = _excess(counts, inner, chosen[0], -1.0) + _excess(counts, inner, chosen[1], 1.0)
    return beyond / histogram.count


_METHODS: Final[dict[str, Callable[[Histogram, float, float, int], Range]]] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _thresholds(edges: npt.NDArray[np.float64], extreme: float) -> npt.NDArray[np.float64]:
    """Return at most `_CANDIDATES` bin edges from zero to `extreme`, the extreme itself instead of the outermost."""
    inner = edges[np.abs(edges) < abs(extreme)]
    ordered = np.append(inner[np.argsort(np.abs(inner))], extreme)
    picked = np.unique(np.linspace(0, len(ordered) - 1, _CANDIDATES).round().astype(int))
    thresholds: npt.NDArray[np.float64] = ordered[picked]
    return thresholds


def _excess(counts: npt.NDArray[np.float64], centres: npt.NDArray[np.float64], edge: float, side: float) -> float:
    """Return the summed squared distance of the values beyond `edge` on `side` (1 above, -1 below)."""
    return float(np.dot(counts, np.square(np.maximum(side * (centres - edge), 0.0))))


def _magnitudes(histogram: Histogram) -> npt.NDArray[np.int64]:
    """Return the histogram of the absolute values, from zero upwards."""
    first, counts = histogram.first, histogram.counts
    positive, negative = counts[max(0, -first) :], counts[: max(0, -first)][::-1]
    folded = np.zeros(max(len(positive), len(negative), 1), np.int64)
    folded[: len(positive)] += positive
    folded[: len(negative)] += negative
    return folded


def _divergence(magnitudes: npt.NDArray[np.int64], end: int, levels: int) -> float:
    """Return the divergence of the distribution with `levels` steps up to bin `end` from the observed one."""
    observed = magnitudes[:end].astype(np.float64)
    inside = observed.copy()
    observed[-1] += magnitudes[end:].sum()
    starts = (np.arange(levels) * end) // levels
    filled = (inside > 0).astype(np.float64)
    totals, used = np.add.reduceat(inside, starts), np.add.reduceat(filled, starts)
    sizes = np.diff(np.append(starts, end))
    spread = np.repeat(np.divide(totals, used, out=np.zeros(levels), where=used > 0), sizes) * filled
    if spread.sum() == 0.0:
        return float("inf")
    seen = observed > 0
    p, q = observed[seen] / observed.sum(), spread[seen] / spread.sum()
    # A bin that only the clipped values fill has no mass in the model: a floor instead of an infinite divergence.
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))
