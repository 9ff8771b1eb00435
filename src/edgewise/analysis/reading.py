"""How a graph reads its inputs: which axis is a channel, which lies in space or time, what indexes a table.

An input is followed through operators that move its elements about (Transpose, Reshape, Pad ...) or scale them by
constants, until something sums over its channels (Conv, MatMul, Gemm, a recurrent cell).
Where every element went is kept as an array of indices, so that layouts need no cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.values import input_at, is_standard, label

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LONGEST_PATH: Final = 64
"""Nodes between an input and what reads it; paths of exported models have fewer than ten."""


@dataclass(frozen=True)
class Normalization:
    """A linear layer on the input, and what the batch normalization behind it remembers of its outputs.

    Attributes:
        node: Name of the batch normalization.
        weights: Of the layer, `[K, C, *window]`, dilated windows filled up with zeros.
        bias: Of the layer, `[K]`.
        mean: Running mean, `[K]`.
        variance: Running variance, `[K]`.
    """

    node: str
    weights: FloatArray
    bias: FloatArray
    mean: FloatArray
    variance: FloatArray


@dataclass(frozen=True)
class Reading:
    """How a floating-point input is read first.

    Attributes:
        places: For each channel and place, `[C, *sizes]`, the index of the element of the flattened input; -1 is none.
        scale: What a channel is multiplied with on the way, `[C]`, no entry 0.
        offset: What is added afterwards, `[C]`.
        layer: Weights `[K, C, *window]` and bias `[K]` of the linear layer that reads it, or None.
        normalization: The batch normalization behind that layer, or the one that reads it itself, or None.
    """

    places: Indices
    scale: FloatArray
    offset: FloatArray
    layer: tuple[FloatArray, FloatArray] | None = None
    normalization: Normalization | None = None


@dataclass(frozen=True)
class _Path:
    """An input on its way: the value it has become, and for each element of that, its origin, factor and summand."""

    value: ir.Value
    places: Indices
    scale: FloatArray
    offset: FloatArray

    def moved(self, value: ir.Value, move: Callable[[Array], Array]) -> _Path:
        return _Path(value, move(self.places), move(self.scale), move(self.offset))


def reading(value: ir.Value, sizes: tuple[int, ...]) -> Reading | None:
    """Return how the input `value` is read first, or None where nothing on its way tells channels from places.

    Args:
        value: A floating-point input of the graph.
        sizes: Its shape, batch 1 included.
    """
    places = np.arange(math.prod(sizes), dtype=np.int64).reshape(sizes)
    start = _Path(value, places, np.ones(sizes), np.zeros(sizes))
    found = [one for path, node in _ends(start) if (one := _read(path, node)) is not None]
    return next((one for one in found if one.normalization is not None), found[0] if found else None)


def table_rows(value: ir.Value) -> int | None:
    """Return how many rows the smallest table has into which the input `value` reaches, or None where it indexes none.

    Operators that keep the numbers, change their order or choose among them lie in between.
    """
    rows = []
    for consumer, position in _reach(value, _KEEPS_NUMBERS):
        if is_standard(consumer, "Gather", "GatherND", "GatherElements") and position == 1:
            table = input_at(consumer, 0)
            axis = _integer(consumer, "axis", 0)
            shape = None if table is None or table.shape is None else table.shape
            if shape is not None and -len(shape) <= axis < len(shape) and isinstance(size := shape[axis], int):
                rows.append(size)
    return min(rows, default=None)


def compared_with(value: ir.Value) -> tuple[float, ...]:
    """Return the constants with which the graph compares the input `value` for equality, in order."""
    found: set[float] = set()
    for consumer, position in _reach(value, _KEEPS_NUMBERS):
        if is_standard(consumer, "Equal"):
            constant = _constant(input_at(consumer, 1 - position))
            if constant is not None and constant.dtype.kind in "iuf":
                found.update(float(number) for number in constant.ravel())
    return tuple(sorted(found))


_KEEPS_NUMBERS: Final = frozenset(
    {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Expand", "Clip", "Where"}
    | {"Concat", "Max", "Min"}
)


def _reach(value: ir.Value, through: frozenset[str]) -> Iterator[tuple[ir.Node, int]]:
    """Yield every consumer that `value` reaches through operators of the given types, and at which input."""
    waiting, seen = [value], {value}
    while waiting:
        for use in waiting.pop().uses():
            yield use.node, use.idx
            if is_standard(use.node, *through):
                new = [output for output in use.node.outputs if output not in seen]
                seen.update(new)
                waiting.extend(new)


def _ends(start: _Path) -> Iterator[tuple[_Path, ir.Node]]:
    """Yield the nodes at which a path from `start` ends, with the path as it enters them."""
    waiting = [start]
    for _ in range(LONGEST_PATH):
        if not waiting:
            return
        path = waiting.pop(0)
        for use in path.value.uses():
            step = _step(path, use.node) if use.idx == 0 or is_standard(use.node, "Add", "Mul") else None
            if step is not None:
                waiting.append(step)
            else:
                yield path, use.node


def _step(path: _Path, node: ir.Node) -> _Path | None:
    """Return the path behind `node`, or None where it ends there."""
    output = node.outputs[0]
    if is_standard(node, "Identity", "Cast", "Dropout"):
        return replace(path, value=output)
    if is_standard(node, "Add", "Sub", "Mul", "Div"):
        return _affine(path, node)
    if is_standard(node, "Transpose"):
        order = node.attributes.get_ints("perm", tuple(reversed(range(path.places.ndim))))
        return path.moved(output, lambda array: array.transpose(order))
    if is_standard(node, "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        return _reshaped(path, node)
    if is_standard(node, "Pad"):  # what it adds is no element of the input
        return replace(path, value=output)
    return None


def _affine(path: _Path, node: ir.Node) -> _Path | None:
    first, second = input_at(node, 0), input_at(node, 1)
    constant = _constant(second if first is path.value else first)
    if (
        constant is None
        or constant.dtype.kind not in "iuf"
        or (node.op_type in {"Sub", "Div"} and first is not path.value)
    ):
        return None
    try:
        number = np.broadcast_to(constant.astype(np.float64), path.places.shape)
    except ValueError:
        return None
    if node.op_type in {"Add", "Sub"}:
        return replace(path, value=node.outputs[0], offset=path.offset + (number if node.op_type == "Add" else -number))
    if not number.all():
        return None
    factor = number if node.op_type == "Mul" else 1 / number
    return _Path(node.outputs[0], path.places, path.scale * factor, path.offset * factor)


def _reshaped(path: _Path, node: ir.Node) -> _Path | None:
    """Return the path behind an operator that keeps the order of the elements; its output's shape has to be known."""
    output = node.outputs[0]
    shape = tuple(output.shape) if output.shape is not None else ()
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    target = _constant(input_at(node, 1))
    if is_standard(node, "Reshape") and target is not None and -1 in (sizes or [-1]):
        sizes = [path.places.shape[i] if size == 0 else int(size) for i, size in enumerate(target)]
    if not sizes or sizes.count(-1) > 1:
        return None
    try:
        path.places.reshape(sizes)
    except ValueError:
        return None
    return path.moved(output, lambda array: array.reshape(sizes))


