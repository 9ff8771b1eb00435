"""Which weights are stored as integers, in how many bits, and what is said where it is not what was asked for."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.compress.quantize.placement import KEPT, QUANTIZED_ALREADY
from edgewise.compress.quantize.recipe import Scheme
from edgewise.compress.quantize.weight_only import StoredWeight, store_weights
from edgewise.testing.graphs import GraphBuilder, branching_net, lstm_net, quantized_conv, weight_only_net

EVERY_WIDTH = (2, 4, 8)


def stored(
    model: ir.Model, scheme: str, packed: Collection[int] = EVERY_WIDTH, keep: Collection[str] = ()
) -> tuple[tuple[StoredWeight, ...], dict[str, str]]:
    found, declines = store_weights(model, Scheme.parse(scheme), packed, keep=keep)
    return found, {decline.node: decline.reason for decline in declines}


def layer(
    operator: str, shape: Sequence[int], weight: Sequence[int], *, left: bool = False, **attributes: Any
) -> ir.Model:
    b = GraphBuilder("layer")
    operands = [b.input("x", shape), b.weight(*weight, name="w")]
    b.output(b.node(operator, *(reversed(operands) if left else operands), name="layer", **attributes), "y")
    return b.build()


LAYOUTS: dict[str, tuple[ir.Model, tuple[int, int, int]]] = {
    # name: model, (slot, axis of the outputs, axis of the inputs)
    "conv": (layer("Conv", (1, 64, 5, 5), (32, 64, 3, 3)), (1, 0, 1)),
    "conv in groups": (layer("Conv", (1, 64, 5, 5), (32, 32, 3, 3), group=2), (1, 0, 1)),
    "transposed": (layer("ConvTranspose", (1, 64, 5, 5), (64, 32, 3, 3)), (1, 1, 0)),
    "transposed in groups": (layer("ConvTranspose", (1, 64, 5, 5), (64, 32, 3, 3), group=2), (1, 0, 1)),
    "gemm": (layer("Gemm", (1, 64), (64, 32)), (1, 1, 0)),
    "gemm, weights transposed": (layer("Gemm", (1, 64), (32, 64), transB=1, alpha=0.5), (1, 0, 1)),
    "gemm from the left": (layer("Gemm", (64, 2), (32, 64), left=True), (0, 0, 1)),
    "matmul": (layer("MatMul", (1, 2, 64), (64, 32)), (1, 1, 0)),
    "stack": (layer("MatMul", (2, 3, 64), (2, 64, 32)), (1, 2, 1)),
    "matmul from the left": (layer("MatMul", (64, 3), (32, 64), left=True), (0, 0, 1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("scheme", ["w8", "w4", "w4g32"])
def test_the_axes_of_each_operator(name: str, scheme: str) -> None:
    model, (slot, axis, input_axis) = LAYOUTS[name]
    (found,), declines = stored(model, scheme)
    assert declines == {}
    assert (found.layout.slot, found.layout.axis, found.layout.input_axis) == (slot, axis, input_axis)
    assert found.layout.activation == 1 - slot
    assert found.bits == found.stored_bits == Scheme.parse(scheme).weight_bits
    one_block = model.graph.initializers["w"].const_value.shape[input_axis] == 32  # type: ignore[union-attr]
    assert found.block == (32 if "g" in scheme and not one_block else 0)


@pytest.mark.parametrize(
    ("scheme", "packed", "bits"),
    [
        ("w6", (4, 8), 8),
        ("w4", (4, 8), 4),
        ("w3", (2, 4, 8), 4),
        ("w2", (4, 8), 4),
        ("w2", (2, 4, 8), 2),
        ("w2", (8,), 8),
    ],
)
def test_weights_are_packed_as_tightly_as_the_files_allow(scheme: str, packed: Sequence[int], bits: int) -> None:
    (found,), _ = stored(layer("Gemm", (1, 512), (512, 32)), scheme, packed)
    assert (found.bits, found.stored_bits) == (Scheme.parse(scheme).weight_bits, bits)


@pytest.mark.parametrize(
    ("model", "width"),
    [
        (layer("Gemm", (1, 512), (512, 32)), 2),
        (layer("Gemm", (1, 512), (512, 30)), 4),
        (layer("MatMul", (1, 4, 512), (512, 33)), 4),
        (layer("Gemm", (1, 510), (30, 510), transB=1), 2),
        (layer("MatMul", (510, 3), (32, 510), left=True), 2),
        (layer("Conv", (1, 64, 5, 5), (32, 64, 3, 3)), 2),
    ],
)
def test_products_have_2_bit_weights_only_where_each_byte_belongs_to_one_row(model: ir.Model, width: int) -> None:
    (found,), declines = stored(model, "w2")
    assert (found.bits, found.stored_bits) == (2, width)
    assert declines == {}


def test_embeddings_are_stored_a_scale_a_row_and_indices_stay() -> None:
    b = GraphBuilder("embedding")
    rows = b.node("Gather", b.weight(1000, 64, name="table"), b.input("i", (3,), "int64"), name="lookup")
    picked = b.node("Gather", b.constant(np.arange(4096)), b.input("k", (1,), "int64"), name="indices")
    b.output(rows, "y")
    b.output(picked, "z", None, "int64")
    (found,), declines = stored(b.build(), "w4")
    assert (found.node.name, found.layout.slot, found.layout.axis, found.layout.activation) == ("lookup", 0, 0, 1)
    assert declines == {}


def test_a_huge_embedding_is_decided_on_at_once() -> None:
    b = GraphBuilder("huge")
    table = b.constant(np.zeros((100_000, 64), np.float32), "table")
    b.output(b.node("Gather", table, b.input("i", (3,), "int64"), name="lookup"), "y")
    model = b.build()
    start = time.perf_counter()
    (found,), _ = stored(model, "w4g32")
    assert found.block == 32
    assert time.perf_counter() - start < 2


def test_few_weights_for_each_scale_have_8_bits() -> None:
    depthwise = layer("Conv", (1, 64, 5, 5), (64, 1, 3, 3), group=64)
    (found,), declines = stored(depthwise, "w4")
    assert (found.bits, found.stored_bits) == (8, 8)
    assert declines == {
        "layer": "its weights have 8 bits: 4 bits would save little, because its 576 weights have 64 scales"
    }
    assert stored(depthwise, "w8")[1] == {}


def test_what_would_not_be_smaller_stays_float() -> None:
    found, declines = stored(layer("Gemm", (1, 4), (4, 4)), "w4")
    assert found == ()
    assert "its 16 weights stay float" in declines["layer"]
    # Only where somebody could expect it: a small table may be anything.
    b = GraphBuilder("small")
    b.output(b.node("Gather", b.weight(4, 4), b.input("i", (1,), "int64")), "y")
    assert stored(b.build(), "w4") == ((), {})


def test_groups_that_do_not_divide_the_inputs_become_channels() -> None:
    (found,), declines = stored(layer("Conv", (1, 40, 5, 5), (32, 40, 3, 3)), "w4g32")
    assert found.block == 0
    assert declines == {
        "layer": "it has one scale for each output channel: its 40 input channels are no multiple of 32"
    }


def twice(*, second: str = "MatMul", output: bool = False, **attributes: Any) -> ir.Model:
    b = GraphBuilder("twice")
    weight = b.weight(64, 64, name="w")
    value = b.node("Gemm", b.input("x", (1, 64)), weight, name="one")
    b.output(b.node(second, value, weight, name="two", **attributes), "y")
    if output:
        b.output(b.node("Identity", weight, name="out"), "same")
    return b.build()


def test_weights_of_two_nodes_are_stored_in_one_way() -> None:
    (one, two), declines = stored(twice(), "w4")
    assert (one.node.name, two.node.name, declines) == ("one", "two", {})
    assert (one.layout, one.bits, one.block) == (two.layout, two.bits, two.block)


def test_a_tied_embedding_is_stored_once() -> None:
    b = GraphBuilder("tied")
    table = b.weight(500, 64, name="table")
    rows = b.node("Gather", table, b.input("i", (3,), "int64"), name="lookup")
    b.output(b.node("Gemm", rows, table, name="logits", transB=1), "y")
    (lookup, logits), declines = stored(b.build(), "w4")
    assert declines == {}
    assert (lookup.layout.slot, logits.layout.slot) == (0, 1)
    assert (lookup.layout.axis, logits.layout.axis) == (0, 0)


@pytest.mark.parametrize(
    "model",
    [twice(second="Add"), twice(output=True), twice(second="Gemm", transB=1)],
    ids=["another operator", "an output", "the other way round"],
)
def test_weights_that_stay_float_in_any_case_are_not_stored_twice(model: ir.Model) -> None:
    found, declines = stored(model, "w4")
    assert found == ()
    assert "its weights stay float in any case" in declines["one"]


def test_nodes_that_are_kept_stay_float_with_those_that_share_their_weights() -> None:
    found, declines = stored(twice(), "w4", keep=["two"])
    assert found == ()
    assert declines == {"one": "its weights stay float in any case: `two` reads them as well", "two": KEPT}


def test_subgraphs_and_recurrent_cells_stay_float() -> None:
    assert "it has subgraphs, which stay float" in stored(branching_net(), "w4")[1].values()
    found, declines = stored(lstm_net(), "w4")
    assert "lstm" not in {item.node.name for item in found}
    assert "recurrent" in declines["lstm"]


@pytest.mark.parametrize("make", [quantized_conv, weight_only_net])
def test_quantized_models_are_left_as_they_are(make: Any) -> None:
    found, declines = stored(make(), "w4")
    assert found == ()
    assert list(declines.values()) == [QUANTIZED_ALREADY]


def test_only_integers_between_operators_make_a_model_quantized() -> None:
    def model(*, between: bool) -> ir.Model:
        b = GraphBuilder("ends")
        step, zero = b.constant(np.float32(0.5)), b.constant(np.array(0, np.int8))
        value = b.node("DequantizeLinear", b.input("x", (1, 64), "int8"), step, zero)
        value = b.node("Gemm", value, b.weight(64, 64), name="first")
        if between:
            value = b.node("DequantizeLinear", b.node("QuantizeLinear", value, step, zero, name="pair"), step, zero)
        value = b.node("Gemm", value, b.weight(64, 64), name="second")
        b.output(b.node("QuantizeLinear", value, step, zero, name="end"), "y", (1, 64), "int8")
        return b.build()

    assert len(stored(model(between=False), "w4")[0]) == 2
    assert stored(model(between=True), "w4") == ((), {"pair": QUANTIZED_ALREADY})


def test_operands_that_cannot_be_stored_are_named() -> None:
    b = GraphBuilder("odd")
    x = b.input("x", (1, 64))
    broken = np.ones((64, 64), np.float32)
    broken[0, 0] = np.nan
    b.output(b.node("MatMul", x, b.input("z", (64, 64)), name="dynamic"), "a")
    b.output(b.node("MatMul", x, b.constant(broken), name="nan"), "b")
    b.output(b.node("MatMul", x, b.weight(64), name="vector"), "c")
    half = b.node("Cast", x, to=10)
    b.output(b.node("MatMul", half, b.constant(np.ones((64, 64), np.float16)), name="half"), "d", None, "float16")
    found, declines = stored(b.build(), "w8")
    assert found == ()
    for name, word in (("dynamic", "constant"), ("nan", "NaN"), ("vector", "a vector"), ("half", "float16")):
        assert word in declines[name]
