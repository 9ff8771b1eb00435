"""What operators with weights join, sum over, make and hold: the units of small graphs, counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import helper

from edgewise.analysis.coupling import Coupling, Group, couple
from edgewise.testing.graphs import GraphBuilder


def group_of(coupling: Coupling, maker: str) -> Group:
    (found,) = [group for group in coupling.groups if maker in group.makers]
    return found


def readers(group: Group) -> list[tuple[str, int, int, int | None]]:
    return [(reader.node, reader.slot, reader.axis, reader.weight) for reader in group.readers]


def units(group: Group, value: str, axis: int) -> list[int]:
    (found,) = [one.units.tolist() for one in group.axes if (one.value, one.axis) == (value, axis)]
    return list(found)


def reasons(coupling: Coupling) -> dict[str, str]:
    return {pinned.node: pinned.reason for pinned in coupling.pinned}


def images(channels: int) -> tuple[GraphBuilder, str]:
    """Return a builder and the value of `first`, a convolution of an image, of shape `[1, channels, 4, 4]`."""
    b = GraphBuilder("net", opset=17)
    return b, b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(channels, 3, 1, 1, name="first.w"), name="first")


def rows(width: int) -> tuple[GraphBuilder, str]:
    """Return a builder and the value of `first`, a product of rows, of shape `[2, 5, width]`."""
    b = GraphBuilder("net", opset=17)
    return b, b.node("MatMul", b.input("x", [2, 5, 4]), b.weight(4, width, name="first.w"), name="first")


def with_last(b: GraphBuilder, value: str, channels: int) -> Coupling:
    """Return the coupling with a convolution `last` behind `value`."""
    b.output(b.node("Conv", value, b.weight(2, channels, 1, 1, name="last.w"), name="last"), "y")
    return couple(b.build())


def test_a_convolution_of_an_input_holds_none_of_its_outputs() -> None:
    b, value = images(6)
    coupling = with_last(b, value, 6)
    (group,) = coupling.groups
    assert (group.name, group.size, group.makers, readers(group)) == ("first_out", 6, ("first",), [("last", 0, 1, 1)])
    assert {(one.value, one.axis) for one in group.axes} == {("first_out", 1), ("first.w", 0), ("last.w", 1)}


def test_a_bias_goes_with_its_channels_and_one_from_outside_holds_them() -> None:
    b = GraphBuilder("net")
    value = b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(6, 3, 1, 1), b.weight(6, name="bias"), name="first")
    assert units(with_last(b, value, 6).groups[0], "bias", 0) == list(range(6))
    b = GraphBuilder("net")
    value = b.node("Conv", b.input("x", [1, 3, 4, 4]), b.weight(6, 3, 1, 1), b.input("bias", [6]), name="first")
    assert reasons(with_last(b, value, 6))["first"] == "`first` adds a bias to them that is not constant"


@pytest.mark.parametrize(
    ("groups", "outs", "before", "behind"),
    [
        (6, 6, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        (6, 12, [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (3, 6, [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]),
        (3, 3, [0, 0, 1, 1, 2, 2], [0, 1, 2]),
    ],
)
def test_narrow_groups_go_with_their_outputs(groups: int, outs: int, before: list[int], behind: list[int]) -> None:
    b, value = images(6)
    value = b.node("Conv", value, b.weight(outs, 6 // groups, 1, 1, name="middle.w"), group=groups, name="middle")
    (group,) = with_last(b, value, outs).groups
    assert units(group, "first_out", 1) == units(group, "first.w", 0) == before
    assert units(group, "middle_out", 1) == units(group, "middle.w", 0) == behind
    assert (group.makers, readers(group)) == (("first",), [("last", 0, 1, 1)])


def test_wide_groups_lose_the_same_channels_of_each() -> None:
    b, value = images(8)
    value = b.node("Conv", value, b.weight(4, 4, 1, 1, name="middle.w"), group=2, name="middle")
    coupling = with_last(b, value, 4)
    assert units(group_of(coupling, "first"), "first_out", 1) == [0, 1, 2, 3] * 2
    assert units(group_of(coupling, "first"), "middle.w", 1) == [0, 1, 2, 3]
    assert readers(group_of(coupling, "first")) == [("middle", 0, 1, 1)]
    assert units(group_of(coupling, "middle"), "middle_out", 1) == [0, 1] * 2


def test_groups_of_an_input_hold_what_they_make() -> None:
    b = GraphBuilder("net")
    value = b.node("Conv", b.input("x", [1, 4, 4, 4]), b.weight(8, 1, 1, 1), group=4, name="first")
    assert with_last(b, value, 8).groups == ()


def test_transposed_convolutions_have_their_channels_turned() -> None:
    b, value = images(6)
    value = b.node("ConvTranspose", value, b.weight(6, 5, 2, 2, name="up.w"), strides=[2, 2], name="up")
    coupling = with_last(b, value, 5)
    assert units(group_of(coupling, "first"), "up.w", 0) == list(range(6))
    assert units(group_of(coupling, "up"), "up.w", 1) == units(group_of(coupling, "up"), "up_out", 1) == list(range(5))
    assert readers(group_of(coupling, "first")) == [("up", 0, 1, 1)]


def test_groups_of_a_transposed_convolution_go_as_wholes() -> None:
    b, value = images(6)
    value = b.node("ConvTranspose", value, b.weight(6, 2, 2, 2, name="up.w"), strides=[2, 2], group=3, name="up")
    (group,) = with_last(b, value, 6).groups
    assert units(group, "up.w", 0) == units(group, "up_out", 1) == [0, 0, 1, 1, 2, 2]
    assert ("up.w", 1) not in {(one.value, one.axis) for one in group.axes}


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_of_turned_operands(turned: tuple[int, int]) -> None:
    b = GraphBuilder("net")
    value = b.node("Gemm", b.input("x", [3, 4]), b.weight(4, 6), b.weight(6, name="bias"), name="first", beta=0.5)
    value = b.node("Transpose", value) if turned[0] else value
    weight = b.weight(*((2, 6) if turned[1] else (6, 2)), name="w")
    b.output(b.node("Gemm", value, weight, transA=turned[0], transB=turned[1], alpha=2.0, name="second"), "y")
    (group,) = couple(b.build()).groups
    assert units(group, "bias", 0) == units(group, "w", turned[1]) == list(range(6))
    assert readers(group) == [("second", 0, 1 - turned[0], 1)]


@pytest.mark.parametrize("shape", [[6], [1, 6], [3, 6]])
def test_what_gemm_adds_from_outside_holds_its_outputs(shape: list[int]) -> None:
    b = GraphBuilder("net")
    value = b.node("Gemm", b.input("x", [3, 4]), b.weight(4, 6), b.input("added", shape), name="first")
    b.output(b.node("MatMul", value, b.weight(6, 2)), "y")
    assert "`first`, with numbers along an axis" in reasons(couple(b.build()))["first"]


def test_one_number_that_gemm_adds_holds_nothing() -> None:
    b = GraphBuilder("net")
    value = b.node("Gemm", b.input("x", [3, 4]), b.weight(4, 6), b.input("added", [1]), name="first")
    b.output(b.node("MatMul", value, b.weight(6, 2)), "y")
    assert [group.size for group in couple(b.build()).groups] == [6]


def test_weights_may_stand_on_the_left() -> None:
    b = GraphBuilder("net")
    value = b.node("Relu", b.node("MatMul", b.weight(7, 4, name="w"), b.input("x", [2, 4, 5]), name="first"))
    b.output(b.node("MatMul", b.weight(3, 7, name="v"), value, name="second"), "y")
    (group,) = couple(b.build()).groups
    assert (group.size, group.makers, readers(group)) == (7, ("first",), [("second", 1, 1, 0)])
    assert units(group, "w", 0) == units(group, "v", 1) == list(range(7))


def test_a_product_of_activations_joins_and_reads_both() -> None:
    b, left = rows(6)
    right = b.node("MatMul", "x", b.weight(4, 6, name="other.w"), name="other")
    product = b.node("MatMul", left, b.node("Transpose", right, perm=[0, 2, 1]), name="product")
    b.output(b.node("Softmax", product), "y")
    (group,) = couple(b.build()).groups
    assert (group.size, group.makers) == (6, ("first", "other"))
    assert readers(group) == [("product", 0, 2, None), ("product", 1, 1, None)]


def test_stacks_of_matrices_are_broadcast() -> None:
    b, value = rows(6)
    heads = b.node("Transpose", b.node("Reshape", value, b.constant(np.array([2, 5, 3, 2]))), perm=[0, 2, 1, 3])
    heads = b.node("MatMul", heads, b.weight(3, 2, 4, name="each.w"), name="each")
    b.output(b.node("ReduceSum", heads, b.constant(np.array([1])), name="sum"), "y")
    coupling = couple(b.build())
    assert units(group_of(coupling, "first"), "each.w", 0) == [0, 1, 2]
    assert readers(group_of(coupling, "first")) == [("sum", 0, 1, None)]
    assert reasons(coupling) == {"each": "the model's output `y` has them"}


def test_products_with_vectors_hold_what_they_read() -> None:
    b, value = rows(6)
    b.output(b.node("MatMul", value, b.weight(6, name="v"), name="vector"), "y")
    assert reasons(couple(b.build())) == {"first": "`vector` (MatMul) has a shape that is not known in full"}


def test_einsum_joins_axes_of_one_letter() -> None:
    b = GraphBuilder("net")
    x = b.input("x", [1, 5, 4])
    q, k, v = (b.node("Einsum", x, b.weight(4, 3, 2), equation="bld,dhk->blhk", name=name) for name in "qkv")
    scores = b.node("Softmax", b.node("Einsum", q, k, equation="blhk, bmhk -> bhlm", name="scores"), axis=-1)
    mixed = b.node("Einsum", scores, v, equation="bhlm,bmhk->blhk", name="mixed")
    b.output(b.node("Einsum", mixed, b.weight(3, 2, 4, name="w"), equation="blhk,hkd->bld", name="out"), "y")
    found = [(group.size, group.makers, readers(group)) for group in couple(b.build()).groups]
    assert found == [
        (3, ("q", "k", "v"), [("out", 0, 2, None)]),
        (2, ("q", "k"), [("scores", 0, 3, None), ("scores", 1, 3, None)]),
        (2, ("v",), [("out", 0, 3, None)]),
    ]


def test_groups_of_one_value_have_names_of_their_own() -> None:
    b = GraphBuilder("net")
    value = b.node("Einsum", b.input("x", [1, 5, 4]), b.weight(4, 3, 2), equation="bld,dhk->blhk", name="both")
    b.output(b.node("Einsum", value, b.weight(3, 2, 4), equation="blhk,hkd->bld"), "y")
    assert [group.name for group in couple(b.build()).groups] == ["both_out axis 2", "both_out axis 3"]


@pytest.mark.parametrize("equation", ["...d,de->...e", "...,de->...de", "bld,de"])
def test_equations_that_are_not_followed(equation: str) -> None:
    b = GraphBuilder("net")
    value = b.node("MatMul", b.input("x", [4, 4, 4]), b.weight(4, 4), name="first")
    b.output(b.node("Einsum", value, b.weight(4, 4), equation=equation, name="e"), "y")
    assert reasons(couple(b.build()))["first"] == "`e` (Einsum) has an equation that is not followed"


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("operator", list(GATES))
@pytest.mark.parametrize("directions", [1, 2])
def test_hidden_units_have_places_in_all_gates(operator: str, directions: int) -> None:
    b, gates = GraphBuilder("net"), GATES[operator]
    value = b.node("MatMul", b.input("x", [5, 1, 4]), b.weight(4, 6, name="first.w"), name="first")
    inputs = [
        b.weight(directions, gates * 3, 6, name="W"),
        b.weight(directions, gates * 3, 3, name="R"),
        b.weight(directions, 2 * gates * 3, name="B"),
        "",
        b.constant(np.zeros((directions, 1, 3), np.float32), "state"),
    ]
    if operator == "LSTM":
        inputs += [b.constant(np.zeros((directions, 1, 3), np.float32)), b.weight(directions, 9, name="P")]
    value = b.node(
        operator,
        value,
        *inputs,
        name="cell",
        hidden_size=3,
        direction="forward" if directions == 1 else "bidirectional",
    )
    flat = b.node(
        "Reshape", b.node("Transpose", value, perm=[0, 2, 1, 3]), b.constant(np.array([5, 1, 3 * directions]))
    )
    b.output(b.node("MatMul", flat, b.weight(3 * directions, 2, name="v"), name="out"), "y")
    coupling = couple(b.build())
    inner, hidden = group_of(coupling, "first"), group_of(coupling, "cell")
    assert readers(inner) == [("cell", 0, 2, 1)]
    assert units(inner, "W", 2) == list(range(6))
    assert readers(hidden) == [("cell", 2, 2, 2), ("out", 0, 2, 1)]
    assert units(hidden, "W", 1) == units(hidden, "R", 1) == [0, 1, 2] * gates
    assert units(hidden, "B", 1) == [0, 1, 2] * gates * 2
    assert units(hidden, "R", 2) == units(hidden, "state", 2) == [0, 1, 2]
    assert units(hidden, "v", 0) == [0, 1, 2] * directions
    if operator == "LSTM":
        assert units(hidden, "P", 1) == [0, 1, 2] * 3


def lstm(b: GraphBuilder, value: str, features: int, *more: str) -> tuple[str, str]:
    """Add an LSTM `cell` of 3 hidden units and a product `out` behind its last state. Returns its outputs."""
    weights = [b.weight(1, 12, features, name="W"), b.weight(1, 12, 3, name="R")]
    sequence, last = b.nodes("LSTM", value, *weights, *more, outputs=2, name="cell", hidden_size=3)
    b.output(b.node("MatMul", b.node("Squeeze", last, b.constant(np.array([0]))), b.weight(3, 2), name="out"), "y")
    return sequence, last


def test_a_state_from_outside_holds_hidden_units() -> None:
    b = GraphBuilder("net")
    lstm(b, b.input("x", [5, 1, 4]), 4, "", "", b.input("state", [1, 1, 3]))
    assert reasons(couple(b.build()))["cell"] == "`cell` takes them from an input as its first state"


def test_units_along_time_stay() -> None:
    b, value = images(6)
    value = b.node("Squeeze", b.node("ReduceMean", value, axes=[2]), b.constant(np.array([2])))
    lstm(b, b.node("Transpose", value, perm=[1, 0, 2]), 4)
    assert reasons(couple(b.build()))["first"] == "`cell` mixes neighbours along that axis"


def test_an_output_that_is_left_out_holds_nothing() -> None:
    b = GraphBuilder("net")
    b.input("x", [5, 1, 4])
    node = helper.make_node("LSTM", ["x", b.weight(1, 12, 4), b.weight(1, 12, 3)], ["", "h"], "cell", hidden_size=3)
    b._nodes.append(node)  # the builder names every output
    b.output(b.node("MatMul", b.node("Squeeze", "h", b.constant(np.array([0]))), b.weight(3, 2), name="out"), "y")
    (group,) = couple(b.build()).groups
    assert (group.size, group.makers) == (3, ("cell",))


WEIGHTS: dict[str, Callable[[GraphBuilder], str]] = {
    "`first` makes them of weights that are computed (`made_out`)": lambda b: b.node(
        "Cast", b.constant(np.ones((4, 6), np.float16)), to=1, name="made"
    ),
    "`first` makes them of weights that are stored as integers (`made_out`)": lambda b: b.node(
        "DequantizeLinear", b.constant(np.ones((4, 6), np.int8)), b.constant(np.float32(0.1)), name="made"
    ),
}


@pytest.mark.parametrize("reason", list(WEIGHTS))
def test_weights_that_are_no_constants_hold_what_they_make(reason: str) -> None:
    b = GraphBuilder("net")
    value = b.node("MatMul", b.input("x", [3, 4]), WEIGHTS[reason](b), name="first")
    b.output(b.node("MatMul", value, b.weight(6, 2)), "y")
    coupling = couple(b.build())
    assert coupling.groups == ()
    assert reasons(coupling)["first"] == reason


def test_weights_that_are_inputs_hold_what_they_make() -> None:
    b, value = rows(6)
    value = b.node("MatMul", value, b.input("w", [6, 5]), name="second")
    b.output(b.node("MatMul", value, b.weight(5, 2), name="last"), "y")
    found = reasons(couple(b.build()))
    assert found["first"] == "`second` sums over them together with numbers that cannot go"
    assert set(found) == {"first", "last"}


def test_weights_that_can_be_overridden_hold_what_they_make() -> None:
    b, value = rows(6)
    b.output(b.node("MatMul", value, b.weight(6, 2)), "y")
    model = b.build()
    model.graph.inputs.append(model.graph.initializers["first.w"])
    assert couple(model) == Coupling((), couple(model).pinned)


def test_constant_nodes_are_weights() -> None:
    b, value = rows(6)
    stored = helper.make_tensor("stored", 1, [6, 5], np.ones(30, np.float32))
    value = b.node("MatMul", value, b.node("Constant", value=stored, name="constant"), name="second")
    b.output(b.node("MatMul", value, b.weight(5, 2)), "y")
    assert [(group.size, group.makers) for group in couple(b.build()).groups] == [(6, ("first",)), (5, ("second",))]


def test_units_along_a_kernel_stay() -> None:
    """An initializer is both a kernel and a stack of matrices: the convolution needs all places of its kernel."""
    b = GraphBuilder("net")
    shared = b.weight(6, 3, 5, name="shared")
    value = b.node("MatMul", b.input("z", [6, 2, 3]), shared, name="product")
    b.output(b.node("MatMul", value, b.weight(5, 2)), "y")
    b.output(b.node("Conv", b.input("x", [1, 3, 8]), shared, name="conv"), "other")
    assert reasons(couple(b.build()))["product"] == "`conv` mixes neighbours along that axis"


@pytest.mark.parametrize(
    ("operator", "why"),
    [
        ("Conv", "`grouped` reads them together with channels that cannot go"),
        ("ConvTranspose", "`grouped` has as many outputs in each of its groups"),
    ],
)
def test_units_along_weights_that_all_groups_share_stay(operator: str, why: str) -> None:
    b, value = images(6)
    shared = b.weight(6, 2, 1, 1, name="shared")
    grouped = b.node(operator, value, shared, group=3, name="grouped")
    b.output(b.node("Conv", grouped, b.weight(2, 6, 1, 1)), "y")
    wide = b.node("Conv", "x", b.weight(6, 3, 1, 1), name="wide")
    made = b.node("ConvTranspose", wide, shared, name="narrow")
    b.output(b.node("Conv", made, b.weight(3, 2, 1, 1)), "z")
    assert reasons(couple(b.build()))["narrow"] == why


def test_what_reads_channels_of_a_number_that_is_not_known_can_lose_outputs() -> None:
    b = GraphBuilder("net")
    value = b.node("Conv", b.input("x", [1, "c", "h", "w"]), b.weight(6, 3, 1, 1), name="first")
    (group,) = with_last(b, value, 6).groups
    assert (group.size, group.makers, readers(group)) == (6, ("first",), [("last", 0, 1, 1)])


def test_a_kernel_of_a_size_that_is_not_known_holds_what_it_reads() -> None:
    b, value = images(6)
    b.output(b.node("Conv", value, b.input("kernel", [2, "c", 1, 1]), name="dynamic"), "y")
    assert reasons(couple(b.build())) == {"first": "`dynamic` (Conv) has a shape that is not known in full"}


def test_a_kernel_that_is_computed_is_followed_but_makes_nothing() -> None:
    b, value = images(6)
    kernel = b.node("Reshape", b.node("ReduceMean", value, axes=[2, 3]), b.constant(np.array([6, 1, 1, 1])), name="k")
    b.output(b.node("Conv", b.input("z", [1, 1, 4, 4]), kernel, name="dynamic"), "y")
    coupling = couple(b.build())
    assert coupling.groups == ()
    assert reasons(coupling) == {"first": "the model's output `y` has them"}