_CHANNEL_AXIS: Final = {
    "BatchNormalization": 1,
    "InstanceNormalization": 1,
    "Conv": 1,
    "ConvTranspose": 1,
    "MaxPool": 1,
    "AveragePool": 1,
    "LSTM": 2,
    "GRU": 2,
    "RNN": 2,
    "MatMul": -1,
    "Gemm": -1,
}
"""The axis of the first input that holds the channels."""


def _read(path: _Path, node: ir.Node) -> Reading | None:
    """Return how `node` reads what reaches it, or None where it does not tell channels from places."""
    if not is_standard(node, *_CHANNEL_AXIS):
        return None
    transposed = is_standard(node, "Gemm") and bool(_integer(node, "transA", 0))
    axis = 0 if transposed else _CHANNEL_AXIS[node.op_type]
    if not -path.places.ndim <= axis < path.places.ndim:
        return None
    places, scale, offset = (np.moveaxis(array, axis, 0) for array in (path.places, path.scale, path.offset))
    channels, *sizes = places.shape
    # The batch of 1 is no place. Behind a channel axis of 1 it comes first; elsewhere every size of 1 may go.
    sizes = sizes[1:] if axis == 1 and sizes[:1] == [1] else [size for size in sizes if size > 1]
    layer = _layer(node, channels)
    return Reading(
        places=np.ascontiguousarray(places.reshape(channels, *sizes)),
        scale=scale.reshape(channels, -1).mean(axis=1),
        offset=offset.reshape(channels, -1).mean(axis=1),
        layer=None if layer is None else layer[:2],
        normalization=_normalization(node, channels, layer),
    )


