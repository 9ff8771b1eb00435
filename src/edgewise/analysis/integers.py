"""What integer arithmetic a graph asks for: how wide the weights are whose products 8-bit kernels sum."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.values import VIEWS, input_at, is_standard

_EIGHT_BIT: Final = frozenset({ir.DataType.UINT8, ir.DataType.INT8})

_FACTORS: Final = {"Conv": (0, 1), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1)}
"""Input indices of both factors of operators that become 8-bit kernels between DequantizeLinear nodes."""

_INTEGER_WEIGHTS: Final = {
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
    "ConvInteger": (1, 3),
    "MatMulInteger": (1, 3),
}
"""Input indices of the weight and of its zero point, of operators that take integers themselves."""


def product_bits(model: ir.Model) -> int:
    """Return the bits of the widest weights that some layer multiplies with 8-bit activations; 0 if none does.

    A processor that sums 8-bit products exactly up to fewer bits (`Target.exact_product_bits`) answers otherwise. What
    counts is the values, not the type that they are stored in: 4-bit weights in int8 have 4 bits. Products of two
    activations have 8.

    Args:
        model: Any graph, QDQ form or with integer operators of the standard domain; those in subgraphs count, too.

    Returns:
        0, or 1 to 8: `b` is the least with every weight minus its zero point within `2^(b-1) - 1` of zero.
    """
    return max((_node_bits(node) for node in model.graph.all_nodes()), default=0)


def _node_bits(node: ir.Node) -> int:
    if is_standard(node, *_FACTORS):
        factors = [_dequantized(input_at(node, index)) for index in _FACTORS[node.op_type]]
        integers = [factor for factor in factors if factor is not None]
        if len(integers) < len(factors) or not any(_is_activation(factor) for factor in integers):
            return 0
        return max((_width(maker, 0, 2) for maker in integers if _constant(input_at(maker, 0)) is not None), default=8)
    if is_standard(node, *_INTEGER_WEIGHTS):
        return _width(node, *_INTEGER_WEIGHTS[node.op_type])
    return 0


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that makes `value`, seen through what only moves its elements."""
    maker = None if value is None else value.producer()
    while maker is not None and (is_standard(maker, *VIEWS) or is_standard(maker, "Transpose")):
        source = input_at(maker, 0)
        maker = None if source is None else source.producer()
    return maker if maker is not None and is_standard(maker, "DequantizeLinear") else None


def _is_activation(maker: ir.Node) -> bool:
    """Return whether a DequantizeLinear reads 8-bit integers that are not constant."""
    source = input_at(maker, 0)
    return source is not None and _constant(source) is None and (source.dtype is None or source.dtype in _EIGHT_BIT)


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


def _width(node: ir.Node, weight: int, zero_point: int) -> int:
    """Return the bits of a node's constant weight, and 8 where it is not constant."""
    integers = _constant(input_at(node, weight))
    if integers is None:
        return 8
    values = integers.numpy().astype(np.int16)
    zeros = _constant(input_at(node, zero_point))
    if zeros is not None:
        shift = zeros.numpy().astype(np.int16)
        if shift.ndim == 1 and shift.size > 1 and (shift == shift[0]).all():
            shift = shift[:1]
        if shift.size > 1:
            return 8  # unequal zero points: asymmetric weights use the whole type
        values = values - shift.reshape(())
    largest = int(np.abs(values).max(initial=0))
    return min(8, largest.bit_length() + 1)
