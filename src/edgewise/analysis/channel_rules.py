"""How each operator passes units on: which axes it joins, sums over, makes, moves, or cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from edgewise.analysis.channel_flow import Flow, name_of, numbers, opset_of, sizes_of
from edgewise.analysis.channel_labels import Dims, Labels
from edgewise.analysis.channel_products import PRODUCTS, mixes, of_places
from edgewise.analysis.channel_views import VIEWS, all_stay
from edgewise.analysis.values import STANDARD_DOMAINS, input_at, is_standard

Rule = Callable[[Flow, ir.Node], Sequence[Dims]]
"""Returns the labels of the node's outputs, after it has joined and pinned what has to be."""


def _element_wise(flow: Flow, node: ir.Node) -> list[Dims]:
    """Join what meets at the same position, broadcasting as numpy does."""
    sizes, operands = (
        sizes_of(node.outputs[0]),
        [(sizes_of(one), flow.of(one)) for one in node.inputs if one is not None],
    )
    if any(len(shape) > len(sizes) for shape, _ in operands):
        return _unknown(flow, node)
    return [flow.broadcast(sizes, operands, of_places(node))] * len(node.outputs)


def _channel_wise(flow: Flow, node: ir.Node) -> list[Dims]:
    """Pass channels on that each have numbers of their own: BatchNormalization, InstanceNormalization."""
    data = flow.input(node, 0)
    if len(data) < 2:
        return _unknown(flow, node)
    if node.op_type == "InstanceNormalization":
        flow.pin(data[2:], mixes(node))
    for slot in range(1, len(node.inputs)):
        own = flow.input(node, slot)
        flow.meet(data[1], own[0] if own else None, f"{name_of(node)} has numbers for each that are not constant")
    return _first_alone(flow, node, data)


