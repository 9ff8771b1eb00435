"""Linear stand-ins against least squares on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.compress.prune.stand_in import RIDGES, Pairs
from edgewise.errors import ContractError, DataError
from edgewise.records.tensors import Array

SAMPLES, POSITIONS = 40, 16


def filled(x: Array, y: Array) -> Pairs:
    """Return the moments of `x` `[S, P, K]` and `y` `[S, P, R]`."""
    pairs = Pairs(1, x.shape[2], y.shape[2])
    for sample, (left, right) in enumerate(zip(x, y, strict=True)):
        pairs.add(left[:, None], right[:, None], sample=sample)
    return pairs


def drawn(columns: int, outputs: int, noise: float) -> tuple[Array, Array, Array, Array]:
    random = np.random.default_rng(columns * 100 + outputs)
    x = random.standard_normal((SAMPLES, POSITIONS, columns)) @ random.standard_normal((columns, columns)) + 3
    matrix, shift = random.standard_normal((outputs, columns)), random.standard_normal(outputs)
    y = x @ matrix.T + shift + noise * random.standard_normal((SAMPLES, POSITIONS, outputs))
    return x, y, matrix, shift


def is_held(sample: int) -> bool:
    return sample % 5 == 1


def reference_error(x: Array, y: Array, matrix: Array, shift: Array) -> float:
    rest = y - x @ matrix.T - shift
    return float((rest**2).mean(axis=(0, 1)).sum() / y.var(axis=(0, 1)).sum())


def test_an_exact_linear_map_is_found() -> None:
    x, y, matrix, shift = drawn(6, 4, 0.0)
    fit = filled(x, y).fit(np.zeros((1, 4, 6)))
    assert fit.ridge == RIDGES[0]
    # A ridge of 1e-6 of the mean variance moves the map by about that times the condition of the moments.
    np.testing.assert_allclose(fit.matrix[0], matrix, rtol=0, atol=1e-3)
    np.testing.assert_allclose(fit.shift[0], shift, rtol=0, atol=1e-2)
    assert fit.error < 1e-6


def test_the_fit_is_ridge_regression_of_what_the_prior_leaves() -> None:
    x, y, _, _ = drawn(5, 5, 3.0)
    fit = filled(x, y).fit(np.eye(5)[None])
    flat_x, flat_y = x.reshape(-1, 5), y.reshape(-1, 5)
    a, b = flat_x - flat_x.mean(axis=0), flat_y - flat_y.mean(axis=0)
    damping = fit.ridge * (a**2).sum(axis=0).mean()
    stacked = np.vstack([a, np.sqrt(damping) * np.eye(5)])
    rest = np.vstack([b - a, np.zeros((5, 5))])
    expected = np.eye(5) + np.linalg.lstsq(stacked, rest, rcond=None)[0].T
    np.testing.assert_allclose(fit.matrix[0], expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(fit.shift[0], flat_y.mean(axis=0) - expected @ flat_x.mean(axis=0), rtol=1e-7, atol=1e-7)


def test_errors_are_those_of_the_rows_held_out() -> None:
    x, y, _, _ = drawn(4, 4, 2.0)
    pairs = filled(x, y)
    held = np.array([is_held(sample) for sample in range(SAMPLES)])
    assert pairs.error_of(np.eye(4)[None]) == pytest.approx(reference_error(x[held], y[held], np.eye(4), np.zeros(4)))
    shift = (y - x)[~held].mean(axis=(0, 1))
    assert pairs.fit_shift().error == pytest.approx(reference_error(x[held], y[held], np.eye(4), shift))
    np.testing.assert_allclose(pairs.fit_shift().shift[0], (y - x).mean(axis=(0, 1)), atol=1e-10)
    assert pairs.count == SAMPLES * POSITIONS


def test_scales_are_one_regression_for_each_channel() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((SAMPLES, POSITIONS, 3)) + 5
    scale, shift = np.array([0.5, 2.0, -1.0]), np.array([1.0, 2.0, 3.0])
    fit = filled(x, x * scale + shift).fit_scales()
    np.testing.assert_allclose(np.diagonal(fit.matrix[0]), scale, atol=1e-5)
    np.testing.assert_allclose(fit.shift[0], shift, atol=1e-4)
    assert not (fit.matrix[0] - np.diag(np.diagonal(fit.matrix[0]))).any()


def test_few_rows_stay_near_the_prior() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((5, 2, 32))
    y = x + random.standard_normal((5, 2, 32))
    pairs = filled(x, y)
    fit = pairs.fit(np.eye(32)[None])
    assert fit.ridge >= 0.1
    assert fit.error < 2 * pairs.error_of(np.eye(32)[None])
    # Eight rows say nothing about 32 channels: with next to no ridge the map fits their noise.
    assert np.abs(fit.matrix[0] - np.eye(32)).max() < 1.0


def test_groups_do_not_see_each_other() -> None:
    random = np.random.default_rng(2)
    x, matrices = random.standard_normal((SAMPLES, POSITIONS, 3, 2)), random.standard_normal((3, 4, 2))
    pairs = Pairs(3, 2, 4)
    for sample, rows in enumerate(x):
        pairs.add(rows, np.einsum("pgk,grk->pgr", rows, matrices), sample=sample)
    np.testing.assert_allclose(pairs.fit(np.zeros((3, 4, 2))).matrix, matrices, atol=1e-5)


def test_channels_that_never_change_are_left_to_the_shift() -> None:
    x = np.zeros((SAMPLES, POSITIONS, 3))
    y = np.full((SAMPLES, POSITIONS, 3), 2.0)
    for fit in (filled(x, y).fit(np.eye(3)[None]), filled(x, y).fit_scales(), filled(x, y).fit_shift()):
        np.testing.assert_allclose(fit.shift[0], 2.0)
        assert fit.error == 0.0
    assert filled(x, y).error_of(np.eye(3)[None]) == float("inf")


def test_one_sample_is_fitted_and_judged_on_itself() -> None:
    x, y, _, _ = drawn(2, 2, 0.0)
    assert filled(x[:1], y[:1]).fit(np.eye(2)[None]).error < 1e-6


def test_bad_rows_are_refused() -> None:
    pairs = Pairs(1, 2, 3)
    with pytest.raises(DataError, match="at least one sample"):
        pairs.fit(np.zeros((1, 3, 2)))
    with pytest.raises(DataError, match="calibration sample 7 makes NaN"):
        pairs.add(np.full((1, 1, 2), np.nan), np.zeros((1, 1, 3)), sample=7)
    pairs.add(np.zeros((0, 1, 2)), np.zeros((0, 1, 3)), sample=0)
    assert pairs.count == 0
    pairs.add(np.ones((4, 1, 2)), np.ones((4, 1, 3)), sample=0)
    with pytest.raises(ContractError, match="keep the number of channels"):
        pairs.fit_scales()
