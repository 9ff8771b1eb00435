"""Approximate confidence bounds of any statistic of paired samples, by resampling.

Bias-corrected and accelerated (BCa; Efron 1987, "Better bootstrap confidence intervals", JASA 82). One-sided bounds
are second-order correct for smooth statistics; nothing is promised at a given sample size, and certificates say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from edgewise.errors import DataError

FloatArray: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[npt.NDArray[np.int64]], float]
"""The statistic of the samples with these indices, which may repeat; NaN where it is not defined."""

METHOD: Final = "paired BCa bootstrap (Efron 1987)"

FEWEST: Final = 10
"""With fewer samples a resampling says next to nothing (empirical)."""

RESAMPLES: Final = 1999
_GROUPS: Final = 64
_MOST_UNDEFINED: Final = 0.1


def bounds(
    statistic: Statistic, n: int, *, confidence: float, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return a lower and an upper confidence bound, each one-sided, of `statistic`.

    Args:
        statistic: Is called about `resamples + 64` times with an index array of shape `[n]` or a little less.
        n: Number of samples, at least `FEWEST`.
        confidence: Level of each one-sided bound.
        resamples: Number of resamplings.
        seed: Seed of the resampling.

    Raises:
        DataError: If there are fewer than `FEWEST` samples, or if the statistic is undefined on more than a tenth
            of the resamplings.
    """
    if n < FEWEST:
        raise DataError(
            f"A bootstrap bound needs at least {FEWEST} samples. Received {n}.",
            hint="Give more samples, or a metric with scores in [0, 1], whose bounds are exact at any number.",
        )
    rng = np.random.default_rng(seed)
    value = statistic(np.arange(n))
    draws = np.asarray([statistic(rng.integers(0, n, n)) for _ in range(resamples)])
    draws = draws[np.isfinite(draws)]
    if draws.size < (1 - _MOST_UNDEFINED) * resamples:
        raise DataError(
            f"The metric has to be defined on most resamplings of the samples, but it is undefined on "
            f"{resamples - draws.size} of {resamples}: some class or answer is too rare among {n} samples.",
            hint="Give more samples of the rare classes.",
        )
    below = float(np.mean(draws < value) + np.mean(draws == value) / 2)
    # All draws on one side: the bias correction would be infinite.
    bias = float(special.ndtri(np.clip(below, 0.5 / draws.size, 1 - 0.5 / draws.size)))
    acceleration = _acceleration(statistic, n, rng)
    low, high = (float(np.quantile(draws, _share(bias, acceleration, level))) for level in (1 - confidence, confidence))
    return low, high


def _share(bias: float, acceleration: float, level: float) -> float:
    """Return the quantile of the draws that BCa takes for `level` (Efron 1987, equation 2.3)."""
    shifted = bias + float(special.ndtri(level))
    denominator = 1 - acceleration * shifted
    if denominator <= 0:
        return 1.0 if shifted > 0 else 0.0
    return float(special.ndtr(bias + shifted / denominator))


def _acceleration(statistic: Statistic, n: int, rng: np.random.Generator) -> float:
    """Return the acceleration from a jackknife that leaves out one random group of samples after another."""
    groups = np.array_split(rng.permutation(n), min(n, _GROUPS))
    without = np.asarray([statistic(np.setdiff1d(np.arange(n), group, assume_unique=True)) for group in groups])
    influence = np.nanmean(without) - without[np.isfinite(without)]
    scale = float(np.sum(influence**2)) ** 1.5
    return 0.0 if scale == 0 else float(np.sum(influence**3)) / (6 * scale)
