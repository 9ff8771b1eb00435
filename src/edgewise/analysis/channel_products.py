"""How operators that multiply with weights pass units on: what they sum over, what they make, what they join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.channel_flow import Flow, is_fixed, name_of, sizes_of
from edgewise.analysis.channel_labels import Dims, Labels
from edgewise.analysis.channel_views import all_stay
from edgewise.analysis.values import input_at


def of_places(node: ir.Node) -> str:
    """Return why labels have to stay that meet an axis without any."""
    return f"they are combined, by {name_of(node)}, with numbers along an axis that nothing can be removed from"


def mixes(node: ir.Node) -> str:
    """Return why labels have to stay along an axis on which neighbours are combined."""
    return f"{name_of(node)} mixes neighbours along that axis"


def _conv(flow: Flow, node: ir.Node) -> list[Dims]:
    data, weight, bias = (flow.input(node, slot) for slot in range(3))
    (_, per_group, *_), groups = sizes_of(input_at(node, 1)), node.attributes.get_int("group", 1)
    if per_group is None:
        return all_stay(flow, node, "has a shape that is not known in full")
    flow.pin((*data[2:], *weight[2:]), mixes(node))
    made = weight[0]
    if groups == 1:
        flow.meet(data[1], weight[1], _together(node))
        flow.read(node, 0, 1, 1)
        flow.make(node, 1, made)
    elif per_group > groups:
        _share_within(flow, node, data[1], weight, groups)
    else:
        # A group of channels goes as a whole, with the outputs that it makes.
        flow.pin((weight[1],), _together(node))
        _whole_groups(flow, node, data[1], made, groups)
    _add_bias(flow, node, made, bias)
    return [(data[0], made, *[None] * (len(data) - 2))]


def _together(node: ir.Node) -> str:
    return f"{name_of(node)} reads them together with channels that cannot go"


def _share_within(flow: Flow, node: ir.Node, data: Labels | None, weight: Dims, groups: int) -> None:
    """Join the k-th channel of every group: a few wide groups stay, and become narrower."""
    columns = None if data is None else data.reshape(groups, -1)
    if columns is not None:
        flow.joined.join_rows(columns.T)
    flow.meet(None if columns is None else columns[0], weight[1], _together(node))
    flow.read(node, 0, 1, 1)
    if weight[0] is not None:
        flow.joined.join_rows(weight[0].reshape(groups, -1).T)
        flow.make(node, 1, weight[0])


def _whole_groups(flow: Flow, node: ir.Node, data: Labels | None, made: Labels | None, groups: int) -> None:
    """Join all inputs and outputs of each group."""
    if data is None or made is None:
        flow.pin((data, made), _together(node))
        return
    rows, columns = made.reshape(groups, -1), data.reshape(groups, -1)
    flow.joined.join_rows(rows)
    flow.joined.join_rows(columns)
    flow.joined.join(rows[:, 0], columns[:, 0])


def _conv_transpose(flow: Flow, node: ir.Node) -> list[Dims]:
    data, weight, bias = (flow.input(node, slot) for slot in range(3))
    groups, per_group = node.attributes.get_int("group", 1), sizes_of(input_at(node, 1))[1]
    if per_group is None:
        return all_stay(flow, node, "has a shape that is not known in full")
    flow.pin((*data[2:], *weight[2:]), mixes(node))
    read = flow.meet(data[1], weight[0], _together(node))
    made = weight[1]
    if groups == 1:
        flow.read(node, 0, 1, 1)
        flow.make(node, 1, made)
    else:
        # The weights of all groups lie along the same axis, so that a group goes as a whole.
        flow.pin((weight[1],), f"{name_of(node)} has as many outputs in each of its groups")
        if read is not None:
            flow.joined.join_rows(read.reshape(groups, -1))
        made = None if read is None else np.repeat(read.reshape(groups, -1)[:, 0], per_group)
    _add_bias(flow, node, made, bias)
    return [(data[0], made, *[None] * (len(data) - 2))]


def _add_bias(flow: Flow, node: ir.Node, made: Labels | None, bias: Dims) -> None:
    if bias:
        flow.meet(made, bias[-1], f"{name_of(node)} adds a bias to them that is not constant")


def _gemm(flow: Flow, node: ir.Node) -> list[Dims]:
    turned = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    left, right, added = (flow.input(node, slot) for slot in range(3))
    if len(left) != 2 or len(right) != 2:
        return all_stay(flow, node, "has a shape that is not known in full")
    _contract(flow, node, 0 if turned[0] else 1, 1 if turned[1] else 0)
    made = (left[1] if turned[0] else left[0], right[0] if turned[1] else right[1])
    _make_outputs(flow, node, *made)
    sizes = sizes_of(node.outputs[0])
    return [flow.broadcast(sizes, [(sizes, made), (sizes_of(input_at(node, 2)), added)], of_places(node))]


def _matmul(flow: Flow, node: ir.Node) -> list[Dims]:
    left, right = flow.input(node, 0), flow.input(node, 1)
    shapes, sizes = [sizes_of(value) for value in node.inputs], sizes_of(node.outputs[0])
    if len(left) < 2 or len(right) < 2 or len(sizes) != max(len(left), len(right)):
        return all_stay(flow, node, "has a shape that is not known in full")
    _contract(flow, node, len(left) - 1, len(right) - 2)
    stacks = [(shapes[0][:-2], left[:-2]), (shapes[1][:-2], right[:-2])]
    _make_outputs(flow, node, left[-2], right[-1])
    return [(*flow.broadcast(sizes[:-2], stacks, of_places(node)), left[-2], right[-1])]


def _contract(flow: Flow, node: ir.Node, left_axis: int, right_axis: int) -> None:
    """Join the axes that a product sums over, and note who reads them."""
    left, right = flow.input(node, 0)[left_axis], flow.input(node, 1)[right_axis]
    flow.meet(left, right, f"{name_of(node)} sums over them together with numbers that cannot go")
    for slot, axis in ((0, left_axis), (1, right_axis)):
        if not is_fixed(input_at(node, slot)):
            flow.read(node, slot, axis, 1 - slot)


def _make_outputs(flow: Flow, node: ir.Node, left: Labels | None, right: Labels | None) -> None:
    for slot, labels in ((0, left), (1, right)):
        flow.make(node, slot, labels)


def _einsum(flow: Flow, node: ir.Node) -> list[Dims]:
    """Join all axes of one letter; letters that the result does not have are summed over."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = terms.split(",")
    sizes = {
        (letter, size)
        for term, value in zip(operands, node.inputs, strict=False)
        for letter, size in zip(term, sizes_of(value), strict=False)
    }
    ranks = [len(sizes_of(value)) for value in node.inputs]
    # Axes of one letter have one size, and one that is not known is not met by labels.
    unclear = not arrow or "." in equation or ranks != [len(term) for term in operands]
    if unclear or len(sizes) != len(set(terms) - {","}) or any(size is None for _, size in sizes):
        return all_stay(flow, node, "has an equation that is not followed")
    axes: dict[str, list[tuple[int, int]]] = {}
    for slot, term in enumerate(operands):
        for axis, letter in enumerate(term):
            axes.setdefault(letter, []).append((slot, axis))
    found: dict[str, Labels | None] = {}
    for letter, places in axes.items():
        labels = [flow.input(node, slot)[axis] for slot, axis in places]
        size = next(size for one, size in sizes if one == letter)
        (found[letter],) = flow.broadcast((size,), [((size,), (one,)) for one in labels], of_places(node))
        for slot, axis in places:
            if letter in result:
                flow.make(node, slot, found[letter])
            elif not is_fixed(input_at(node, slot)):
                flow.read(node, slot, axis, None)
    return [tuple(found[letter] for letter in result)]


