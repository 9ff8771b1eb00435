"""What is known of sizes, and what goes through reshapes although some are not known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.analysis.channel_flow import Flow, is_fixed, matched_sizes
from edgewise.analysis.channel_labels import blocks
from edgewise.analysis.coupling import couple
from edgewise.testing.graphs import GraphBuilder


def value(*sizes: int | str | None) -> ir.Value:
    return ir.Value(name="v", shape=ir.Shape(sizes))


@pytest.mark.parametrize(
    ("before", "behind", "expected"),
    [
        ((2, 3), (6,), [([0, 1], [0])]),
        (("n", 2, 3), ("n", 6), [([0], [0]), ([1, 2], [1])]),
        (("n", 2, 3), (None, 6), [([0], [0]), ([1, 2], [1])]),
        (("n", 2, 3), ("other", 6), [([0], [0]), ([1, 2], [1])]),
        (("n", "l", 8), ("n", "l", 4, 2), [([0], [0]), ([1], [1]), ([2], [2, 3])]),
        (("n", 4, "l"), ("n", "l", 4), [([0], [0]), ([1, 2], [1, 2])]),
        (("n", 8), (None,), None),
        (("n", "l", 8), ("n", None, 8), None),
        (("n", "l", 8), ("n", "m", 8), None),
        (("n", 8), ("n", 4), None),
        (("n", 8), (8,), None),
        ((2, 3), (5,), None),
        ((0, 3), (0, 3), None),
        (("a", "b", "c", "d", "e", 8), ("a", "b", "c", "d", "e", 8), None),
    ],
)
def test_axes_correspond_for_every_number_that_an_unknown_one_may_be(
    before: Any, behind: Any, expected: list[tuple[list[int], list[int]]] | None
) -> None:
    found = matched_sizes(value(*before), value(*behind))
    assert (None if found is None else blocks(*found)) == expected


def test_values_of_unknown_rank_do_not_match() -> None:
    assert matched_sizes(ir.Value(name="v"), value(1)) is None
    assert matched_sizes(value(1), None) is None


@given(st.lists(st.sampled_from([1, 2, 3, 4, "n", "l"]), max_size=5, unique_by=str), st.data())
def test_stand_ins_have_the_same_blocks_as_real_numbers(shape: list[int | str], data: st.DataObject) -> None:
    """Axes correspond with stand-ins only where they do with any numbers: runs with stand-ins are never finer."""
    behind = data.draw(st.permutations(shape))
    found = matched_sizes(value(*shape), value(*behind))
    assert found is not None
    real: dict[int | str, int] = {"n": data.draw(st.integers(1, 9)), "l": data.draw(st.integers(1, 9))}
    sizes = [[one if isinstance(one, int) else real[one] for one in axes] for axes in (shape, behind)]
    for ins, outs in blocks(*found):
        assert math.prod(sizes[0][axis] for axis in ins) == math.prod(sizes[1][axis] for axis in outs)


def test_constants_have_labels_along_every_axis_longer_than_one_and_inputs_have_none() -> None:
    b = GraphBuilder("net")
    weight = b.weight(2, 1, 3, name="w")
    b.output(b.node("Add", b.input("x", [2, 1, 3]), b.node("Mul", weight, b.constant(np.float32(2)))), "y")
    graph = b.build().graph
    flow = Flow()
    first, middle, last = flow.of(graph.initializers["w"])
    assert first is not None
    assert last is not None
    assert (first.tolist(), middle, last.tolist()) == ([0, 1], None, [2, 3, 4])
    assert flow.of(graph.initializers["w"])[0] is first
    assert flow.of(graph.inputs[0]) == (None, None, None)
    assert flow.of(None) == ()
    assert is_fixed(graph.initializers["w"])
    graph.inputs.append(graph.initializers["w"])
    assert not is_fixed(graph.initializers["w"])


def test_axes_of_different_sizes_that_meet_stay() -> None:
    flow = Flow()
    one, other = flow.joined.fresh(2), flow.joined.fresh(3)
    assert flow.meet(one, other, "they differ") is one
    assert [flow.joined.why_pinned(label) for label in range(5)] == ["they differ"] * 5


@pytest.mark.parametrize(
    ("result", "operands", "held"),
    [
        (3, [3, 3], False),
        (3, [3, 1], False),
        (None, [3, 1], True),
        (3, [3, None], True),
        (4, [3, 1], True),
    ],
)
def test_labels_that_meet_a_size_that_is_not_known_stay(
    result: int | None, operands: list[int | None], held: bool
) -> None:
    flow = Flow()
    given_dims = [((size,), (flow.joined.fresh(3) if size == 3 else None,)) for size in operands]
    (labels,) = flow.broadcast((result,), given_dims, "they meet")
    assert flow.joined.why_pinned(0) == ("they meet" if held else None)
    assert (labels is not None) == (result == 3)


@pytest.mark.parametrize("shape", [[0, -1], [-1, 96]])
def test_channels_are_followed_past_a_batch_that_is_not_known(shape: list[int]) -> None:
    b = GraphBuilder("net")
    x = b.input("x", ["n", 3, 4, 4])
    parts = [b.node("Conv", x, b.weight(count, 3, 1, 1), name=name) for name, count in (("a", 2), ("b", 4))]
    whole = b.node("Split", b.node("Concat", *parts, axis=1), b.constant(np.array([6])), axis=1)
    flat = b.node("Reshape", whole, b.constant(np.array(shape)))
    b.output(b.node("Gemm", flat, b.weight(96, 2, name="w")), "y")
    groups = couple(b.build()).groups
    assert [(group.makers, group.size) for group in groups] == [(("a",), 2), (("b",), 4)]
    (places,) = [one.units.tolist() for one in groups[0].axes if one.value == "w"]
    assert places == [0] * 16 + [1] * 16 + [-1] * 64


def test_heads_are_followed_past_a_batch_and_a_length_that_are_not_known() -> None:
    b = GraphBuilder("net")
    x = b.input("x", ["n", "l", 8])
    made = [b.node("MatMul", x, b.weight(8, 8), name=name) for name in "qkv"]
    shape = b.constant(np.array([0, 0, 4, 2]))
    q, k, v = (b.node("Transpose", b.node("Reshape", one, shape), perm=[0, 2, 1, 3]) for one in made)
    scores = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = b.node("Transpose", b.node("MatMul", scores, v), perm=[0, 2, 1, 3])
    b.output(b.node("MatMul", b.node("Reshape", mixed, b.constant(np.array([0, 0, 8]))), b.weight(8, 4)), "y")
    (group,) = couple(b.build()).groups
    assert (group.makers, group.size) == (("q", "k", "v"), 4)