def _first_alone(flow: Flow, node: ir.Node, first: Dims) -> list[Dims]:
    """Return the labels of the first output; where another one is used, they stay."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        flow.pin(first, f"{name_of(node)} ({node.op_type}) has other outputs that depend on all of them")
    return [first, *[(None,) * len(sizes_of(value)) for value in node.outputs[1:]]]


def _group_norm(flow: Flow, node: ir.Node) -> list[Dims]:
    data, groups = flow.input(node, 0), node.attributes.get_int("num_groups", 1)
    if len(data) < 2 or data[1] is None or groups < 1 or len(data[1]) % groups:
        return _unknown(flow, node)
    flow.pin(data[2:], mixes(node))
    rows = data[1].reshape(groups, -1)
    flow.joined.join_rows(rows)
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
    return _first_alone(flow, node, data)


def _along_axis(flow: Flow, node: ir.Node) -> list[Dims]:
    """Pass on what depends on the numbers beside it along one axis: softmaxes, running sums, places of the largest."""
    data = flow.input(node, 0)
    if not data:
        return _unknown(flow, node)
    old = opset_of(node) < 13 and node.op_type in {"Softmax", "LogSoftmax", "Hardmax"}
    axis = node.attributes.get_int("axis", 1 if old else _AXIS.get(node.op_type, 0)) % len(data)
    taken = data[axis:] if old else data[axis : axis + 1]  # the old ones see a matrix: all axes from this one on
    if node.op_type == "CumSum":
        found = numbers(input_at(node, 1))
        taken = data if found is None else (data[found[0] % len(data)],)
    flow.pin(taken, f"{name_of(node)} compares them with each other")
    if node.op_type in {"ArgMax", "ArgMin"}:
        kept = node.attributes.get_int("keepdims", 1)
        data = (*data[:axis], *([None] if kept else []), *data[axis + 1 :])
    if node.op_type == "TopK":
        data = (*data[:axis], None, *data[axis + 1 :])
    return [data] * len(node.outputs)


_AXIS: Final = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "TopK": -1, "LpNormalization": -1}


def _local_norm(flow: Flow, node: ir.Node) -> list[Dims]:
    data = flow.input(node, 0)
    flow.pin(data[1:], f"{name_of(node)} normalizes over them")
    return [data]


def _pool(flow: Flow, node: ir.Node) -> list[Dims]:
    data = flow.input(node, 0)
    flow.pin(data[2:], mixes(node))
    return _first_alone(flow, node, (*data[:2], *[None] * (len(data) - 2)))


def _resize(flow: Flow, node: ir.Node) -> list[Dims]:
    data, before, behind = flow.input(node, 0), sizes_of(input_at(node, 0)), sizes_of(node.outputs[0])
    if len(before) != len(behind) or not flow.follows(node, 3):
        return _unknown(flow, node)
    cropped = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    same = [one == other and not cropped for one, other in zip(before, behind, strict=True)]
    flow.pin((dim for dim, kept in zip(data, same, strict=True) if not kept), mixes(node))
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


def _linear_quantization(flow: Flow, node: ir.Node) -> list[Dims]:
    """QuantizeLinear and DequantizeLinear: a scale for all, or one for each position of an axis."""
    data, scale, zero = (flow.input(node, slot) for slot in range(3))
    if node.attributes.get_int("block_size", 0):
        return _unknown(flow, node)
    if sizes_of(input_at(node, 1)) in {(), (1,)}:
        flow.pin(zero, f"{name_of(node)} takes them as one number")
    elif data:
        axis = node.attributes.get_int("axis", 1) % len(data)
        for own in (scale, zero) if zero else (scale,):
            flow.meet(data[axis], own[0], f"{name_of(node)} has a scale for each of them that is not constant")
    return [data]


def _unknown(flow: Flow, node: ir.Node) -> list[Dims]:
    """Let everything stay that goes into an operator without a rule, or of a shape that is not known."""
    known = node.domain in STANDARD_DOMAINS and node.op_type in RULES
    why = "has a shape that is not known in full" if known else "is an operator whose effect on them is not known"
    return all_stay(flow, node, why)


def apply_rule(flow: Flow, node: ir.Node) -> None:
    """Find the labels of a node's outputs."""
    if is_standard(node, "Constant"):
        return
    rule = RULES.get(node.op_type, _unknown) if node.domain in STANDARD_DOMAINS else _unknown
    flow.looked_at.clear()
    ranks_known = all(value is None or value.shape is not None for value in node.inputs)
    outputs = (rule if ranks_known else _unknown)(flow, node)
    for value in node.inputs:
        if value is not None and value not in flow.looked_at:
            flow.pin(flow.of(value), f"{name_of(node)} ({node.op_type}) needs them as they are")
    flow.remember(node)
    for value, dims in zip(node.outputs, outputs, strict=False):
        if value.name:
            flow.dims[value] = _fitting(flow, node, value, dims)


def _fitting(flow: Flow, node: ir.Node, value: ir.Value, dims: Dims) -> Dims:
    """Return the labels of an output; axes of another size than a rule expects, and those of one position, stay."""
    sizes = sizes_of(value)
    if len(dims) != len(sizes):
        flow.pin(dims, f"{name_of(node)} ({node.op_type}) has a shape that is not known in full")
        return (None,) * len(sizes)
    result: list[Labels | None] = []
    for labels, size in zip(dims, sizes, strict=True):
        fits = labels is None or (len(labels) == size and size > 1)
        if not fits:
            single = size == 1
            why = "leaves one of them alone" if single else "has a shape that is not known in full"
            flow.pin((labels,), f"{name_of(node)} ({node.op_type}) {why}")
        result.append(labels if fits else None)
    return tuple(result)


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
    **PRODUCTS,
    **VIEWS,
    "ArgMax": _along_axis,
    "ArgMin": _along_axis,
    "AveragePool": _pool,
    "BatchNormalization": _channel_wise,
    "CumSum": _along_axis,
    "DequantizeLinear": _linear_quantization,
    "GlobalAveragePool": _pool,
    "GlobalLpPool": _pool,
    "GlobalMaxPool": _pool,
    "GroupNormalization": _group_norm,
    "Hardmax": _along_axis,
    "InstanceNormalization": _channel_wise,
    "LRN": _local_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _along_axis,
    "LpNormalization": _along_axis,
    "LpPool": _pool,
    "MaxPool": _pool,
    "QuantizeLinear": _linear_quantization,
    "RMSNormalization": _layer_norm,
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
