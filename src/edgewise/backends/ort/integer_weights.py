"""Knows when integer weights are best made float once, as ONNX Runtime opens a model."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from edgewise.analysis.values import input_at, is_standard

_PACKED: Final = ir.DataType.INT4, ir.DataType.UINT4


def wants_float_weights(model: ir.Model) -> bool:
    """Return whether the integer weights of `model` are to be dequantized once rather than in each run.

    That is where activations are float: between integer activations, the DequantizeLinear of the weights vanishes into
    an 8-bit kernel. It costs the memory of float weights and saves nothing but time, so one case is left out: where
    most weights are 4-bit matrices that are multiplied with one row (or an unknown number of rows), their kernel
    `MatMulNBits` is the faster one, because memory is what bounds such a product. Measured with 1.32 on x86 with
    AVX-512, 4,096 x 4,096: 2.0 ms against 8 to 12 ms in float; with 16 rows they are even, with 8 bits it is 5 to 100
    times slower.

    Args:
        model: The graph.
    """
    nodes = list(model.graph.all_nodes())
    if any(is_standard(node, "QuantizeLinear", "DynamicQuantizeLinear") for node in nodes):
        return False
    weights = [node for node in nodes if is_standard(node, "DequantizeLinear") and _size(node)]
    packed = sum(_size(node) for node in weights if _is_best_packed(node))
    return bool(weights) and 2 * packed <= sum(map(_size, weights))


def _is_best_packed(dequantize: ir.Node) -> bool:
    """Return whether a 4-bit matrix is multiplied from the left with few rows, and nothing else."""
    stored = input_at(dequantize, 0)
    if stored is None or stored.dtype not in _PACKED or stored.shape is None or len(stored.shape) != 2:
        return False
    readers = list(dequantize.outputs[0].uses())
    return bool(readers) and all(slot == 1 and _is_narrow_product(node) for node, slot in readers)


def _is_narrow_product(node: ir.Node) -> bool:
    if not is_standard(node, "MatMul", "Gemm") or node.attributes.get_int("transB"):
        return False
    left = input_at(node, 0)
    if left is None or left.shape is None:
        return True
    *rows, _ = left.shape
    return all(not isinstance(size, int) or size == 1 for size in rows)


def _size(dequantize: ir.Node) -> int:
    """Return the number of constant integers that a node dequantizes; 0 where they are computed."""
    stored = input_at(dequantize, 0)
    tensor = None if stored is None or stored.is_graph_input() else ir.convenience.get_const_tensor(stored)
    return 0 if tensor is None else tensor.size
