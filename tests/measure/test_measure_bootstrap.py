"""The bootstrap: against what theory gives, and where it declines."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from edgewise.errors import DataError
from edgewise.measure import bootstrap


def _mean_of(values: npt.NDArray[np.float64]) -> bootstrap.Statistic:
    return lambda indices: float(values[indices].mean())


def test_bounds_of_a_mean_are_those_of_the_normal_distribution() -> None:
    values = np.random.default_rng(3).normal(size=800)
    low, high = bootstrap.bounds(_mean_of(values), 800, confidence=0.95)
    error = values.std() / math.sqrt(800)
    # 1999 draws place a 5 % quantile within about 0.05 standard errors; three times that.
    assert (high - values.mean()) / error == pytest.approx(1.645, abs=0.15)
    assert (values.mean() - low) / error == pytest.approx(1.645, abs=0.15)


def test_skewed_values_shift_both_bounds_up() -> None:
    values = np.random.default_rng(4).exponential(size=60) ** 2
    low, high = bootstrap.bounds(_mean_of(values), 60, confidence=0.95)
    assert high - values.mean() > 1.2 * (values.mean() - low)


def test_the_same_seed_gives_the_same_bounds() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap.bounds(_mean_of(values), 50, confidence=0.9) == bootstrap.bounds(
        _mean_of(values), 50, confidence=0.9
    )


def test_a_constant_has_no_width() -> None:
    assert bootstrap.bounds(lambda _: 0.25, 20, confidence=0.95) == (0.25, 0.25)


def test_too_few_samples_are_declined() -> None:
    with pytest.raises(DataError, match=r"at least 10 samples\. Received 9"):
        bootstrap.bounds(lambda _: 0.0, 9, confidence=0.95)


def test_a_statistic_that_is_mostly_undefined_is_declined() -> None:
    with pytest.raises(DataError, match="undefined on"):
        bootstrap.bounds(lambda indices: 1.0 if 0 in indices else math.nan, 40, confidence=0.95)