def _recurrent(flow: Flow, node: ir.Node) -> list[Dims]:
    """LSTM, GRU and RNN: a hidden unit has a place in every gate, in both directions."""
    data, weights, hidden_weights = (flow.input(node, slot) for slot in range(3))
    size = sizes_of(input_at(node, 2))[2]
    if size is None:
        return all_stay(flow, node, "has a shape that is not known in full")
    hidden = flow.joined.fresh(size)
    reason = f"{name_of(node)} needs them at a place that is not constant"
    flow.pin((*data[:2], weights[0], hidden_weights[0]), mixes(node))
    for dims in (weights, hidden_weights, flow.input(node, 3), flow.input(node, 7)):
        if dims and (gates := dims[1]) is not None:
            flow.joined.join(np.broadcast_to(hidden, (len(gates) // size, size)).reshape(-1), gates)
        elif dims:
            flow.joined.pin(hidden, reason)
    flow.meet(hidden, hidden_weights[2], reason)
    for slot in (5, 6):
        if state := flow.input(node, slot):
            flow.pin(state[:-1], mixes(node))
            flow.meet(hidden, state[-1], f"{name_of(node)} takes them from an input as its first state")
    flow.meet(data[2], weights[2], _together(node))
    flow.read(node, 0, 2, 1)
    flow.read(node, 2, 2, 2)
    flow.make(node, 1, hidden)
    return [(None, None, None, hidden), (None, None, hidden), (None, None, hidden)]


PRODUCTS: Final[dict[str, Callable[[Flow, ir.Node], Sequence[Dims]]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "RNN": _recurrent,
}
