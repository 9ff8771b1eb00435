"""Between which numbers each unit always lies, whatever the input, by interval arithmetic over the graph.

Source: Moore 1966, "Interval Analysis". Every sum is widened by what rounding in float32 may add (Higham 2002,
"Accuracy and Stability of Numerical Algorithms", equation 3.5, and underflow), so that a unit whose range is exactly
zero is exactly zero in any order of the arithmetic. Inputs are taken to be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.coupling import Coupling, Units
from edgewise.compress.nodes import attribute, constant
from edgewise.compress.unfold import unfolding
from edgewise.passes.rewriting import input_at, is_operator
from edgewise.records.tensors import Array

Range: TypeAlias = npt.NDArray[np.float64]
"""Lowest and highest number of each unit, or of each position along an axis; shape `[2, N]`."""

_UNIT: Final = 2.0**-24
_SMALLEST: Final = 2.0**-126  # Runtimes may take smaller numbers for zero.
_HARD_SWISH_LOWEST: Final = -0.376
_HARD_SWISH_ZERO: Final = -3.001  # x * max(0, min(1, x / 6 + 0.5)) is 0 below -3; the rest is for rounding.


class Ranges:
    """The ranges of all units of a model.

    Args:
        model: The model that `coupling` describes.
        coupling: The groups.
    """

    def __init__(self, model: ir.Model, coupling: Coupling) -> None:
        self._units: dict[str, list[tuple[int, int, Units]]] = {}
        self._sizes = [group.size for group in coupling.groups]
        self._found: dict[tuple[int, str], Range] = {}
        for number, group in enumerate(coupling.groups):
            for one in group.axes:
                self._units.setdefault(one.value, []).append((number, one.axis, one.units))
        for node in model.graph:
            for output in node.outputs if node.op_type == "Split" else node.outputs[:1]:
                if output.name in self._units and is_operator(node, node.op_type):
                    self._visit(node, output)

    def of(self, group: int, value: ir.Value | None) -> Range:
        """Return the range of each unit of a group in a value, shape `[2, size]`."""
        size = self._sizes[group]
        if value is None or value.name is None:
            return _unknown(size)
        if (group, value.name) in self._found:
            return self._found[group, value.name]
        array = constant(value)
        mine = [(axis, units) for number, axis, units in self._units.get(value.name, ()) if number == group]
        if array is None or array.dtype.kind != "f" or not array.size or not np.isfinite(array).all():
            return _unknown(size)
        if not mine:
            return np.repeat([[float(array.min())], [float(array.max())]], size, axis=1)
        return self._gathered(size, [(units, _slices(array, axis)) for axis, units in mine])

    def along(self, value: ir.Value | None, axis: int, size: int) -> Range:
        """Return the range of each position along an axis of a value, shape `[2, size]`."""
        found = _unknown(size)
        name = "" if value is None else value.name or ""
        for number, place, units in self._units.get(name, ()):
            if place == axis and len(units) == size:
                mine = self.of(number, value)[:, np.maximum(units, 0)]
                mine[:, units < 0] = [[-np.inf], [np.inf]]
                found = np.stack([np.maximum(found[0], mine[0]), np.minimum(found[1], mine[1])])
        return found

    def _visit(self, node: ir.Node, output: ir.Value) -> None:
        name = output.name or ""
        by_position = self._by_position(node)
        for number in {number for number, _, _ in self._units[name]}:
            axes = [(axis, units) for group, axis, units in self._units[name] if group == number]
            if by_position is not None:
                axis, found = by_position
                if [place for place, _ in axes] == [axis] and len(axes[0][1]) == found.shape[1]:
                    self._found[number, name] = self._gathered(self._sizes[number], [(axes[0][1], found)])
                continue
            rule = _RULES.get(node.op_type)
            if rule is not None and all(self._fits(number, value, len(axes)) for value in node.inputs):
                with np.errstate(invalid="ignore"):  # of units that have no position here
                    self._found[number, name] = rule(node, [self._vacuous(number, value) for value in node.inputs])

    def _fits(self, group: int, value: ir.Value | None, axes: int) -> bool:
        """Return whether the units of an operand are slices along as many axes as those of the output."""
        count = sum(number == group for number, _, _ in self._units.get("" if value is None else value.name or "", ()))
        return count in {0, axes}

    def _vacuous(self, group: int, value: ir.Value | None) -> Range:
        """Return the ranges in an operand, empty (`inf` to `-inf`) for units that have no position in it."""
        found = np.array(self.of(group, value))
        name = "" if value is None else value.name or ""
        mine = [units for number, _, units in self._units.get(name, ()) if number == group]
        if mine:
            found[:, ~np.isin(np.arange(found.shape[1]), np.concatenate(mine))] = [[np.inf], [-np.inf]]
        return found

    def _gathered(self, size: int, parts: Sequence[tuple[Units, Range]]) -> Range:
        """Return the hull of the positions of each unit; units without any have an empty range."""
        found = np.repeat([[np.inf], [-np.inf]], size, axis=1)
        for units, ranges in parts:
            inside = units >= 0
            np.minimum.at(found[0], units[inside], ranges[0, inside])
            np.maximum.at(found[1], units[inside], ranges[1, inside])
        return found

    def _by_position(self, node: ir.Node) -> tuple[int, Range] | None:
        """Return the axis of the channels of a node with weights, and the range of each."""
        if is_operator(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
            return self._product(node)
        if is_operator(node, "BatchNormalization"):
            return self._batch_norm(node)
        return None

    def _product(self, node: ir.Node) -> tuple[int, Range] | None:
        weight, source = constant(input_at(node, 1)), node.inputs[0]
        layout = None if weight is None else unfolding(node, weight)
        if weight is None or layout is None or isinstance(layout, str) or not np.isfinite(weight).all():
            return None
        axis = input_axis(node)
        channels = layout.groups * layout.columns // layout.kernel
        inputs = self.along(source, axis, channels) if axis is not None else _unknown(channels)
        if node.op_type in {"Conv", "ConvTranspose"}:
            inputs = _with_zero(inputs)  # padding
        scale = attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
        found = _weighted_sum(scale * layout.matrix(weight), np.repeat(inputs, layout.kernel, axis=1))
        bias = input_at(node, 2)
        if bias is not None:
            shift = constant(bias)
            if shift is None or shift.size not in {1, found.shape[1]} or shift.shape[-1:] != (shift.size,):
                return None
            shift = shift.astype(np.float64).reshape(-1)
            found = _sum(
                [found, np.stack([shift, shift]) * (attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1)]
            )
        output = node.outputs[0]
        if node.op_type != "MatMul":
            return 1, found
        return None if output.shape is None else (len(output.shape) - 1, found)

    def _batch_norm(self, node: ir.Node) -> tuple[int, Range] | None:
        parameters = [constant(value) for value in node.inputs[1:5]]
        scale, shift, mean, variance = [None if one is None else one.astype(np.float64) for one in parameters]
        if scale is None or shift is None or mean is None or variance is None:
            return None
        factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        inputs = self.along(node.inputs[0], 1, len(scale))
        centred = _sum([inputs, np.stack([-mean, -mean])])
        return 1, _sum([_product_of([centred, np.stack([factor, factor])]), np.stack([shift, shift])])


def input_axis(node: ir.Node) -> int | None:
    """Return the axis of the channels that a linear node sums over, or None where the rank is not known."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transA", 0) else 1
    if node.op_type == "MatMul":
        value = node.inputs[0]
        return None if value is None or value.shape is None else len(value.shape) - 1
    return 1


