"""How many samples a certificate takes, which drop a given number supports, and how often it will pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from edgewise.errors import RecipeError
from edgewise.measure import betting, discordance

IntArray: TypeAlias = npt.NDArray[np.int64]

MOST_SAMPLES: Final = 10**9
"""More samples than this count as "no number would do"."""

_EXACT_UP_TO: Final = 200_000
"""Above it the score limit and the exact bound differ by less than a thousandth, and only the former is tried."""


def samples_for_drop(worse: float, better: float, max_drop: float, *, confidence: float = 0.95) -> int | None:
    """Return about how many samples would certify `max_drop` if the observed rates stay what they are.

    Args:
        worse: Share of the samples that only the original gets right.
        better: Share of the samples that only the optimized model gets right.
        max_drop: The drop allowed, in points.
        confidence: Level of the bound.

    Returns:
        The number, or None if no number would do.
    """
    if worse - better >= max_drop:
        return None
    count = _smallest(lambda n: discordance.score_upper(worse * n, better * n, n, confidence=confidence) <= max_drop)
    while count is not None and count <= _EXACT_UP_TO:
        if discordance.excludes(
            math.ceil(worse * count), math.floor(better * count), count, max_drop, confidence=confidence
        ):
            break
        count += max(1, count // 100)
    return count


def samples_for_flips(rate: float, most: float, *, confidence: float = 0.95) -> int | None:
    """Return how many samples would show that at most the share `most` changes, if `rate` of them do; or None."""
    if rate >= most:
        return None
    return _smallest(lambda n: betting.binomial_upper(math.ceil(rate * n - 1e-9), n, confidence=confidence) <= most)


def supported_drop(
    n: int, discordance_rate: float, *, true_drop: float = 0.0, power: float = 0.8, confidence: float = 0.95
) -> float:
    """Return the drop that `n` samples would certify with the given power: the bound that they do support.

    Args:
        n: Number of certify samples, >= 1.
        discordance_rate: Share of the samples that only one of the two models gets right.
        true_drop: The true drop, at most `discordance_rate` in magnitude.
        power: Probability with which a drop of the returned size would be certified.
        confidence: Level of the bound.

    Returns:
        The exact bound of an outcome that is as unlucky as `power` allows (normal approximation of its position).
    """
    _check_rates(discordance_rate, true_drop)
    spread = math.sqrt(max(discordance_rate - true_drop**2, 0) * n)
    excess = true_drop * n + float(special.ndtri(power)) * spread
    worse = min(max(math.ceil((discordance_rate * n + excess) / 2), 0), n)
    better = min(max(math.floor((discordance_rate * n - excess) / 2), 0), n - worse)
    return discordance.upper(worse, better, n, confidence=confidence)


def most_worse_passing(n: int, max_drop: float, most_better: int, *, confidence: float = 0.95) -> IntArray:
    """Return what certifies `max_drop`: for each count of `better` up to `most_better` the largest `worse`, or -1.

    The set of certifying outcomes is everything up to it, because a bound never falls as `worse` grows.

    Args:
        n: Number of samples.
        max_drop: The drop allowed.
        most_better: Largest count of `better` that is of interest.
        confidence: Level of the bound.
    """
    limits = np.full(most_better + 1, -1, dtype=np.int64)
    guess = 0
    for better in range(most_better + 1):

        def passes(worse: int, better: int = better) -> bool:
            return worse + better <= n and discordance.excludes(worse, better, n, max_drop, confidence=confidence)

        guess = min(guess, n - better)
        if passes(guess):
            while passes(guess + 1):
                guess += 1
        else:
            while guess >= 0 and not passes(guess):
                guess -= 1
        limits[better] = guess
        guess = max(guess, 0) + 1
    return limits


def passing_probability(n: int, limits: IntArray, worse_rate: float, better_rate: float) -> float:
    """Return the probability of the outcomes up to `limits` (of `most_worse_passing`): a power, or a false alarm.

    Counts of `better` beyond `limits` count as not passing.
    """
    better = np.arange(limits.size)
    weight = stats.binom.pmf(better, n, better_rate)
    share = min(worse_rate / (1 - better_rate), 1.0) if better_rate < 1 else 0.0
    return float(np.sum(weight * stats.binom.cdf(limits, n - better, share)))


def power(
    n: int, discordance_rate: float, max_drop: float, *, true_drop: float = 0.0, confidence: float = 0.95
) -> float:
    """Return the probability that `n` samples certify `max_drop`, exactly, for the procedure of `discordance.py`.

    Takes a second or so for a few thousand samples; `supported_drop` is the fast question.

    Args:
        n: Number of certify samples.
        discordance_rate: Share of the samples that only one of the two models gets right.
        max_drop: The drop allowed, in points.
        true_drop: The true drop, at most `discordance_rate` in magnitude.
        confidence: Level of the bound.

    Raises:
        RecipeError: If the rates contradict each other.
    """
    _check_rates(discordance_rate, true_drop)
    better_rate = (discordance_rate - true_drop) / 2
    most_better = int(stats.binom.isf(1e-9, n, better_rate)) if better_rate > 0 else 0
    limits = most_worse_passing(n, max_drop, most_better, confidence=confidence)
    return passing_probability(n, limits, (discordance_rate + true_drop) / 2, better_rate)


def _check_rates(discordance_rate: float, true_drop: float) -> None:
    if not abs(true_drop) <= discordance_rate <= 1:
        raise RecipeError(
            f"The share of samples that change has to lie between the drop's magnitude and 1. "
            f"Received {discordance_rate} with a drop of {true_drop}."
        )


def _smallest(holds: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 1 on from which `holds` is true, taking it for monotone; or None."""
    high = 1
    while not holds(high):
        high *= 2
        if high > MOST_SAMPLES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
