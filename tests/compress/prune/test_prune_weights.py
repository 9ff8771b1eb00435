"""Pruning of single weights: where zeros may be, which ones they are, and what the others make of it."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.compress.prune.weights import (
    MOST_SPARSE,
    Blocks,
    KeptOfEvery,
    Pattern,
    Unstructured,
    allocate,
    magnitude_mask,
    prune_and_round,
    prune_columns,
    saliency,
    share_of_zeros,
    why_not,
)
from edgewise.compress.solve import Grid, Mask, Stack, damped, error
from edgewise.errors import ContractError, RecipeError

PATTERNS: dict[str, Pattern] = {
    "unstructured": Unstructured(),
    "2:4": KeptOfEvery(2, 4),
    "4:8": KeptOfEvery(4, 8),
    "1x4": Blocks(1, 4),
    "4x1": Blocks(4, 1),
}


def problem(seed: int, groups: int, outputs: int, columns: int, *, samples: int = 300) -> tuple[Stack, Stack]:
    """Return weights and a damped Gram matrix of correlated inputs, one of which is dead."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((groups, samples, columns)) @ random.standard_normal((groups, columns, columns))
    rows[:, :, 0] = 0
    return random.standard_normal((groups, outputs, columns)), damped(rows.swapaxes(1, 2) @ rows / samples, 0.01)


problems = st.builds(
    problem, st.integers(0, 99), st.integers(1, 3), st.integers(1, 6), st.sampled_from([8, 16, 72, 144])
)


def plain_sparsegpt(weight: Stack, gram: Stack, count: int) -> Stack:
    """One block of columns, as the paper has it: the inverse, its upper Cholesky factor, one column after the other."""
    result = np.zeros_like(weight)
    for group in range(len(weight)):
        order = np.argsort(np.diag(gram[group]), kind="stable")[::-1]
        rest = weight[group][:, order].copy()
        upper = np.linalg.cholesky(np.linalg.inv(gram[group][np.ix_(order, order)])).T
        scores = (rest / np.diag(upper)) ** 2
        gone = np.zeros(scores.size, np.bool_)
        gone[np.argsort(scores, axis=None)[:count]] = True
        for number, column in enumerate(order):
            kept = np.where(gone.reshape(scores.shape)[:, number], 0, rest[:, number])
            result[group, :, column] = kept
            rest[:, number:] -= ((rest[:, number] - kept) / upper[number, number])[:, None] * upper[number, number:]
    return result


