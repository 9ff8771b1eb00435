"""Cutting what is reshaped, padded or made in sizes that the graph says, computes or is fed."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compress.prune.cut_models import MADE, agrees, axis, coupling, held, int64, made, read, read_conv

from edgewise.compress.prune.cut import cut
from edgewise.errors import ContractError
from edgewise.testing.graphs import GraphBuilder


def test_reshape_targets() -> None:
    for target in ([2, 3, 2], [0, 3, 2], [-1, 3, 2], [0, -1, 2], [2, 3, -1]):
        b = GraphBuilder("reshape")
        b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
        b.node("Reshape", "make_out", b.constant(int64(*target)), name="op")
        b.node("Transpose", "op_out", perm=[0, 2, 1], name="turn")
        read(b, "turn_out", 3, 2)
        heads = [0, 0, 1, 1, 2, 2]
        groups = coupling(
            3, *made(heads), axis("op_out", 1, range(3)), axis("turn_out", 2, range(3)), axis("c_y", 0, range(3))
        )
        after = agrees(b.build(), {"g": [1]}, groups)
        assert held(after, "op", 1) == [size if size < 1 else [2, 2, 2][k] for k, size in enumerate(target)]


def test_a_zero_that_copies_another_axis_is_written_out() -> None:
    b = GraphBuilder("zero")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.node("Reshape", "make_out", b.constant(int64(2, 3, 2)), name="split")
    b.node("Transpose", "split_out", perm=[1, 0, 2], name="turn")
    b.node("Reshape", "turn_out", b.constant(int64(3, 4)), name="op")
    b.node("Transpose", "op_out", perm=[1, 0], name="back")
    read(b, "back_out", 3, 2)
    heads = [0, 0, 1, 1, 2, 2]
    rest = [("split_out", 1), ("turn_out", 0), ("op_out", 0), ("back_out", 1), ("c_y", 0)]
    groups = coupling(3, *made(heads), *(axis(name, k, range(3)) for name, k in rest))
    after = agrees(b.build(), {"g": [0, 2]}, groups)
    assert held(after, "op", 1) == [1, 4]


def computed(b: GraphBuilder, *parts: str | int) -> str:
    """Return a shape: sizes of `make_out` by their axis in words, and numbers."""
    names = []
    b.node("Shape", "make_out", name="sizes")
    for part in parts:
        if isinstance(part, int):
            names.append(b.constant(int64(part)))
        else:
            names.append(b.node("Gather", "sizes_out", b.constant(int64(int(part)))))
    return b.node("Concat", *names, axis=0, name="target")


@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("parts", [("0", 3, 2), ("0", 3, -1), ("0", "1", 1), (-1, "1", 1)])
def test_targets_that_the_graph_computes(batch: int | str, parts: tuple[str | int, ...]) -> None:
    b = GraphBuilder("computed")
    b.node("MatMul", b.input("x", (batch, 3)), b.weight(3, 6, name="a"), name="make")
    b.node("Reshape", "make_out", computed(b, *parts), name="op")
    b.node("Transpose", "op_out", perm=[0, 2, 1], name="turn")
    size, units = (3, [0, 0, 1, 1, 2, 2]) if parts[1] == 3 else (6, list(range(6)))
    read(b, "turn_out", size, 2)
    rest = [("op_out", 1), ("turn_out", 2), ("c_y", 0)]
    agrees(b.build(), {"g": [1]}, coupling(size, *made(units), *(axis(name, k, range(size)) for name, k in rest)))


@pytest.mark.parametrize("batch", [2, "N"])
def test_numbers_computed_from_a_width_stay(batch: int | str) -> None:
    """The scale of attention is one by the root of the width, and must not change with it."""
    b = GraphBuilder("scale")
    b.node("MatMul", b.input("x", (batch, 3)), b.weight(3, 6, name="a"), name="make")
    b.node("Shape", "make_out", name="sizes")
    width = b.node("Gather", "sizes_out", b.constant(np.int64(1)))
    root = b.node("Sqrt", b.node("Cast", width, to=1))
    b.node("Div", "make_out", root, name="op")
    read(b, "op_out", 6, 2)
    agrees(b.build(), {"g": [1, 2]}, coupling(6, *made(), axis("op_out", 1, range(6)), axis("c_y", 0, range(6))))


def test_arithmetic_on_sizes_is_followed() -> None:
    """Half of a width is half of what is left, where the halves are even; elsewhere it is written out."""
    b = GraphBuilder("halves")
    b.node("MatMul", b.input("x", ("N", 3)), b.weight(3, 6, name="a"), name="make")
    b.node("Shape", "make_out", name="sizes")
    width = b.node("Gather", "sizes_out", b.constant(int64(1)))
    half = b.node("Div", width, b.constant(int64(2)))
    b.node("Slice", "make_out", b.constant(int64(0)), half, b.constant(int64(1)), name="op")
    b.node("Slice", "make_out", half, width, b.constant(int64(1)), name="op2")
    b.node("Mul", "op_out", "op2_out", name="gate")
    b.node("Tile", "gate_out", b.node("Concat", b.constant(int64(1)), b.constant(int64(2)), axis=0), name="tile")
    read(b, "tile_out", 6, 2)
    pairs = [0, 1, 2, 0, 1, 2]
    rest = [(name, 1, range(3)) for name in ("op_out", "op2_out", "gate_out")]
    groups = coupling(3, *made(pairs), *(axis(*one) for one in rest), axis("tile_out", 1, pairs), axis("c_y", 0, pairs))
    agrees(b.build(), {"g": [1]}, groups)


def test_expanded_and_made_shapes() -> None:
    b = GraphBuilder("expand")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 4, name="a"), name="make")
    b.node("Expand", b.input("s", (2, 1)), b.constant(int64(4)), name="expand")
    b.node("ConstantOfShape", b.constant(int64(2, 4)), name="zeros")
    b.node("Tile", "s", b.constant(int64(1, 4)), name="tile")
    b.node("Sum", "make_out", "expand_out", "zeros_out", "tile_out", name="op")
    read(b, "op_out", 4, 2)
    names = ["make_out", "expand_out", "zeros_out", "tile_out", "op_out"]
    groups = coupling(4, axis("c_y", 0, range(4)), axis("a", 1, range(4)), *(axis(n, 1, range(4)) for n in names))
    after = agrees(b.build(), {"g": [0, 1]}, groups)
    assert held(after, "expand", 1) == [2]
    assert held(after, "zeros", 0) == [2, 2]
    assert held(after, "tile", 1) == [1, 2]
    agrees(b.build(), {"g": [0, 1, 3]}, groups)


@pytest.mark.parametrize("pads", [(1, 2), (-1, 1), (0, -2)])
def test_pads_along_the_axis(pads: tuple[int, int]) -> None:
    b = GraphBuilder("pad")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.node("Pad", "make_out", b.constant(int64(0, pads[0], 0, pads[1])), name="op")
    size = 6 + sum(pads)
    b.node("Add", "op_out", b.weight(size, fan_in=1, name="bias"), name="add")
    read(b, "add_out", size, 2)
    begin, end = pads
    left = list(range(max(0, -begin), 6 - max(0, -end)))
    units = [-1] * max(0, begin) + left + [-1] * max(0, end)
    extra = [6 + k if unit < 0 else unit for k, unit in enumerate(units)]
    count = max(6, *extra) + 1
    rest = [axis(name, k, extra) for name, k in (("op_out", 1), ("add_out", 1), ("bias", 0), ("c_y", 0))]
    groups = coupling(count, *made(), *rest)
    for removed in ([1], [0, 5], [extra[0], extra[-1]], [2, 3, extra[-1]]):
        agrees(b.build(), {"g": removed}, groups)


def test_squeeze_without_axes_removes_what_it_removed_before() -> None:
    b = GraphBuilder("squeeze")
    b.node("Conv", b.input("x", (2, 3, 4, 4)), b.weight(5, 3, 4, 4, name="a"), name="make")
    b.node("Squeeze", "make_out", name="op")
    read(b, "op_out", 5, 2)
    groups = coupling(5, *(axis(name, k, range(5)) for name, k in [*MADE[1:], ("a", 0), ("op_out", 1), ("c_y", 0)]))
    assert held(agrees(b.build(), {"g": [0, 1, 2, 3]}, groups), "op", 1) == [2, 3]


def test_sizes_of_resize() -> None:
    for attributes, sizes in (({}, [1, 4, 6, 6]), ({"axes": [-3, 2, 3]}, [4, 6, 6])):
        b = GraphBuilder("resize", opset=18)
        b.node("Conv", b.input("x", (1, 2, 3, 3)), b.weight(4, 2, 1, 1, name="a"), name="make")
        b.node("Resize", "make_out", "", "", b.constant(int64(*sizes)), name="op", **attributes)  # type: ignore[arg-type]
        read_conv(b, "op_out", 4, 6)
        groups = coupling(4, *(axis(n, k, range(4)) for n, k in (("a", 0), ("make_out", 1), ("op_out", 1), ("c_y", 1))))
        agrees(b.build(), {"g": [3]}, groups)


def test_what_an_output_says_of_shapes_stays() -> None:
    b = GraphBuilder("said")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 4, name="a"), name="make")
    b.output(b.node("Shape", "make_out", name="said"), "s", (2,), "int64")
    read(b, "make_out", 4, 2)
    groups = coupling(4, axis("a", 1, range(4)), axis("make_out", 1, range(4)), axis("c_y", 0, range(4)))
    with pytest.raises(ContractError, match="`s` would change"):
        cut(b.build(), {"g": [0]}, groups)


def test_sizes_that_cannot_be_traced() -> None:
    b = GraphBuilder("untraced")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 4, name="a"), name="make")
    total = b.node("ReduceSum", b.node("Shape", "make_out"), keepdims=1)
    b.node("Slice", b.input("z", (9,)), b.constant(int64(0)), total, name="op")
    product = b.node("Mul", b.node("Shape", "make_out"), b.input("i", (2,), "int64"))
    b.output(b.node("ConstantOfShape", product, name="fill"), "s", ("P", "Q"))
    b.output("op_out", "t")
    read(b, "make_out", 4, 2)
    groups = coupling(4, axis("a", 1, range(4)), axis("make_out", 1, range(4)), axis("c_y", 0, range(4)))
    with pytest.raises(ContractError, match=r"`fill` .* depends on sizes in a way that cannot be traced"):
        cut(b.build(), {"g": [0]}, groups)


def test_a_target_that_only_the_input_knows() -> None:
    b = GraphBuilder("fed")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 4, name="a"), name="make")
    b.node("Reshape", "make_out", b.input("i", (2,), "int64"), name="op")
    read(b, "op_out", 4, 2)
    axes = [axis(*one) for one in (("a", 1, range(4)), ("make_out", 1, range(4)), ("c_y", 0, range(4)))]
    with pytest.raises(ContractError, match="its target is known only when the model runs"):
        cut(b.build(), {"g": [0]}, coupling(4, *axes, axis("op_out", 1, range(4))))
