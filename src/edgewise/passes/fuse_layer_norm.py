"""Layer normalisation spelled out becomes LayerNormalization.

`(x - mean) / sqrt(variance + epsilon) * gamma + beta` over the last axes (Ba, Kiros and Hinton, 2016, equation 3),
as PyTorch writes it (Pow or a product, Sqrt, Div), as TensorFlow does (`x * (r gamma) + (beta - mean * (r gamma))`
with `r = 1 / sqrt(...)`), and without gamma or beta. Legal from opset 17 on, over trailing axes, with constant gamma
and beta of their shape. Worth it because the spelled form is seven to nine operators that each read and write the
activation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgewise.passes.algebra import plus
from edgewise.passes.rewriting import (
    Declined,
    Done,
    Edit,
    Outcome,
    SitePass,
    constant,
    input_at,
    integers,
    is_operator,
    label,
    rank,
    same_type,
    scalar,
    sole_reader,
    static_shape,
    why_not_closed,
)
from edgewise.records.tensors import Array

FIRST_OPSET = 17


@dataclass
class Match:
    """A layer normalisation as it was found.

    Attributes:
        x: What is normalised.
        mean: Its mean.
        centred: `x - mean` as the variance uses it.
        axes: The axes, as written.
        epsilon: What is added to the variance.
        nodes: Every node that becomes part of LayerNormalization.
        gamma: The factor, or None.
        beta: The summand, or None.
    """

    x: ir.Value
    mean: ir.Value
    centred: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    nodes: list[ir.Node] = field(default_factory=list)
    gamma: Array | None = None
    beta: Array | None = None


class FuseLayerNorm(SitePass):
    """Recognise layer normalisation."""

    name = "fuse_layer_norm"
    operators = frozenset({"Sqrt", "Pow"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:  # noqa: PLR0911 - one return a reason
        """Recognise the layer normalisation around one root of a variance."""
        match = _variance(node)
        if match is None:
            return None
        root = _normalised(node, match)
        if root is None:
            return None
        if edit.opset < FIRST_OPSET:
            return Declined(f"LayerNormalization exists from opset {FIRST_OPSET} on and the model has {edit.opset}")
        dims = rank(match.x)
        axes = sorted(axis if axis < 0 or dims is None else axis - dims for axis in match.axes)
        if axes != list(range(-len(axes), 0)):
            return Declined(f"it normalises the axes {list(match.axes)}, which are not known to be the last ones")
        shape = _normalised_shape(match, len(axes))
        if isinstance(shape, str):
            return Declined(shape)
        if reason := why_not_closed(root, match.nodes):
            return Declined(reason)
        gamma = np.ones(shape) if match.gamma is None else _stretched(match.gamma, shape)
        beta = None if match.beta is None else _stretched(match.beta, shape)
        if gamma is None or (beta is None and match.beta is not None):
            return Declined("its factor or summand does not have the shape of the normalised axes")
        inputs = [match.x, edit.constant(root, f"{label(root)}_scale", same_type(match.x, gamma))]
        if beta is not None:
            inputs.append(edit.constant(root, f"{label(root)}_bias", same_type(match.x, beta)))
        attributes = {"axis": -len(axes), "epsilon": match.epsilon}
        dead = list(dict.fromkeys(match.nodes))
        edit.swap(root, dead, edit.node("LayerNormalization", inputs, attributes, name=root.name))
        return Done(f"replaced {len(dead)} nodes by LayerNormalization")


def _variance(root: ir.Node) -> Match | None:  # noqa: PLR0911 - one return a mismatch
    """Read upwards from `sqrt(mean((x - mean(x))**2) + epsilon)`, or from the same to the power -1/2."""
    if root.op_type == "Pow" and scalar(input_at(root, 1)) != -0.5:
        return None
    shifted = plus(root.inputs[0]) if root.inputs[0] is not None else None
    if shifted is None or shifted[1] <= 0:
        return None
    variance = shifted[0].producer()
    if variance is None or (axes := _mean_axes(variance)) is None:
        return None
    square = _producer(variance.inputs[0])
    centred = None if square is None else _squared(square)
    subtraction = _producer(centred)
    if square is None or centred is None or subtraction is None or not is_operator(subtraction, "Sub"):
        return None
    x, mean = subtraction.inputs
    averaging = _producer(mean)
    if x is None or mean is None or averaging is None:
        return None
    if _mean_axes(averaging) != axes or averaging.inputs[0] is not x:
        return None
    nodes = [root, shifted[2], variance, square, subtraction, averaging]
    return Match(x, mean, centred, axes, shifted[1], nodes)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _mean_axes(node: ir.Node) -> tuple[int, ...] | None:
    if not is_operator(node, "ReduceMean") or not node.attributes.get_int("keepdims", 1):
        return None
    if "axes" in node.attributes:  # before opset 18
        return tuple(node.attributes.get_ints("axes", ()))
    return integers(input_at(node, 1)) if input_at(node, 1) is not None else None


def _squared(node: ir.Node) -> ir.Value | None:
    if is_operator(node, "Mul") and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    if is_operator(node, "Pow") and scalar(node.inputs[1]) == 2:
        return node.inputs[0]
    return None


def _reader(value: ir.Value, *operators: str) -> ir.Node | None:
    node = sole_reader(value)
    return node if node is not None and is_operator(node, *operators) else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _normalised(root: ir.Node, match: Match) -> ir.Node | None:
    """Read downwards from the root of the variance to the last node of the normalisation, filling `match`."""
    value = root.outputs[0]
    divided = _reader(value, "Div")
    if root.op_type == "Sqrt" and divided is not None and divided.inputs[1] is value:
        if divided.inputs[0] is match.centred:
            match.nodes.append(divided)
            return _scaled_and_shifted(divided, match)
        if scalar(divided.inputs[0]) != 1:
            return None
        match.nodes.append(divided)
        value = divided.outputs[0]
    elif root.op_type == "Sqrt":
        reciprocal = _reader(value, "Reciprocal")
        if reciprocal is None:
            return None
        match.nodes.append(reciprocal)
        value = reciprocal.outputs[0]
    return _after_reciprocal(value, match)


def _after_reciprocal(value: ir.Value, match: Match) -> ir.Node | None:
    multiplied = _reader(value, "Mul")
    if multiplied is not None:
        other = _other(multiplied, value)
        if other is match.centred:
            match.nodes.append(multiplied)
            return _scaled_and_shifted(multiplied, match)
        gamma = constant(other)
        if gamma is None:
            return None
        match.gamma = gamma
        match.nodes.append(multiplied)
        value = multiplied.outputs[0]
        direct = _reader(value, "Mul")
        if direct is not None and _other(direct, value) is match.centred:
            match.nodes.append(direct)
            return _shifted(direct, match)
    return _tensorflow(value, match)


def _tensorflow(factor: ir.Value, match: Match) -> ir.Node | None:
    """Read `x * factor + (beta - mean * factor)`, the form of TensorFlow's `batch_normalization`."""
    readers = [use.node for use in factor.uses()]
    if len(readers) != 2 or not all(is_operator(node, "Mul") for node in readers):
        return None
    by_x = next((node for node in readers if _other(node, factor) is match.x), None)
    by_mean = next((node for node in readers if _other(node, factor) is match.mean), None)
    if by_x is None or by_mean is None:
        return None
    offset = _reader(by_mean.outputs[0], "Sub")
    final = _reader(by_x.outputs[0], "Add", "Sub")
    if offset is None and final is not None and is_operator(final, "Sub"):
        match.nodes += [by_x, by_mean, final]
        return final if final.inputs[1] is by_mean.outputs[0] else None
    if offset is None or final is None or not is_operator(final, "Add"):
        return None
    beta = constant(offset.inputs[0])
    if beta is None or offset.inputs[1] is not by_mean.outputs[0] or offset.outputs[0] not in final.inputs:
        return None
    match.beta = beta
    match.nodes += [by_x, by_mean, offset, final]
    return final