def _unknown(size: int) -> Range:
    return np.repeat([[-np.inf], [np.inf]], size, axis=1)


def _slices(array: Array, axis: int) -> Range:
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
    return np.stack([rows.min(axis=1), rows.max(axis=1)])


def _times(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Multiply; zero times infinity is zero, as no number is infinite, but only not bounded."""
    with np.errstate(invalid="ignore"):
        return np.where((first == 0) | (second == 0), 0.0, first * second)


def _weighted_sum(matrix: npt.NDArray[np.float64], inputs: Range) -> Range:
    """Return the ranges of `matrix[g] @ x[g]`, shape `[2, G * R]`; `inputs` has the shape `[2, G * K]`."""
    groups, rows, columns = matrix.shape
    low, high = (side.reshape(groups, 1, columns) for side in inputs)
    first, second = _times(matrix, low), _times(matrix, high)
    ends = np.stack([np.minimum(first, second).sum(axis=2), np.maximum(first, second).sum(axis=2)])
    most = np.maximum(np.abs(first), np.abs(second)).sum(axis=2)
    return _widened(ends.reshape(2, groups * rows), most.reshape(-1), columns)


def _widened(ends: Range, magnitude: npt.NDArray[np.float64], terms: int) -> Range:
    uncertain = np.isfinite(magnitude) & (magnitude > 0)
    room = np.where(uncertain, 2 * (terms + 1) * (_UNIT * magnitude + _SMALLEST), 0.0)
    return np.stack([ends[0] - room, ends[1] + room])


def _sum(parts: Sequence[Range]) -> Range:
    ends = np.sum(parts, axis=0)
    # A number and nothing but zeros is itself: no rounding.
    exact = np.sum([(part != 0).any(axis=0) for part in parts], axis=0) < 2
    return _widened(ends, np.where(exact, 0.0, np.abs(parts).max(axis=1).sum(axis=0)), len(parts))


def _product_of(parts: Sequence[Range]) -> Range:
    found = parts[0]
    for part in parts[1:]:
        corners = np.stack([_times(first, second) for first in found for second in part])
        found = _widened(np.stack([corners.min(axis=0), corners.max(axis=0)]), np.abs(corners).max(axis=0), 1)
    return found


def _hull(parts: Sequence[Range]) -> Range:
    return np.stack([np.min([part[0] for part in parts], axis=0), np.max([part[1] for part in parts], axis=0)])


def _with_zero(part: Range) -> Range:
    return np.stack([np.minimum(part[0], 0.0), np.maximum(part[1], 0.0)])


def _is_zero(part: Range) -> npt.NDArray[np.bool_]:
    return np.asarray((part == 0).all(axis=0))


def _only_zero(part: Range) -> Range:
    """Return zero where the range is zero, and anything elsewhere."""
    return np.where(_is_zero(part), 0.0, _unknown(part.shape[1]))


def _clip(node: ir.Node, parts: Sequence[Range]) -> Range:
    found = parts[0]
    for slot, side in ((1, np.maximum), (2, np.minimum)):
        if input_at(node, slot) is not None:
            bound = constant(node.inputs[slot])
            if bound is None or bound.size != 1:
                return _unknown(found.shape[1])
            found = side(found, float(bound.reshape(-1)[0]))
    return found


def _hard_swish(node: ir.Node, parts: Sequence[Range]) -> Range:
    del node
    low, high = parts[0]
    dead = (high <= _HARD_SWISH_ZERO) | _is_zero(parts[0])
    return np.stack([np.where(dead | (low >= 0), 0.0, _HARD_SWISH_LOWEST), np.where(dead, 0.0, np.maximum(high, 0.0))])


def _quotient(node: ir.Node, parts: Sequence[Range]) -> Range:
    divisor = constant(node.inputs[1])
    return _only_zero(parts[0]) if divisor is not None and (divisor != 0).all() else _unknown(parts[0].shape[1])


def _padded(node: ir.Node, parts: Sequence[Range]) -> Range:
    value = constant(input_at(node, 2))
    zeros = input_at(node, 2) is None or (value is not None and not value.any())
    plain = node.attributes.get_string("mode", "constant") == "constant"
    return _with_zero(parts[0]) if zeros or not plain else _unknown(parts[0].shape[1])


def _resized(node: ir.Node, parts: Sequence[Range]) -> Range:
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return _unknown(parts[0].shape[1])
    return parts[0] if node.attributes.get_string("mode", "nearest") == "nearest" else _only_zero(parts[0])


_Rule: TypeAlias = Callable[[ir.Node, Sequence[Range]], Range]

_RULES: Final[dict[str, _Rule]] = {
    **dict.fromkeys(
        ("DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "Reshape",
         "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        lambda _, parts: parts[0],
    ),
    **dict.fromkeys(
        ("Abs", "AveragePool", "Celu", "Elu", "Erf", "Gelu", "GlobalAveragePool", "LeakyRelu", "Mish", "Neg", "PRelu",
         "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Selu", "Sign", "Softsign", "Sqrt", "Swish", "Tanh"),
        lambda _, parts: _only_zero(parts[0]),
    ),
    "Add": lambda _, parts: _sum(parts),
    "Clip": _clip,
    "Concat": lambda _, parts: _hull(parts),
    "Div": _quotient,
    "HardSigmoid": lambda _, parts: np.repeat([[0.0], [1.0]], parts[0].shape[1], axis=1),
    "HardSwish": _hard_swish,
    "Max": lambda _, parts: np.max(parts, axis=0),
    "Min": lambda _, parts: np.min(parts, axis=0),
    "Mul": lambda _, parts: _product_of(parts),
    "Pad": _padded,
    "Relu": lambda _, parts: np.maximum(parts[0], 0.0),
    "Resize": _resized,
    "Sigmoid": lambda _, parts: np.repeat([[0.0], [1.0]], parts[0].shape[1], axis=1),
    "Sub": lambda _, parts: _sum([parts[0], -parts[1][::-1]]),
    "Sum": lambda _, parts: _sum(parts),
}  # fmt: skip
"""The ranges of an operator's output from those of its operands; of others nothing is known."""
