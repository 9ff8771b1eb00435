"""Deleting units, group by group, with couplings written by hand: the structure that is left, and every refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edgewise.analysis.coupling import Axis, Coupling, Group
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut import Width, cut, widths
from edgewise.errors import ContractError, RecipeError
from edgewise.passes.contract import interface, signature
from edgewise.records.tensors import Array, Outputs
from edgewise.testing.graphs import GraphBuilder, random_feeds
from edgewise.testing.pass_kit import run_reference


def axis(value: str, number: int, units: Sequence[int]) -> Axis:
    return Axis(value, number, np.asarray(units, np.int64))


def coupling(size: int, *axes: Axis, name: str = "g") -> Coupling:
    return Coupling((Group(name, size, axes, (), ("maker",)),), ())


def run(model: ir.Model) -> Outputs:
    """Return the outputs of ONNX Runtime, its optimizations off: the reference evaluator has no negative pads."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(random_feeds(model))), strict=True))


def shape(model: ir.Model, name: str) -> tuple[int, ...]:
    value = ir.convenience.create_value_mapping(model.graph)[name]
    assert value.shape is not None
    return tuple(size for size in value.shape if isinstance(size, int))


def node(model: ir.Model, name: str) -> ir.Node:
    return next(found for found in model.graph if found.name == name)


def held(model: ir.Model, name: str, slot: int) -> list[int]:
    array = constant(node(model, name).inputs[slot])
    assert array is not None
    return [int(item) for item in array.reshape(-1)]


def two_layers() -> tuple[ir.Model, Coupling]:
    b = GraphBuilder("two")
    value = b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 4, name="a"), name="make")
    value = b.node("Relu", b.node("Add", value, b.weight(4, fan_in=1, name="bias"), name="add"), name="relu")
    b.output(b.node("MatMul", value, b.weight(4, 5, name="c"), name="read"), "y", (2, 5))
    units = range(4)
    names = ("make_out", "add_out", "relu_out")
    axes = [axis(name, 1, units) for name in names]
    return b.build(), coupling(4, *axes, axis("a", 1, units), axis("bias", 0, units), axis("c", 0, units))


def test_what_is_left_computes_what_the_model_computes_with_zeros() -> None:
    model, groups = two_layers()
    before = signature(model)
    after = cut(model, {"g": [2, 0]}, groups)
    assert signature(model) == before
    assert interface(after) == interface(model)
    assert shape(after, "relu_out") == (2, 2)
    assert shape(after, "a") == (3, 2)
    array = constant(model.graph.initializers["c"])
    left = constant(after.graph.initializers["c"])
    assert array is not None
    assert left is not None
    np.testing.assert_array_equal(left, array[[1, 3]])
    zeroed = model.clone()
    zeroed.graph.initializers["c"].const_value = ir.tensor(array * np.array([[0], [1], [0], [1]], np.float32))
    np.testing.assert_allclose(run(after)["y"], run(zeroed)["y"], rtol=1e-6, atol=1e-6)


def test_what_nothing_goes_of_is_shared() -> None:
    model, groups = two_layers()
    after = cut(model, {"g": []}, groups)
    assert signature(after) == signature(model)
    assert widths(model, groups, {"g": []}) == ()


def test_widths_say_what_goes() -> None:
    model, groups = two_layers()
    assert widths(model, groups, {"g": {1}}) == (Width("g", 4, 1, 3 + 1 + 5),)


