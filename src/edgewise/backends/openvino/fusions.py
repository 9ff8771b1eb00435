"""Knows which fusion of OpenVINO gives wrong numbers, and which graphs would meet it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

_TRANSPARENT: Final = frozenset({
    "Cast", "Clip", "Div", "Dropout", "Flatten", "Identity", "Mul", "Relu", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
"""Operators that OpenVINO folds into the quantization behind them, or moves behind it."""


def meets_wrong_fusion(model: ir.Model) -> bool:
    """Return whether OpenVINO's own code generator (snippets) might compute `model` wrongly.

    With one thread it fuses chains of two-dimensional MatMuls up to 256 wide, weights constant, into one kernel.
    Where the 8-bit sums of one reach a quantization with no bias between, the conversion from int32 to float32 is
    missing, and the sums are read as floats: outputs are zero or in the billions. Measured with 2026.4.1 on
    x86 with AVX-512; it may go with the version in which `tests/backends/test_backends_openvino_fusions.py` passes
    without it.

    Args:
        model: The graph, in QDQ form.
    """
    return any(
        any(_is_quantized(reader) for reader in _readers_behind(node.outputs[0]))
        for node in model.graph.all_nodes()
        if _sums_integers(node) and not _has_bias(node)
    )


def _sums_integers(node: ir.Node) -> bool:
    """Return whether both factors of a product come out of DequantizeLinear and the result may have two dimensions."""
    if node.op_type not in {"MatMul", "Gemm"} or len(node.inputs) < 2:
        return False
    shape = node.outputs[0].shape
    if shape is not None and len(shape) != 2:
        return False
    makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _has_bias(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and len(node.inputs) > 2 and not _is_zero(node.inputs[2])


def _is_quantized(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear"


def _readers_behind(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that read a value, seen through those that vanish."""
    for node, _ in value.uses():
        if node.op_type in _TRANSPARENT or (node.op_type in {"Add", "Sub"} and any(map(_is_zero, node.inputs))):
            yield from _readers_behind(node.outputs[0])
        else:
            yield node


def _is_zero(value: ir.Value | None) -> bool:
    """Return whether a value is a constant of zeros, of whatever integers it was made."""
    if value is None:
        return True
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        return _is_zero(maker.inputs[0])
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and not tensor.numpy().any()
