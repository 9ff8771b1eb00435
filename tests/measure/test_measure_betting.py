"""Betting bounds: their level by enumeration, their arithmetic against a plain loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgewise.measure import betting

ERROR = 0.05


@pytest.mark.parametrize("n", [1, 2, 6, 9])
def test_the_lower_bound_fails_no_more_often_than_its_error(n: int) -> None:
    sequences = np.asarray(list(itertools.product((0.0, 0.5, 1.0) if n < 9 else (0.0, 1.0), repeat=n)))
    bounds = np.asarray([betting.lower_mean(values, 0, 1, confidence=1 - ERROR) for values in sequences])
    for low in np.linspace(0, 1, 11):
        for high in np.linspace(0, 1 - low, 11):
            weights = {0.0: low, 0.5: 1 - low - high, 1.0: high}
            if n == 9:
                weights = {0.0: 1 - high, 1.0: high}
            mean = sum(value * weight for value, weight in weights.items())
            chance = np.prod(np.vectorize(weights.__getitem__)(sequences), axis=1)
            assert chance[bounds > mean + 1e-12].sum() <= ERROR + 1e-9


def test_a_bound_that_could_never_fail_would_be_useless() -> None:
    rng = np.random.default_rng(5)
    widths = []
    for _ in range(20):
        values = rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.2, 0.6], size=1000)
        width = values.mean() - betting.lower_mean(values, 0, 1, confidence=0.95)
        widths.append(width / (values.std() / math.sqrt(1000)))
    # The best bound possible is 1.645 standard errors wide; betting pays at most sqrt(2 log 20) = 2.45 of them.
    assert 1.645 < np.mean(widths) < 2.45


def test_many_draws_at_the_hypothesis() -> None:
    rng = np.random.default_rng(11)
    values = rng.beta(1, 9, size=(400, 4000))
    share = betting.reaches(values, np.full(4000, 0.1), ERROR).mean()
    # Three standard errors of 4000 draws at 5 %.
    assert share <= ERROR + 3 * math.sqrt(ERROR * (1 - ERROR) / 4000)
    assert share > 0.01


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=60),
    mean=st.floats(0.01, 0.99),
)
def test_the_wealth_is_that_of_a_plain_loop(values: list[float], mean: float) -> None:
    target, wealth, squares, won = math.log(20), 0.0, 0.25, False
    for step, value in enumerate(values):
        bet = math.sqrt(2 * (target - wealth) * (step + 1) / (squares * (len(values) - step)))
        wealth += math.log1p(min(bet, 0.95 / mean) * (value - mean))
        squares += (value - mean) ** 2
        if wealth >= target:
            won = True
            break
    if abs(wealth - target) > 1e-9:
        assert betting.reaches(np.asarray(values), np.asarray([mean]), 0.05)[0] == won


@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=80), seed=st.integers(0, 3))
@settings(deadline=None)
def test_bounds_enclose_the_mean_and_mirror_each_other(values: list[float], seed: int) -> None:
    array = np.asarray(values)
    low = betting.lower_mean(array, -1, 1, confidence=0.95, seed=seed)
    high = betting.upper_mean(array, -1, 1, confidence=0.95, seed=seed)
    assert -1 <= low <= array.mean() + 1e-9
    assert array.mean() - 1e-9 <= high <= 1
    assert betting.upper_mean(-array, -1, 1, confidence=0.95, seed=seed) == -low


def test_the_bound_asked_for_is_a_grid_point() -> None:
    values = np.zeros(600)
    plain = betting.upper_mean(values, -1, 1, confidence=0.95)
    exact = betting.upper_mean(values, -1, 1, confidence=0.95, asked=plain - 1e-5)
    assert exact == plain - 1e-5


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 299), (1, 473), (5, 1049), (30, 1000)])
def test_clopper_pearson_inverts_the_binomial(count: int, n: int) -> None:
    high = betting.binomial_upper(count, n, confidence=0.95)
    assert stats.binom.cdf(count, n, high) == pytest.approx(0.05)
    assert betting.binomial_lower(n - count, n, confidence=0.95) == pytest.approx(1 - high)


def test_clopper_pearson_at_the_ends() -> None:
    assert betting.binomial_upper(4, 4, confidence=0.95) == 1
    assert betting.binomial_lower(0, 4, confidence=0.95) == 0
