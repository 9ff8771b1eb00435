"""Which weights become integers that are dequantized before they are used, and in how many bits they are stored.

Activations stay float, so that any layout of scales will do: there is one for each output channel, or one for each
block of its input channels. What matters is bytes: fewer bits are used only where they make the file smaller.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

import onnx_ir as ir

from edgewise.compress import nodes
from edgewise.compress.quantize import operators
from edgewise.compress.quantize.operators import RECURRENT, WEIGHTED
from edgewise.compress.quantize.placement import KEPT, QUANTIZED_ALREADY, STAGE, label
from edgewise.compress.quantize.recipe import Scheme
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array

_NODE_BYTES: Final = 300
"""What a DequantizeLinear and the names that belong to it take in an ONNX file, about."""

_LEAST_RATIO: Final = 4
"""Fewer than 8 bits are used where the integers then take at least this many times the bytes of their scales. Below, as
in depthwise convolutions, 8 bits make most of the saving already, and what has so few weights for each scale suffers
most from few bits. Empirical."""

_COLUMNS: Final = 4
"""2-bit weights of a product are stored in 2 bits where this divides its columns, and in 4 elsewhere. ONNX Runtime 1.32
makes `MatMulNBits` of the product, and gives wrong numbers, without a word, where a byte reaches into the next row."""


@dataclass(frozen=True)
class Layout:
    """Which axis of a weight is which.

    Attributes:
        slot: Input index of the weight.
        activation: Input index of what it is multiplied with, or of the indices that select its rows.
        axis: Axis of the output channels.
        input_axis: Axis of the input channels.
        kernel: Axes of the kernel; all its weights share a scale.
    """

    slot: int
    activation: int
    axis: int
    input_axis: int
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True)
class StoredWeight:
    """A weight of one node that is stored as integers.

    Attributes:
        node: The node.
        layout: Which axis is which.
        bits: Width of the integers.
        stored_bits: Width in which the file holds them, >= `bits`.
        block: Input channels that share a scale; 0 for one scale for each output channel.
    """

    node: ir.Node
    layout: Layout
    bits: int
    stored_bits: int
    block: int


def store_weights(
    model: ir.Model, scheme: Scheme, packed: Collection[int], *, keep: Collection[str] = ()
) -> tuple[tuple[StoredWeight, ...], tuple[Decline, ...]]:
    """Return which weights become integers, and what stays float or is not stored as asked for, with the reasons.

    A weight that several nodes read is decided upon once, for the first of them.

    Args:
        model: The model; not changed.
        scheme: Weight bits and groups.
        packed: Widths in which the target's files can hold integers, 8 among them.
        keep: Nodes that stay float, by `placement.label`.

    Returns:
        Both in graph order.
    """
    integer = operators.integer_node(model)
    if integer is not None:
        return (), (_decline(integer, QUANTIZED_ALREADY),)
    readers: dict[ir.Value, list[tuple[ir.Node, Layout]]] = {}
    reasons: dict[ir.Node, str] = {}
    for node in model.graph:
        layout = _layout(node)
        reason = KEPT if layout and label(node) in keep else _why_not(node, layout)
        if reason is not None:
            reasons[node] = reason
        elif layout is not None:
            readers.setdefault(nodes.required(node.inputs[layout.slot]), []).append((node, layout))
    chosen: dict[ir.Node, StoredWeight] = {}
    for value, edges in readers.items():
        stored = _stored(value, edges, scheme, packed, reasons)
        if stored is None:
            continue
        chosen.update((node, replace(stored, node=node, layout=layout)) for node, layout in edges)
    return (
        tuple(chosen[node] for node in model.graph if node in chosen),
        tuple(_decline(node, reasons[node]) for node in model.graph if reasons.get(node)),
    )


def _decline(node: ir.Node, reason: str) -> Decline:
    return Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=reason)


def _why_not(node: ir.Node, layout: Layout | None) -> str | None:
    """Return why the weights of `node` stay float whatever they are worth; empty where that goes without saying."""
    if nodes.has_subgraphs(node):
        return "it has subgraphs, which stay float"
    if nodes.is_standard(node) and node.op_type in RECURRENT:
        return "weights of recurrent operators stay float: runtimes want them as plain constants"
    if layout is None:
        needed = nodes.is_standard(node) and node.op_type in WEIGHTED
        return "its operands are not an activation and constant weights" if needed else ""
    value = nodes.required(node.inputs[layout.slot])
    weight = nodes.constant(value)
    if weight is None:
        return "its weights are not constant"
    reason = operators.why_not_weight(weight, value.name or "")
    return "" if reason and node.op_type == "Gather" else reason


def _layout(node: ir.Node) -> Layout | None:
    """Return where the constant weights of `node` are; None where it has none."""
    if not nodes.is_standard(node):
        return None
    first, second = (nodes.constant(value) for value in (*node.inputs, None, None)[:2])
    if (first is None) == (second is None):
        return None
    if first is not None:
        return _left_layout(node, first)
    return _right_layout(node, second) if second is not None else None


def _left_layout(node: ir.Node, weight: Array) -> Layout | None:
    """Return how `weight`, the first operand of `node`, is laid out."""
    last = weight.ndim - 1
    match node.op_type:
        case "Gather":
            axis = int(nodes.attribute(node, "axis", 0)) % max(1, weight.ndim)
            return Layout(slot=0, activation=1, axis=axis, input_axis=last if axis == 0 else 0)
        case "Gemm":
            axis = 1 if nodes.attribute(node, "transA", 0) else 0
            return Layout(slot=0, activation=1, axis=axis, input_axis=1 - axis)
        case "MatMul":
            return Layout(slot=0, activation=1, axis=last - 1, input_axis=last)
    return None


def _right_layout(node: ir.Node, weight: Array) -> Layout | None:
    """Return how `weight`, the second operand of `node`, is laid out."""
    last, kernel = weight.ndim - 1, tuple(range(2, weight.ndim))
    match node.op_type:
        case "Conv":
            return Layout(slot=1, activation=0, axis=0, input_axis=1, kernel=kernel)
        case "ConvTranspose":
            # In groups, an index on axis 1 belongs to several output channels, and one on axis 0 to a single group.
            axis = 1 if nodes.attribute(node, "group", 1) == 1 else 0
            return Layout(slot=1, activation=0, axis=axis, input_axis=1 - axis, kernel=kernel)
        case "Gemm":
            axis = 0 if nodes.attribute(node, "transB", 0) else 1
            return Layout(slot=1, activation=0, axis=axis, input_axis=1 - axis)
        case "MatMul":
            return Layout(slot=1, activation=0, axis=last, input_axis=last - 1)
    return None


def _stored(
    value: ir.Value,
    edges: list[tuple[ir.Node, Layout]],
    scheme: Scheme,
    packed: Collection[int],
    reasons: dict[ir.Node, str],
) -> StoredWeight | None:
    """Return how `value` is stored for its readers, or None where it stays float; `reasons` gets the words."""
    weight = nodes.constant(value)
    if weight is None:
        return None
    (first, layout), *_ = edges
    if reason := _why_float(value, edges):
        reasons.update(dict.fromkeys((node for node, _ in edges), f"its weights stay float in any case: {reason}"))
        return None
    block, words = _block(weight, layout, scheme.group)
    if _has_split_bytes(weight, edges):
        packed = [width for width in packed if width > 2]
    found = _packed(StoredWeight(first, layout, scheme.weight_bits, 8, block), packed)
    if not block and found.bits < 8 and _has_few_weights(weight, found):
        words = (
            f"its weights have 8 bits: {found.bits} bits would save little, because its {weight.size} weights have "
            f"{_scales(weight, found)} scales"
        )
        found = replace(found, bits=8, stored_bits=8)
    pays = stored_bytes(weight, found) < weight.nbytes
    if not pays:
        words = f"its {weight.size} weights stay float: as integers, with their scales, they would not be smaller"
    if words and (pays or first.op_type != "Gather"):
        reasons[first] = words
    return found if pays else None


def _has_split_bytes(weight: Array, edges: list[tuple[ir.Node, Layout]]) -> bool:
    """Return whether a byte of 2-bit weights would hold the end of one row and the start of the next in a product."""
    return bool(weight.shape[-1] % _COLUMNS) and any(
        node.op_type in {"MatMul", "Gemm"} and layout.slot == 1 and layout.axis == weight.ndim - 1
        for node, layout in edges
    )


def _why_float(value: ir.Value, edges: list[tuple[ir.Node, Layout]]) -> str:
    """Return why `value` would have to be stored as floats beside its integers; empty where it would not."""
    if value.is_graph_output():
        return "they are an output of the model"
    nodes = {node for node, _ in edges}
    for user, _ in value.uses():
        if user not in nodes:
            return f"`{label(user)}` reads them as well"
    (_, first), *others = edges
    for node, layout in others:
        if (layout.axis, layout.input_axis) != (first.axis, first.input_axis):
            # OpenVINO 2026.4.1 gives wrong numbers, without a word, where scales lie along the inputs of a product.
            return f"`{label(node)}` reads them the other way round, with its outputs along another axis"
    return ""


def _packed(stored: StoredWeight, packed: Collection[int]) -> StoredWeight:
    return replace(stored, stored_bits=min(width for width in packed if width >= stored.bits))


def _block(weight: Array, layout: Layout, group: int) -> tuple[int, str]:
    """Return the length of a block of input channels, and why it is not the group that was asked for."""
    channels = weight.shape[layout.input_axis]
    if not group or channels == group:
        return 0, ""
    if channels % group:
        # ONNX allows a shorter last block, and OpenVINO refuses it.
        return 0, f"it has one scale for each output channel: its {channels} input channels are no multiple of {group}"
    return group, ""


def _has_few_weights(weight: Array, stored: StoredWeight) -> bool:
    return weight.size * stored.stored_bits < 8 * 4 * _scales(weight, stored) * _LEAST_RATIO


def _scales(weight: Array, stored: StoredWeight) -> int:
    """Return how many scales there are."""
    if not stored.block:
        return int(weight.shape[stored.layout.axis])
    shared = 1
    for axis in stored.layout.kernel:
        shared *= weight.shape[axis]
    return int(weight.size // (stored.block * shared))


def stored_bytes(weight: Array, stored: StoredWeight) -> int:
    """Return about how many bytes of an ONNX file `weight` takes as integers, scales and what goes with them."""
    return -(-weight.size * stored.stored_bits // 8) + 4 * _scales(weight, stored) + _NODE_BYTES