@pytest.mark.parametrize(
    ("removed", "error", "words"),
    [
        ({"h": [0]}, ContractError, "`h`"),
        ({"g": [4]}, ContractError, "from 0 to 3"),
        ({"g": [-1]}, ContractError, "from 0 to 3"),
        ({"g": [0, 1, 2, 3]}, RecipeError, "All 4 of `g`"),
    ],
)
def test_removals_that_cannot_be(
    removed: dict[str, list[int]], error: type[ContractError] | type[RecipeError], words: str
) -> None:
    model, groups = two_layers()
    with pytest.raises(error, match=words):
        cut(model, removed, groups)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (axis("nothing", 0, range(4)), "no value `nothing`"),
        (axis("x", 1, [0, 1, 2]), "`x` would become shorter"),
        (axis("y", 1, [0, 1, 2, 3, -1]), "`y` would become shorter"),
        (axis("c", 0, [0, 1, 2]), "Axis 0 of `c` has 3 positions"),
        (axis("c", 2, range(4)), "Axis 2 of `c` has 4 positions"),
    ],
)
def test_couplings_of_another_model(wrong: Axis, words: str) -> None:
    model, groups = two_layers()
    with pytest.raises(ContractError, match=words):
        cut(model, {"g": [0]}, coupling(4, wrong, *groups.groups[0].axes[:4]))


def test_a_coupling_that_leaves_something_out() -> None:
    model, groups = two_layers()
    without = [one for one in groups.groups[0].axes if one.value != "c"]
    with pytest.raises(ContractError, match="has to be consistent"):
        cut(model, {"g": [0]}, coupling(4, *without))


def test_groups_that_share_an_axis() -> None:
    """Heads and the positions within a head: what stays is where both stay."""
    b = GraphBuilder("heads")
    value = b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.output(b.node("MatMul", value, b.weight(6, 5, name="c"), name="read"), "y", (2, 5))
    names = (("a", 1), ("make_out", 1), ("c", 0))
    rows = Group("rows", 3, tuple(axis(name, k, [0, 0, 1, 1, 2, 2]) for name, k in names), (), ("make",))
    columns = Group("columns", 2, tuple(axis(name, k, [0, 1] * 3) for name, k in names), (), ("make",))
    after = cut(b.build(), {"rows": [1], "columns": [0]}, Coupling((rows, columns), ()))
    assert shape(after, "make_out") == (2, 2)
    contradicting = Group("columns", 2, (axis("make_out", 1, [0, 1]),), (), ("make",))
    with pytest.raises(ContractError, match="agree on the size"):
        cut(b.build(), {"rows": [1], "columns": [0]}, Coupling((rows, contradicting), ()))


def test_depthwise_convolutions_have_as_many_groups_as_channels() -> None:
    b = GraphBuilder("deep")
    value = b.node("Conv", b.input("x", (1, 2, 5, 5)), b.weight(4, 2, 1, 1, name="a"), name="make")
    value = b.node("Conv", value, b.weight(8, 1, 3, 3, name="d"), name="deep", group=4)
    b.output(b.node("Conv", value, b.weight(3, 8, 1, 1, name="c"), name="read"), "y", (1, 3, 3, 3))
    wide = [0, 0, 1, 1, 2, 2, 3, 3]
    axes = [axis("a", 0, range(4)), axis("make_out", 1, range(4)), axis("d", 0, wide)]
    groups = coupling(4, *axes, axis("deep_out", 1, wide), axis("c", 1, wide))
    after = cut(b.build(), {"g": [1]}, groups)
    assert node(after, "deep").attributes.get_int("group") == 3
    assert shape(after, "deep_out") == (1, 6, 3, 3)


def parts(operator: str, *constants: str, outputs: int = 1, **attributes: Any) -> GraphBuilder:
    """Return x [2, 3] @ a [3, 6] through `operator`, whose outputs are not yet read."""
    b = GraphBuilder("parts")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.nodes(operator, "make_out", *constants, outputs=outputs, name="op", **attributes)
    return b


def read(b: GraphBuilder, value: str, *size: int, name: str = "y") -> None:
    b.output(b.node("MatMul", value, b.weight(*size, name=f"c_{name}"), name=f"read_{name}"), name)


MADE = (("a", 1), ("make_out", 1))


def made(units: Sequence[int] = range(6)) -> list[Axis]:
    return [axis(name, k, units) for name, k in MADE]


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


