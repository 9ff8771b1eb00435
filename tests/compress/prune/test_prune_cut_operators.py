"""Cutting operators with groups, heads or hidden units in their attributes: they follow their weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from tests.compress.prune.cut_models import agrees, axis, coupling, int64, node, read, read_conv, run, shape

from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut import cut
from edgewise.errors import ContractError
from edgewise.records.tensors import Array
from edgewise.testing.graphs import GraphBuilder
from edgewise.testing.pass_kit import run_reference


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
