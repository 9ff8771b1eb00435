"""How each operator passes units on: which axes it joins, sums over, makes, moves, or cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.channel_flow import Flow, name_of, numbers, sizes_of
from edgewise.analysis.channel_labels import Dims, Labels
from edgewise.analysis.channel_views import VIEWS
from edgewise.analysis.values import input_at, is_constant

Rule = Callable[[Flow, ir.Node], Sequence[Dims]]
"""Returns the labels of the node's outputs, after it has joined and pinned what has to be."""

_OF_PLACES: Final = "they are combined, by {node}, with numbers along an axis that nothing can be removed from"


def _element_wise(flow: Flow, node: ir.Node) -> list[Dims]:
    """Join what meets at the same position, broadcasting as numpy does."""
    sizes = sizes_of(node.outputs[0])
    given = [(sizes_of(value), flow.of(value)) for value in node.inputs if value is not None]
    if any(len(shape) > len(sizes) for shape, _ in given):
        return _unknown(flow, node)
    result: list[Labels | None] = []
    for behind in range(len(sizes), 0, -1):
        size = sizes[-behind]
        meeting = [dims[-behind] for shape, dims in given if len(shape) >= behind and shape[-behind] == size != 1]
        result.append(_joined(flow, meeting, _OF_PLACES.format(node=name_of(node))))
    return [tuple(result)] * len(node.outputs)


def _joined(flow: Flow, meeting: Sequence[Labels | None], reason: str) -> Labels | None:
    """Return axes that meet as one; where one of them has no labels, the others are pinned."""
    labelled = [labels for labels in meeting if labels is not None]
    for other in labelled[1:]:
        flow.meet(labelled[0], other, reason)
    if not labelled:
        return None
    if len(labelled) < len(meeting):
        flow.joined.pin(labelled[0], reason)
    return labelled[0]


def _conv(flow: Flow, node: ir.Node) -> list[Dims]:
    data, weight, bias = (flow.input(node, slot) for slot in range(3))
    kernel = sizes_of(input_at(node, 1))
    channels, outputs = sizes_of(input_at(node, 0))[1], kernel[0]
    groups = node.attributes.get_int("group", 1)
    if channels is None or outputs is None:
        return _unknown(flow, node)
    flow.pin(data[2:], _mixes(node))
    reason = f"{name_of(node)} reads them together with channels that cannot go"
    made = weight[0]
    if groups == 1:
        flow.meet(data[1], weight[1], reason)
        flow.read(node, 0, 1, 1)
        flow.make(node, made)
    elif channels // groups > groups:
        _share_within(flow, node, data[1], weight, groups)
    elif made is not None:
        # A group of channels goes as a whole, with the outputs that it makes.
        _whole_groups(flow, data[1], made, groups, reason)
    _add_bias(flow, node, made, bias)
    return [(data[0], made, *[None] * (len(data) - 2))]


def _share_within(flow: Flow, node: ir.Node, data: Labels | None, weight: Dims, groups: int) -> None:
    """Join the k-th channel of every group: a few wide groups stay, and become narrower."""
    if data is not None:
        columns = data.reshape(groups, -1)
        for row in columns[1:]:
            flow.joined.join(columns[0], row)
        flow.meet(columns[0], weight[1], f"{name_of(node)} reads them")
        flow.read(node, 0, 1, 1)
    elif weight[1] is not None:
        flow.joined.pin(weight[1], f"{name_of(node)} reads an input of the model with them")
    if weight[0] is not None:
        rows = weight[0].reshape(groups, -1)
        for row in rows[1:]:
            flow.joined.join(rows[0], row)
        flow.make(node, weight[0])


def _whole_groups(flow: Flow, data: Labels | None, made: Labels, groups: int, reason: str) -> None:
    rows = made.reshape(groups, -1)
    flow.joined.join_rows(rows)
    if data is None:
        flow.joined.pin(made, reason)
        return
    columns = data.reshape(groups, -1)
    flow.joined.join_rows(columns)
    flow.joined.join(rows[:, 0], columns[:, 0])