def agrees(model: ir.Model, removed: dict[str, list[int]], groups: Coupling) -> ir.Model:
    """Cut, and compare with the model in which the rows of the weights `c_` are zero."""
    after = cut(model, removed, groups)
    assert interface(after) == interface(model)
    reference = model.clone()
    for group in groups.groups:
        for one in group.axes:
            if one.value.startswith("c_"):
                value = reference.graph.initializers[one.value]
                array = constant(value)
                assert array is not None
                rows = [position for position, unit in enumerate(one.units) if unit in removed.get(group.name, [])]
                array = np.array(array)
                np.moveaxis(array, one.axis, 0)[rows] = 0
                value.const_value = ir.tensor(array)
    expected, got = run(reference), run(after)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)
    return after


def int64(*numbers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


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


def test_sizes_of_resize() -> None:
    for attributes, sizes in (({}, [1, 4, 6, 6]), ({"axes": [-3, 2, 3]}, [4, 6, 6])):
        b = GraphBuilder("resize", opset=18)
        b.node("Conv", b.input("x", (1, 2, 3, 3)), b.weight(4, 2, 1, 1, name="a"), name="make")
        b.node("Resize", "make_out", "", "", b.constant(int64(*sizes)), name="op", **attributes)  # type: ignore[arg-type]
        read_conv(b, "op_out", 4, 6)
        groups = coupling(4, *(axis(n, k, range(4)) for n, k in (("a", 0), ("make_out", 1), ("op_out", 1), ("c_y", 1))))
        agrees(b.build(), {"g": [3]}, groups)


def read_conv(b: GraphBuilder, value: str, channels: int, size: int) -> None:
    b.output(b.node("Conv", value, b.weight(2, channels, 1, 1, name="c_y"), name="read_y"), "y", (1, 2, size, size))


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_hidden_units(operator: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    b = GraphBuilder("hidden")
    weights = [b.weight(1, 5 * gates, 3, name="w"), b.weight(1, 5 * gates, 5, name="c_r")]
    bias = b.weight(1, 10 * gates, fan_in=1, name="bias")
    b.nodes(operator, b.input("x", (4, 2, 3)), *weights, bias, outputs=2, name="op", hidden_size=5)
    b.node("Squeeze", "op_out1", b.constant(int64(0)), name="last")
    read(b, "last_out", 5, 2)
    blocks = list(range(5)) * gates
    axes = [axis("w", 1, blocks), axis("c_r", 1, blocks), axis("bias", 1, blocks * 2), axis("op_out", 3, range(5))]
    more = [axis("op_out1", 2, range(5)), axis("last_out", 1, range(5)), axis("c_y", 0, range(5))]
    groups = coupling(5, axis("c_r", 2, range(5)), *axes, *more)
    model = b.build()
    after = cut(model, {"g": [0, 3]}, groups)
    assert node(after, "op").attributes.get_int("hidden_size") == 3
    reference = model.clone()
    for name, place in (("c_r", 2), ("c_y", 0)):
        array = np.array(constant(model.graph.initializers[name]))
        np.moveaxis(array, place, 0)[[0, 3]] = 0
        reference.graph.initializers[name].const_value = ir.tensor(array)
    np.testing.assert_allclose(run(after)["y"], run(reference)["y"], rtol=1e-5, atol=1e-5)


def test_groups_that_are_normalized_together_go_together() -> None:
    b = GraphBuilder("norm", opset=21)
    b.node("Conv", b.input("x", (1, 2, 3, 3)), b.weight(6, 2, 1, 1, name="a"), name="make")
    b.node("GroupNormalization", "make_out", b.weight(6, fan_in=1, name="s"), b.weight(6, fan_in=1, name="t"),
           name="op", num_groups=3)  # fmt: skip
    read_conv(b, "op_out", 6, 3)
    # Not `build`: ONNX infers no shape through GroupNormalization.
    model = ir.from_proto(helper.make_model(b.graph(), opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    names = (("a", 0), ("make_out", 1), ("s", 0), ("t", 0), ("op_out", 1), ("c_y", 1))
    together = coupling(3, *(axis(n, k, [0, 0, 1, 1, 2, 2]) for n, k in names))
    after = agrees(model, {"g": [1]}, together)
    assert node(after, "op").attributes.get_int("num_groups") == 2
    with pytest.raises(ContractError, match="of which some go and some stay"):
        cut(model, {"g": [1]}, coupling(6, *(axis(n, k, range(6)) for n, k in names)))


def test_depthwise_transposed_convolutions() -> None:
    b = GraphBuilder("up")
    b.node("Conv", b.input("x", (1, 2, 3, 3)), b.weight(4, 2, 1, 1, name="a"), name="make")
    b.node("ConvTranspose", "make_out", b.weight(4, 2, 2, 2, name="d"), name="op", group=4, strides=[2, 2])
    read_conv(b, "op_out", 8, 6)
    wide = [0, 0, 1, 1, 2, 2, 3, 3]
    rest = [axis("d", 0, range(4)), axis("op_out", 1, wide), axis("c_y", 1, wide)]
    groups = coupling(4, axis("a", 0, range(4)), axis("make_out", 1, range(4)), *rest)
    after = agrees(b.build(), {"g": [1, 2]}, groups)
    assert node(after, "op").attributes.get_int("group") == 2


def test_groups_that_would_be_uneven() -> None:
    b = GraphBuilder("uneven")
    b.node("Conv", b.input("x", (1, 2, 3, 3)), b.weight(4, 2, 1, 1, name="a"), name="make")
    b.node("Conv", "make_out", b.weight(4, 2, 1, 1, name="d"), name="op", group=2)
    read_conv(b, "op_out", 4, 3)
    groups = coupling(4, axis("a", 0, range(4)), axis("make_out", 1, range(4)))
    with pytest.raises(ContractError, match="3 channels cannot be shared by groups of 2"):
        cut(b.build(), {"g": [1]}, groups)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_scale_of_attention_is_that_of_the_whole_width(heads: int) -> None:
    b = GraphBuilder("attention", opset=23)
    x = b.input("x", (1, 3, 4))
    names = ("q", "k")
    for name in (*names, "v"):
        b.node("MatMul", x, b.weight(4, 4, name=name), name=f"make_{name}")
    b.node("Attention", *(f"make_{name}_out" for name in (*names, "v")),
           name="op", q_num_heads=heads, kv_num_heads=heads)  # fmt: skip
    b.output(b.node("MatMul", "op_out", b.weight(4, 2, name="c_y"), name="read_y"), "y", (1, 3, 2))
    model = b.build()
    depth = 4 // heads
    within = [k % depth for k in range(4)]
    groups = coupling(
        depth, *(axis(name, 1, within) for name in names), *(axis(f"make_{n}_out", 2, within) for n in names)
    )
    after = cut(model, {"g": [1]}, groups)
    reference = model.clone()
    for name in names:
        array = np.array(constant(model.graph.initializers[name]))
        array[:, [k for k in range(4) if within[k] == 1]] = 0
        reference.graph.initializers[name].const_value = ir.tensor(array)
    np.testing.assert_allclose(reference_of(after), reference_of(reference), rtol=1e-5, atol=1e-6)
    assert node(after, "op").attributes.get_int("q_num_heads") == heads
    if heads == 2:
        of_heads = [0, 0, 1, 1]
        axes = [axis(n, 1, of_heads) for n in "qkv"] + [axis(f"make_{n}_out", 2, of_heads) for n in "qkv"]
        whole = coupling(2, *axes, axis("op_out", 2, of_heads), axis("c_y", 0, of_heads))
        after = cut(model, {"g": [0]}, whole)
        attributes = node(after, "op").attributes
        assert [attributes.get_int(name) for name in ("q_num_heads", "kv_num_heads")] == [1, 1]
        array = np.array(constant(model.graph.initializers["c_y"]))
        array[:2] = 0
        reference = model.clone()
        reference.graph.initializers["c_y"].const_value = ir.tensor(array)
        np.testing.assert_allclose(reference_of(after), reference_of(reference), rtol=1e-5, atol=1e-6)


def reference_of(model: ir.Model) -> Array:
    return run_reference(model)["y"]


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
