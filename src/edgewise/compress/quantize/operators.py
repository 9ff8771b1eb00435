"""What quantization knows of ONNX operators: what can be 8-bit, and why the rest cannot."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.compress.nodes import Weighted, attribute, bias_of, constant, output_channels, required
from edgewise.records.tensors import Array

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply an activation with weights."""

RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})

FUSED_ACTIVATIONS: Final = frozenset({"Relu", "Clip"})
"""Activations that become the saturation of the integers: the Q/DQ pair goes behind them."""

_INTEGER: Final = frozenset({
    "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger",
    "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul",
})  # fmt: skip
"""Operators that compute with integers or hold integer weights; those of ONNX Runtime's own domain, too."""

_BINARY: Final = frozenset({"Add", "Sub", "Mul", "Div"})


def integer_node(model: ir.Model) -> ir.Node | None:
    """Return the first node that shows that `model` is quantized already, subgraphs included; None if there is none.

    An input that comes as integers and is made float, and an output that is made integers, do not show it.
    """
    for node in model.graph.all_nodes():
        if node.op_type in _INTEGER or (node.op_type == "DequantizeLinear" and constant(node.inputs[0]) is not None):
            return node
        if node.op_type == "QuantizeLinear" and node.outputs[0].uses():
            return node
    return None


def activation_slots(node: ir.Node) -> tuple[int, ...]:
    """Return the input indices at which `node` takes activations, constants included."""
    if node.op_type == "Concat":
        return tuple(range(len(node.inputs)))
    if node.op_type in _BINARY or node.op_type == "MatMul":
        return (0, 1)
    return (0,)


def weighted(node: ir.Node) -> Weighted | str:
    """Return the operands of `node`, which is one of `WEIGHTED`, or why it cannot be 8-bit."""
    match node.op_type:
        case "Conv":
            found: Weighted | str = Weighted(activation=0, weight=1, axis=0, bias=2, input_axis=1)
        case "ConvTranspose":
            found = _conv_transpose(node)
        case "Gemm":
            found = _gemm(node)
        case _:
            found = _matmul(node)
    return found if isinstance(found, str) else _checked(node, found)


def _conv_transpose(node: ir.Node) -> Weighted | str:
    # The weights are [C, M / group, ...]: with groups one index on axis 1 belongs to several output channels.
    axis = 1 if attribute(node, "group", 1) == 1 else None
    return Weighted(activation=0, weight=1, axis=axis, bias=2, input_axis=1)


def _gemm(node: ir.Node) -> Weighted | str:
    if (alpha := attribute(node, "alpha", 1.0)) != 1.0:
        return f"its `alpha` is {alpha:g}, which 8-bit kernels do not multiply with"
    if (beta := attribute(node, "beta", 1.0)) != 1.0:
        return f"its `beta` is {beta:g}, which 8-bit kernels do not multiply with"
    if constant(node.inputs[0]) is not None and constant(node.inputs[1]) is None:
        return "its constant is the left operand, where kernels take no scale for each channel"
    axis = 0 if attribute(node, "transB", 0) else 1
    input_axis = 0 if attribute(node, "transA", 0) else 1
    return Weighted(activation=0, weight=1, axis=axis, bias=2, input_axis=input_axis)


def _matmul(node: ir.Node) -> Weighted | str:
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    if left is not None and right is None:
        return "its constant is the left operand, where kernels take no scale for each channel"
    if right is None:
        # Measured on two transformers in two runtimes; both operands would have to be quantized first.
        return "both of its operands are activations, where 8 bits cost accuracy and win no time"
    # A stack of matrices has one scale: `QLinearMatMul` has no axis for the columns of a stack.
    return Weighted(activation=0, weight=1, axis=1 if right.ndim == 2 else None, bias=None, input_axis=-1)


def _checked(node: ir.Node, operands: Weighted) -> Weighted | str:
    """Return `operands`, or why their values cannot be 8-bit."""
    value = required(node.inputs[operands.weight])
    weight = constant(value)
    if weight is None:
        return f"its weights `{value.name}` are not constant"
    if constant(node.inputs[operands.activation]) is not None:
        return "all of its operands are constant: folding removes it"
    return why_not_weight(weight, value.name or "") or _why_not_bias(node, operands, weight) or operands


def why_not_weight(weight: Array, name: str) -> str | None:
    """Return why `weight` cannot become integers."""
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, and only float32 can be quantized"
    if weight.ndim < 2:
        return "its weights are a vector, and only matrices and kernels are quantized"
    if weight.size == 0:
        return "its weights are empty"
    if not np.isfinite(weight).all():
        return f"its weights `{name}` hold NaN or infinities"
    return None


def _why_not_bias(node: ir.Node, operands: Weighted, weight: Array) -> str | None:
    """Return why the bias of `node`, if it has one, cannot be int32."""
    value = bias_of(node, operands)
    if value is None:
        return None
    bias = constant(value)
    if bias is None:
        return f"its bias `{value.name}` is not constant"
    if not np.isfinite(bias).all():
        return f"its bias `{value.name}` holds NaN or infinities"
    channels = output_channels(node, operands, weight)
    if bias.size != channels or bias.shape[-1:] != (channels,):
        return (
            f"its bias `{value.name}` has the shape {list(bias.shape)}, not one number for each of {channels} channels"
        )
    return None


def why_not_follower(node: ir.Node) -> str | None:
    """Return why `node`, which has no weights, cannot work on integers whatever its neighbours are."""
    match node.op_type:
        case "MaxPool":
            if len(node.outputs) > 1 and node.outputs[1].name:
                return "its second output, the indices, has no 8-bit form"
        case "Pad":
            value = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1)
            if value is None or np.any(value != 0):
                return "it pads with a value other than zero, which need not be within the range of its input"
        case "Resize":
            found = node.attributes.get("mode")
            if found is not None and found.as_string() == "cubic":
                return "cubic interpolation leaves the range of its input"
    return None
