"""Confidence bounds on the mean of bounded values, exact at every sample size, and on a binomial rate.

The values are bet against one by one (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
betting", JRSS-B 86): a gambler who bets that the mean is above `m` multiplies its wealth by `1 + bet (x - m)`; if the
mean is at most `m` the wealth is a non-negative supermartingale, which reaches `1 / error` with probability at most
`error` (Ville). The bets aim at what is still missing in the steps that are left (Voracek and Orabona 2025,
"STaR-Bets: sequential target-recalculating bets", arXiv 2505.22422); any bet that knows only the past is valid.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray: TypeAlias = npt.NDArray[np.float64]

METHOD: Final = "betting bound on a bounded mean (Waudby-Smith and Ramdas 2024; bets after Voracek and Orabona 2025)"
BINOMIAL_METHOD: Final = "Clopper-Pearson (Clopper and Pearson 1934)"

_ENDS: Final = ((0.0, 1.0), (0.4, 0.6), (0.49, 0.51), (0.9, 1.0), (0.99, 1.0))
_GRID: Final = np.unique(np.concatenate([np.linspace(first, last, 201) for first, last in _ENDS]))
"""The hypothetical means, as shares of the range, densest where a paired drop or a flip rate near zero lies."""

_MOST_AT_STAKE: Final = 0.95
"""Share of the wealth that one step may lose. Empirical: 0.5 is slower to certify, 1 can be ruined by one value."""

_FIRST_SPREAD: Final = 0.25
"""Squared deviation pretended before the first value: the widest possible (Waudby-Smith and Ramdas 2024, eq. 24)."""


def reaches(values: FloatArray, means: FloatArray, error: float) -> npt.NDArray[np.bool_]:
    """Return for each of `means` whether betting against "the mean is at most this" reaches `1 / error`.

    Args:
        values: Values in [0, 1], shape `[n]`, in an order that does not depend on them; or `[n, K]`, values of its
            own for each of `means`.
        means: Hypothetical means, in (0, 1), shape `[K]`.
        error: Error probability of each single test, in (0, 1).

    Returns:
        Booleans of shape `[K]`: True where the hypothesis is rejected.
    """
    target = -np.log(error)
    log_wealth = np.zeros_like(means)
    squares = np.full_like(means, _FIRST_SPREAD)
    open_ = np.arange(means.size)
    rejected = np.zeros(means.shape, dtype=np.bool_)
    count = len(values)
    for step in range(count):
        value = values[step, open_] if values.ndim == 2 else values[step]
        mean = means[open_]
        missing, left = target - log_wealth, count - step
        bet = np.minimum(np.sqrt(2 * missing * (step + 1) / (squares * left)), _MOST_AT_STAKE / mean)
        log_wealth = log_wealth + np.log1p(bet * (value - mean))
        squares = squares + (value - mean) ** 2
        if (won := log_wealth >= target).any():
            rejected[open_[won]] = True
            open_, log_wealth, squares = open_[~won], log_wealth[~won], squares[~won]
            if not open_.size:
                break
    return rejected


def lower_mean(
    values: FloatArray, low: float, high: float, *, confidence: float, asked: float | None = None, seed: int = 0
) -> float:
    """Return an exact lower confidence bound of the mean of independent values in `[low, high]`.

    The hypotheses are a grid that does not depend on the values; the bound is the largest of them below which all
    are rejected, so that it lies above the true mean only if the first hypothesis at or above that mean was
    rejected: no more often than the error.

    Args:
        values: Values, shape `[n]`, n >= 1. They are taken in a random order that `seed` fixes, so that the order
            in which the samples were stored plays no part.
        low: Smallest possible value; not the smallest seen.
        high: Largest possible value, above `low`.
        confidence: Level of the one-sided bound.
        asked: A value that is of interest beforehand, added to the grid.
        seed: Seed of the order.
    """
    width = high - low
    order = np.random.default_rng(seed).permutation(values.size)
    hypotheses = low + width * _GRID
    if asked is not None:
        hypotheses = np.union1d(hypotheses, asked)
    hypotheses = hypotheses[(hypotheses > low) & (hypotheses < high)]
    scaled = np.clip((values[order] - low) / width, 0, 1)
    rejected = reaches(scaled, (hypotheses - low) / width, 1 - confidence)
    count = int(np.argmin(rejected)) if not rejected.all() else rejected.size
    return low if count == 0 else float(hypotheses[count - 1])


def upper_mean(
    values: FloatArray, low: float, high: float, *, confidence: float, asked: float | None = None, seed: int = 0
) -> float:
    """Return an exact upper confidence bound of the mean: `lower_mean` of the negated values."""
    mirrored = None if asked is None else -asked
    return -lower_mean(-values, -high, -low, confidence=confidence, asked=mirrored, seed=seed)


def binomial_upper(count: int, n: int, *, confidence: float) -> float:
    """Return the one-sided Clopper-Pearson upper bound of a rate of which `count` of `n` were seen."""
    return 1.0 if count >= n else float(special.betainccinv(count + 1, n - count, 1 - confidence))


def binomial_lower(count: int, n: int, *, confidence: float) -> float:
    """Return the one-sided Clopper-Pearson lower bound of a rate of which `count` of `n` were seen."""
    return 0.0 if count <= 0 else float(special.betaincinv(count, n - count + 1, 1 - confidence))
