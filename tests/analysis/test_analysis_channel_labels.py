from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgewise.analysis.channel_labels import Joined, along, blocks, flattened

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15)
sizes = st.lists(st.integers(1, 4), min_size=0, max_size=4)


@given(pairs)
def test_joined_labels_are_the_connected_components(given_pairs: list[tuple[int, int]]) -> None:
    joined = Joined()
    labels = joined.fresh(10)
    reached = np.eye(10, dtype=bool)
    for one, other in given_pairs:
        joined.join(labels[[one]], labels[[other]])
        reached[one, other] = reached[other, one] = True
    for _ in range(10):
        reached = reached @ reached
    roots = joined.roots(labels)
    assert np.array_equal(roots[:, None] == roots[None, :], reached)


@given(pairs, st.integers(0, 9), st.booleans())
def test_a_pin_holds_all_that_is_joined_before_or_after(
    given_pairs: list[tuple[int, int]], pinned: int, first: bool
) -> None:
    joined = Joined()
    labels = joined.fresh(10)
    if first:
        joined.pin(labels[[pinned]], "it is read")
    for one, other in given_pairs:
        joined.join(labels[[one]], labels[[other]])
    if not first:
        joined.pin(labels[[pinned]], "it is read")
    roots = joined.roots(labels)
    for root in roots:
        assert (joined.why_pinned(int(root)) == "it is read") == (root == roots[pinned])


def test_the_first_reason_holds() -> None:
    joined = Joined()
    labels = joined.fresh(2)
    joined.pin(labels, "one")
    joined.pin(labels, "two")
    assert joined.why_pinned(joined.root(int(labels[1]))) == "one"


@given(sizes, st.randoms(use_true_random=False))
def test_blocks_cover_both_shapes_with_equal_products(before: list[int], random: object) -> None:
    shuffled = list(before)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for behind in (before, shuffled, [math.prod(before)], [1, *before], [*before, 1]):
        found = blocks(before, behind)
        assert [axis for ins, _ in found for axis in ins] == list(range(len(before)))
        assert [axis for _, outs in found for axis in outs] == list(range(len(behind)))
        for ins, outs in found:
            assert math.prod(before[axis] for axis in ins) == math.prod(behind[axis] for axis in outs)


def test_blocks_are_the_finest() -> None:
    assert blocks([2, 6, 5], [2, 2, 3, 5]) == [([0], [0]), ([1], [1, 2]), ([2], [3])]
    assert blocks([4, 3, 2], [4, 6]) == [([0], [0]), ([1, 2], [1])]
    assert blocks([1, 8], [8]) == [([0], []), ([1], [0])]


@given(sizes.filter(bool), st.data())
def test_flattened_and_along_are_what_numpy_does(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    labels = np.arange(shape[axis]) + 10
    elements = flattened(labels, shape, axis)
    index = np.indices(shape)[axis] + 10
    assert np.array_equal(elements, index.reshape(-1))
    rows = along(elements, shape, axis)
    assert np.array_equal(rows, np.repeat(labels[:, None], math.prod(shape) // shape[axis], axis=1))
