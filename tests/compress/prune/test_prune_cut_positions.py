"""Cutting what is split, sliced, gathered or held as a constant: positions are counted anew."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from tests.compress.prune.cut_models import agrees, axis, coupling, held, int64, made, node, parts, read

from edgewise.compress.prune.cut import Width, cut, widths
from edgewise.errors import ContractError, RecipeError
from edgewise.testing.graphs import GraphBuilder


def test_parts_of_a_split_become_uneven() -> None:
    b = parts("Split", outputs=2, axis=1)
    read(b, "op_out", 3, 2, name="y")
    read(b, "op_out1", 3, 2, name="z")
    ends = [axis("op_out", 1, [0, 1, 2]), axis("op_out1", 1, [3, 4, 5])]
    groups = coupling(6, *made(), *ends, axis("c_y", 0, [0, 1, 2]), axis("c_z", 0, [3, 4, 5]))
    after = cut(b.build(), {"g": [0, 1, 3]}, groups)
    assert held(after, "op", 1) == [1, 2]
    even = cut(b.build(), {"g": [0, 5]}, groups)
    assert len(node(even, "op").inputs) == 1
    with pytest.raises(RecipeError, match="Nothing would be left of axis 1 of `op_out1`"):
        cut(b.build(), {"g": [3, 4, 5]}, groups)


@pytest.mark.parametrize(
    ("start", "end", "step", "removed", "expected"),
    [
        (1, 5, 1, [0, 2], (0, 3, 1)),
        (-4, 2**40, 1, [5], (2, 5, 1)),
        (0, 6, 2, [1, 3], (0, 4, None)),  # 0 2 4 become 0 1 2 of 0 2 4 5, with another step
        (5, -(2**40), -1, [0], (4, -(2**63), -1)),
        (3, 6, 1, [3, 4], (3, 4, 1)),
    ],
)
def test_slices_count_what_stays(
    start: int, end: int, step: int, removed: list[int], expected: tuple[int, int, int | None]
) -> None:
    b = GraphBuilder("slice")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    numbers = [b.constant(np.array([number], np.int64)) for number in (start, end, 1, step)]
    b.node("Slice", "make_out", *numbers, name="op")
    taken = list(range(6))[start:end:step]
    read(b, "op_out", len(taken), 2)
    groups = coupling(6, *made(), axis("op_out", 1, taken), axis("c_y", 0, taken))
    model = b.build()
    after = cut(model, {"g": removed}, groups)
    left = [unit for unit in range(6) if unit not in removed]
    got = [
        left[k] for k in range(len(left))[held(after, "op", 1)[0] : held(after, "op", 2)[0] : held(after, "op", 4)[0]]
    ]
    if node(after, "op").inputs[0].producer().op_type != "Gather":  # type: ignore[union-attr]
        assert got == [unit for unit in taken if unit in left]
    assert held(after, "op", 1)[0] in {expected[0], 0}


def test_gathered_positions() -> None:
    b = parts("Gather", "indices", axis=-1)
    b.constant(int64(5, -6, 2, 3), name="indices")
    read(b, "op_out", 4, 2)
    groups = coupling(6, *made(), axis("op_out", 1, [5, 0, 2, 3]), axis("c_y", 0, [5, 0, 2, 3]))
    assert held(agrees(b.build(), {"g": [0, 1, 3]}, groups), "op", 1) == [2, 0]
    kept = coupling(6, *made(), axis("op_out", 1, [5, -1, 2, 3]), axis("c_y", 0, [5, -1, 2, 3]))
    with pytest.raises(ContractError, match="picks positions that are removed"):
        cut(b.build(), {"g": [0]}, kept)


def test_indices_that_are_not_constant() -> None:
    b = GraphBuilder("gather")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.node("Gather", "make_out", b.input("i", (2,), "int64"), axis=1, name="op")
    read(b, "op_out", 2, 2)
    with pytest.raises(ContractError, match="its indices are not constant"):
        cut(b.build(), {"g": [0]}, coupling(6, *made()))


def test_a_slice_whose_ends_are_not_known() -> None:
    b = GraphBuilder("slice")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.node("Slice", "make_out", b.constant(int64(0)), b.input("i", (1,), "int64"), b.constant(int64(1)), name="op")
    read(b, "op_out", 2, 2)
    with pytest.raises(ContractError, match="its input 2 is known only when the model runs"):
        cut(b.build(), {"g": [0]}, coupling(6, *made()))


def test_positions_that_no_step_reaches_are_gathered() -> None:
    b = parts("Slice", "starts", "ends", "axes", "steps")
    for name, number in (("starts", 0), ("ends", 6), ("axes", 1), ("steps", 2)):
        b.constant(np.array([number], np.int32), name=name)
    read(b, "op_out", 3, 2)
    groups = coupling(6, *made(), axis("op_out", 1, [0, 2, 4]), axis("c_y", 0, [0, 2, 4]))
    after = agrees(b.build(), {"g": [1]}, groups)  # 0 2 4 of 0 2 3 4 5
    assert [found.op_type for found in after.graph] == ["MatMul", "Gather", "Slice", "MatMul"]
    after = agrees(b.build(), {"g": [2]}, groups)  # 0 4 of 0 1 3 4 5
    assert [found.op_type for found in after.graph] == ["MatMul", "Slice", "MatMul"]
    assert held(after, "op", 4) == [3]


def test_constant_nodes_are_sliced_and_those_without_readers_go() -> None:
    b = GraphBuilder("nodes")
    made_of = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4))
    weight = b.node("Constant", value=made_of, name="a")
    b.node("MatMul", b.input("x", (2, 3)), weight, name="make")
    target = b.node("Constant", value_ints=[2, 2, 2], name="target")
    b.node("Reshape", "make_out", target, name="op")
    b.node("Transpose", "op_out", perm=[0, 2, 1], name="turn")
    read(b, "turn_out", 2, 2)
    rest = [axis("op_out", 1, range(2)), axis("turn_out", 2, range(2)), axis("c_y", 0, range(2))]
    pairs = [0, 0, 1, 1]
    groups = coupling(2, axis("a_out", 1, pairs), axis("make_out", 1, pairs), *rest)
    after = agrees(b.build(), {"g": [0]}, groups)
    assert [found.op_type for found in after.graph] == ["Constant", "MatMul", "Reshape", "Transpose", "MatMul"]
    assert held(after, "op", 1) == [2, 1, 2]
    assert widths(b.build(), groups, {"g": [0]}) == (Width("g", 2, 1, 3 * 2 + 2),)


def test_parts_of_an_old_split_are_an_attribute() -> None:
    b = GraphBuilder("old", opset=12)
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.nodes("Split", "make_out", outputs=2, axis=1, name="op")
    read(b, "op_out", 3, 2, name="y")
    read(b, "op_out1", 3, 2, name="z")
    ends = [axis("op_out", 1, [0, 1, 2]), axis("op_out1", 1, [3, 4, 5])]
    groups = coupling(6, *made(), *ends, axis("c_y", 0, [0, 1, 2]), axis("c_z", 0, [3, 4, 5]))
    after = agrees(b.build(), {"g": [0, 1, 3]}, groups)
    assert list(node(after, "op").attributes.get_ints("split") or ()) == [1, 2]