def _scaled_and_shifted(node: ir.Node, match: Match) -> ir.Node:
    scaled = _reader(node.outputs[0], "Mul")
    gamma = None if scaled is None else constant(_other(scaled, node.outputs[0]))
    if scaled is not None and gamma is not None and _fits(gamma, match):
        match.gamma = gamma
        match.nodes.append(scaled)
        node = scaled
    return _shifted(node, match)


def _shifted(node: ir.Node, match: Match) -> ir.Node:
    added = _reader(node.outputs[0], "Add")
    beta = None if added is None else constant(_other(added, node.outputs[0]))
    if added is not None and beta is not None and _fits(beta, match):
        match.beta = beta
        match.nodes.append(added)
        return added
    return node


def _fits(array: Array, match: Match) -> bool:
    """Return whether a factor or summand lies on the normalised axes alone; otherwise it stays behind."""
    shape = _normalised_shape(match, len(match.axes))
    return not isinstance(shape, str) and _stretched(array, shape) is not None


def _normalised_shape(match: Match, axes: int) -> tuple[int, ...] | str:
    """Return the sizes of the normalised axes, from the value's shape or from gamma's."""
    known = static_shape(match.x)
    if known is not None:
        return known[-axes:]
    dims = None if match.x.shape is None else list(match.x.shape)[-axes:]
    if dims is not None and all(isinstance(dim, int) for dim in dims):
        return tuple(int(dim) for dim in dims if isinstance(dim, int))
    if match.gamma is not None and match.gamma.ndim >= axes:
        return tuple(match.gamma.shape[-axes:])
    return f"the sizes of the normalised axes of `{match.x.name}` are not known"


def _stretched(array: Array, shape: tuple[int, ...]) -> Array | None:
    surplus = array.shape[: max(0, array.ndim - len(shape))]
    if any(size != 1 for size in surplus):
        return None
    try:
        return np.broadcast_to(array.reshape(array.shape[len(surplus) :]), shape).copy()
    except ValueError:
        return None
