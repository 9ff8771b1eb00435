"""Fields have the moments and the spectrum that they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.samples.fields import autocorrelation, draw_field, draw_leaves, natural_exponent, power_spectrum

SIZES = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple)


@given(sizes=SIZES, exponent=st.floats(0, 4))
def test_the_spectrum_has_unit_variance_and_the_correlation_is_its_transform(
    sizes: tuple[int, ...], exponent: float
) -> None:
    power = power_spectrum(sizes, exponent)
    assert power.shape == sizes
    assert power.mean() == pytest.approx(1)
    correlation = autocorrelation(sizes, exponent)
    assert correlation.ravel()[0] == pytest.approx(1)
    assert np.abs(correlation).max() <= 1 + 1e-9


def test_power_falls_with_the_exponent() -> None:
    power = power_spectrum((64,), 1.0)
    assert power[4] / power[16] == pytest.approx(4)
    assert power[0] == power[1]  # the mean of a sample varies as its largest feature
    assert np.ptp(power_spectrum((8, 8), 0.0)) == 0


def test_a_field_correlates_as_the_spectrum_says() -> None:
    fields = draw_field(np.random.default_rng(0), 4000, (6, 5), 2.0)
    found = np.einsum("nyx,n->yx", fields, fields[:, 0, 0]) / 4000
    # The standard error of a correlation from 4,000 pairs is at most sqrt(2 / 4000) = 0.022.
    assert np.abs(found - autocorrelation((6, 5), 2.0)).max() < 5 * 0.022


def test_a_point_and_white_noise_are_plain_noise() -> None:
    assert draw_field(np.random.default_rng(3), 2, (), 1.0).shape == (2,)
    noise = np.random.default_rng(3).standard_normal((2, 4))
    assert np.array_equal(draw_field(np.random.default_rng(3), 2, (4,), 0.0), noise)


def test_leaves_are_pieces_of_one_color_with_unit_variance() -> None:
    pictures = np.stack([draw_leaves(np.random.default_rng(seed), (24, 16), 2) for seed in range(300)])
    assert pictures.shape == (300, 2, 24, 16)
    # One color covers much of a picture, so the pictures are what is independent: sqrt(2 / 300) = 0.08.
    assert np.abs(pictures.std(axis=(0, 2, 3)) - 1).max() < 0.25
    assert np.abs(pictures.mean(axis=(0, 2, 3))).max() < 0.25
    steps = np.diff(pictures[:, 0], axis=2)
    assert 0.5 < np.mean(steps == 0) < 0.99


def test_natural_exponents() -> None:
    assert [natural_exponent(count) for count in (0, 1, 2, 3)] == [0, 1, 2, 2]
