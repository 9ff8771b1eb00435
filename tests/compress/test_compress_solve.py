from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.compress.solve import (
    Grid,
    Mask,
    Stack,
    coordinate_descent,
    damped,
    error,
    refit,
    refit_kept,
    rescale,
    round_columns,
    search_scales,
)
from edgewise.errors import ContractError


def gram_of(rows: npt.NDArray[np.float64]) -> Stack:
    result: Stack = rows.swapaxes(1, 2) @ rows / rows.shape[1]
    return result


def problem(
    seed: int, groups: int, outputs: int, columns: int, *, width: int | None = None, largest: int = 7, samples: int = 50
) -> tuple[Stack, Stack, Grid]:
    """Return weights, a damped Gram matrix of correlated inputs with a dead one, and a grid."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((groups, samples, columns)) @ random.standard_normal((groups, columns, columns))
    rows[:, :, 0] = 0
    weight = random.standard_normal((groups, outputs, columns))
    width = width or columns
    blocks = -(-columns // width)
    scales = random.uniform(0.1, 0.5, (groups, outputs, blocks)).astype(np.float32).astype(np.float64)
    return weight, damped(gram_of(rows), 0.01), Grid(scales, width, largest)


problems = st.builds(
    problem,
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 2, 5, 70]),
    width=st.sampled_from([None, 1, 2, 32]),
    largest=st.sampled_from([1, 7, 127]),
    samples=st.sampled_from([1, 50]),
)


def plain_gptq(weight: Stack, gram: Stack, grid: Grid, kept: Mask | None = None) -> Stack:
    """GPTQ as the paper has it: the inverse, its upper Cholesky factor, one column after the other."""
    result = np.zeros_like(weight)
    steps = np.broadcast_to(grid.steps(weight.shape[2]), weight.shape)
    for group in range(len(weight)):
        order = np.argsort(np.diag(gram[group]), kind="stable")[::-1]
        rest = weight[group][:, order].copy()
        upper = np.linalg.cholesky(np.linalg.inv(gram[group][np.ix_(order, order)])).T
        for number, column in enumerate(order):
            step = steps[group, :, column]
            integers = np.clip(np.rint(rest[:, number] / step), -grid.largest, grid.largest)
            if kept is not None:
                integers = np.where(kept[group, :, column], integers, 0)
            result[group, :, column] = integers
            lost = (rest[:, number] - integers * step) / upper[number, number]
            rest[:, number:] -= lost[:, None] * upper[number, number:]
    return result


def same(one: Stack, other: Stack, target: Stack, gram: Stack, grid: Grid) -> bool:
    """Equal, or, where a half was rounded the other way, as good."""
    return np.array_equal(one, other) or np.allclose(
        error(grid.real(one) - target, gram), error(grid.real(other) - target, gram), rtol=0.2
    )


@given(problems)
@settings(max_examples=40, deadline=None)
def test_rounding_is_gptq(given_problem: tuple[Stack, Stack, Grid]) -> None:
    weight, gram, grid = given_problem
    ours = round_columns(weight, gram, grid)
    assert np.array_equal(ours, np.rint(ours))
    assert np.abs(ours).max() <= grid.largest
    assert same(ours, plain_gptq(weight, gram, grid), weight, gram, grid)


def test_rounding_is_gptq_exactly_over_several_blocks() -> None:
    weight, gram, grid = problem(3, 2, 5, 200, samples=500)
    # No half was met here: the integers themselves are the same.
    assert np.array_equal(round_columns(weight, gram, grid), plain_gptq(weight, gram, grid))


def test_zeros_that_are_kept_are_made_up_for_as_in_sparsegpt() -> None:
    weight, gram, grid = problem(3, 2, 5, 200, samples=500)
    kept = np.random.default_rng(0).random(weight.shape) < 0.6
    found = round_columns(weight, gram, grid, kept=kept)
    assert np.array_equal(found, plain_gptq(weight, gram, grid, kept))
    assert not found[~kept].any()
    assert found[kept].any()


@given(problems, st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_sweeps_leave_alone_what_has_to_stay(given_problem: tuple[Stack, Stack, Grid], share: float) -> None:
    weight, gram, grid = given_problem
    kept = np.random.default_rng(0).random(weight.shape) < share
    start = grid.round(weight) * kept
    end = coordinate_descent(start, weight, gram, grid, kept=kept, sweeps=200)
    assert not end[~kept].any()
    before, after = (error(grid.real(one) - weight, gram) for one in (start, end))
    assert (after <= before + 1e-12 * (before + error(weight, gram))).all()
    for column, change in itertools.product(range(min(5, weight.shape[2])), (-1, 1)):
        other = end.copy()
        other[:, :, column] = np.clip(other[:, :, column] + change * kept[:, :, column], -grid.largest, grid.largest)
        assert (error(grid.real(other) - weight, gram) >= after - 1e-12 * (before + error(weight, gram))).all()


@given(problems, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_what_stays_is_fitted_by_least_squares(given_problem: tuple[Stack, Stack, Grid], share: float) -> None:
    weight, gram, _ = given_problem
    kept = np.random.default_rng(1).random(weight.shape) < share
    start = weight * kept
    found = refit_kept(weight, gram, kept, start, steps=400)
    assert not found[~kept].any()
    best = np.zeros_like(weight)
    for group, row in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
        index = np.flatnonzero(kept[group, row])
        right = gram[group][index] @ weight[group, row]
        best[group, row, index] = np.linalg.solve(gram[group][np.ix_(index, index)], right)
    reached, least, before = (error(one - weight, gram) for one in (found, best, start))
    # Conjugate gradients end at 1e-20 of the squared residual, whose error is at most the condition times as large.
    assert (reached <= least + 1e-9 * (before + error(weight, gram))).all()


def test_a_few_steps_of_the_fit_are_better_than_none() -> None:
    weight, gram, _ = problem(0, 2, 4, 70)
    kept = np.random.default_rng(1).random(weight.shape) < 0.5
    errors = [error(refit_kept(weight, gram, kept, weight * kept, steps=n) - weight, gram) for n in (0, 1, 5, 25)]
    assert all((after <= before).all() for before, after in itertools.pairwise(errors))
    assert (errors[-1] < 0.8 * errors[0]).all()


def test_uncorrelated_inputs_are_rounded_to_the_nearest() -> None:
    weight, _, grid = problem(1, 2, 3, 70)
    gram = np.stack([np.diag(np.arange(1.0, 71)), np.eye(70)])
    nearest = grid.round(weight)
    assert np.array_equal(round_columns(weight, gram, grid), nearest)
    assert np.array_equal(coordinate_descent(nearest, weight, gram, grid), nearest)


def test_rounding_is_better_than_nearest_and_a_sweep_better_still() -> None:
    weight, gram, grid = problem(0, 1, 64, 70, largest=127)
    nearest, rounded = grid.round(weight), round_columns(weight, gram, grid)
    swept = coordinate_descent(rounded, weight, gram, grid)
    totals = [error(grid.real(one) - weight, gram).sum() for one in (nearest, rounded, swept)]
    assert totals[2] < totals[1] < 0.5 * totals[0]


@given(problems, st.booleans())
@settings(max_examples=40, deadline=None)
def test_sweeps_never_raise_the_error_and_end_where_no_single_change_helps(
    given_problem: tuple[Stack, Stack, Grid], nearest: bool
) -> None:
    weight, gram, grid = given_problem
    start = grid.round(weight) if nearest else np.zeros_like(weight)
    before = error(grid.real(start) - weight, gram)
    one = error(grid.real(coordinate_descent(start, weight, gram, grid, sweeps=1)) - weight, gram)
    end = coordinate_descent(start, weight, gram, grid, sweeps=200)
    least = error(grid.real(end) - weight, gram)
    # Float64 sums of K terms.
    room = 1e-12 * (before + error(weight, gram))
    assert (one <= before + room).all()
    assert (least <= one + room).all()
    for column, change in itertools.product(range(min(5, weight.shape[2])), (-1, 1)):
        other = end.copy()
        other[:, :, column] = np.clip(other[:, :, column] + change, -grid.largest, grid.largest)
        assert (error(grid.real(other) - weight, gram) >= least - room).all()


@given(problems, st.booleans())
@settings(max_examples=40, deadline=None)
def test_new_scales_never_raise_the_error_and_stay_above_the_floor(
    given_problem: tuple[Stack, Stack, Grid], floored: bool
) -> None:
    weight, gram, grid = given_problem
    integers = round_columns(weight, gram, grid)
    floor = (0.9 * grid.scales[:, :, :1]).astype(np.float32).astype(np.float64) if floored else None
    if floor is not None:
        grid = Grid(np.maximum(grid.scales, floor), grid.width, grid.largest)
    found = rescale(integers, weight, gram, grid, floor=floor)
    before, after = (error(one.real(integers) - weight, gram) for one in (grid, found))
    assert (after <= before + 1e-12 * (before + error(weight, gram))).all()
    assert (found.scales > 0).all()
    assert np.array_equal(found.scales, found.scales.astype(np.float32).astype(np.float64))
    if floor is not None:
        assert (found.scales >= floor).all()


def test_new_scales_of_rows_are_the_least_squares_ones() -> None:
    weight, gram, grid = problem(2, 2, 3, 5)
    integers = round_columns(weight, gram, grid)
    found = rescale(integers, weight, gram, grid)
    for group, row in itertools.product(range(2), range(3)):
        codes = integers[group, row]
        best = codes @ gram[group] @ weight[group, row] / (codes @ gram[group] @ codes)
        assert found.scales[group, row, 0] == pytest.approx(best, rel=2**-23)


def test_refit_is_ridge_regression() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 400, 5))
    x_hat = 0.8 * x + 0.3 * random.standard_normal(x.shape)
    weight = random.standard_normal((2, 3, 5))
    gram, drift = gram_of(x_hat), (x - x_hat).swapaxes(1, 2) @ x_hat / 400
    ridge = 0.3
    found = refit(weight, gram, drift, ridge)
    for group in range(2):
        extra = np.sqrt(400 * ridge * np.trace(gram[group]) / 5) * np.eye(5)
        left = np.vstack([x_hat[group], extra])
        right = np.vstack([x[group] @ weight[group].T, extra @ weight[group].T])
        expected = np.linalg.lstsq(left, right)[0].T
        assert np.allclose(found[group], expected, rtol=1e-9, atol=1e-12)
    assert np.array_equal(refit(weight, gram, np.zeros_like(drift), ridge), weight)
    # A strong ridge leaves the weights where they were.
    assert np.allclose(refit(weight, gram, drift, 1e9), weight, atol=1e-6)


def test_refit_makes_up_for_an_input_that_was_pruned() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 400, 4))
    x[:, :, 3] = x[:, :, 0] - 2 * x[:, :, 1]
    x_hat = x * np.array([1, 1, 1, 0])
    weight = random.standard_normal((1, 2, 4))
    found = refit(weight, gram_of(x_hat), (x - x_hat).swapaxes(1, 2) @ x_hat / 400, 1e-9)
    assert np.allclose(x_hat @ found.swapaxes(1, 2), x @ weight.swapaxes(1, 2), atol=1e-6)


@pytest.mark.parametrize("largest", [1, 7, 127])
def test_dead_and_constant_inputs_make_no_nan(largest: int) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 2, 6))
    weight[0, 1] = 0
    gram = np.stack([np.zeros((6, 6)), np.ones((6, 6)), np.diag([0, 0, 0, 0, 0, 1e-30])])
    made = damped(gram, 0.01)
    assert np.array_equal(made[0], np.eye(6))
    blank = Grid(np.ones((3, 2, 2)), 4, largest)
    grid = search_scales(weight, np.einsum("gkk->gk", gram), blank, lowest=0.3, tries=20)
    assert (grid.scales > 0).all()
    integers = coordinate_descent(round_columns(weight, made, grid), weight, made, grid)
    found = rescale(integers, weight, made, grid)
    assert np.isfinite(found.scales).all()
    assert np.isfinite(integers).all()
    assert not integers[0, 1].any()
    # All weights of dead inputs are alike: the nearest integers are kept.
    assert np.array_equal(integers[0], grid.round(weight)[0])
    assert np.isfinite(refit(weight, gram, gram, 0.01)).all()


@given(problems, st.floats(0.2, 0.9), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_scales_are_the_best_that_were_tried(
    given_problem: tuple[Stack, Stack, Grid], lowest: float, tries: int
) -> None:
    weight, gram, grid = given_problem
    importance = np.einsum("gkk->gk", gram)
    found = search_scales(weight, importance, grid, lowest=lowest, tries=tries)
    columns = weight.shape[2]

    def lost(one: Grid) -> Stack:
        squares = importance[:, None] * np.square(weight - one.real(one.round(weight)))
        starts = np.arange(0, columns, grid.width)
        return np.add.reduceat(squares, starts, axis=2)

    peaks = np.maximum.reduceat(np.abs(weight), np.arange(0, columns, grid.width), axis=2)
    best = np.min(
        [lost(Grid(peaks * f / grid.largest, grid.width, grid.largest)) for f in np.linspace(1, lowest, tries)], 0
    )
    # The search rounds in float32, where a half may fall to the other side.
    assert np.allclose(lost(found), best, rtol=1e-3, atol=1e-9)


def test_important_columns_decide_and_the_floor_holds() -> None:
    weight = np.array([[[1.0, 0.5, 0.5, 0.5]]])
    blank = Grid(np.ones((1, 1, 1)), 4, 1)
    outlier = search_scales(weight, np.array([[1e6, 1, 1, 1]]), blank, lowest=0.2, tries=9).scales.item()
    others = search_scales(weight, np.array([[1e-6, 1, 1, 1]]), blank, lowest=0.2, tries=9).scales.item()
    assert (outlier, others) == (1.0, 0.5)
    floor = np.full((1, 1, 1), 0.75)
    assert search_scales(weight, np.ones((1, 4)), blank, lowest=0.2, tries=9, floor=floor).scales.item() >= 0.75


def test_a_ridge_has_to_be_positive() -> None:
    with pytest.raises(ContractError, match="positive"):
        damped(np.eye(2)[None], 0.0)