def _conv_transpose(flow: Flow, node: ir.Node) -> list[Dims]:
    data, weight, bias = (flow.input(node, slot) for slot in range(3))
    groups = node.attributes.get_int("group", 1)
    per_group = sizes_of(input_at(node, 1))[1]
    if per_group is None or None in sizes_of(input_at(node, 0))[1:2]:
        return _unknown(flow, node)
    flow.pin(data[2:], _mixes(node))
    reason = f"{name_of(node)} reads them together with channels that cannot go"
    read = flow.meet(data[1], weight[0], reason)
    made = weight[1]
    if groups == 1:
        flow.read(node, 0, 1, 1)
        flow.make(node, made)
    elif read is not None:
        made = np.repeat(read.reshape(groups, -1)[:, 0], per_group)
        for row in read.reshape(groups, -1):
            flow.joined.join_all(row)
        flow.pin((weight[1],), f"{name_of(node)} has as many outputs in each of its groups")
    _add_bias(flow, node, made, bias)
    return [(data[0], made, *[None] * (len(data) - 2))]


def _add_bias(flow: Flow, node: ir.Node, made: Labels | None, bias: Dims) -> None:
    if bias:
        flow.meet(made, bias[-1], f"{name_of(node)} adds a bias to them that is not constant")


def _mixes(node: ir.Node) -> str:
    return f"{name_of(node)} mixes neighbours along that axis"


def _gemm(flow: Flow, node: ir.Node) -> list[Dims]:
    turned = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    left, right, added = (flow.input(node, slot) for slot in range(3))
    if len(left) != 2 or len(right) != 2:
        return _unknown(flow, node)
    _contract(flow, node, 0 if turned[0] else 1, 1 if turned[1] else 0)
    made = [left[1] if turned[0] else left[0], right[0] if turned[1] else right[1]]
    _make_outputs(flow, node, *made)
    for labels, bias in zip(made[-len(added) :], added, strict=False) if added else ():
        if labels is not None or bias is not None:
            _joined(flow, [labels, *([bias] if bias is not None else [])], _OF_PLACES.format(node=name_of(node)))
    return [tuple(made)]


def _matmul(flow: Flow, node: ir.Node) -> list[Dims]:
    left, right = flow.input(node, 0), flow.input(node, 1)
    shapes = [sizes_of(value) for value in node.inputs]
    if len(left) < 2 or len(right) < 2:
        return _unknown(flow, node)
    _contract(flow, node, len(left) - 1, len(right) - 2)
    rank = max(len(left), len(right))
    batch: list[Labels | None] = []
    for behind in range(rank, 2, -1):
        meeting = [
            dims[-behind]
            for dims, shape in zip((left, right), shapes, strict=True)
            if len(dims) >= behind and shape[-behind] != 1
        ]
        batch.append(_joined(flow, meeting, _OF_PLACES.format(node=name_of(node))))
    _make_outputs(flow, node, left[-2], right[-1])
    return [(*batch, left[-2], right[-1])]


def _contract(flow: Flow, node: ir.Node, left_axis: int, right_axis: int) -> None:
    """Join the axes that a product sums over, and note who reads them."""
    left, right = flow.input(node, 0)[left_axis], flow.input(node, 1)[right_axis]
    flow.meet(left, right, f"{name_of(node)} sums over them together with numbers that cannot go")
    constant = [is_constant(value) for value in node.inputs[:2] if value is not None]
    for slot, axis in ((0, left_axis), (1, right_axis)):
        if not constant[slot]:
            flow.read(node, slot, axis, 1 - slot if constant[1 - slot] else None)


def _make_outputs(flow: Flow, node: ir.Node, left: Labels | None, right: Labels | None) -> None:
    for slot, labels in ((0, left), (1, right)):
        value = input_at(node, slot)
        if value is not None and is_constant(value):
            flow.make(node, labels)


def _channel_wise(flow: Flow, node: ir.Node) -> list[Dims]:
    """Pass channels on that each have numbers of their own: BatchNormalization, InstanceNormalization."""
    data = flow.input(node, 0)
    if len(data) < 2:
        return _unknown(flow, node)
    flow.pin(data[2:], _mixes(node))
    for slot in range(1, len(node.inputs)):
        own = flow.input(node, slot)
        flow.meet(data[1], own[0] if own else None, f"{name_of(node)} has numbers for each that are not constant")
    return [data] + [(None,) * len(sizes_of(value)) for value in node.outputs[1:]]


def _group_norm(flow: Flow, node: ir.Node) -> list[Dims]:
    data, groups = flow.input(node, 0), node.attributes.get_int("num_groups", 1)
    if len(data) < 2 or data[1] is None or groups < 1 or len(data[1]) % groups:
        return _unknown(flow, node)
    flow.pin(data[2:], _mixes(node))
    rows = data[1].reshape(groups, -1)
    for row in rows:
        flow.joined.join_all(row)
    for slot in (1, 2):
        (own,) = flow.input(node, slot) or (None,)
        each = data[1] if own is None or len(own) == len(data[1]) else rows[:, 0]
        flow.meet(each, own, f"{name_of(node)} has numbers for each that are not constant")
    return [data]


