"""What each node of a graph costs: multiply-accumulates, bytes of weights, bytes of activations.

Only products that are summed count as multiply-accumulates; element-wise work, pooling and normalisation do not: on
every machine we know they are bound by memory, and `activation_bytes` says how much of that they move. A batch
counts as often as its size. Views move nothing. Of an If, the branch that costs most counts; the body of a Loop or
Scan counts as often as it runs, where that is known, else once. `unknown_costs` lists what could not be counted in
full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

import onnx_ir as ir

from edgewise.analysis.values import (
    VIEWS,
    bodies,
    elements,
    input_at,
    is_constant,
    is_known,
    is_standard,
    known_dims,
    label,
    size_bytes,
    with_inferred_shapes,
)
from edgewise.records.findings import Decline
from edgewise.records.measurements import LayerCost

STAGE = "cost"


def layer_costs(model: ir.Model) -> tuple[LayerCost, ...]:
    """Return the cost of every node, in graph order, nodes in bodies behind the node that carries them.

    Dimensions that are not known count as 1.
    """
    return tuple(_graph_costs(with_inferred_shapes(model).graph, 1))


def total_macs(costs: Iterable[LayerCost]) -> int:
    """Return the sum of the multiply-accumulates."""
    return sum(cost.macs for cost in costs)


def unknown_costs(model: ir.Model) -> tuple[Decline, ...]:
    """Return the nodes whose cost is not known in full, each with the reason."""
    return tuple(
        Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=reason)
        for node in ir.traversal.RecursiveGraphIterator(with_inferred_shapes(model).graph)
        if (reason := _why_unknown(node)) is not None
    )


def _why_unknown(node: ir.Node) -> str | None:
    if is_standard(node, "Loop") and _trips(node) is None:
        return "how often its body runs is decided while it runs; it is counted once"
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    unknown = [value for value in values if not is_known(value) and value.type is not None]
    if unknown and (_operator(node) in _MACS or not is_standard(node, "Loop", "If", "Scan")):
        return f"the shape of `{unknown[0].name}` is not known in full; what is not known counts as 1"
    return None


def _operator(node: ir.Node) -> str:
    return node.op_type if is_standard(node, node.op_type) else f"{node.domain}.{node.op_type}"


def _graph_costs(graph: ir.Graph, times: int) -> list[LayerCost]:
    costs = []
    for node in graph:
        costs.append(_node_cost(node, times))
        inner = list(bodies(node))
        if is_standard(node, "If"):
            branches = [_graph_costs(body, times) for body in inner]
            costs += max(branches, key=total_macs)
        else:
            for body in inner:
                costs += _graph_costs(body, times * (_trips(node) or 1))
    return costs


def _trips(node: ir.Node) -> int | None:
    """Return how often the body of a Loop or Scan runs, or None where that is not known."""
    if is_standard(node, "Scan"):
        scanned = node.attributes.get_int("num_scan_inputs", 0)
        source = node.inputs[-1] if scanned else None
        axes = node.attributes.get_ints("scan_input_axes", (0,) * scanned)
        dims = known_dims(source)
        return dims[axes[-1]] if dims is not None and is_known(source) else None
    count = ir.convenience.get_const_tensor(node.inputs[0]) if node.inputs[0] is not None else None
    return None if count is None else int(count.numpy().reshape(()).item())


def _node_cost(node: ir.Node, times: int) -> LayerCost:
    weights, moved = 0, 0
    for value in dict.fromkeys(node.inputs):
        if value is not None and is_constant(value):
            weights += size_bytes(value)
        else:
            moved += size_bytes(value)
    moved += sum(size_bytes(value) for value in node.outputs)
    if is_standard(node, "Constant"):
        weights, moved = size_bytes(node.outputs[0]), 0
    if is_standard(node, *VIEWS) or any(True for _ in bodies(node)):
        moved = 0
    macs = _MACS.get(_operator(node))
    return LayerCost(
        node=label(node),
        operator=node.op_type,
        macs=0 if macs is None else times * macs(node),
        weight_bytes=weights,
        activation_bytes=times * moved,
    )


def _convolution(weight_index: int) -> Callable[[ir.Node], int]:
    def macs(node: ir.Node) -> int:
        weight = known_dims(input_at(node, weight_index))
        # Each output sums the products of one filter, shape [in / group, *kernel].
        return 0 if not weight else elements(node.outputs[0]) * math.prod(weight[1:])

    return macs


def _transposed_convolution(node: ir.Node) -> int:
    weight = known_dims(input_at(node, 1))
    # Each input is multiplied with one filter, shape [out / group, *kernel].
    return 0 if not weight else elements(node.inputs[0]) * math.prod(weight[1:])


def _gemm(node: ir.Node) -> int:
    left = known_dims(input_at(node, 0))
    if left is None or len(left) != 2:
        return 0
    return elements(node.outputs[0]) * left[0 if node.attributes.get_int("transA", 0) == 1 else 1]


def _product(left_index: int = 0) -> Callable[[ir.Node], int]:
    def macs(node: ir.Node) -> int:
        left = known_dims(input_at(node, left_index))
        return 0 if not left else elements(node.outputs[0]) * left[-1]

    return macs


def _recurrent(gates: int) -> Callable[[ir.Node], int]:
    def macs(node: ir.Node) -> int:
        source, weight, recurrence = (known_dims(input_at(node, index)) for index in range(3))
        if source is None or weight is None or recurrence is None or len(source) != 3:
            return 0
        steps, batch = (source[1], source[0]) if node.attributes.get_int("layout", 0) == 1 else source[:2]
        directions, hidden = weight[0], recurrence[2]
        return steps * batch * directions * gates * hidden * (weight[2] + hidden)

    return macs


def _attention(node: ir.Node) -> int:
    """Count queries times keys, and weights times values; the projections are nodes of their own (opset 23)."""
    query, key, value = (known_dims(input_at(node, index)) for index in range(3))
    if query is None or key is None or value is None:
        return 0
    if len(query) == 4:
        batch, heads, length, depth = query
        return batch * heads * length * key[2] * (depth + value[3])
    heads = node.attributes.get_int("q_num_heads", 1) or 1
    groups = node.attributes.get_int("kv_num_heads", heads) or heads
    # With grouped queries several heads share one head of keys and values.
    return query[0] * query[1] * key[1] * (query[2] + value[2] * heads // groups)


def _einsum(node: ir.Node) -> int:
    equation = node.attributes.get_string("equation", "") or ""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if "." in equation or len(terms) < 2:
        return 0
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        for letter, size in zip(term, known_dims(value) or (), strict=False):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


_MACS: Final[dict[str, Callable[[ir.Node], int]]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "DeformConv": _convolution(1),
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _product(),
    "MatMulInteger": _product(),
    "QLinearMatMul": _product(),
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "Attention": _attention,
    "Einsum": _einsum,
}
