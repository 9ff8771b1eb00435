"""How wide the weights are whose products an 8-bit kernel sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.integers import product_bits
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder


def gemm(
    largest: int, *, activation: str | None = "uint8", zero: Any = 0, dtype: str = "int8", view: str = ""
) -> ir.Model:
    """Return a product with a weight whose largest magnitude, its zero point taken away, is `largest`."""
    b = GraphBuilder("gemm", opset=21)
    x = b.input("x", (2, 4))
    one = b.constant(np.float32(1))
    if activation is not None:
        nothing = b.constant(np.zeros((), activation))
        x = b.node("DequantizeLinear", b.node("QuantizeLinear", x, one, nothing), one, nothing)
    values = np.full((4, 3), zero, np.int64)
    values[1, 2] -= largest
    scales = one if np.ndim(zero) == 0 else b.constant(np.ones(3, np.float32))
    w = b.node("DequantizeLinear", b.constant(values.astype(dtype)), scales, b.constant(np.array(zero, dtype)), axis=1)
    if view:
        w = b.node(view, b.node(view, w))
    b.output(b.node("MatMul", x, w), "y", (2, 3))
    return b.build()


@pytest.mark.parametrize(("largest", "bits"), [(0, 1), (1, 2), (7, 4), (8, 5), (63, 7), (64, 8), (127, 8), (128, 8)])
def test_values_decide_not_the_type(largest: int, bits: int) -> None:
    assert product_bits(gemm(largest)) == bits


def test_zero_points_are_taken_away() -> None:
    assert product_bits(gemm(7, zero=128, dtype="uint8")) == 4
    assert product_bits(gemm(7, zero=[1, 1, 1])) == 4
    assert product_bits(gemm(7, zero=[1, 2, 3])) == 8


def test_what_only_moves_elements_is_looked_through() -> None:
    assert product_bits(gemm(63, view="Transpose")) == 7


@pytest.mark.parametrize("activation", [None, "uint16"])
def test_weights_that_meet_no_eight_bit_activation_do_not_count(activation: str | None) -> None:
    assert product_bits(gemm(127, activation=activation)) == 0


@pytest.mark.parametrize(
    ("model", "bits"),
    [
        (graphs.conv_net(), 0),
        (graphs.quantized_conv(), 7),
        (graphs.quantized_gemm(activation="int8"), 7),
        (graphs.weight_only_matmul(), 0),
    ],
    ids=["float", "conv", "gemm", "weight-only"],
)
def test_whole_graphs(model: ir.Model, bits: int) -> None:
    assert product_bits(model) == bits


def test_integer_operators_and_products_of_activations() -> None:
    b = GraphBuilder("integers", opset=21)
    x = b.input("x", (2, 4), "uint8")
    weight = b.constant(np.full((4, 3), 15, np.uint8))
    b.output(
        b.node("MatMulInteger", x, weight, b.constant(np.uint8(0)), b.constant(np.uint8(12))), "y", (2, 3), "int32"
    )
    assert product_bits(b.build()) == 3

    b = GraphBuilder("attention", opset=21)
    one, zero = b.constant(np.float32(1)), b.constant(np.uint8(0))
    x, z = (b.node("DequantizeLinear", b.input(name, (4, 4), "uint8"), one, zero) for name in "xz")
    b.output(b.node("MatMul", x, z), "y", (4, 4))
    assert product_bits(b.build()) == 8