def _layer_norm(flow: Flow, node: ir.Node) -> list[Dims]:
    data = flow.input(node, 0)
    first = node.attributes.get_int("axis", -1) % max(len(data), 1)
    flow.pin(data[first:], f"{name_of(node)} normalizes over them")
    for slot in range(1, len(node.inputs)):
        flow.pin(flow.input(node, slot), f"{name_of(node)} normalizes over them")
    return [data] + [(None,) * len(sizes_of(value)) for value in node.outputs[1:]]


def _along_axis(flow: Flow, node: ir.Node) -> list[Dims]:
    """Pass on what depends on the numbers beside it along one axis: softmaxes, running sums, places of the largest."""
    data = flow.input(node, 0)
    if not data:
        return _unknown(flow, node)
    axis = node.attributes.get_int("axis", _SOFTMAX_AXIS.get(node.op_type, 0)) % len(data)
    if node.op_type == "CumSum":
        found = numbers(input_at(node, 1))
        axis = found[0] % len(data) if found else axis
    old = (node.version or 13) < 13 and node.op_type in {"Softmax", "LogSoftmax", "Hardmax"}
    flow.pin(data[axis:] if old else data[axis : axis + 1], f"{name_of(node)} compares them with each other")
    if node.op_type in {"ArgMax", "ArgMin"}:
        kept = node.attributes.get_int("keepdims", 1)
        data = (*data[:axis], *([None] if kept else []), *data[axis + 1 :])
    if node.op_type == "TopK":
        data = (*data[:axis], None, *data[axis + 1 :])
    return [data] * len(node.outputs)


_SOFTMAX_AXIS: Final = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "TopK": -1, "LpNormalization": -1}


def _local_norm(flow: Flow, node: ir.Node) -> list[Dims]:
    data = flow.input(node, 0)
    flow.pin(data[1:], f"{name_of(node)} normalizes over them")
    return [data]


def _pool(flow: Flow, node: ir.Node) -> list[Dims]:
    data = flow.input(node, 0)
    flow.pin(data[2:], _mixes(node))
    return [(*data[:2], *[None] * (len(data) - 2))] * len(node.outputs)


def _resize(flow: Flow, node: ir.Node) -> list[Dims]:
    data, before, behind = flow.input(node, 0), sizes_of(input_at(node, 0)), sizes_of(node.outputs[0])
    if len(before) != len(behind):
        return _unknown(flow, node)
    same = [one == other for one, other in zip(before, behind, strict=True)]
    flow.pin([dim for dim, kept in zip(data, same, strict=True) if not kept], _mixes(node))  # type: ignore[arg-type]
    return [tuple(dim if kept else None for dim, kept in zip(data, same, strict=True))]


def _reduce(flow: Flow, node: ir.Node) -> list[Dims]:
    data = flow.input(node, 0)
    given = node.attributes.get_ints("axes") if "axes" in node.attributes else numbers(input_at(node, 1))
    if given is None and input_at(node, 1) is not None:
        return _unknown(flow, node)
    axes = {axis % len(data) for axis in given} if given else set(range(len(data)))
    if not given and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        axes = set()
    for axis in sorted(axes):
        if node.op_type == "ReduceSum" and data[axis] is not None:
            flow.read(node, 0, axis, None)
        else:
            flow.pin((data[axis],), f"{name_of(node)} reduces them to one number")
    if node.attributes.get_int("keepdims", 1):
        return [tuple(None if axis in axes else dim for axis, dim in enumerate(data))]
    return [tuple(dim for axis, dim in enumerate(data) if axis not in axes)]


