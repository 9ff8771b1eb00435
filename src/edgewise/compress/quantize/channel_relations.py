"""How operators carry the scale of each channel from one tensor to another.

A tensor's channels are described by an array of indices with the tensor's rank, whose dimensions are 1 or the
tensor's: all numbers of the tensor with the same index have the same scale. `[1, C, 1, 1]` says that each channel of a
feature map has a scale of its own; `[1, H, 1, D]` that each feature of each attention head does. Views of a tensor are
then views of its indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from edgewise.compress.quantize.weight_layout import LINEAR, Indices, WeightLayout
from edgewise.passes.rewriting import (
    constant,
    input_at,
    integers,
    is_operator,
    label,
    rank,
    scalar,
    static_shape,
)
from edgewise.records.tensors import Array

Kind: TypeAlias = Literal["output", "input", "constant", "inverse"]
"""What is done where a tensor's channels are divided by `s`: rows of the weights that make it are divided, columns of
the weights that read it multiplied, a constant divided (`constant`) or multiplied (`inverse`)."""


@dataclass(frozen=True)
class Absorber:
    """A constant of a node that takes the scale of channels.

    Attributes:
        node: The node.
        slot: Input index of the constant.
        kind: What happens to it.
        indices: For weights the index of each channel, shape `[C]`; for other constants an array that broadcasts
            against them.
    """

    node: ir.Node
    slot: int
    kind: Kind
    indices: Indices


@dataclass(frozen=True)
class Relation:
    """What follows when a tensor's channels are scaled.

    Attributes:
        values: Other tensors that are then scaled, with their indices.
        absorbers: Constants that take the scale.
        unscaled: Tensors that must not be scaled with it.
    """

    values: tuple[tuple[ir.Value, Indices], ...] = ()
    absorbers: tuple[Absorber, ...] = ()
    unscaled: tuple[ir.Value, ...] = ()


@dataclass(frozen=True)
class Known:
    """A node, and one of its tensors whose channels are to be scaled.

    Attributes:
        node: The node.
        value: The tensor.
        slot: Its input index, or None where it is an output.
        indices: Its indices.
        fresh: Makes indices of a given shape that are all different and new.
    """

    node: ir.Node
    value: ir.Value
    slot: int | None
    indices: Indices
    fresh: Callable[[tuple[int, ...]], Indices]

    @property
    def opposite(self) -> ir.Value | None:
        """The output where the tensor is an input, and the first input where it is an output."""
        return self.node.outputs[0] if self.slot is not None else self.node.inputs[0]


Answer: TypeAlias = Relation | str
"""What follows, or why the channels cannot be scaled."""


def relate(known: Known) -> Answer:
    """Return what follows for the other tensors of `known.node`, or why scaling the tensor is not exact."""
    node = known.node
    if not is_operator(node, node.op_type) or node.op_type not in _RELATIONS:
        return f"`{label(node)}` is {node.op_type}, which does not carry a positive factor of each channel through"
    return _RELATIONS[node.op_type](known)


def read_linear(node: ir.Node) -> WeightLayout | str:
    """Return how the weights of a linear node are laid out, or why they cannot be rescaled."""
    value = input_at(node, 1)
    weight = constant(value)
    if value is None or weight is None:
        return f"the weights of `{label(node)}` are not constant"
    reason = _why_not_weight(node, value, weight)
    if reason is not None:
        return reason
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    operator: Literal["Conv", "ConvTranspose", "Gemm", "MatMul"] = node.op_type  # type: ignore[assignment]
    layout = WeightLayout(operator, weight.shape, node.attributes.get_int("group", 1), transposed)
    return _why_not_bias(node, layout) or layout


def _why_not_weight(node: ir.Node, value: ir.Value, weight: Array) -> str | None:
    if weight.dtype != np.float32:
        return f"the weights of `{label(node)}` are {weight.dtype}, and only float32 is rescaled"
    if len(value.uses()) != 1 or value.is_graph_output():
        return f"the weights `{value.name}` are shared"
    if not np.isfinite(weight).all():
        return f"the weights `{value.name}` hold NaN or infinities"
    if weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim != 2):
        return f"the weights `{value.name}` have rank {weight.ndim}"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
        return f"`{label(node)}` transposes its input"
    return None


def _why_not_bias(node: ir.Node, layout: WeightLayout) -> str | None:
    value = input_at(node, 2)
    if value is None:
        return None
    bias = constant(value)
    if bias is None:
        return f"the bias of `{label(node)}` is not constant"
    if not np.isfinite(bias).all():
        return f"the bias `{value.name}` holds NaN or infinities"
    if bias.size != layout.outputs or bias.shape[-1:] != (layout.outputs,):
        return f"the bias `{value.name}` has shape {list(bias.shape)}, not one number a channel"
    return None


def channel_axis(node: ir.Node, of: int) -> int:
    """Return the axis of the channels in input and output of a linear node, for a tensor of rank `of`."""
    return of - 1 if node.op_type == "MatMul" else 1


def _linear(known: Known) -> Answer:
    node = known.node
    if known.slot is not None and node.op_type == "MatMul" and constant(input_at(node, 1)) is None:
        return _product(known)
    if known.slot is None and node.op_type == "MatMul" and constant(input_at(node, 1)) is None:
        return _product_backwards(known)
    layout = read_linear(node)
    if isinstance(layout, str):
        return layout
    if known.slot not in {None, 0}:
        return f"`{known.value.name}` is an operand of `{label(node)}` other than the first"
    axis = channel_axis(node, known.indices.ndim)
    if any(size > 1 for index, size in enumerate(known.indices.shape) if index != axis):
        return f"`{label(node)}` sums over tensors whose scale differs along more than the channels"
    size = layout.outputs if known.slot is None else layout.inputs
    indices = np.broadcast_to(known.indices.reshape(-1), (size,))
    return Relation(absorbers=(Absorber(node, 1, "output" if known.slot is None else "input", indices),))


def _product(known: Known) -> Answer:
    """`P V`: each column of V has its own scale in the product, each row of P as well."""
    node, indices = known.node, known.indices
    other = node.inputs[1 - (known.slot or 0)]
    if other is None or constant(other) is not None:
        return f"`{label(node)}` multiplies a constant from the left"
    summed = -1 if known.slot == 0 else -2
    if rank(other) != indices.ndim or indices.ndim < 2:
        return f"the operands of `{label(node)}` differ in rank"
    if indices.shape[summed] > 1:
        return f"`{label(node)}` sums over the channels"
    return Relation(values=((node.outputs[0], indices),), unscaled=(other,))


def _product_backwards(known: Known) -> Answer:
    node, indices = known.node, known.indices
    rows, columns = indices.shape[-2:] if indices.ndim >= 2 else (1, 1)
    if (rows > 1) == (columns > 1) or rank(node.inputs[0]) != rank(node.inputs[1]):
        return f"`{label(node)}` multiplies two activations"
    slot = 1 if columns > 1 else 0
    own, other = node.inputs[slot], node.inputs[1 - slot]
    if own is None or other is None or constant(own) is not None or constant(other) is not None:
        return f"`{label(node)}` multiplies a constant from the left"
    return Relation(values=((own, indices),), unscaled=(other,))


def _unary(known: Known) -> Answer:
    if known.slot not in {None, 0}:
        return f"`{known.value.name}` is not the first operand of `{label(known.node)}`"
    return _same(known)


def _prelu(known: Known) -> Answer:
    if constant(input_at(known.node, 1)) is None:
        return f"the slope of `{label(known.node)}` is not constant"
    return _unary(known)


def _same(known: Known) -> Answer:
    return f"`{label(known.node)}` has no input" if known.opposite is None else _to(known, known.opposite)


def _to(known: Known, value: ir.Value, indices: Indices | None = None) -> Relation:
    return Relation(values=((value, known.indices if indices is None else indices),))


def _pool(known: Known) -> Answer:
    if any(size > 1 for size in known.indices.shape[2:]):
        return f"`{label(known.node)}` pools over the channels"
    return _same(known)


def _reduce(known: Known) -> Answer:
    node = known.node
    given = node.attributes.get("axes")
    axes = tuple(given.as_ints()) if given is not None else integers(input_at(node, 1))
    source = rank(node.inputs[0])
    if not axes or source is None or known.opposite is None:
        return f"the axes of `{label(node)}` are not known"
    axes = tuple(axis % source for axis in axes)
    indices = known.indices
    if node.attributes.get_int("keepdims", 1) == 0:
        if known.slot is None:
            indices = np.expand_dims(indices, axes)
        elif all(indices.shape[axis] == 1 for axis in axes):
            return _to(known, known.opposite, np.squeeze(indices, axes))
    if any(indices.shape[axis] > 1 for axis in axes):
        return f"`{label(node)}` reduces the channels"
    return _to(known, known.opposite, indices)


def _pad(known: Known) -> Answer:
    node = known.node
    value, pads, axes = input_at(node, 2), integers(input_at(node, 1)), input_at(node, 3)
    mode = node.attributes.get_string("mode", "constant")
    if mode == "constant" and value is not None and scalar(value) != 0.0:
        return f"`{label(node)}` pads with a value that is not known to be zero"
    of = known.indices.ndim
    if pads is None or axes is not None or len(pads) != 2 * of:
        return f"the padding of `{label(node)}` is not known for every axis"
    if any(pads[axis] or pads[axis + of] for axis in _varying(known.indices)):
        return f"`{label(node)}` pads the channels"
    return _unary(known)


def _resize(known: Known) -> Answer:
    node = known.node
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return f"`{label(node)}` extrapolates with a constant"
    if "axes" in node.attributes or "keep_aspect_ratio_policy" in node.attributes:
        return f"`{label(node)}` does not say for every axis how it is resized"
    given = input_at(node, 2)
    scales = constant(given)
    if given is not None and (scales is None or (scales.size and scales.size != known.indices.ndim)):
        return f"the scales of `{label(node)}` are not known"
    if scales is not None and scales.size and any(scales[axis] != 1.0 for axis in _varying(known.indices)):
        return f"`{label(node)}` resizes the channels"
    return _same_but_resized(known)


def _varying(indices: Indices) -> list[int]:
    """Return the axes along which the scale differs."""
    return [axis for axis, size in enumerate(indices.shape) if size > 1]


def _same_but_resized(known: Known) -> Answer:
    """The output has the sizes of the input along every axis on which the scale differs."""
    before, after = static_shape(known.node.inputs[0]), static_shape(known.node.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return f"the shapes around `{label(known.node)}` are not known"
    if any(before[axis] != after[axis] for axis in _varying(known.indices)):
        return f"`{label(known.node)}` changes the number of channels"
    return _unary(known)


def _transpose(known: Known) -> Answer:
    order = list(known.node.attributes.get_ints("perm", tuple(reversed(range(known.indices.ndim)))))
    if known.opposite is None:
        return f"`{label(known.node)}` has no input"
    if known.slot is None:
        order = [order.index(axis) for axis in range(len(order))]
    return _to(known, known.opposite, known.indices.transpose(order))


def _reshape(known: Known) -> Answer:
    other = known.opposite
    if known.slot not in {None, 0} or other is None:
        return f"`{known.value.name}` is a shape"
    before, after = static_shape(known.value), static_shape(other)
    if before is None or after is None or math.prod(before) != math.prod(after):
        return f"the shapes around `{label(known.node)}` are not known"
    return _to(known, other, narrowed(np.broadcast_to(known.indices, before).reshape(after)))


def narrowed(indices: Indices) -> Indices:
    """Return `indices` with size 1 along every axis on which they do not differ."""
    for axis in range(indices.ndim):
        first = indices.take([0], axis)
        if indices.shape[axis] > 1 and bool((indices == first).all()):
            indices = first
    return indices


def _joined(known: Known, whole: ir.Value, parts: list[tuple[int, ir.Value]], axis: int) -> Answer:
    """Return the relation between a tensor and the parts that it consists of along `axis`.

    Args:
        known: The tensor that is to be scaled, one of them.
        whole: The tensor.
        parts: The parts, each with its input index.
        axis: The axis.
    """
    axis %= known.indices.ndim
    shapes = [static_shape(part) for _, part in parts]
    shape = static_shape(whole)
    if shape is None or any(one is None for one in shapes):
        return f"the shapes around `{label(known.node)}` are not known"
    if known.value is whole:
        indices = known.indices
    elif known.indices.shape[axis] == 1 and shape[axis] > 1 and len(parts) > 1:
        indices = known.indices  # the same scale along the axis, for all parts
    else:
        sizes = [shape[axis] if index == axis else size for index, size in enumerate(known.indices.shape)]
        indices = known.fresh(tuple(sizes))
    values, absorbers, at = [(whole, indices)], [], 0
    for (slot, part), part_shape in zip(parts, shapes, strict=True):
        size = 0 if part_shape is None else part_shape[axis]
        own = indices if indices.shape[axis] == 1 else indices.take(range(at, at + size), axis)
        at += size
        if part is known.value:
            values.append((part, own))
        elif constant(part) is not None:
            absorbers.append(Absorber(known.node, slot, "constant", own))
        else:
            values.append((part, own))
    return Relation(values=tuple(values), absorbers=tuple(absorbers))


def _concat(known: Known) -> Answer:
    parts = [(slot, value) for slot, value in enumerate(known.node.inputs) if value is not None]
    return _joined(known, known.node.outputs[0], parts, known.node.attributes.get_int("axis", 0))


def _split(known: Known) -> Answer:
    whole = known.node.inputs[0]
    if whole is None or known.slot not in {None, 0}:
        return f"`{known.value.name}` is a list of sizes"
    parts = [(-1, value) for value in known.node.outputs]
    return _joined(known, whole, parts, known.node.attributes.get_int("axis", 0))


def _gather(known: Known) -> Answer:
    """A selection along one axis; the index is constant."""
    source, chosen = known.node.inputs[0], constant(input_at(known.node, 1))
    if chosen is None or chosen.ndim > 1 or source is None or known.slot not in {None, 0}:
        return f"`{label(known.node)}` selects by an index that is no constant list"
    shape = static_shape(source)
    if shape is None:
        return f"the shapes around `{label(known.node)}` are not known"
    axis = known.node.attributes.get_int("axis", 0) % len(shape)

    def pick(indices: Indices) -> Indices:
        if indices.shape[axis] > 1:
            return np.asarray(indices.take(chosen, axis))
        return np.squeeze(indices, axis) if chosen.ndim == 0 else indices

    return _selected(known, source, axis, pick, keeps=chosen.ndim == 1)


def _slice(known: Known) -> Answer:
    """A selection along axes on which the scale does not differ."""
    given = input_at(known.node, 4)
    steps = integers(given)
    if given is not None and (steps is None or min(steps, default=1) < 0):
        return f"`{label(known.node)}` may turn the channels around"
    return _same_but_resized(known)


def _selected(known: Known, source: ir.Value, axis: int, pick: Callable[[Indices], Indices], *, keeps: bool) -> Answer:
    """Return the relation between `source` and what `pick` selects of it along `axis`."""
    output = known.node.outputs[0]
    if known.slot == 0:
        return _to(known, output, pick(known.indices))
    shape = static_shape(source) or ()
    pattern = list(known.indices.shape) if keeps else list(np.expand_dims(known.indices, axis).shape)
    # What is not selected here is selected elsewhere, and has scales of its own.
    pattern[axis] = shape[axis]
    full = known.fresh(tuple(pattern))
    return Relation(values=((source, full), (output, pick(full))))


def _add(known: Known) -> Answer:
    """Operands and sum have the same scale; a constant takes it."""
    node, output = known.node, known.node.outputs[0]
    shape = static_shape(output)
    if shape is None:
        return f"the shape of `{output.name}` is not known"
    indices = known.indices
    if known.slot is not None:
        indices = indices.reshape(*[1] * (len(shape) - indices.ndim), *indices.shape)
    values, absorbers = [(output, indices)], []
    for slot, operand in enumerate(node.inputs):
        if operand is None:
            return f"`{label(node)}` has no input"
        if constant(operand) is not None:
            absorbers.append(Absorber(node, slot, "constant", indices))
            continue
        own = static_shape(operand)
        if own is None:
            return f"the shape of `{operand.name}` is not known"
        lead = len(shape) - len(own)
        broadcast = [axis for axis in range(len(shape)) if axis < lead or own[axis - lead] != shape[axis]]
        if any(indices.shape[axis] > 1 for axis in broadcast):
            return f"`{label(node)}` adds one number of `{operand.name}` to many channels"
        values.append((operand, indices.reshape(indices.shape[lead:])))
    return Relation(values=tuple(values), absorbers=tuple(absorbers))


def _scaled(known: Known) -> Answer:
    """A product with a constant: a single number carries scales through, one for each channel takes them."""
    node = known.node
    slots = [slot for slot, value in enumerate(node.inputs) if constant(value) is not None]
    if len(slots) != 1 or (node.op_type == "Div" and slots != [1]):
        return f"`{label(node)}` does not multiply with a constant"
    (slot,) = slots
    array, other, output = constant(node.inputs[slot]), node.inputs[1 - slot], node.outputs[0]
    if array is None or other is None or rank(other) != rank(output) or array.ndim > known.indices.ndim:
        return f"the ranks around `{label(node)}` differ or are not known"
    if static_shape(other) != static_shape(output) or static_shape(other) is None:
        return f"`{label(node)}` broadcasts an activation"
    if array.size == 1:
        return Relation(values=((output if known.slot is not None else other, known.indices),))
    if not _is_real(array):
        return f"`{label(node)}` multiplies with {array.dtype}, and only float32 is rescaled"
    shrinks = (known.slot is None) == (node.op_type == "Mul")
    return Relation(absorbers=(Absorber(node, slot, "constant" if shrinks else "inverse", known.indices),))


def _is_real(array: Array) -> bool:
    return array.dtype == np.float32 and bool(np.isfinite(array).all())


def _layer_norm(known: Known) -> Answer:
    """Gamma and beta scale the output; the input's channels are mixed by mean and variance."""
    node = known.node
    if known.slot is not None:
        return f"`{label(node)}` normalizes over the channels"
    if any(size > 1 for size in known.indices.shape[:-1]):
        return f"`{label(node)}` has one factor for each feature only"
    absorbers = []
    for slot in (1, 2):
        value = input_at(node, slot)
        if value is None:
            continue
        array = constant(value)
        if array is None or array.ndim != 1 or not _is_real(array):
            return f"`{value.name}` of `{label(node)}` is no constant float32 vector"
        absorbers.append(Absorber(node, slot, "constant", known.indices.reshape(-1)))
    return Relation(absorbers=tuple(absorbers))


_RELATIONS: Final[dict[str, Callable[[Known], Answer]]] = {
    **dict.fromkeys(LINEAR, _linear),
    **dict.fromkeys(("Relu", "LeakyRelu", "Identity"), _unary),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"), _pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Add", "Sub"), _add),
    **dict.fromkeys(("Mul", "Div"), _scaled),
    "PRelu": _prelu,
    "Pad": _pad,
    "Resize": _resize,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Gather": _gather,
    "Slice": _slice,
    "LayerNormalization": _layer_norm,
}
"""Operators `f` with `f(x s) = f(x) s` for every positive `s` of a channel, and how they move the channels."""
