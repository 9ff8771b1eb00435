"""Linear stand-ins against least squares on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.compress.prune.fit import Moments
from edgewise.compress.prune.stand_in import Affine, Linear, StandIns, fit_stand_ins
from edgewise.errors import DataError
from edgewise.records.tensors import Array

SAMPLES, POSITIONS = 40, 16
HELD = np.arange(SAMPLES) % 5 == 1

# Moments are summed in float32 over at most 2,048 rows; about 3e-6 is seen (see `Moments`).
CLOSE = 1e-4


def fitted(x: Array, y: Array, *, is_same_shape: bool = True) -> StandIns:
    """Return the stand-ins for `y` `[S, P, R]` made of `x` `[S, P, K]`."""
    moments = Moments(1, x.shape[2], y.shape[2])
    for sample, (left, right) in enumerate(zip(x, y, strict=True)):
        moments.add(left[:, None].astype(np.float32), right[:, None].astype(np.float32), sample=sample)
    return fit_stand_ins(moments, is_same_shape=is_same_shape)


def drawn(columns: int, outputs: int, noise: float) -> tuple[Array, Array, Array, Array]:
    random = np.random.default_rng(columns * 100 + outputs)
    x = random.standard_normal((SAMPLES, POSITIONS, columns)) + 3
    matrix, shift = random.standard_normal((outputs, columns)), random.standard_normal(outputs)
    y = x @ matrix.T + shift + noise * random.standard_normal((SAMPLES, POSITIONS, outputs))
    return x, y, matrix, shift


def relative(x: Array, y: Array, matrix: Array, shift: Array) -> float:
    rest = y - x @ matrix.T - shift
    return float((rest**2).mean(axis=(0, 1)).sum() / y.var(axis=(0, 1)).sum())


def test_an_exact_linear_map_between_other_widths_is_found() -> None:
    x, y, matrix, shift = drawn(6, 4, 0.0)
    found = fitted(x, y, is_same_shape=False)
    assert (found.drop, found.shift, found.affine) == (None, None, None)
    stand_in = found.linear.stand_in
    assert isinstance(stand_in, Linear)
    np.testing.assert_allclose(stand_in.matrix, matrix, atol=CLOSE)
    np.testing.assert_allclose(stand_in.shift, shift, atol=10 * CLOSE)
    assert found.linear.error < CLOSE
    assert found.best is found.linear


def test_errors_are_those_of_the_rows_held_out() -> None:
    x, y, _, _ = drawn(4, 4, 2.0)
    found = fitted(x, y)
    assert found.drop == pytest.approx(relative(x[HELD], y[HELD], np.eye(4), np.zeros(4)), rel=CLOSE)
    assert found.shift is not None
    shift = (y - x)[~HELD].mean(axis=(0, 1))
    assert found.shift.error == pytest.approx(relative(x[HELD], y[HELD], np.eye(4), shift), rel=CLOSE)
    assert isinstance(found.shift.stand_in, Affine)
    assert (found.shift.stand_in.scale == 1).all()
    np.testing.assert_allclose(found.shift.stand_in.shift, (y - x).mean(axis=(0, 1)), atol=CLOSE)


def test_a_linear_stand_in_is_least_squares_where_samples_are_many() -> None:
    x, y, _, _ = drawn(5, 5, 0.5)
    found = fitted(x, y)
    columns = np.hstack([x.reshape(-1, 5), np.ones((SAMPLES * POSITIONS, 1))])
    expected = np.linalg.lstsq(columns, y.reshape(-1, 5), rcond=None)[0].T
    stand_in = found.linear.stand_in
    assert isinstance(stand_in, Linear)
    # A ridge of up to 1e-2 moves a map of entries near 1 by as much.
    np.testing.assert_allclose(stand_in.matrix, expected[:, :5], atol=0.03)
    assert found.drop is not None
    assert found.shift is not None
    assert found.affine is not None
    assert found.linear.error < found.affine.error < found.shift.error < found.drop


def test_scales_are_one_regression_for_each_channel() -> None:
    x = np.random.default_rng(0).standard_normal((SAMPLES, POSITIONS, 3)) + 5
    scale, shift = np.array([0.5, 2.0, -1.0]), np.array([1.0, 2.0, 3.0])
    found = fitted(x, x * scale + shift)
    assert found.affine is not None
    assert isinstance(found.affine.stand_in, Affine)
    np.testing.assert_allclose(found.affine.stand_in.scale, scale, atol=CLOSE)
    np.testing.assert_allclose(found.affine.stand_in.shift, shift, atol=10 * CLOSE)


def test_the_drop_wins_where_nothing_is_missing_or_nothing_can_be_learned() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((SAMPLES, POSITIONS, 4))
    same = fitted(x, x)
    assert same.best is None
    assert same.drop == pytest.approx(0.0, abs=1e-6)
    few = random.standard_normal((5, 2, 32))
    noisy = fitted(few, few + random.standard_normal((5, 2, 32)))
    assert noisy.drop is not None
    assert noisy.linear.error < 2 * noisy.drop


def test_channels_that_never_change_are_left_to_the_shift() -> None:
    x, y = np.zeros((SAMPLES, POSITIONS, 3)), np.full((SAMPLES, POSITIONS, 3), 2.0)
    found = fitted(x, y)
    assert found.drop == np.inf
    for one in (found.shift, found.affine):
        assert one is not None
        assert one.error == 0.0
        np.testing.assert_allclose(one.stand_in.shift, 2.0)
    assert found.best is found.shift


def test_one_sample_is_judged_on_itself_and_none_is_refused() -> None:
    x, y, _, _ = drawn(2, 2, 0.0)
    assert fitted(x[:1], y[:1]).linear.error < 1.0
    with pytest.raises(DataError, match="at least one sample"):
        fit_stand_ins(Moments(1, 2, 3), is_same_shape=False)
