"""Moments that batch normalization remembers are found again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgewise.analysis.moments import input_moments, unit_moments
from edgewise.samples.fields import autocorrelation

FloatArray = npt.NDArray[np.float64]

MEAN = np.array([0.5, -1.0, 2.0])
COVARIANCE = np.array([[4.0, 3.0, 1.0], [3.0, 5.0, 2.0], [1.0, 2.0, 3.0]])


def layer(outputs: int, channels: int, *window: int) -> FloatArray:
    return np.random.default_rng(0).standard_normal((outputs, channels, *window))


def remembered(
    weights: FloatArray, mean: FloatArray, covariance: FloatArray, correlation: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance of the outputs, by the definition: a sum over all pairs of weights."""
    outputs, channels = weights.shape[:2]
    places = list(np.ndindex(weights.shape[2:]))
    variance = np.zeros(outputs)
    for s in places:
        for t in places:
            offset = tuple((a - b) % size for a, b, size in zip(s, t, correlation.shape, strict=True))
            left, right = weights[(slice(None), slice(None), *s)], weights[(slice(None), slice(None), *t)]
            variance += np.einsum("kc,cd,kd->k", left, covariance, right) * correlation[offset]
    return weights.reshape(outputs, channels, -1).sum(axis=2) @ mean, variance


@pytest.mark.parametrize(("window", "sizes"), [((3, 3), (12, 10)), ((5,), (16,)), ((), ()), ((3, 3), (2, 9))])
@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_three_channels_are_found_exactly(window: tuple[int, ...], sizes: tuple[int, ...], exponent: float) -> None:
    weights, bias = layer(24, 3, *window), np.linspace(-1, 1, 24)
    seen = weights[(slice(None), slice(None), *(slice(size) for size in sizes))]
    mean, _ = remembered(weights, MEAN, COVARIANCE, np.ones(sizes))
    _, variance = remembered(seen, MEAN, COVARIANCE, autocorrelation(sizes, exponent))
    found = input_moments(weights, bias, mean + bias, variance, sizes)
    # The pull of the ridge, 1e-3 of the equations, is all that stays.
    assert found.mean == pytest.approx(MEAN, abs=1e-3)
    assert np.abs(found.covariance - COVARIANCE).max() < 0.05
    assert found.misfit < 0.02
    if window:
        assert found.exponent == exponent


def test_many_channels_have_variances_alone() -> None:
    variances = np.linspace(1, 3, 12)
    weights = layer(200, 12)
    mean, variance = remembered(weights, np.zeros(12), np.diag(variances), np.ones(()))
    found = input_moments(weights, np.zeros(200), mean, variance, ())
    assert np.array_equal(found.covariance, np.diag(np.diag(found.covariance)))
    assert np.diag(found.covariance) == pytest.approx(variances, rel=0.05)


@pytest.mark.parametrize("variance", [np.zeros(4), np.array([0.0, 0.0, 0.0, 9.0])])
def test_dead_channels_leave_a_covariance_that_can_be(variance: FloatArray) -> None:
    found = input_moments(layer(4, 3, 3, 3), np.zeros(4), np.zeros(4), variance, (8, 8))
    assert np.isfinite(found.covariance).all()
    assert np.linalg.eigvalsh(found.covariance).min() >= -1e-9


def test_contradictory_variances_give_a_misfit_and_no_negative_variance() -> None:
    weights = np.repeat(layer(1, 2, 1, 1), 6, axis=0)
    found = input_moments(weights, np.zeros(6), np.zeros(6), np.array([1.0, 9.0, 1.0, 9.0, 1.0, 9.0]), (4, 4))
    assert found.misfit > 0.5
    assert np.linalg.eigvalsh(found.covariance).min() > 0


@pytest.mark.parametrize("scale", [0.01, 1.0, 80.0])
def test_a_guess_follows_the_scale_of_the_weights(scale: float) -> None:
    weights = layer(32, 3, 3, 3) / scale
    found = unit_moments(weights, np.zeros(32), (16, 16), 2.0)
    _, variance = remembered(weights, found.mean, found.covariance, autocorrelation((16, 16), 2.0))
    assert np.median(np.sqrt(variance)) == pytest.approx(1)
    assert not found.mean.any()


def test_a_guess_takes_the_mean_that_centers_the_outputs() -> None:
    weights = layer(64, 3, 3, 3) / 50
    bias = -weights.reshape(64, 3, -1).sum(axis=2) @ np.array([100.0, 110.0, 120.0])
    found = unit_moments(weights, bias, (16, 16), 2.0)
    assert found.mean == pytest.approx([100, 110, 120], rel=0.15)  # pulled towards 0


def test_a_layer_of_zeros_tells_nothing() -> None:
    found = unit_moments(np.zeros((4, 2, 3)), np.ones(4), (9,), 1.0)
    assert (found.mean.tolist(), found.covariance.tolist()) == ([0, 0], [[1, 0], [0, 1]])