def _recurrent(flow: Flow, node: ir.Node) -> list[Dims]:
    """LSTM, GRU and RNN: a hidden unit has a place in every gate, in both directions."""
    weights, hidden_weights = flow.input(node, 1), flow.input(node, 2)
    sizes = sizes_of(input_at(node, 2))
    size = sizes[2] if len(sizes) == 3 else None
    if size is None or size < 2 or node.attributes.get_int("layout", 0) == 1:
        return _unknown(flow, node)
    hidden = flow.joined.fresh(size)
    reason = f"{name_of(node)} needs them at a place that is not constant"
    for dims, axis in ((weights, 1), (hidden_weights, 1), (flow.input(node, 3), 1), (flow.input(node, 7), 1)):
        if dims and (labels := dims[axis]) is not None:
            for gate in labels.reshape(-1, size):
                flow.joined.join(hidden, gate)
        elif dims:
            flow.joined.pin(hidden, reason)
    flow.meet(hidden, hidden_weights[2], reason)
    for slot in (5, 6):
        state = flow.input(node, slot)
        if state:
            flow.meet(hidden, state[-1], f"{name_of(node)} takes them from an input as its first state")
    data = flow.input(node, 0)
    flow.meet(data[2], weights[2], f"{name_of(node)} reads them together with numbers that cannot go")
    flow.read(node, 0, 2, 1)
    flow.read(node, 2, 2, 2)
    flow.make(node, hidden)
    shapes = [(None, None, None, hidden), (None, None, hidden), (None, None, hidden)]
    return list(shapes[: len(node.outputs)])


def _linear_quantization(flow: Flow, node: ir.Node) -> list[Dims]:
    """QuantizeLinear and DequantizeLinear: a scale for all, or one for each position of an axis."""
    data, scale = flow.input(node, 0), flow.input(node, 1)
    if node.attributes.get_int("block_size", 0):
        return _unknown(flow, node)
    if len(scale) == 1 and scale[0] is not None and data:
        axis = node.attributes.get_int("axis", 1) % len(data)
        flow.meet(data[axis], scale[0], f"{name_of(node)} has a scale for each of them")
    return [data]


def _unknown(flow: Flow, node: ir.Node) -> list[Dims]:
    """Let everything stay that goes into an operator without a rule, or of a shape that is not known."""
    known = node.domain in {"", "ai.onnx"} and node.op_type in RULES
    why = "has a shape that is not known in full" if known else "is an operator whose effect on them is not known"
    for value in node.inputs:
        flow.pin(flow.of(value), f"{name_of(node)} ({node.op_type}) {why}")
    return [(None,) * len(sizes_of(value)) for value in node.outputs]


def apply_rule(flow: Flow, node: ir.Node) -> None:
    """Find the labels of a node's outputs."""
    rule = RULES.get(node.op_type, _unknown) if node.domain in {"", "ai.onnx"} else _unknown
    if any(attribute.type in _BODIES for attribute in node.attributes.values()):
        rule = _unknown
    ranks_known = all(value is None or value.shape is not None for value in node.inputs)
    outputs = (rule if ranks_known else _unknown)(flow, node)
    for value, dims in zip(node.outputs, outputs, strict=False):
        sizes = sizes_of(value)
        # An axis whose size is not the one that the rule expects is none that units can be removed from.
        fits = len(dims) == len(sizes) and all(
            one is None or len(one) == size for one, size in zip(dims, sizes, strict=True)
        )
        if not fits:
            flow.pin(dims, f"{name_of(node)} ({node.op_type}) has a shape that is not known in full")
        flow.dims[value] = dims if fits else (None,) * len(sizes)


_BODIES: Final = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})

_ELEMENT_WISE: Final = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "Cast", "CastLike", "Ceil",
    "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu",
    "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish",
    "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip

RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_ELEMENT_WISE, _element_wise),
    **VIEWS,
    "ArgMax": _along_axis,
    "ArgMin": _along_axis,
    "AveragePool": _pool,
    "BatchNormalization": _channel_wise,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "CumSum": _along_axis,
    "DequantizeLinear": _linear_quantization,
    "Gemm": _gemm,
    "GlobalAveragePool": _pool,
    "GlobalLpPool": _pool,
    "GlobalMaxPool": _pool,
    "GRU": _recurrent,
    "GroupNormalization": _group_norm,
    "Hardmax": _along_axis,
    "InstanceNormalization": _channel_wise,
    "LRN": _local_norm,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _along_axis,
    "LpNormalization": _along_axis,
    "LpPool": _pool,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "MeanVarianceNormalization": _local_norm,
    "QuantizeLinear": _linear_quantization,
    "RMSNormalization": _layer_norm,
    "RNN": _recurrent,
    "ReduceL1": _reduce,
    "ReduceL2": _reduce,
    "ReduceLogSum": _reduce,
    "ReduceLogSumExp": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "ReduceSumSquare": _reduce,
    "Resize": _resize,
    "Softmax": _along_axis,
    "TopK": _along_axis,
    "Upsample": _resize,
}
"""The rule of each operator of the standard; what is not listed pins what goes into it."""
