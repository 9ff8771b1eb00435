"""An exact one-sided confidence bound on the difference of two paired proportions.

Of `n` samples, `worse` were right only before and `better` only after; the counts are trinomial with rates `p10` and
`p01`, and the drop is `p10 - p01`. The bound is Buehler's (1957): the least upper bound that is exact and respects a
given ordering of the outcomes. The ordering is that of Tango's (1998) score limit, as Lloyd and Moldovan (2007,
Statistics in Medicine 26, "Exact one-sided confidence limits for the difference between two correlated proportions")
propose for this problem. The nuisance rate `p01` is confined to its own confidence interval and the level lowered by
that interval's error (Berger and Boos 1994, JASA 89). The maximum over it is bounded, not sampled: see `worst_case`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

METHOD: Final = (
    "exact unconditional bound on the paired difference, ordered by the score limit "
    "(Buehler 1957; Tango 1998; Lloyd and Moldovan 2007; Berger and Boos 1994)"
)

_NUISANCE_SHARE: Final = 0.002
"""Share of the error that the interval of the nuisance rate may use. Empirical: 0.001 to 0.01 differ little."""

_OMITTED: Final = 1e-12
"""Probability of the outcomes in each tail that are not summed but counted as if they were in the region."""

_ROUNDING: Final = 1e-9
"""What rounding and the omitted tails may add to a probability; taken from the level."""

_TIE: Final = 1e-9
"""Outcomes whose statistic is this close to the observed one count as ties, so rounding only widens the bound."""

_PRECISION: Final = 1e-6
"""How far above the exact bound the returned one may lie."""

_CELLS: Final = 512
"""Cells into which the interval of the nuisance rate is cut. What they cost at 5 % is about 0.001 of the level."""


def score_statistic(worse: IntArray, better: IntArray, n: int, drop: float) -> FloatArray:
    """Return Tango's score statistic of the hypothesis that the drop is `drop`.

    The variance is taken at the maximum-likelihood estimate of `p01` under the hypothesis, a root of a quadratic
    (Tango 1998, Statistics in Medicine 17, equation 5 and following).

    Args:
        worse: Counts of samples that only the original got right.
        better: Counts of samples that only the optimized model got right, same shape.
        n: Samples in all, >= 1.
        drop: Drop under the hypothesis, in [-1, 1].

    Returns:
        The statistic: negative where fewer were lost than the hypothesis says; +-inf where the variance is zero
        and the counts contradict the hypothesis, 0 where they agree with it.
    """
    b = np.asarray(worse, np.float64)
    c = np.asarray(better, np.float64)
    linear = (2 * n - b + c) * drop - b - c
    constant = -c * drop * (1 - drop)
    rate = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * np.maximum(2 * rate + drop * (1 - drop), 0)
    excess = b - c - n * drop
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = excess / np.sqrt(variance)
    return np.where(variance > 0, statistic, np.where(np.abs(excess) < _TIE, 0.0, np.copysign(np.inf, excess)))


def score_upper(worse: float, better: float, n: int, *, confidence: float) -> float:
    """Return Tango's upper limit of the drop: approximate, fast, and the ordering of the exact bound."""
    quantile = float(special.ndtri(confidence))

    def excess(drop: float) -> float:
        value = float(score_statistic(np.asarray(worse), np.asarray(better), n, drop)) + quantile
        return max(min(value, 1e6), -1e6)

    if worse == n:
        return 1.0
    return float(optimize.brentq(excess, (worse - better) / n, 1.0, xtol=1e-14, rtol=1e-14))