def refitted(weight: Stack, gram: Stack, kept: Mask) -> Stack:
    """The least squares of what stays, one row after the other."""
    best = np.zeros_like(weight)
    for group, row in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
        index = np.flatnonzero(kept[group, row])
        right = gram[group][index] @ weight[group, row]
        best[group, row, index] = np.linalg.solve(gram[group][np.ix_(index, index)], right)
    return best


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
def test_one_block_of_columns_is_pruned_as_in_sparsegpt(sparsity: float) -> None:
    weight, gram = problem(1, 1, 5, 40)
    count = round(sparsity * weight.size)
    expected = plain_sparsegpt(weight, gram, count)
    found, kept = prune_columns(weight, gram, Unstructured(), sparsity)
    assert np.array_equal(kept, expected != 0)
    assert np.allclose(error(found - weight, gram), error(refitted(weight, gram, kept) - weight, gram), rtol=1e-6)
    assert (error(found - weight, gram) <= error(expected - weight, gram) * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", PATTERNS)
def test_compensation_and_choice_are_better_than_magnitudes(name: str) -> None:
    weight, gram = problem(0, 2, 24, 144)
    found, kept = prune_columns(weight, gram, PATTERNS[name], 0.5)
    plain = magnitude_mask(weight, PATTERNS[name], 0.5)
    assert abs(int(plain.sum()) - int(kept.sum())) == 0
    ours = error(found - weight, gram).sum()
    # Both are fitted again, so that this is the choice alone: of blocks of random numbers there is little to choose.
    room = 1.05 if isinstance(PATTERNS[name], Blocks) else 0.9
    assert ours < room * error(refitted(weight, gram, plain) - weight, gram).sum()
    assert ours < 0.5 * error(weight * plain - weight, gram).sum()


def check_pattern(kept: Mask, pattern: Pattern, kernel: int) -> None:
    groups, rows, columns = kept.shape
    # Places of the kernel first: then input channels are neighbours.
    channels = kept.reshape(groups, rows, columns // kernel, kernel).swapaxes(2, 3)
    match pattern:
        case KeptOfEvery():
            counts = channels.reshape(groups, rows, -1, pattern.width).sum(axis=3)
            assert (counts == pattern.kept).all()
        case Blocks():
            tiles = channels.reshape(groups, rows, -1, pattern.inputs)
            for start in range(0, rows, pattern.outputs):
                block = tiles[:, start : start + pattern.outputs]
                assert (block == block[:, :1, :, :1]).all()


@given(problems, st.sampled_from(sorted(PATTERNS)), st.floats(0, 0.99), st.sampled_from([1, 9]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_zeros_are_where_the_pattern_has_them(
    given_problem: tuple[Stack, Stack], name: str, sparsity: float, kernel: int, rounded: bool
) -> None:
    weight, gram = given_problem
    pattern, columns = PATTERNS[name], weight.shape[2]
    if columns % kernel or why_not(pattern, columns // kernel):
        kernel = 1
    grid = Grid(np.full((*weight.shape[:2], 1), 0.25), columns, 7)
    if rounded:
        found, kept = prune_and_round(weight, gram, grid, pattern, sparsity, kernel=kernel)
    else:
        found, kept = prune_columns(weight, gram, pattern, sparsity, kernel=kernel)
    assert np.isfinite(found).all()
    assert not found[~kept].any()
    check_pattern(kept, pattern, kernel)
    check_pattern(magnitude_mask(weight, pattern, sparsity, kernel=kernel), pattern, kernel)
    share = share_of_zeros(pattern, sparsity)
    if not isinstance(pattern, Blocks):
        assert abs(np.count_nonzero(~kept) - share * weight.size) <= 0.5
    if rounded:
        assert np.array_equal(found, np.rint(found))
        assert np.abs(found).max() <= 7


def test_rounding_along_with_pruning_is_better_than_rounding_afterwards() -> None:
    weight, gram = problem(4, 1, 32, 144)
    grid = Grid(np.full((1, 32, 1), 0.4), 144, 7)
    joint, kept = prune_and_round(weight, gram, grid, Unstructured(), 0.5)
    real, same = prune_columns(weight, gram, Unstructured(), 0.5)
    assert np.array_equal(kept, same)
    least, plain = (error(grid.real(one) - weight, gram).sum() for one in (joint, grid.round(real)))
    # No rounding is better than none.
    assert error(real - weight, gram).sum() < least < 0.95 * plain


def test_nothing_to_remove_changes_nothing() -> None:
    weight, gram = problem(0, 2, 3, 16)
    found, kept = prune_columns(weight, gram, Unstructured(), 0.0)
    assert kept.all()
    assert np.allclose(found, weight, rtol=1e-12)


def test_saliency_is_the_error_of_removing_one_weight() -> None:
    weight, gram = problem(2, 1, 2, 8)
    found = saliency(weight, gram)
    for row, column in itertools.product(range(2), range(8)):
        kept = np.ones_like(weight, np.bool_)
        kept[0, row, column] = False
        assert found[0, row, column] == pytest.approx(error(refitted(weight, gram, kept) - weight, gram)[0, row])


def test_dead_inputs_go_first() -> None:
    weight, gram = problem(0, 1, 8, 16)
    _, kept = prune_columns(weight, damped(gram * (np.arange(16) > 3)[:, None] * (np.arange(16) > 3), 1e-6), *HALF)
    assert not kept[:, :, :4].any()


HALF = (Unstructured(), 0.5)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6), st.floats(0, MOST_SPARSE), st.integers(0, 99), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_one_threshold_makes_the_share_that_was_asked_for(
    sizes: list[int], sparsity: float, seed: int, spread: bool
) -> None:
    random = np.random.default_rng(seed)
    scores = [random.exponential(10.0**number if spread else 1.0, size) for number, size in enumerate(sizes)]
    shares = allocate(scores, sparsity)
    most = sum(int(MOST_SPARSE * size) for size in sizes)
    removed = sum(share * size for share, size in zip(shares, sizes, strict=True))
    assert removed == pytest.approx(min(round(sparsity * sum(sizes)), most), abs=1e-6)
    gone = [np.sort(one)[: round(share * one.size)] for one, share in zip(scores, shares, strict=True)]
    for one, share, taken in zip(scores, shares, gone, strict=True):
        assert share <= MOST_SPARSE
        if share * one.size < int(MOST_SPARSE * one.size):
            # What stays here is not below what went elsewhere.
            least = np.sort(one)[taken.size]
            assert all(other.max(initial=0.0) <= least for other in gone)


def test_layers_that_matter_less_give_more() -> None:
    random = np.random.default_rng(0)
    shares = allocate([random.exponential(1.0, 1000), random.exponential(9.0, 1000)], 0.5)
    assert shares[0] > 0.7
    assert shares[1] < 0.3
    assert allocate([], 0.5) == ()


def test_wrong_requests_are_refused() -> None:
    weight, gram = problem(0, 1, 2, 6)
    for sparsity in (-0.1, 1.0, float("nan")):
        with pytest.raises(RecipeError, match="at least 0 and less than 1"):
            prune_columns(weight, gram, Unstructured(), sparsity)
    with pytest.raises(RecipeError, match=r"at most 0\.95"):
        allocate([np.ones(4)], 0.96)
    with pytest.raises(RecipeError, match=r"1 <= N < M\. Received 4:4"):
        KeptOfEvery(4, 4)
    with pytest.raises(RecipeError, match="Received 0x4"):
        Blocks(0, 4)
    assert why_not(KeptOfEvery(2, 4), 6) == "its 6 input channels are no multiple of 4"
    assert why_not(Blocks(1, 4), 6)
    assert not why_not(Blocks(4, 1), 6)
    with pytest.raises(ContractError, match="no multiple of 4"):
        prune_columns(weight, gram, KeptOfEvery(2, 4), 0.5)
    assert [pattern.words for pattern in PATTERNS.values()] == [
        "unstructured",
        "2:4",
        "4:8",
        "1x4 blocks",
        "4x1 blocks",
    ]


def test_masks_of_magnitudes_keep_the_largest() -> None:
    weight: npt.NDArray[np.float64] = np.array([[[1.0, -4.0, 3.0, 2.0, 0.5, 0.4, -0.3, 9.0]]])
    mask = magnitude_mask(weight, KeptOfEvery(2, 4), 0.5)
    assert mask.tolist() == [[[False, True, True, False, True, False, False, True]]]
    assert magnitude_mask(weight, Blocks(1, 4), 0.5).tolist() == [[[False] * 4 + [True] * 4]]
