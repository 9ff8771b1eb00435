"""Regression on what is left: against least squares, means in the bias, the ridge, rows that are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.compress.prune.fit import Moments, fit, ridge_regression
from edgewise.errors import ContractError, DataError
from edgewise.records.tensors import Array

DRAWS = st.integers(0, 2**32 - 1)


def filled(x: Array, t: Array, samples: int = 10) -> Moments:
    moments = Moments(x.shape[1], x.shape[2], t.shape[2])
    for sample, (rows, wanted) in enumerate(zip(np.array_split(x, samples), np.array_split(t, samples), strict=True)):
        moments.add(rows.astype(np.float32), wanted.astype(np.float32), sample=sample)
    return moments


@given(DRAWS, st.integers(1, 3), st.integers(2, 6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_without_a_ridge_it_is_least_squares(seed: int, groups: int, columns: int, outputs: int) -> None:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((200, groups, columns)) + draw.standard_normal((groups, columns))
    t = draw.standard_normal((200, groups, outputs))
    kept = draw.random((groups, columns)) < 0.7
    summary = filled(x, t).all()
    assert summary is not None
    found = ridge_regression(draw.standard_normal((groups, outputs, columns)), summary, kept, 1e-10)
    bias = summary.bias(found)
    for group in range(groups):
        design = np.column_stack([x[:, group, kept[group]], np.ones(200)])
        best = np.linalg.lstsq(design, t[:, group], rcond=None)[0]
        # Gram matrices of some dozen float32 products, of which none is near singular.
        np.testing.assert_allclose(found[group][:, kept[group]], best[:-1].T, atol=1e-4)
        np.testing.assert_allclose(bias[group], best[-1], atol=1e-4)
        rest = t[:, group] - design @ best
        np.testing.assert_allclose(summary.error(found)[group], np.square(rest).mean(axis=0), rtol=1e-3)
    assert not found[np.broadcast_to(~kept[:, None, :], found.shape)].any()


def test_a_large_ridge_keeps_the_old_weights() -> None:
    draw = np.random.default_rng(0)
    summary = filled(draw.standard_normal((50, 1, 4)), draw.standard_normal((50, 1, 2))).all()
    assert summary is not None
    weight, kept = draw.standard_normal((1, 2, 4)), np.array([[True, False, True, True]])
    np.testing.assert_allclose(ridge_regression(weight, summary, kept, 1e12)[:, :, kept[0]], weight[:, :, kept[0]])
    assert (ridge_regression(weight, summary, kept, np.inf)[:, :, 1] == 0).all()


def test_a_constant_input_goes_into_the_bias_exactly() -> None:
    draw = np.random.default_rng(1)
    x = draw.standard_normal((200, 1, 3))
    x[:, :, 2] = 7.0
    weight = draw.standard_normal((1, 2, 3))
    moments = filled(x, x @ weight[0].T + 1.0)
    found = fit(weight, moments, np.array([[True, True, False]]))
    np.testing.assert_allclose(found.bias[0], 1.0 + 7.0 * weight[0, :, 2], rtol=1e-5)
    np.testing.assert_allclose(found.weight[0, :, :2], weight[0, :, :2], rtol=1e-4, atol=1e-4)
    assert found.error < 1e-6
    assert found.is_held_out


def test_with_few_rows_the_ridge_grows_and_noise_is_not_fitted() -> None:
    draw = np.random.default_rng(2)
    weight = draw.standard_normal((1, 3, 40))

    def ridge(rows: int) -> float:
        x = draw.standard_normal((rows, 1, 40))
        t = x @ weight[0].T + draw.standard_normal((rows, 1, 3))
        return fit(weight, filled(x, t), np.ones((1, 40), bool)).ridge

    assert ridge(30) >= 1.0
    wrong = weight + 1.0
    x = draw.standard_normal((4000, 1, 40))
    found = fit(wrong, filled(x, x @ weight[0].T), np.ones((1, 40), bool))
    assert found.ridge < 1e-3
    assert found.error < 1e-4 < found.error_before


def test_of_one_sample_nothing_is_held_out() -> None:
    draw = np.random.default_rng(3)
    x = draw.standard_normal((30, 1, 3))
    found = fit(np.ones((1, 1, 3)), filled(x, x.sum(axis=2, keepdims=True), 1), np.array([[True, True, False]]))
    assert not found.is_held_out
    assert found.ridge in {1.0, np.inf}


def test_the_moments_of_a_layers_own_outputs_need_no_targets() -> None:
    draw = np.random.default_rng(4)
    x, weight = draw.standard_normal((300, 2, 3)), draw.standard_normal((2, 4, 3))
    given_targets = filled(x, np.einsum("pgk,grk->pgr", x, weight)).all()
    without = filled(x, np.zeros((300, 2, 0))).all()
    assert given_targets is not None
    assert without is not None
    made = without.of_layer(weight, np.zeros((2, 4)))
    for name in ("mean", "target_mean", "gram", "cross", "energy"):
        np.testing.assert_allclose(getattr(made, name), getattr(given_targets, name), atol=1e-4)


def test_far_from_zero_the_moments_keep_their_digits() -> None:
    draw = np.random.default_rng(5)
    x = draw.standard_normal((5000, 1, 2)) + 1000.0
    summary = filled(x, x).all()
    assert summary is not None
    rows = x[:, 0].astype(np.float32).astype(np.float64)
    # Inputs near 1000 are float32 to 3e-5: that much of each product, not of its thousandfold.
    np.testing.assert_allclose(summary.gram[0], np.cov(rows.T, bias=True), atol=1e-3)


def test_rows_that_are_none_are_refused() -> None:
    moments = Moments(1, 2, 1)
    with pytest.raises(ContractError, match="of the shapes"):
        moments.add(np.zeros((3, 1, 2), np.float32), np.zeros((3, 1, 2), np.float32), sample=0)
    with pytest.raises(DataError, match="calibration sample 4 makes NaN"):
        moments.add(np.full((3, 1, 2), np.nan, np.float32), np.zeros((3, 1, 1), np.float32), sample=4)
    moments.add(np.zeros((0, 1, 2), np.float32), np.zeros((0, 1, 1), np.float32), sample=5)
    assert (moments.count, moments.samples) == (0, 0)
    with pytest.raises(DataError, match="at least one row"):
        fit(np.ones((1, 1, 2)), moments, np.ones((1, 2), bool))
