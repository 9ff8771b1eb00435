"""What quantization knows of ONNX operators: where weights, biases and activations are, and what cannot be 8-bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.records.tensors import Array

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply an activation with weights."""

RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})

FUSED_ACTIVATIONS: Final = frozenset({"Relu", "Clip"})
"""Activations that become the saturation of the integers: the Q/DQ pair goes behind them."""

_BINARY: Final = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class Weighted:
    """The operands of a node that multiplies an activation with constant weights.

    Attributes:
        activation: Input index of the activation.
        weight: Input index of the weights.
        axis: Axis of the output channels in the weights; None where one scale has to do for all.
        bias: Input index of the bias, or None where the operator has none.
        input_axis: Axis of the input channels in the activation.
    """

    activation: int
    weight: int
    axis: int | None
    bias: int | None
    input_axis: int


def constant(value: ir.Value | None) -> Array | None:
    """Return what `value` always is, or None if it is not constant (or can be overridden as an input)."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a number among `node`'s attributes."""
    found = node.attributes.get(name)
    return default if found is None else float(found.value)


def is_standard(node: ir.Node) -> bool:
    """Whether `node` is an operator of the ONNX standard."""
    return node.domain in {"", "ai.onnx"}


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
    # A stack of matrices has one scale: `QLinearMatMul` has no axis for the columns of a stack.
    axis = 1 if right is not None and right.ndim == 2 else None
    return Weighted(activation=0, weight=1, axis=axis, bias=None, input_axis=-1)


def _checked(node: ir.Node, operands: Weighted) -> Weighted | str:
    """Return `operands`, or why their values cannot be 8-bit."""
    name = node.inputs[operands.weight]
    assert name is not None, "the ONNX checker holds for every model that comes here"
    weight = constant(name)
    if weight is None:
        return f"its weights `{name.name}` are not constant"
    if constant(node.inputs[operands.activation]) is not None:
        return "all of its operands are constant: folding removes it"
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, and only float32 can be quantized"
    if weight.ndim < 2:
        return "its weights are a vector, for which there is no 8-bit kernel"
    if not np.isfinite(weight).all():
        return f"its weights `{name.name}` hold NaN or infinities"
    return _checked_bias(node, operands, weight)


def _checked_bias(node: ir.Node, operands: Weighted, weight: Array) -> Weighted | str:
    if operands.bias is None or len(node.inputs) <= operands.bias or node.inputs[operands.bias] is None:
        return operands
    value = node.inputs[operands.bias]
    bias = constant(value)
    assert value is not None
    if bias is None:
        return f"its bias `{value.name}` is not constant"
    if not np.isfinite(bias).all():
        return f"its bias `{value.name}` holds NaN or infinities"
    channels = output_channels(node, operands, weight)
    if bias.size != channels or bias.shape[-1:] != (channels,):
        return (
            f"its bias `{value.name}` has the shape {list(bias.shape)}, not one number for each of {channels} channels"
        )
    return operands


def output_channels(node: ir.Node, operands: Weighted, weight: Array) -> int:
    """Return how many channels the output of `node` has."""
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1] * attribute(node, "group", 1))
    return int(weight.shape[-1 if operands.axis is None else operands.axis])
