"""Linear operators with constant weights, and per-channel affine maps to merge into them.

A linear operator computes `y = W x + b` on each group of channels: Conv, ConvTranspose, Gemm, and MatMul with a
constant matrix on the right. An affine map is `z = scale * y + shift` with one scale and one shift a channel: inference
BatchNormalization, and Mul, Div, Add, Sub with a constant. Sums are made in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.passes.rewriting import Edit, attributes_of, constant, input_at, is_operator, rank, same_type
from edgewise.records.tensors import Array

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
AFFINE = ("Mul", "Div", "Add", "Sub")

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """`z = scale * y + shift`.

    Attributes:
        source: The value `y`.
        scale: One number a channel, shape `[C]`.
        shift: The same.
    """

    source: ir.Value
    scale: Doubles
    shift: Doubles


@dataclass(frozen=True)
class Linear:
    """A linear node with constant weights.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: Its weight as stored.
        bias: What is added to each output channel, shape `[channels]`; zeros where the node has none.
        channels: Number of output channels.
        group: Number of groups.
    """

    node: ir.Node
    weight: Array
    bias: Doubles
    channels: int
    group: int

    @property
    def has_bias(self) -> bool:
        """Whether the node has a bias input."""
        return input_at(self.node, 2) is not None

    @property
    def channel_axis(self) -> int:
        """Axis of the output, counted from the end, that the channels lie on."""
        return -1 if self.node.op_type in {"Gemm", "MatMul"} else 1 - self.weight.ndim

    def _transposed(self) -> bool:
        return self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) == 1

    def scaled_output(self, scale: Doubles) -> Doubles:
        """Return the weight whose output is `scale` times that of this one, `scale` of shape `[channels]`."""
        weight = self.weight.astype(np.float64)
        if self.node.op_type == "Conv" or self._transposed():
            return np.asarray(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        if self.node.op_type == "ConvTranspose":
            groups = weight.reshape(self.group, -1, *weight.shape[1:])
            factors = scale.reshape(self.group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
            return np.asarray((groups * factors).reshape(weight.shape))
        return np.asarray(weight * scale)

    def taken_input(self, scale: Doubles, shift: Doubles) -> tuple[Doubles, Doubles]:
        """Return weight and bias that make of `x` what this node makes of `scale * x + shift`.

        Args:
            scale: One number an input channel.
            shift: The same.
        """
        weight = self.weight.astype(np.float64)
        if self.node.op_type == "Conv":
            per_group = weight.shape[1]
            index = (np.arange(self.channels) // (self.channels // self.group))[:, None] * per_group
            channel = index + np.arange(per_group)
            tail = [1] * (weight.ndim - 2)
            new = weight * scale[channel].reshape(self.channels, per_group, *tail)
            spread = weight.reshape(self.channels, per_group, -1).sum(axis=-1)
            return np.asarray(new), self.bias + (spread * shift[channel]).sum(axis=1)
        matrix = weight.T if self._transposed() else weight
        alpha = self.node.attributes.get_float("alpha", 1.0)
        new = matrix * scale[:, None]
        return np.asarray(new.T if self._transposed() else new), self.bias + alpha * (shift @ matrix)

    def rebuilt(self, edit: Edit, weight: Doubles, bias: Doubles) -> ir.Node | str:
        """Return a node with this weight and bias in place of the old ones, or why there cannot be one.

        The bias is left out where there was none and all of it is zero. MatMul can have none.
        """
        source, old = self.node.inputs[0], self.node.inputs[1]
        if old is None:
            return "the weight is left out"
        new_weight, new_bias = same_type(old, weight), same_type(old, bias)
        if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
            return f"the merged weights would not be finite as {new_weight.dtype}"
        if self.node.op_type == "MatMul" and bias.any():
            return "MatMul has no bias to take the summand, and only one of rank 2 can become a Gemm"
        inputs = [source, edit.update(self.node, old, new_weight)]
        attributes = attributes_of(self.node, "beta")
        if self.has_bias or bias.any():
            had = input_at(self.node, 2)
            if had is not None and constant(had) is not None:
                inputs.append(edit.update(self.node, had, new_bias))
            else:
                inputs.append(edit.constant(self.node, f"{old.name}_bias", new_bias))
        return edit.node(self.node.op_type, inputs, attributes, name=self.node.name)


def read_linear(node: ir.Node | None) -> Linear | str | None:  # noqa: PLR0911 - one return a reason
    """Return the node as a linear operator, why its weights cannot be touched, or None where it is something else."""
    if node is None or not is_operator(node, *LINEAR):
        return None
    weight = constant(input_at(node, 1))
    if weight is None:
        return None if node.op_type == "MatMul" else f"the weight of `{node.name}` is not constant"
    if weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim != 2):
        return f"the weight of `{node.name}` has rank {weight.ndim}"
    if not np.issubdtype(weight.dtype, np.floating):
        return f"the weight of `{node.name}` is {weight.dtype}"
    group = node.attributes.get_int("group", 1)
    channels = _channels(node, weight, group)
    given = input_at(node, 2)
    bias: Array | None = np.zeros(channels) if given is None else constant(given)
    if bias is None:
        return f"the bias of `{node.name}` is not constant"
    per_channel = spread(bias, channels, axis=-1, of_rank=max(bias.ndim, 1))
    if per_channel is None:
        return f"the bias of `{node.name}` has shape {list(bias.shape)}, not one number a channel"
    per_channel = per_channel * node.attributes.get_float("beta", 1.0)
    return Linear(node, weight, per_channel, channels, group)


def _channels(node: ir.Node, weight: Array, group: int) -> int:
    if node.op_type == "Conv":
        return int(weight.shape[0])
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * group
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return int(weight.shape[0 if transposed else 1])


def spread(array: Array, channels: int, *, axis: int, of_rank: int | None) -> Doubles | None:
    """Return `array`, broadcast against a tensor, as one number a channel, or None where it varies otherwise.

    Args:
        array: The constant.
        channels: Size of the channel axis.
        axis: The channel axis, counted from the end (negative).
        of_rank: Rank of the tensor, or None where it is unknown; the constant must not have more dimensions.
    """
    if of_rank is None:
        if array.ndim > -axis:
            return None
    elif array.ndim > of_rank:
        return None
    shape = array.shape
    if any(size != 1 for index, size in enumerate(shape) if index - array.ndim != axis):
        return None
    if array.size not in {1, channels}:
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,)).copy()


def read_affine(  # noqa: PLR0911 - one return a case
    node: ir.Node, channels: int, axis: int
) -> Affine | str | None:
    """Return Mul, Div, Add or Sub with a constant as an affine map of the other operand.

    Args:
        node: The node.
        channels: Size of the channel axis.
        axis: The channel axis, counted from the end.

    Returns:
        The map, why it is none, or None where neither or both operands are constant.
    """
    left, right = input_at(node, 0), input_at(node, 1)
    first, second = constant(left), constant(right)
    if left is None or right is None or (first is None) == (second is None):
        return None
    source, array = (left, second) if second is not None else (right, first)
    if array is None or not np.issubdtype(array.dtype, np.floating):
        return None
    values = spread(array, channels, axis=axis, of_rank=rank(source))
    if values is None:
        return f"its constant has shape {list(array.shape)}, not one number a channel"
    one, zero = np.ones(channels), np.zeros(channels)
    constant_first = second is None
    match node.op_type:
        case "Mul":
            return Affine(source, values, zero)
        case "Add":
            return Affine(source, one, values)
        case "Sub":
            return Affine(source, -one, values) if constant_first else Affine(source, one, -values)
        case "Div" if constant_first:
            return None
        case _:
            return Affine(source, 1.0 / values, zero) if values.all() else "it divides by zero"


def read_batch_norm(node: ir.Node) -> Affine | str:
    """Return an inference BatchNormalization as an affine map, or why it is none.

    Ioffe and Szegedy (2015), algorithm 2: `scale = gamma / sqrt(variance + epsilon)`, `shift = beta - scale * mean`.
    """
    if node.attributes.get_int("training_mode", 0) or any(
        value.uses() or value.is_graph_output() for value in node.outputs[1:]
    ):
        return "it runs in training mode"
    arrays = [constant(input_at(node, index)) for index in range(1, 5)]
    source = input_at(node, 0)
    if source is None or any(array is None for array in arrays):
        return "its parameters are not constant"
    gamma, beta, mean, variance = (np.asarray(array, dtype=np.float64).reshape(-1) for array in arrays)
    total = variance + node.attributes.get_float("epsilon", 1e-5)
    if not (total > 0).all():
        return "a variance plus epsilon is not positive"
    scale = gamma / np.sqrt(total)
    return Affine(source, scale, beta - scale * mean)
