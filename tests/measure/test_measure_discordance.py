"""The exact bound: its level by full enumeration, its parts against plain reference code."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from edgewise.measure import discordance

ERROR = 0.05


def _probabilities(n: int, p10: float, p01: float) -> npt.NDArray[np.float64]:
    """Return the trinomial probability of every (worse, better), shape [n + 1, n + 1]; 0 where the sum exceeds n."""
    worse, better = np.indices((n + 1, n + 1))
    same = n - worse - better
    real = same >= 0
    same = np.maximum(same, 0)
    ways = special.gammaln(n + 1) - special.gammaln(worse + 1) - special.gammaln(better + 1) - special.gammaln(same + 1)
    rest = max(1 - p10 - p01, 0.0)
    log = ways + special.xlogy(worse, p10) + special.xlogy(better, p01) + special.xlogy(same, rest)
    table = np.where(real, np.exp(log), 0.0)
    assert table.sum() == pytest.approx(1)
    return table


def _all_upper(n: int) -> npt.NDArray[np.float64]:
    bounds = np.full((n + 1, n + 1), np.inf)
    for worse in range(n + 1):
        for better in range(n + 1 - worse):
            bounds[worse, better] = discordance.upper(worse, better, n, confidence=1 - ERROR)
    return bounds


@pytest.mark.parametrize("n", [1, 2, 3, 7, 13])
def test_the_bound_fails_no_more_often_than_its_error_at_any_rates(n: int) -> None:
    bounds = _all_upper(n)
    worst = 0.0
    # A false certificate becomes possible just above each bound: these drops are the worst cases.
    for drop in np.unique(bounds[np.isfinite(bounds)]) + 1e-9:
        if not -1 < drop < 1:
            continue
        for p01 in np.linspace(max(0, -drop), (1 - drop) / 2, 41):
            table = _probabilities(n, p01 + drop, p01)
            worst = max(worst, float(table[bounds < drop].sum()))
    assert worst <= ERROR
    # Not merely safe: a bound that used less than half of its error would waste samples.
    assert worst > ERROR / 2


@pytest.mark.parametrize(("n", "drop"), [(6, 0.3), (14, 0.15)])
def test_the_composite_hypothesis_is_worst_on_its_boundary(n: int, drop: float) -> None:
    certified = _all_upper(n) <= drop
    for p01 in np.linspace(0, (1 - drop) / 2, 9):
        for p10 in np.linspace(p01 + drop, 1 - p01, 9):
            assert _probabilities(n, p10, p01)[certified].sum() <= ERROR


@given(data=st.data(), n=st.integers(2, 60))
@settings(max_examples=40, deadline=None)
def test_the_score_statistic_uses_the_restricted_maximum_likelihood(data: st.DataObject, n: int) -> None:
    worse = data.draw(st.integers(0, n))
    better = data.draw(st.integers(0, n - worse))
    drop = data.draw(st.floats(-0.8, 0.8))

    def loss(p01: float) -> float:
        parts = ((worse, p01 + drop), (better, p01), (n - worse - better, 1 - 2 * p01 - drop))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

    low, high = max(0.0, -drop), (1 - drop) / 2
    found = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    rate = min((low, high, float(found.x)), key=loss)
    variance = n * (2 * rate + drop * (1 - drop))
    if variance < 1e-6:
        return  # covered by the test of the degenerate cases
    expected = (worse - better - n * drop) / math.sqrt(variance)
    got = float(discordance.score_statistic(np.asarray(worse), np.asarray(better), n, drop))
    # The minimiser stops within about the square root of the unit roundoff of the flat optimum.
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_score_statistic_without_variance() -> None:
    zero, three = np.asarray(0), np.asarray(3)
    assert float(discordance.score_statistic(zero, zero, 5, 0.0)) == 0.0
    assert float(discordance.score_statistic(zero, zero, 3, 1.0)) == -np.inf
    assert float(discordance.score_statistic(three, zero, 3, 1.0)) == 0.0


@pytest.mark.parametrize(("worse", "better", "n"), [(0, 0, 5), (3, 1, 15), (1, 4, 15), (7, 0, 9), (0, 15, 15)])
@pytest.mark.parametrize("drop", [-0.2, 0.0, 0.1, 0.5])
def test_the_probability_of_the_region_is_the_sum_over_it(worse: int, better: int, n: int, drop: float) -> None:
    outcome = discordance.Outcome(worse, better, n, 0.95)
    low, high = outcome.nuisance
    rates = np.linspace(max(low, -drop), min(high, (1 - drop) / 2), 7)
    if rates[0] > rates[-1]:
        return
    for p01 in rates:
        table = _probabilities(n, p01 + drop, p01)
        expected = sum(
            table[: most + 1, count].sum() for count, most in zip(outcome.counts, outcome.most_worse, strict=True)
        )
        got = outcome.probability(np.asarray([p01 + drop]), np.asarray([p01]))[0]
        assert got == pytest.approx(expected, abs=1e-10)


@given(
    counts=st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 400)),
    drop=st.floats(-0.1, 0.5),
    where=st.floats(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_the_worst_case_bounds_every_nuisance_rate(counts: tuple[int, int, int], drop: float, where: float) -> None:
    worse, better, same = counts
    n = worse + better + same
    if n == 0:
        return
    outcome = discordance.Outcome(worse, better, n, 0.95)
    low, high = outcome.nuisance
    low, high = max(low, -drop), min(high, (1 - drop) / 2)
    if low > high:
        assert outcome.worst_case(drop) == 0
        return
    p01 = low + where * (high - low)
    assert outcome.probability(np.asarray([p01 + drop]), np.asarray([p01]))[0] <= outcome.worst_case(drop) + 1e-12


@given(counts=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 300)))
@settings(max_examples=12, deadline=None)
def test_bounds_are_in_order_and_grow_with_what_was_lost(counts: tuple[int, int, int]) -> None:
    worse, better, same = counts
    n = worse + better + same
    upper = discordance.upper(worse, better, n, confidence=0.95)
    assert -1 <= discordance.lower(worse, better, n, confidence=0.95) <= (worse - better) / n <= upper <= 1
    assert discordance.upper(worse + 1, better, n, confidence=0.95) >= upper - 1e-6
    assert discordance.upper(worse, better, n, confidence=0.99) >= upper - 1e-6
    assert discordance.excludes(worse, better, n, upper + 1e-9, confidence=0.95)


@pytest.mark.parametrize("n", [1, 2, 10, 300, 1000])
def test_without_a_change_the_bound_is_that_of_a_binomial(n: int) -> None:
    # Nothing changed: the worst case is that nothing ever gets better, a binomial with zero seen, 1 - 0.05 ** (1 / n).
    upper = discordance.upper(0, 0, n, confidence=0.95)
    exact = 1 - 0.05 ** (1 / n)
    assert exact <= upper <= exact * 1.002 + 1e-4


def test_all_worse_and_all_better() -> None:
    assert discordance.upper(8, 0, 8, confidence=0.95) == 1
    assert discordance.lower(0, 8, 8, confidence=0.95) == -1
    assert discordance.upper(0, 8, 8, confidence=0.95) < 0


@pytest.mark.parametrize(
    ("worse", "better", "n"), [(30, 30, 3000), (150, 150, 3000), (10, 5, 1000), (1000, 1000, 20000)]
)
def test_the_price_of_exactness_is_small(worse: int, better: int, n: int) -> None:
    estimate = (worse - better) / n
    score = discordance.score_upper(worse, better, n, confidence=0.95) - estimate
    exact = discordance.upper(worse, better, n, confidence=0.95) - estimate
    assert score * 0.99 < exact < score * 1.03
