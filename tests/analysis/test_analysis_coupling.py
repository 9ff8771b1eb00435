"""What goes together in small graphs, and what has to stay; that it is right is proven in `tests/compress/prune`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.coupling import Coupling, Group, couple
from edgewise.testing.graphs import (
    GraphBuilder,
    conv_net,
    depthwise_net,
    lstm_net,
    mlp,
    transformer_block,
)


def group_of(coupling: Coupling, maker: str) -> Group:
    return next(group for group in coupling.groups if maker in group.makers)


def reasons(coupling: Coupling) -> dict[str, str]:
    return {pinned.node: pinned.reason for pinned in coupling.pinned}


def conv(b: GraphBuilder, value: str, ins: int, outs: int, name: str, *, kernel: int = 1, group: int = 1) -> str:
    pads = [kernel // 2] * 4
    weight = b.weight(outs, ins // group, kernel, kernel, name=f"{name}.w")
    return b.node(
        "Conv", value, weight, b.constant(np.zeros(outs, np.float32), f"{name}.b"), name=name, group=group, pads=pads
    )


def image_net(inner: Callable[[GraphBuilder, str], tuple[str, int]], *, channels: int = 6) -> ir.Model:
    """Return a first convolution `first` of some channels, what `inner` makes of them, and a last one, `last`."""
    b = GraphBuilder("net")
    x = b.input("x", [1, 3, 8, 8])
    value, count = inner(b, conv(b, x, 3, channels, "first"))
    b.output(conv(b, value, count, 2, "last"), "y")
    return b.build()


def units(group: Group, value: str, axis: int) -> list[int]:
    (found,) = [one.units.tolist() for one in group.axes if (one.value, one.axis) == (value, axis)]
    return list(found)


def test_a_chain_has_a_group_between_every_two_layers() -> None:
    coupling = couple(image_net(lambda b, x: (conv(b, b.node("Relu", x, name="relu"), 6, 4, "second", kernel=3), 4)))
    assert [(group.name, group.size, group.makers) for group in coupling.groups] == [
        ("first_out", 6, ("first",)),
        ("second_out", 4, ("second",)),
    ]
    first = coupling.groups[0]
    assert [(reader.node, reader.slot, reader.axis, reader.weight) for reader in first.readers] == [("second", 0, 1, 1)]
    places = {(one.value, one.axis) for one in first.axes}
    assert places == {
        ("first_out", 1), ("relu_out", 1), ("first.w", 0), ("first.b", 0), ("second.w", 1),
    }  # fmt: skip
    assert all(one.units.tolist() == list(range(6)) for one in first.axes)
    assert reasons(coupling) == {"last": "the model's output `y` has them"}


def test_a_residual_sum_couples_all_that_is_added() -> None:
    def inner(b: GraphBuilder, x: str) -> tuple[str, int]:
        branch = conv(b, conv(b, x, 6, 5, "a"), 5, 6, "b")
        return b.node("Add", x, branch, name="sum"), 6

    coupling = couple(image_net(inner))
    stream = group_of(coupling, "first")
    assert stream.makers == ("first", "b")
    assert [reader.node for reader in stream.readers] == ["a", "last"]
    assert group_of(coupling, "a").size == 5


def test_a_depthwise_convolution_follows_its_input() -> None:
    coupling = couple(image_net(lambda b, x: (conv(b, x, 6, 6, "depth", kernel=3, group=6), 6)))
    (group,) = coupling.groups
    assert group.makers == ("first",)
    assert [reader.node for reader in group.readers] == ["last"]
    assert units(group, "depth.w", 0) == list(range(6))


def test_many_narrow_groups_go_as_wholes() -> None:
    coupling = couple(image_net(lambda b, x: (conv(b, x, 6, 9, "grouped", group=3), 9)))
    group = group_of(coupling, "first")
    assert group.size == 3
    assert units(group, "grouped_out", 1) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert units(group, "first_out", 1) == [0, 0, 1, 1, 2, 2]


def test_few_wide_groups_become_narrower() -> None:
    coupling = couple(image_net(lambda b, x: (conv(b, x, 8, 6, "grouped", group=2), 6), channels=8))
    first, second = coupling.groups
    assert units(first, "first_out", 1) == [0, 1, 2, 3] * 2
    assert units(first, "grouped.w", 1) == [0, 1, 2, 3]
    assert [reader.node for reader in first.readers] == ["grouped"]
    assert units(second, "grouped_out", 1) == [0, 1, 2] * 2


def test_concat_keeps_parts_apart_and_flatten_repeats_units() -> None:
    b = GraphBuilder("net")
    x = b.input("x", [1, 3, 2, 2])
    parts = [conv(b, x, 3, count, name) for count, name in ((2, "a"), (3, "b"))]
    flat = b.node("Flatten", b.node("Concat", *parts, axis=1), name="flat")
    b.output(b.node("Gemm", flat, b.weight(4, 20, name="w"), transB=1, name="head"), "y")
    coupling = couple(b.build())
    first, second = (group_of(coupling, name) for name in "ab")
    assert units(first, "w", 1) == [0] * 4 + [1] * 4 + [-1] * 12
    assert units(second, "w", 1) == [-1] * 8 + [0] * 4 + [1] * 4 + [2] * 4


def test_squeeze_and_excite_belongs_to_what_it_scales() -> None:
    def inner(b: GraphBuilder, x: str) -> tuple[str, int]:
        squeezed = conv(b, b.node("GlobalAveragePool", x), 6, 2, "down")
        gate = b.node("Sigmoid", conv(b, squeezed, 2, 6, "up"))
        return b.node("Mul", x, gate), 6

    coupling = couple(image_net(inner))
    assert group_of(coupling, "first").makers == ("first", "up")
    assert group_of(coupling, "down").size == 2


def attention(heads: int, *, fused: bool) -> ir.Model:
    b = GraphBuilder("attention", opset=17)
    x = b.input("x", [1, 5, 8])
    head = 8 // heads
    if fused:
        qkv = b.node("MatMul", x, b.weight(8, 24, name="qkv.w"), name="qkv")
        split = b.node("Reshape", qkv, b.constant(np.array([1, 5, 3, heads, head])), name="apart")
        turned = b.node("Transpose", split, perm=[2, 0, 3, 1, 4])
        q, k, v = (b.node("Gather", turned, b.constant(np.array(index)), axis=0) for index in range(3))
    else:
        made = [b.node("MatMul", x, b.weight(8, 8, name=f"{name}.w"), name=name) for name in "qkv"]
        shape = b.constant(np.array([1, 5, heads, head]))
        q, k, v = (b.node("Transpose", b.node("Reshape", one, shape), perm=[0, 2, 1, 3]) for one in made)
    scores = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]), name="scores"), axis=-1)
    mixed = b.node("Transpose", b.node("MatMul", scores, v, name="mixed"), perm=[0, 2, 1, 3])
    joined = b.node("Reshape", mixed, b.constant(np.array([1, 5, 8])))
    b.output(b.node("MatMul", joined, b.weight(8, 4, name="out.w"), name="out"), "y")
    return b.build()


def test_heads_go_with_query_key_and_value() -> None:
    (group,) = couple(attention(4, fused=False)).groups
    assert (group.size, group.makers) == (4, ("q", "k", "v"))
    assert units(group, "q.w", 1) == units(group, "out.w", 0) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "out" in [reader.node for reader in group.readers]


def test_fused_query_key_and_value_are_split_into_heads_not_in_three() -> None:
    (group,) = couple(attention(4, fused=True)).groups
    assert group.size == 4
    assert units(group, "qkv.w", 1) == [0, 0, 1, 1, 2, 2, 3, 3] * 3


def test_one_head_has_a_width_of_query_and_key_and_one_of_value() -> None:
    first, second = couple(attention(1, fused=False)).groups
    assert (first.size, first.makers) == (8, ("q", "k"))
    assert [(reader.node, reader.slot, reader.weight) for reader in first.readers] == [
        ("scores", 0, None), ("scores", 1, None),
    ]  # fmt: skip
    assert (second.size, second.makers) == (8, ("v",))


def test_hidden_units_of_an_lstm_lie_in_every_gate() -> None:
    model = lstm_net(hidden=7)
    coupling = couple(model)
    group = next(group for group in coupling.groups if any(reader.weight == 2 for reader in group.readers))
    assert group.size == 7
    sizes = {one.value: len(one.units) for one in group.axes}
    assert 28 in sizes.values()


def test_weights_that_two_layers_share_join_both() -> None:
    b = GraphBuilder("net")
    x = b.input("x", [1, 4])
    shared = b.weight(4, 4, name="shared")
    first = b.node("MatMul", x, b.weight(4, 4, name="w"), name="first")
    second = b.node("MatMul", b.node("Relu", first), shared, name="second")
    third = b.node("MatMul", b.node("Relu", second), shared, name="third")
    b.output(b.node("MatMul", third, b.weight(4, 2, name="v"), name="last"), "y")
    (group,) = couple(b.build()).groups
    assert group.makers == ("first", "second", "third")
    assert units(group, "shared", 0) == units(group, "shared", 1) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda b, x: b.node("LayerNormalization", x, b.constant(np.ones((6, 8, 8), np.float32)), axis=1, name="n"),
         "`n` normalizes over them"),
        (lambda b, x: b.node("Softmax", x, axis=1, name="n"), "`n` compares them with each other"),
        (lambda b, x: b.node("LRN", x, size=3, name="n"), "`n` normalizes over them"),
        (lambda b, x: b.node("Add", x, b.node("ReduceMean", x, axes=[1], keepdims=1, name="n")),
         "`n` reduces them to one number"),
        (lambda b, x: b.node("Add", x, b.node("Concat", *["x"] * 2, axis=1, name="n"), name="sum"),
         "they are combined, by `sum`, with numbers along an axis that nothing can be removed from"),
    ],
)  # fmt: skip
def test_units_that_cannot_go_are_pinned_with_the_reason(make: Callable[[GraphBuilder, str], str], reason: str) -> None:
    b = GraphBuilder("net")
    x = b.input("x", [1, 3, 8, 8])
    value = make(b, conv(b, x, 3, 6, "first"))
    b.output(b.node("GlobalAveragePool", value), "y")
    assert reasons(couple(b.build()))["first"] == reason


def test_operators_of_other_domains_hold_what_they_read() -> None:
    b = GraphBuilder("net")
    hidden = b.node("MatMul", b.input("x", [1, 4]), b.weight(4, 6), name="first")
    strange = b.node("Frobnicate", hidden, name="strange", domain="example.com")
    b.output(b.node("MatMul", strange, b.weight(6, 2), name="last"), "y", (1, 2))
    found = reasons(couple(b.build()))
    assert found["first"] == "`strange` (Frobnicate) is an operator whose effect on them is not known"


def test_a_scale_for_each_channel_goes_with_it() -> None:
    def inner(b: GraphBuilder, x: str) -> tuple[str, int]:
        scales = b.constant(np.full(6, 0.1, np.float32), "scales")
        zeros = b.constant(np.zeros(6, np.int8))
        quantized = b.node("QuantizeLinear", x, scales, zeros, axis=1)
        return b.node("DequantizeLinear", quantized, scales, zeros, axis=1), 6

    (group,) = couple(image_net(inner)).groups
    assert units(group, "scales", 0) == list(range(6))


def test_models_without_anything_to_remove() -> None:
    b = GraphBuilder("net")
    b.output(b.node("Relu", b.input("x", [1, 4])), "y")
    assert couple(b.build()) == Coupling((), ())
    b = GraphBuilder("net")
    hidden = b.node("MatMul", b.input("x", [1, 4]), b.weight(4, 1, name="w"), name="narrow")
    b.output(b.node("MatMul", hidden, b.weight(1, 4, name="v"), name="wide"), "y")
    assert couple(b.build()).groups == ()


def test_a_dimension_that_is_not_known_holds_what_lies_along_it() -> None:
    b = GraphBuilder("net")
    x = b.input("x", ["n", 3, "h", "w"])
    hidden = conv(b, x, 3, 6, "first")
    flat = b.node("Reshape", hidden, b.constant(np.array([0, -1])), name="flat")
    b.output(b.node("ReduceSum", flat, b.constant(np.array([1])), name="all"), "y")
    assert "shape that is not known" in reasons(couple(b.build()))["first"]


@pytest.mark.parametrize("model", [conv_net(), depthwise_net(), mlp(), transformer_block()])
def test_one_graph_has_one_coupling_and_stays_as_it_is(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    names = [(group.name, group.size, group.makers) for group in couple(model).groups]
    assert names == [(group.name, group.size, group.makers) for group in couple(model).groups]
    assert len({name for name, _, _ in names}) == len(names)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
