"""What operators without weights of their own do to units: each rule on a small graph, and each reason to hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from edgewise.analysis.channel_rules import RULES
from edgewise.analysis.coupling import Coupling, couple
from edgewise.testing.graphs import GraphBuilder, quantized_conv, quantized_gemm

Step = Callable[[GraphBuilder, str], str]


def integers(b: GraphBuilder, *numbers: int) -> str:
    return b.constant(np.array(numbers, np.int64))


def ones(b: GraphBuilder, *shape: int) -> str:
    return b.constant(np.ones(shape, np.float32))


def behind_first(step: Step, *, opset: int = 17) -> tuple[Coupling, int]:
    """Return the coupling of a convolution `first` of 6 channels on 4 x 4 places, a step, and a last product.

    The product sums over axis 1 of what the step makes; the number is how long that is.
    """
    b = GraphBuilder("net", opset=opset)
    value = b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(6, 3, 1, 1), name="first")
    value = step(b, value)
    b.output(value, "probe")
    sizes = b.build().graph.outputs[0].shape
    assert sizes is not None
    assert isinstance(sizes[1], int)
    b = GraphBuilder("net", opset=opset)
    value = b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(6, 3, 1, 1), name="first")
    value = step(b, value)
    order = [*(axis for axis in range(len(sizes)) if axis != 1), 1]
    value = b.node("Transpose", value, perm=order, name="turned")
    b.output(b.node("MatMul", value, b.weight(sizes[1], 2, name="last.w"), name="last"), "y")
    return couple(b.build()), sizes[1]


def units(coupling: Coupling, value: str, axis: int) -> list[int]:
    (group,) = coupling.groups
    (found,) = [one.units.tolist() for one in group.axes if (one.value, one.axis) == (value, axis)]
    return list(found)


def reason(coupling: Coupling, node: str = "first") -> str:
    return next(pinned.reason for pinned in coupling.pinned if pinned.node == node)


KEPT: dict[str, Step] = {
    "one operand": lambda b, x: b.node("HardSwish", x),
    "a number": lambda b, x: b.node("Add", x, b.constant(np.float32(2))),
    "a number of rank 4": lambda b, x: b.node("Mul", ones(b, 1, 1, 1, 1), x),
    "a number for each": lambda b, x: b.node("Mul", x, ones(b, 6, 1, 1)),
    "a number for each, and batch": lambda b, x: b.node("Sub", ones(b, 1, 6, 1, 1), x),
    "a number for each place": lambda b, x: b.node("Mul", x, ones(b, 4, 4)),
    "all numbers": lambda b, x: b.node("Add", x, ones(b, 1, 6, 4, 4)),
    "a mask": lambda b, x: b.node("Where", b.constant(np.ones((6, 1, 1), bool)), x, b.constant(np.float32(0))),
    "bounds": lambda b, x: b.node("Clip", x, b.constant(np.float32(0)), b.constant(np.float32(6))),
    "slopes": lambda b, x: b.node("PRelu", x, ones(b, 6, 1, 1)),
    "itself": lambda b, x: b.node("Mul", x, b.node("Sigmoid", x)),
    "its mean over places": lambda b, x: b.node("Mul", x, b.node("ReduceMean", x, axes=[2, 3])),
    "a half": lambda b, x: b.node("Cast", b.node("Cast", x, to=10), to=1),
    "like": lambda b, x: b.node("CastLike", x, b.constant(np.float32(0))),
    "dropout": lambda b, x: b.node("Dropout", x, b.constant(np.float32(0.5))),
    "maximum": lambda b, x: b.node("Max", x, b.node("Relu", x), b.constant(np.float32(0))),
    "batch norm": lambda b, x: b.batch_norm(x, 6),
    "instance norm": lambda b, x: b.node("InstanceNormalization", x, ones(b, 6), ones(b, 6)),
    "layer norm over places": lambda b, x: b.node("LayerNormalization", x, ones(b, 4, 4), axis=2),
    "softmax over places": lambda b, x: b.node("Softmax", x, axis=-1),
    "largest place": lambda b, x: b.node("Cast", b.node("ArgMax", x, axis=3), to=1),
    "largest place, dropped": lambda b, x: b.node("Cast", b.node("ArgMax", x, axis=3, keepdims=0), to=1),
    "running sum of places": lambda b, x: b.node("CumSum", x, b.constant(np.int64(-1))),
    "two largest places": lambda b, x: b.nodes("TopK", x, integers(b, 2), outputs=2, axis=3)[0],
    "norm over places": lambda b, x: b.node("LpNormalization", x, axis=2),
    "maximum pool": lambda b, x: b.node("MaxPool", x, kernel_shape=[2, 2]),
    "average pool": lambda b, x: b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "norm pool": lambda b, x: b.node("LpPool", x, kernel_shape=[2, 2]),
    "global average": lambda b, x: b.node("GlobalAveragePool", x),
    "global maximum": lambda b, x: b.node("GlobalMaxPool", x),
    "sum of places": lambda b, x: b.node("ReduceSum", x, integers(b, -1, 2), keepdims=0),
    "no axes": lambda b, x: b.node("ReduceSum", x, noop_with_empty_axes=1),
    "largest of places": lambda b, x: b.node("ReduceMax", x, axes=[2]),
    "resize": lambda b, x: b.node("Resize", x, "", b.constant(np.array([1, 1, 2, 2], np.float32))),
    "scales": lambda b, x: b.node("DequantizeLinear", b.node("QuantizeLinear", x, *(q := one_scale(b))), *q),
    "scale for each": lambda b, x: b.node(
        "DequantizeLinear", b.node("QuantizeLinear", x, *(q := scale_for_each(b)), axis=1), *q, axis=-3
    ),
}  # fmt: skip


def one_scale(b: GraphBuilder) -> tuple[str, str]:
    return b.constant(np.float32(0.1)), b.constant(np.uint8(3))


def scale_for_each(b: GraphBuilder) -> tuple[str, str]:
    return b.constant(np.full(6, 0.1, np.float32), "scales"), b.constant(np.arange(6, dtype=np.uint8), "zeros")


@pytest.mark.parametrize("step", KEPT.values(), ids=KEPT)
def test_channels_go_through(step: Step) -> None:
    coupling, size = behind_first(step)
    (group,) = coupling.groups
    assert (group.size, group.makers, size) == (6, ("first",), 6)
    assert units(coupling, "first_out", 1) == units(coupling, "last.w", 0) == list(range(6))
    constants = [one for one in group.axes if one.value.startswith("constant")]
    assert all(one.units.tolist() == list(range(6)) for one in constants)


def test_zero_points_go_with_scales() -> None:
    coupling, _ = behind_first(KEPT["scale for each"])
    assert units(coupling, "scales", 0) == units(coupling, "zeros", 0) == list(range(6))


OF_PLACES = "they are combined, by `n`, with numbers along an axis that nothing can be removed from"

HELD: dict[str, tuple[Step, str]] = {
    "an input beside": (lambda b, x: b.node("Add", x, b.input("z", [6, 1, 1]), name="n"), OF_PLACES),
    "an input that may be one": (lambda b, x: b.node("Add", x, b.input("z", ["k", 1, 1]), name="n"), OF_PLACES),
    "softmax": (lambda b, x: b.node("Softmax", x, axis=1, name="n"), "`n` compares them with each other"),
    "log softmax": (lambda b, x: b.node("LogSoftmax", x, axis=-3, name="n"), "`n` compares them with each other"),
    "hardmax": (lambda b, x: b.node("Hardmax", x, axis=1, name="n"), "`n` compares them with each other"),
    "largest": (
        lambda b, x: b.node("Mul", x, b.node("Cast", b.node("ArgMax", x, axis=1, name="n"), to=1)),
        "`n` compares them with each other",
    ),
    "some largest": (
        lambda b, x: b.nodes("TopK", x, integers(b, 3), outputs=2, axis=1, name="n")[0],
        "`n` compares them with each other",
    ),
    "running sum": (
        lambda b, x: b.node("CumSum", x, b.constant(np.int64(1)), name="n"), "`n` compares them with each other",
    ),
    "running sum of some axis": (
        lambda b, x: b.node("CumSum", x, b.input("axis", [], "int64"), name="n"), "`n` compares them with each other",
    ),
    "norm": (lambda b, x: b.node("LpNormalization", x, axis=1, name="n"), "`n` compares them with each other"),
    "local norm": (lambda b, x: b.node("LRN", x, size=3, name="n"), "`n` normalizes over them"),
    "layer norm": (
        lambda b, x: b.node("LayerNormalization", x, ones(b, 6, 4, 4), axis=1, name="n"), "`n` normalizes over them",
    ),
    "statistics of layer norm": (
        lambda b, x: b.nodes("LayerNormalization", x, ones(b, 4), axis=-1, outputs=2, name="n")[1],
        "`n` (LayerNormalization) has other outputs that depend on all of them",
    ),
    "places of maxima": (
        lambda b, x: b.node("Cast", b.nodes("MaxPool", x, kernel_shape=[2, 2], outputs=2, name="n")[1], to=1),
        "`n` (MaxPool) has other outputs that depend on all of them",
    ),
    "mean": (
        lambda b, x: b.node("Sub", x, b.node("ReduceMean", x, axes=[1], name="n")), "`n` reduces them to one number",
    ),
    "all of them": (
        lambda b, x: b.node("Add", x, b.node("ReduceMax", x, name="n")), "`n` reduces them to one number",
    ),
    "numbers of batch norm": (
        lambda b, x: b.node(
            "BatchNormalization", x, b.input("z", [6]), *(ones(b, 6) for _ in range(3)), name="n"
        ),
        "`n` has numbers for each that are not constant",
    ),
    "a scale from outside": (
        lambda b, x: b.node(
            "DequantizeLinear", b.node("QuantizeLinear", x, b.input("z", [6]), axis=1, name="n"),
            b.constant(np.float32(0.1))
        ),
        "`n` has a scale for each of them that is not constant",
    ),
    "no rule": (
        lambda b, x: b.node("Trilu", x, name="n"), "`n` (Trilu) is an operator whose effect on them is not known",
    ),
    "as numbers of another": (
        lambda b, x: b.node("Gather", b.weight(7, 5), b.node("Cast", x, to=7), name="n"),
        "`n` (Gather) needs them as they are",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("step", "why"), HELD.values(), ids=HELD)
def test_channels_stay(step: Step, why: str) -> None:
    coupling, _ = behind_first(step)
    assert coupling.groups == ()
    assert reason(coupling) == why


def test_every_rule_has_a_known_operator() -> None:
    assert {name for name in RULES if not onnx.defs.has(name)} == set()


@pytest.mark.parametrize(("opset", "axis", "held"), [(11, None, True), (11, 3, False), (13, None, False)])
def test_old_softmaxes_see_a_matrix(opset: int, axis: int | None, held: bool) -> None:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    coupling, _ = behind_first(lambda b, x: b.node("Softmax", x, name="n", **attributes), opset=opset)
    assert (coupling.groups == ()) is held


def test_places_that_are_units_can_be_scaled_but_not_pooled() -> None:
    """A product makes rows of units, which batch normalization sees as places."""

    def build(step: Step) -> Coupling:
        b = GraphBuilder("net")
        value = b.node("MatMul", b.input("x", [1, 5, 4]), b.weight(4, 6), name="first")
        value = step(b, value)
        b.output(b.node("MatMul", value, b.weight(6, 2), name="last"), "y", (1, 5, 2))
        return couple(b.build())

    assert [group.size for group in build(lambda b, x: b.batch_norm(x, 5)).groups] == [6]
    held = build(lambda b, x: b.node("InstanceNormalization", x, ones(b, 5), ones(b, 5), name="n"))
    assert reason(held) == "`n` mixes neighbours along that axis"
    held = build(lambda b, x: b.node("AveragePool", x, kernel_shape=[3], pads=[1, 1], name="n"))
    assert reason(held) == "`n` mixes neighbours along that axis"


@pytest.mark.parametrize(("opset", "count"), [(18, 3), (21, 6)])
def test_groups_that_are_normalized_together_go_as_wholes(opset: int, count: int) -> None:
    """ONNX infers no shape of a GroupNormalization (1.23): the model has to state it."""
    b = GraphBuilder("net", opset=opset)
    value = b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(6, 3, 1, 1), name="first")
    scales = b.constant(np.ones(count, np.float32), "scales")
    value = b.node("GroupNormalization", value, scales, ones(b, count), num_groups=3, name="n")
    b.output(b.node("Conv", value, b.weight(2, 6, 1, 1), name="last"), "y", (1, 2, 4, 4))
    graph = b.graph()
    graph.value_info.append(helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [1, 6, 4, 4]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    coupling = couple(ir.from_proto(model))
    assert units(coupling, "first_out", 1) == units(coupling, "n_out", 1) == [0, 0, 1, 1, 2, 2]
    assert units(coupling, "scales", 0) == ([0, 1, 2] if count == 3 else [0, 0, 1, 1, 2, 2])


DECIDED_WHILE_IT_RUNS: dict[str, tuple[Step, tuple[int | str, ...], str]] = {
    "axes of a sum": (
        lambda b, x: b.node("ReduceSum", x, b.input("axes", [1], "int64"), name="n"), (1, 6, 4, 1),
        "`n` (ReduceSum) has a shape that is not known in full",
    ),
    "pads": (
        lambda b, x: b.node("Pad", x, b.input("pads", [8], "int64"), name="n"), (1, 8, 4, 4),
        "`n` (Pad) puts as many others beside them as is decided while it runs",
    ),
    "starts": (
        lambda b, x: b.node("Slice", x, b.input("start", [1], "int64"), integers(b, 6), integers(b, 1), name="n"),
        (1, 4, 4, 4), "`n` (Slice) takes a part that is decided while it runs",
    ),
    "axes of a part": (
        lambda b, x: b.node("Slice", x, integers(b, 0), integers(b, 6), b.input("axis", [1], "int64"), name="n"),
        (1, 4, 4, 4), "`n` (Slice) takes a part that is decided while it runs",
    ),
    "parts": (
        lambda b, x: b.nodes("Split", x, b.input("parts", [2], "int64"), axis=1, outputs=2, name="n")[0],
        (1, 4, 4, 4), "`n` (Split) takes parts that are decided while it runs",
    ),
    "repeats": (
        lambda b, x: b.node("Tile", x, b.input("repeats", [4], "int64"), name="n"), (1, 12, 4, 4),
        "`n` (Tile) repeats them as often as is decided while it runs",
    ),
    "indices": (
        lambda b, x: b.node("Gather", x, b.input("indices", [4], "int64"), axis=1, name="n"), (1, 4, 4, 4),
        "`n` takes some of them by numbers that are computed",
    ),
    "shape": (
        lambda b, x: b.node("Reshape", x, b.input("shape", [2], "int64"), name="n"), (6, 16),
        "`n` (Reshape) takes a shape that is decided while it runs",
    ),
    "larger shape": (
        lambda b, x: b.node("Expand", x, b.input("shape", [4], "int64"), name="n"), (2, 6, 4, 4),
        "`n` (Expand) takes a shape that is decided while it runs",
    ),
    "other sizes": (
        lambda b, x: b.node("Resize", x, "", "", b.input("sizes", [4], "int64"), name="n"), (1, 6, 8, 8),
        "`n` (Resize) has a shape that is not known in full",
    ),
    "channels beside them": (
        lambda b, x: b.node("Concat", x, b.input("z", [1, "c", 4, 4]), axis=1, name="n"), (1, "all", 4, 4),
        "`n` puts them beside numbers that cannot go",
    ),
    "rank of what is beside them": (
        lambda b, x: b.node("Concat", x, b.node("Reshape", "x", b.input("shape", ["r"], "int64")), axis=1, name="n"),
        (1, "all", 4, 4), "`n` (Concat) has a shape that is not known in full",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("step", "shape", "why"), DECIDED_WHILE_IT_RUNS.values(), ids=DECIDED_WHILE_IT_RUNS)
def test_what_is_decided_while_it_runs_holds_channels(step: Step, shape: tuple[int | str, ...], why: str) -> None:
    b = GraphBuilder("net")
    value = b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(6, 3, 1, 1), name="first")
    b.output(step(b, value), "y", shape)
    coupling = couple(b.build())
    assert coupling.groups == ()
    assert reason(coupling) == why


def test_shapes_that_are_computed_from_sizes_hold_nothing() -> None:
    def step(b: GraphBuilder, x: str) -> str:
        taken = b.node("Gather", b.node("Shape", x), integers(b, 0, 1))
        return b.node("Reshape", x, b.node("Concat", taken, integers(b, 16), axis=0), name="n")

    assert [group.size for group in behind_first(step)[0].groups] == [6]


def test_axes_of_units_that_a_reshape_merges_stay() -> None:
    b = GraphBuilder("net")
    value = b.node("Einsum", b.input("x", [1, 5, 4]), b.weight(4, 3, 2), equation="bld,dhk->blhk", name="first")
    value = b.node("Reshape", value, integers(b, 1, 5, 6), name="n")
    b.output(b.node("MatMul", value, b.weight(6, 2)), "y")
    assert reason(couple(b.build())) == "`n` (Reshape) merges two axes of units"


def test_reshapes_of_very_many_elements_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(b: GraphBuilder, x: str) -> str:
        return b.node("Reshape", x, integers(b, 1, 96), name="n")

    assert [group.size for group in behind_first(step)[0].groups] == [6]
    monkeypatch.setattr("edgewise.analysis.channel_views._MOST_ELEMENTS", 95)
    assert reason(behind_first(step)[0]) == "`n` (Reshape) moves them in a way that is not followed"


def test_a_unit_with_places_of_its_own_is_no_group() -> None:
    b = GraphBuilder("net")
    value = b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(6, 3, 1, 1), name="first")
    for name, start, end in (("y", 0, 4), ("z", 3, 6)):
        part = b.node("Slice", value, integers(b, start), integers(b, end), integers(b, 1))
        b.output(b.node("Conv", part, b.weight(2, end - start, 1, 1)), name)
    coupling = couple(b.build())
    assert [group.size for group in coupling.groups] == [3, 2]
    assert [(one.node, one.units, one.reason) for one in coupling.pinned[:1]] == [("first", 1, "it is the only one")]


def test_channels_that_become_one_cannot_go() -> None:
    coupling, _ = behind_first(lambda b, x: b.node("DepthToSpace", conv_of_four(b, x), blocksize=2, name="n"))
    assert reason(coupling, "four") == "nothing sums over them"


def conv_of_four(b: GraphBuilder, value: str) -> str:
    return b.node("Conv", value, b.weight(4, 6, 1, 1), name="four")


def test_exported_group_normalization_goes_by_groups() -> None:
    def step(b: GraphBuilder, x: str) -> str:
        value = b.node("Reshape", x, integers(b, 0, 3, -1))
        value = b.node("InstanceNormalization", value, ones(b, 3), ones(b, 3))
        return b.node("Mul", b.node("Reshape", value, integers(b, 1, 6, 4, 4)), ones(b, 6, 1, 1))

    coupling, _ = behind_first(step)
    assert units(coupling, "first_out", 1) == units(coupling, "last.w", 0) == [0, 0, 1, 1, 2, 2]


def test_a_sum_over_channels_reads_them() -> None:
    b = GraphBuilder("net")
    value = b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(6, 3, 1, 1), name="first")
    b.output(b.node("ReduceSum", value, integers(b, 1), name="sum"), "y")
    (group,) = couple(b.build()).groups
    assert [(one.node, one.slot, one.axis, one.weight) for one in group.readers] == [("sum", 0, 1, None)]


def test_resizing_along_channels_mixes_them() -> None:
    def step(b: GraphBuilder, x: str) -> str:
        return b.node("Resize", x, "", b.constant(np.array([1, 2, 1, 1], np.float32)), name="n")

    assert reason(behind_first(step)[0]) == "`n` mixes neighbours along that axis"


def test_cropping_holds_what_it_crops() -> None:
    def step(b: GraphBuilder, x: str) -> str:
        region = b.constant(np.array([0, 0.2, 0, 0, 1, 0.9, 1, 1], np.float32))
        scales = b.constant(np.ones(4, np.float32))
        mode = {"coordinate_transformation_mode": "tf_crop_and_resize"}
        return b.node("Resize", x, region, scales, name="n", **mode)

    assert reason(behind_first(step)[0]) == "`n` mixes neighbours along that axis"


@pytest.mark.parametrize("model", [quantized_conv(), quantized_gemm()])
def test_models_that_are_quantized_already_hold_everything(model: ir.Model) -> None:
    coupling = couple(model)
    assert coupling.groups == ()
    (pinned,) = coupling.pinned
    assert "weights that are stored as integers" in pinned.reason


def test_blocks_that_share_a_scale_hold_their_weights() -> None:
    b = GraphBuilder("net", opset=21)
    scales = b.constant(np.full((3, 2), 0.1, np.float32))
    weight = b.node("DequantizeLinear", b.constant(np.ones((6, 2), np.int8)), scales, axis=0, block_size=2, name="w")
    value = b.node("MatMul", b.input("x", [1, 4]), b.weight(4, 6), name="first")
    b.output(b.node("MatMul", value, weight, name="last"), "y")
    coupling = couple(b.build())
    assert coupling.groups == ()
    assert reason(coupling) == "`last` sums over them together with numbers that cannot go"


def test_bodies_hold_what_they_read_wherever_it_is_read_first() -> None:
    b = GraphBuilder("net")
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = GraphBuilder(name)
        inner.output(inner.node("Relu" if name == "then_branch" else "Neg", "w"), f"{name}_out", (4, 6))
        branches[name] = inner.graph()
    x = b.input("x", [1, 4])
    b.output(b.node("If", b.input("flag", [], "bool"), name="if", **branches), "z", (4, 6))
    value = b.node("MatMul", x, b.weight(4, 6, name="w"), name="first")
    b.output(b.node("MatMul", value, b.weight(6, 2)), "y")
    coupling = couple(b.build())
    assert coupling.groups == ()
    assert reason(coupling) == "the body of `if` reads them"


def test_what_is_made_in_a_body_stays_there() -> None:
    b = GraphBuilder("net")
    branches = {}
    for name, outs in (("then_branch", 5), ("else_branch", 7)):
        inner = GraphBuilder(name)
        hidden = inner.node("MatMul", "x", inner.weight(4, outs, name=f"{name}_w"), name=f"{name}_first")
        hidden = inner.node("Gemm", hidden, inner.weight(3, outs, name=f"{name}_v"), transB=1, name=f"{name}_last")
        inner.output(hidden, f"{name}_out", (1, 3))
        branches[name] = inner.graph()
    b.input("x", [1, 4])
    b.output(b.node("If", b.input("flag", [], "bool"), name="if", **branches), "y", (1, 3))
    coupling = couple(b.build())
    assert coupling.groups == ()
    assert {(one.node, one.operator, one.units) for one in coupling.pinned} == {
        ("then_branch_first", "MatMul", 5), ("then_branch_last", "Gemm", 3),
        ("else_branch_first", "MatMul", 7), ("else_branch_last", "Gemm", 3),
    }  # fmt: skip
    assert {one.reason for one in coupling.pinned} == {"they lie in the body of `if`"}


def test_tables_make_the_entries_of_their_rows() -> None:
    b = GraphBuilder("net")
    value = b.node("Gather", b.weight(10, 6, name="table"), b.input("words", [1, 5], "int64"), name="look up")
    b.output(b.node("MatMul", value, b.weight(6, 2)), "y")
    (group,) = couple(b.build()).groups
    assert (group.makers, group.size) == (("look up",), 6)
    assert {(one.value, one.axis) for one in group.axes} >= {("table", 1), ("look up_out", 2)}


def test_tables_that_are_read_by_a_product_too_keep_their_rows() -> None:
    b = GraphBuilder("net")
    table = b.weight(10, 6, name="table")
    value = b.node("Gather", table, b.input("words", [1, 5], "int64"), name="look up")
    scores = b.node("MatMul", value, b.node("Transpose", table), name="scores")
    b.output(b.node("MatMul", scores, b.weight(10, 2), name="last"), "y")
    coupling = couple(b.build())
    (group,) = coupling.groups
    assert (group.makers, group.size) == (("look up",), 6)
    assert "takes some of them by numbers that are computed" in reason(coupling, "scores")
