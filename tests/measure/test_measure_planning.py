"""Planning: counts of samples and powers against the procedures that they plan for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgewise.errors import RecipeError
from edgewise.measure import betting, discordance, planning


@pytest.mark.parametrize(
    ("worse", "better", "bound"), [(0.01, 0.01, 0.01), (0.0, 0.0, 0.01), (0.03, 0.025, 0.02), (0.3, 0.2, 0.2)]
)
def test_the_number_of_samples_certifies_and_far_fewer_do_not(worse: float, better: float, bound: float) -> None:
    count = planning.samples_for_drop(worse, better, bound)
    assert count is not None
    assert discordance.excludes(int(np.ceil(worse * count)), int(better * count), count, bound, confidence=0.95)
    fewer = int(count * 0.8)
    assert not discordance.excludes(round(worse * fewer), round(better * fewer), fewer, bound, confidence=0.95)


def test_no_number_of_samples_shows_what_is_not_so() -> None:
    assert planning.samples_for_drop(0.03, 0.01, 0.02) is None
    assert planning.samples_for_drop(0.03, 0.01, 0.01) is None
    assert planning.samples_for_flips(0.02, 0.02) is None


def test_very_many_samples_are_estimated_and_absurdly_many_are_none() -> None:
    count = planning.samples_for_drop(0.051, 0.05, 0.002)
    assert count is not None
    # Normal approximation: (1.645 / 0.001)^2 times the variance.
    assert count == pytest.approx((1.645 / 0.001) ** 2 * 0.101, rel=0.02)
    assert planning.samples_for_drop(0.05, 0.05, 1e-6) is None


@pytest.mark.parametrize("rate", [0.0, 0.002, 0.005])
def test_samples_for_flips_suffice_and_far_fewer_do_not(rate: float) -> None:
    count = planning.samples_for_flips(rate, 0.01)
    assert count is not None
    assert betting.binomial_upper(int(np.ceil(rate * count)), count, confidence=0.95) <= 0.01
    fewer = int(count * 0.7)
    assert betting.binomial_upper(int(np.ceil(rate * fewer)), fewer, confidence=0.95) > 0.01


def test_without_flips_299_samples_show_one_percent() -> None:
    assert planning.samples_for_flips(0.0, 0.01) == 299


def test_limits_are_what_the_bound_says() -> None:
    n, bound = 60, 0.1
    limits = planning.most_worse_passing(n, bound, 5)
    for better, limit in enumerate(limits.tolist()):
        if limit >= 0:
            assert discordance.upper(limit, better, n, confidence=0.95) <= bound + 1e-6
        assert discordance.upper(limit + 1, better, n, confidence=0.95) >= bound


def test_power_is_the_share_of_certified_draws() -> None:
    n, rate, bound = 200, 0.05, 0.05
    draws = np.random.default_rng(2).multinomial(n, [rate / 2, rate / 2, 1 - rate], size=100)
    passed = np.mean([discordance.excludes(int(b), int(c), n, bound, confidence=0.95) for b, c, _ in draws])
    # Three standard errors of 100 draws.
    assert planning.power(n, rate, bound) == pytest.approx(passed, abs=3 * 0.5 / np.sqrt(100))


def test_power_grows_with_samples_and_is_the_error_at_the_bound() -> None:
    assert planning.power(400, 0.03, 0.03) > planning.power(200, 0.03, 0.03) > 0.2
    assert planning.power(400, 0.05, 0.03, true_drop=0.03) <= 0.05


def test_the_supported_drop_has_the_power_it_promises() -> None:
    bound = planning.supported_drop(1000, 0.02)
    # 1.1 points by the normal approximation, (1.645 + 0.842) * sqrt(0.02 / 1000).
    assert bound == pytest.approx(0.0111, abs=0.001)
    assert planning.power(1000, 0.02, bound) == pytest.approx(0.8, abs=0.05)


def test_one_sample_supports_next_to_nothing() -> None:
    assert planning.supported_drop(1, 0.0) == pytest.approx(0.95, abs=0.001)


def test_a_probability_without_others_left() -> None:
    limits = np.asarray([0, 1])
    assert planning.passing_probability(1, limits, 0.0, 1.0) == 1.0
    assert planning.passing_probability(3, limits, 0.0, 0.2) == pytest.approx(stats.binom.cdf(1, 3, 0.2))


def test_rates_that_contradict_each_other_are_declined() -> None:
    with pytest.raises(RecipeError, match="between the drop's magnitude and 1"):
        planning.power(100, 0.01, 0.01, true_drop=0.02)
    with pytest.raises(RecipeError, match=r"Received 1\.5"):
        planning.supported_drop(100, 1.5)
