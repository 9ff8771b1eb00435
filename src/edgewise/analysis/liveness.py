"""The least memory that activations need when nodes run in the graph's own order.

A value lives from the node that makes it to the last that reads it, in a body included; inputs live from the start,
outputs to the end. Two things take no memory of their own: a view is its operand, and an element-wise node writes over
an operand of the same size that dies with it. Inputs are the caller's and never written over. The answer is a lower
bound of what a runtime with perfect packing needs, without weights and without scratch memory of its kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from edgewise.analysis.values import (
    STANDARD_DOMAINS,
    VIEWS,
    bodies,
    is_constant,
    is_standard,
    size_bytes,
    with_inferred_shapes,
)

IN_PLACE = frozenset(
    {
        *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu"),
        *("Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Floor", "Ceil", "Round", "Not", "Softplus"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "BatchNormalization", "Softmax", "LogSoftmax"),
    }
)
"""Operators that can write over an operand: each output element needs no element that was already overwritten."""


@dataclass
class _Buffers:
    """Which values share memory.

    Attributes:
        of: The value whose buffer each value lives in.
        last: Index of the last node that reads each buffer.
        size: Bytes of each buffer.
        pinned: Buffers that are never written over.
    """

    of: dict[ir.Value, ir.Value] = field(default_factory=dict)
    last: dict[ir.Value, int] = field(default_factory=dict)
    size: dict[ir.Value, int] = field(default_factory=dict)
    pinned: set[ir.Value] = field(default_factory=set)


def activation_peak_bytes(model: ir.Model) -> int:
    """Return the peak of the bytes of all live activations; dimensions that are not known count as 1."""
    return _peak(with_inferred_shapes(model).graph)


def _peak(graph: ir.Graph) -> int:
    buffers = _buffers(graph)
    live = {value for value in graph.inputs if value.name not in graph.initializers}
    total = sum(buffers.size.get(value, 0) for value in live)
    peak = total
    for index, node in enumerate(graph):
        made = {buffers.of[value] for value in node.outputs if value in buffers.of} - live
        total += sum(buffers.size[value] for value in made)
        live |= made
        inner = [_peak(body) for body in bodies(node)]
        peak = max(peak, total + max(inner, default=0))
        # An output that nothing reads dies at once; so does what this node read last.
        dead = {value for value in live if buffers.last.get(value, -1) <= index}
        total -= sum(buffers.size.get(value, 0) for value in dead)
        live -= dead
    return peak


def _buffers(graph: ir.Graph) -> _Buffers:
    buffers = _Buffers()
    index_of, end = _index_of(graph), len(graph)
    for value in graph.inputs:
        buffers.of[value] = value
        buffers.size[value] = size_bytes(value)
        buffers.pinned.add(value)
    for value in graph.inputs:
        buffers.last[value] = _last_use(value, index_of, end)
    for index, node in enumerate(graph):
        for position, value in enumerate(node.outputs):
            if is_standard(node, "Constant"):
                continue
            owner = _shared(node, value, index, buffers) if position == 0 else None
            buffers.of[value] = owner or value
            last = _last_use(value, index_of, end)
            if owner is None:
                buffers.size[value] = size_bytes(value)
                buffers.last[value] = last
            else:
                buffers.last[owner] = max(buffers.last[owner], last)
    return buffers


def _shared(node: ir.Node, value: ir.Value, index: int, buffers: _Buffers) -> ir.Value | None:
    """Return the buffer that the node's first output shares with an operand, or None."""
    if node.domain not in STANDARD_DOMAINS:
        return None
    operands = [operand for operand in node.inputs if operand is not None and operand in buffers.of]
    if node.op_type in VIEWS and node.inputs and node.inputs[0] in operands:
        return buffers.of[node.inputs[0]]
    if node.op_type not in IN_PLACE:
        return None
    for operand in operands:
        owner = buffers.of[operand]
        dies = buffers.last[owner] <= index and owner not in buffers.pinned
        if dies and not is_constant(operand) and size_bytes(operand) == size_bytes(value) == buffers.size[owner]:
            return owner
    return None


def _index_of(graph: ir.Graph) -> dict[ir.Node, int]:
    """Return the index of every node of the graph; a node in a body has that of the node that carries the body."""
    index_of = {}
    for index, node in enumerate(graph):
        index_of[node] = index
        for body in bodies(node):
            index_of.update(dict.fromkeys(ir.traversal.RecursiveGraphIterator(body), index))
    return index_of


def _last_use(value: ir.Value, index_of: dict[ir.Node, int], end: int) -> int:
    """Return the index of the last node of the graph that reads `value`, itself or in a body that it carries."""
    if value.is_graph_output():
        return end
    return max((index_of[use.node] for use in value.uses()), default=-1)