_Layer: TypeAlias = tuple[FloatArray, FloatArray, ir.Value]
"""Weights, bias, and the value that holds the outputs."""


def _normalization(node: ir.Node, channels: int, layer: _Layer | None) -> Normalization | None:
    """Return the batch normalization that `node` is, or that follows its layer."""
    if is_standard(node, "BatchNormalization"):
        rank = node.inputs[0].shape.rank() if node.inputs[0] is not None and node.inputs[0].shape is not None else 2
        identity = np.eye(channels).reshape(channels, channels, *[1] * max(rank - 2, 0))
        return _remembered(node, identity, np.zeros(channels))
    if layer is None:
        return None
    weights, bias, output = layer
    behind = (use.node for use in output.uses())
    normalizer = next((one for one in behind if is_standard(one, "BatchNormalization")), None)
    return None if normalizer is None else _remembered(normalizer, weights, bias)


def _remembered(node: ir.Node, weights: FloatArray, bias: FloatArray) -> Normalization | None:
    """Return what a batch normalization remembers, or None where that is not constant or not finite."""
    found = [_constant(input_at(node, index)) for index in (3, 4)]
    mean, variance = (None if one is None else one.astype(np.float64).ravel() for one in found)
    if mean is None or variance is None or not len(mean) == len(variance) == len(bias):
        return None
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        return None
    return Normalization(label(node), weights, bias, mean, np.maximum(variance, 0.0))


def _layer(node: ir.Node, channels: int) -> _Layer | None:
    """Return the linear layer that `node` is, a bias that is added behind it included; None where it is none."""
    weights = _weights(node, channels)
    if weights is None or not np.isfinite(weights).all():
        return None
    output = node.outputs[0]
    bias = np.zeros(len(weights))
    own = _constant(input_at(node, 2)) if is_standard(node, "Conv", "Gemm") else None
    if own is not None and own.size == len(bias):
        bias = bias + own.ravel()
    consumers = [use.node for use in output.uses()]
    if len(consumers) == 1 and is_standard(consumers[0], "Add"):
        summand = next((found for value in consumers[0].inputs if (found := _constant(value)) is not None), None)
        if summand is not None and summand.size == len(bias):
            bias, output = bias + summand.ravel(), consumers[0].outputs[0]
    return weights, bias, output


def _weights(node: ir.Node, channels: int) -> FloatArray | None:
    """Return the weights of a linear layer as `[K, C, *window]`, or None."""
    array = _constant(input_at(node, 1))
    if array is None or array.dtype.kind != "f":
        return None
    weights = array.astype(np.float64)
    if is_standard(node, "MatMul", "Gemm") and weights.ndim == 2:
        return weights if _integer(node, "transB", 0) else weights.T
    if not is_standard(node, "Conv"):
        return None
    outputs, depth = weights.shape[:2]
    full = np.zeros((outputs, channels, *weights.shape[2:]))
    for k in range(outputs):
        first = k // (outputs // (channels // depth)) * depth
        full[k, first : first + depth] = weights[k]
    return _dilated(full, node.attributes.get_ints("dilations", (1,) * (weights.ndim - 2)))


def _dilated(weights: FloatArray, dilations: Sequence[int]) -> FloatArray:
    window = [(size - 1) * step + 1 for size, step in zip(weights.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weights.shape[:2], *window))
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in dilations))] = weights
    return wide


def _constant(value: ir.Value | None) -> Array | None:
    """Return the number that `value` holds, or None where it is not constant."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes.get_int(name, default)