@dataclass(frozen=True)
class Outcome:
    """One observed outcome, and the region of outcomes that say at least as clearly that little was lost.

    Attributes:
        worse: Samples that only the original got right.
        better: Samples that only the optimized model got right.
        n: Samples in all, >= 1.
        confidence: Level of the one-sided bound, for example 0.95.
    """

    worse: int
    better: int
    n: int
    confidence: float

    @cached_property
    def level(self) -> float:
        """The probability that the region may have: the error less what the nuisance interval and the tails use."""
        return (1 - self.confidence) * (1 - _NUISANCE_SHARE) - _ROUNDING

    @cached_property
    def nuisance(self) -> tuple[float, float]:
        """Clopper-Pearson interval of `p01`."""
        tail = (1 - self.confidence) * _NUISANCE_SHARE / 2
        low, high = 0.0, 1.0
        if self.better > 0:
            low = float(special.betaincinv(self.better, self.n - self.better + 1, tail))
        if self.better < self.n:
            high = float(special.betainccinv(self.better + 1, self.n - self.better, tail))
        return low, high

    @cached_property
    def counts(self) -> IntArray:
        """The counts of `better` that are summed: all but the far tails at every rate in the interval."""
        low, high = self.nuisance
        first = int(stats.binom.ppf(_OMITTED, self.n, low)) if low > 0 else 0
        last = int(stats.binom.isf(_OMITTED, self.n, high)) if high < 1 else self.n
        return np.arange(max(first - 1, 0), min(last + 1, self.n) + 1, dtype=np.int64)

    @cached_property
    def most_worse(self) -> IntArray:
        """For each of `counts`, the largest count of `worse` in the region, or -1.

        The score limit grows with `worse`, so that the region is everything up to it. It also shrinks with `better`
        (Sidik 2003, Statistics in Medicine 22, on Barnard's convexity of this statistic); rounding is kept from
        breaking that, which only enlarges the region.
        """
        limit = score_upper(self.worse, self.better, self.n, confidence=self.confidence)
        threshold = -float(special.ndtri(self.confidence)) + _TIE
        inside = np.full(self.counts.shape, -1, dtype=np.int64)
        outside = self.n - self.counts + 1
        while np.any(outside - inside > 1):
            middle = (inside + outside) // 2
            extreme = score_statistic(middle, self.counts, self.n, limit) <= threshold
            inside, outside = np.where(extreme, middle, inside), np.where(extreme, outside, middle)
        observed = np.where(self.counts == self.better, self.worse, -1)
        return np.maximum.accumulate(np.maximum(inside, observed))

    @cached_property
    def _path(self) -> tuple[int, FloatArray, IntArray, IntArray, npt.NDArray[np.bool_], IntArray]:
        """Where the region starts, and the terms by which its conditional probability grows from count to count.

        With `F(k; m)` the binomial distribution function and `f` its mass at success rate `q`,
        `F(k; m - 1) = F(k; m) + q f(k; m - 1)` and `F(k + 1; m) = F(k; m) + f(k + 1; m)`. Sums of masses are some
        fifty times faster than as many incomplete beta functions.
        """
        start = int(np.searchsorted(self.most_worse, 0))
        most, trials = self.most_worse[start:], self.n - self.counts[start:]
        steps = np.diff(most) + 1  # one more sample that got better, then each step in `worse`
        row = np.repeat(np.arange(steps.size), steps)
        offset = np.arange(row.size) - np.repeat(np.cumsum(steps) - steps, steps)
        k, m = most[row] + offset, trials[row + 1]
        possible = k <= m
        log_choices = np.where(possible, _log_choices(m, np.minimum(k, m)), -np.inf)
        return start, log_choices, k, np.maximum(m - k, 0), offset == 0, np.cumsum(steps)

    def probability(self, p10: FloatArray, p01: FloatArray) -> FloatArray:
        """Return the probability of the region, up to `2e-12`, for pairs of rates, each of shape `[K]`."""
        start, log_choices, k, rest, is_first, ends = self._path
        if start == self.counts.size:
            return np.zeros_like(p01)
        c = self.counts[start:]
        q = np.minimum(p10 / np.maximum(1 - p01, 1e-300), 1.0)[:, None]
        most, trials = int(self.most_worse[start]), int(self.n - c[0])
        first = np.ones_like(q) if most >= trials else special.betaincc(most + 1, trials - most, q)
        mass = np.exp(log_choices + special.xlogy(k, q) + special.xlog1py(rest, -q))
        sums = np.cumsum(np.where(is_first, q * mass, mass), axis=1)
        below = np.concatenate((first, first + sums[:, ends - 1]), axis=1)
        weight = np.exp(
            _log_choices(self.n, c) + special.xlogy(c, p01[:, None]) + special.xlog1py(self.n - c, -p01[:, None])
        )
        return np.asarray((weight * below).sum(axis=1))

    def worst_case(self, drop: float) -> float:
        """Return a bound on the probability of the region over every nuisance rate in its interval.

        The probability falls as `p10` grows and grows with `p01`, because the region is everything up to
        `most_worse`, which does not fall. In a cell `[a, b]` of rates it is therefore at most its value at
        `p10 = a + drop`, `p01 = b`. The bound falls as `drop` grows, cell by cell.
        """
        low, high = self.nuisance
        edges = np.linspace(np.sqrt(low), np.sqrt(high), _CELLS + 1) ** 2
        starts, ends = np.maximum(edges[:-1], -drop), np.minimum(edges[1:], (1 - drop) / 2)
        real = starts <= ends
        if not real.any():
            return 0.0
        return float(self.probability(starts[real] + drop, ends[real]).max())


def excludes(worse: int, better: int, n: int, drop: float, *, confidence: float) -> bool:
    """Return whether the exact upper bound lies below `drop`: the test behind the bound, without finding it."""
    outcome = Outcome(worse, better, n, confidence)
    return outcome.worst_case(drop) <= outcome.level


def upper(worse: int, better: int, n: int, *, confidence: float) -> float:
    """Return an exact upper confidence bound of the drop.

    Args:
        worse: Samples that only the original got right.
        better: Samples that only the optimized model got right.
        n: Samples in all, >= 1 and >= `worse + better`.
        confidence: Level of the one-sided bound, for example 0.95.

    Returns:
        The bound, in [-1, 1], at most 1e-6 above where the search would end with unlimited steps.
    """
    outcome = Outcome(worse, better, n, confidence)
    estimate = (worse - better) / n
    guess = score_upper(worse, better, n, confidence=confidence)
    low, high, step = estimate, guess, max((guess - estimate) / 50, _PRECISION)
    while high < 1 and outcome.worst_case(high) > outcome.level:
        low, high, step = high, min(high + step, 1.0), step * 3
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if outcome.worst_case(middle) > outcome.level:
            low = middle
        else:
            high = middle
    return high


def lower(worse: int, better: int, n: int, *, confidence: float) -> float:
    """Return an exact lower confidence bound of the drop: `upper` with the two models exchanged."""
    return -upper(better, worse, n, confidence=confidence)


def _log_choices(n: IntArray | int, k: IntArray) -> FloatArray:
    return np.asarray(special.gammaln(np.add(n, 1)) - special.gammaln(k + 1) - special.gammaln(n - k + 1))
