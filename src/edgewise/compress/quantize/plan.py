"""Decides how a model is quantized. A plan can be printed, stored, edited and replayed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from msgspec.structs import replace

from edgewise.analysis.target import Target
from edgewise.compress import nodes
from edgewise.compress.nodes import Weighted
from edgewise.compress.quantize import affine, operators, ranges
from edgewise.compress.quantize.bias import lost_means, weight_error_shift
from edgewise.compress.quantize.placement import KEPT, STAGE, Placement, Site, label, place
from edgewise.compress.quantize.ranges import Range
from edgewise.compress.quantize.recipe import Scheme
from edgewise.compress.quantize.weight_only import StoredWeight, store_weights
from edgewise.compress.statistics import Statistics, TensorStatistics
from edgewise.errors import ContractError
from edgewise.records.arrays import StoredArray
from edgewise.records.candidate import HistogramMethod, Quantize, RangeMethod
from edgewise.records.codec import Record
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array

ActivationType: TypeAlias = Literal["uint8", "int8", "uint16", "int16", "float32"]

_WIDE: Final[dict[str, ActivationType]] = {"uint8": "uint16", "int8": "int16"}

_LARGEST_BIAS: Final = 2**30
"""Half of what int32 holds: the accumulator, to which the bias is added, needs room as well."""


class Reader(Record, frozen=True, kw_only=True):
    """One input of one node.

    Attributes:
        node: Name of the node's first output, which is unique.
        slot: Index of the input.
    """

    node: str
    slot: int


class QuantizedTensor(Record, frozen=True, kw_only=True):
    """An activation that becomes integers: real = `scale` x (integer - `zero_point`).

    Attributes:
        name: The tensor.
        scale: Its scale, > 0.
        zero_point: The integer that stands for zero.
        readers: Who reads the integers; None for every reader, outputs of the model included.
    """

    name: str
    scale: float
    zero_point: int
    readers: tuple[Reader, ...] | None


class QuantizedWeight(Record, frozen=True, kw_only=True):
    """The weights of one node, which become symmetric integers: real = scale x integer.

    Where `activation` is one of the plan's tensors, the bias becomes int32 in steps of the product of both scales; else
    it stays float.

    Attributes:
        node: Name of the node's first output, which is unique.
        slot: Input index of the weights.
        name: The weights.
        axis: Axis of the output channels in the weights, or None for one scale.
        bits: Width of the integers, which are within +-(2^(bits-1) - 1).
        stored_bits: Width in which they are stored, >= `bits`: 8, or 4 or 2 for weights that are dequantized.
        scales: One scale for each channel, or a single one; empty with blocks.
        block: Input channels that share a scale, or 0 where scales are those of `scales`.
        block_axis: Axis of the input channels in the weights, which is cut into blocks; None without.
        block_scales: Scales of blocks, float32, with the axes of the weights: as many entries on `block_axis` as there
            are blocks, one on each axis of a kernel; None without blocks.
        integers: The integers where they were chosen one by one, int8, shape of the weights; None for the nearest ones.
        activation: The tensor with which the weights are multiplied, or which selects rows of them.
        bias_slot: Input index of the bias, or None where the node has none and gets none.
        bias_shift: Added to each channel's bias to undo the mean error that rounding the weights makes; empty for none.
    """

    node: str
    slot: int
    name: str
    axis: int | None
    bits: int
    stored_bits: int = 8
    scales: tuple[float, ...]
    block: int = 0
    block_axis: int | None = None
    block_scales: StoredArray | None = None
    integers: StoredArray | None = None
    activation: str
    bias_slot: int | None
    bias_shift: tuple[float, ...] = ()


class Plan(Record, frozen=True, kw_only=True):
    """How one model is quantized for one target.

    Attributes:
        scheme: Name of the scheme.
        ranges: How ranges were chosen.
        backend: The target's backend.
        activation_type: Element type of quantized activations; `float32` where weights alone are quantized.
        tensors: Activations that become integers, in graph order.
        weights: Weights that become integers, in graph order.
        nodes: All nodes that are quantized, by name, in graph order.
        declines: Nodes that stay float or get more bits than asked for, and why.
    """

    scheme: str
    ranges: RangeMethod
    backend: str
    activation_type: ActivationType
    tensors: tuple[QuantizedTensor, ...]
    weights: tuple[QuantizedWeight, ...]
    nodes: tuple[str, ...]
    declines: tuple[Decline, ...]


def scales_of(weight: QuantizedWeight) -> npt.NDArray[np.float32]:
    """Return the scales: shape `[C]` along `axis`, `[]` without an axis, or that of `block_scales` with blocks."""
    if weight.block_scales is not None:
        return weight.block_scales.numpy().astype(np.float32)
    return np.array(weight.scales if weight.axis is not None else weight.scales[0], np.float32)


def integers_of(weight: QuantizedWeight, values: Array) -> Array:
    """Return the integers that stand for `values`, int8, of the same shape: those of the plan, or the nearest ones."""
    if weight.integers is not None:
        return weight.integers.numpy()
    axis, largest = weight.block_axis if weight.block else weight.axis, 2 ** (weight.bits - 1) - 1
    nearest = affine.quantize_array(values, scales_of(weight), 0, np.int8, axis=axis, block=weight.block)
    integers: Array = np.clip(nearest, -largest, largest)
    return integers


def with_integers(
    weight: QuantizedWeight, integers: Array, scales: Array, bias_shift: Array | None = None
) -> QuantizedWeight:
    """Return `weight` with integers that were chosen one by one.

    Args:
        weight: As it was planned.
        integers: int8, shape of the weights.
        scales: Of the shape that `scales_of(weight)` has.
        bias_shift: To be added to the bias, one for each output channel; None leaves what was planned.

    Raises:
        ContractError: If there are other scales than planned, or integers of more bits.
    """
    if scales.shape != scales_of(weight).shape or np.abs(integers.astype(np.int16)).max(initial=0) >= 2 ** (
        weight.bits - 1
    ):
        raise ContractError(
            f"Integers have to have at most {weight.bits} bits, and scales the shape {scales_of(weight).shape}. "
            f"Received scales of shape {scales.shape} for `{weight.name}`."
        )
    changed = replace(weight, integers=StoredArray.of(integers.astype(np.int8)))
    if weight.block:
        changed = replace(changed, block_scales=StoredArray.of(scales.astype(np.float32)))
    else:
        changed = replace(changed, scales=tuple(float(scale) for scale in np.atleast_1d(scales)))
    if bias_shift is None:
        return changed
    return replace(changed, bias_shift=tuple(float(value) for value in bias_shift))


def observed_tensors(model: ir.Model, target: Target) -> dict[str, int | None]:
    """Return the tensors whose statistics `plan` needs, each with the axis along which it needs means, or None."""
    placement = place(model, target)
    names: dict[str, int | None] = {_name(site.value): None for site in placement.sites}
    for node, operands in placement.weighted:
        names[_name(node.inputs[operands.activation])] = operands.input_axis
    return names


def plan(
    model: ir.Model,
    statistics: Statistics,
    target: Target,
    step: Quantize,
    *,
    chosen: Mapping[str, Range] | None = None,
    keep: Collection[str] = (),
) -> Plan:
    """Decide how `model` is quantized, each weight to the nearest integer.

    Args:
        model: The model, with inferred types; not changed.
        statistics: Of `observed_tensors(model, target)`.
        target: Where the model will run.
        step: What was asked for.
        chosen: The range of every tensor by name; None chooses each from its own histogram by `step.ranges`, or takes
            the whole range for 16-bit activations, for which clipping buys nothing. Not looked at for weights alone.
        keep: Nodes that stay float, by `placement.label`.

    Returns:
        The plan. It has no tensors where nothing can be quantized; the declines say why.

    Raises:
        RecipeError: If the scheme or the range method does not exist.
        ContractError: If a tensor's statistics are missing.
    """
    scheme = Scheme.parse(step.scheme)
    if scheme.is_weight_only:
        return _weights_alone(model, statistics, target, scheme, keep)
    is_wide = scheme.activation_bits == 16
    activation_type = _WIDE[target.activation_type] if is_wide else target.activation_type
    placement = place(model, target, keep=keep)
    if chosen is None:
        method = "min-max" if is_wide else step.ranges
        if method == "output":
            raise ContractError("Ranges by the error at the output are chosen before a plan is made (`choose_ranges`).")
        chosen = {name: seen.range(method) for name, seen in _statistics(placement, statistics).items()}
    tensors = tuple(_tensor(site, chosen, activation_type) for site in placement.sites)
    scales = {tensor.name: tensor.scale for tensor in tensors}
    # Only 8-bit products are summed in pairs.
    bits = scheme.weight_bits if is_wide else min(scheme.weight_bits, target.exact_product_bits)
    weights = tuple(
        _weight(node, operands, bits=bits, scales=scales, statistics=statistics)
        for node, operands in placement.weighted
    )
    integer = {node for node, _ in placement.weighted} | set(placement.others)
    return Plan(
        scheme=str(scheme),
        ranges=step.ranges,
        backend=target.backend,
        activation_type=activation_type,
        tensors=tensors,
        weights=weights,
        nodes=tuple(label(node) for node in model.graph if node in integer),
        declines=placement.declines,
    )


def keep_float(model: ir.Model, whole: Plan, target: Target, keep: Collection[str]) -> Plan:
    """Return `whole` without the nodes `keep`, which stay float; what remains keeps its scales and integers.

    Args:
        model: The model for which `whole` was made.
        whole: A plan.
        target: The target for which it was made.
        keep: Nodes, by `placement.label`; those that `whole` does not quantize are of no effect.
    """
    if whole.activation_type == "float32":
        return _keep_weights_float(model, whole, keep)
    placement = place(model, target, keep=keep)
    scales = {tensor.name: tensor for tensor in whole.tensors}
    sites = {_name(site.value): site for site in placement.sites}
    weighted = {_name(node.outputs[0]) for node, _ in placement.weighted}
    integer = {node for node, _ in placement.weighted} | set(placement.others)
    return replace(
        whole,
        tensors=tuple(replace(scales[name], readers=_readers(site)) for name, site in sites.items()),
        weights=tuple(weight for weight in whole.weights if weight.node in weighted),
        nodes=tuple(label(node) for node in model.graph if node in integer),
        declines=placement.declines,
    )


def widest_bits(whole: Plan, target: Target) -> int:
    """Return how many bits the weights of a plan may have at most: 8, or fewer where sums of products saturate."""
    return target.exact_product_bits if whole.activation_type in {"uint8", "int8"} else 8


def widened(model: ir.Model, whole: Plan, statistics: Statistics, target: Target, names: Collection[str]) -> Plan:
    """Return `whole` with as many bits as there may be, and the nearest integers, for the weights `names`.

    Args:
        model: The model for which `whole` was made.
        whole: A plan with fewer bits.
        statistics: With which it was made.
        target: For which it was made.
        names: Weights, by the name of the initializer. Where more bits would be no smaller than floats, those that were
            planned stay.
    """
    bits, wide = widest_bits(whole, target), {}
    wanted = {weight.node for weight in whole.weights if weight.name in names}
    if whole.activation_type == "float32":
        stored, _ = store_weights(model, Scheme(weight_bits=bits), target.stored_weight_bits)
        items = [item for item in stored if _name(item.node.outputs[0]) in wanted]
        wide = {_name(item.node.outputs[0]): _stored_weight(item, statistics) for item in items}
    else:
        scales = {tensor.name: tensor.scale for tensor in whole.tensors}
        for node, operands in place(model, target).weighted:
            if _name(node.outputs[0]) in wanted:
                made = _weight(node, operands, bits=bits, scales=scales, statistics=statistics)
                wide[_name(node.outputs[0])] = made
    notes = tuple(
        Decline(
            stage=STAGE,
            node=label(node),
            operator=node.op_type,
            reason=f"its weights have {bits} bits: fewer do more damage here than elsewhere",
        )
        for node in model.graph
        if node.outputs and _name(node.outputs[0]) in wide
    )
    weights = tuple(wide.get(weight.node, weight) for weight in whole.weights)
    return replace(whole, weights=weights, declines=(*whole.declines, *notes))


def _weights_alone(
    model: ir.Model, statistics: Statistics, target: Target, scheme: Scheme, keep: Collection[str]
) -> Plan:
    """Return the plan for a scheme without activations; of `statistics` it takes what there is."""
    stored, declines = store_weights(model, scheme, target.stored_weight_bits, keep=keep)
    return Plan(
        scheme=str(scheme),
        ranges="min-max",
        backend=target.backend,
        activation_type="float32",
        tensors=(),
        weights=tuple(_stored_weight(item, statistics) for item in stored),
        nodes=tuple(label(item.node) for item in stored),
        declines=declines,
    )


def _stored_weight(item: StoredWeight, statistics: Statistics) -> QuantizedWeight:
    node, layout = item.node, item.layout
    value, activation = nodes.required(node.inputs[layout.slot]), _name(node.inputs[layout.activation])
    weight = nodes.constant(value)
    if weight is None:
        raise ContractError(f"The weights of `{label(node)}` have to be constant: `store_weights` chose them.")
    planned = QuantizedWeight(
        node=_name(node.outputs[0]),
        slot=layout.slot,
        name=value.name or "",
        axis=layout.axis,
        bits=item.bits,
        stored_bits=item.stored_bits,
        scales=(),
        activation=activation,
        bias_slot=_bias_slot(node),
    )
    if item.block:
        blocks = affine.block_scales(
            weight, axis=layout.input_axis, block=item.block, shared=layout.kernel, bits=item.bits
        )
        planned = replace(planned, block=item.block, block_axis=layout.input_axis, block_scales=StoredArray.of(blocks))
    else:
        scales = affine.least_squares_scales(weight, axis=layout.axis, bits=item.bits)
        planned = replace(planned, scales=tuple(float(scale) for scale in scales))
    seen = statistics.tensors.get(activation)
    if planned.bias_slot is None or seen is None or seen.channel_means is None:
        return planned
    return replace(planned, bias_shift=_float_shift(node, planned, weight, seen.channel_means))


def _bias_slot(node: ir.Node) -> int | None:
    """Return the input index of the bias that integers may shift, or None where a shift would not arrive as it is."""
    operands = operators.weighted(node) if node.op_type in operators.WEIGHTED else ""
    return None if isinstance(operands, str) else operands.bias


def _float_shift(node: ir.Node, planned: QuantizedWeight, weight: Array, means: Array) -> tuple[float, ...]:
    """Return what rounding takes from the means of the outputs of `node`; empty where that is not defined."""
    operands = operators.weighted(node)
    if isinstance(operands, str) or operands.axis != planned.axis:
        return ()
    axis = planned.block_axis if planned.block else planned.axis
    integers = integers_of(planned, weight)
    lost = weight - affine.dequantize_array(integers, scales_of(planned), 0, axis=axis, block=planned.block)
    shift = lost_means(node, operands, lost, means)
    return () if shift is None else tuple(float(number) for number in shift)


def _keep_weights_float(model: ir.Model, whole: Plan, keep: Collection[str]) -> Plan:
    kept = [node for node in model.graph if label(node) in keep and label(node) in whole.nodes]
    outputs = {_name(node.outputs[0]) for node in kept}
    reasons = tuple(Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=KEPT) for node in kept)
    return replace(
        whole,
        weights=tuple(weight for weight in whole.weights if weight.node not in outputs),
        nodes=tuple(name for name in whole.nodes if name not in keep),
        declines=(*whole.declines, *reasons),
    )


@dataclass(frozen=True)
class _Seen:
    """What was seen of all tensors that share one range."""

    parts: tuple[TensorStatistics, ...]

    def range(self, method: HistogramMethod) -> tuple[float, float]:
        parts = [part for part in self.parts if part.count]
        if not parts:
            return 0.0, 0.0
        histogram = parts[0].histogram.copy()
        for part in parts[1:]:
            histogram.merge(part.histogram)
        return ranges.choose(method, histogram, min(part.low for part in parts), max(part.high for part in parts))


def _statistics(placement: Placement, statistics: Statistics) -> Mapping[str, _Seen]:
    """Return, for every site, the statistics that make its range."""
    makers = {_name(site.value): frozenset({_name(site.value)}) for site in placement.sites}
    for names, sources in placement.shared:
        makers.update(dict.fromkeys(names, sources))
    missing = sorted({name for names in makers.values() for name in names} - set(statistics.tensors))
    if missing:
        raise ContractError(f"A plan needs the statistics of `observed_tensors`, but `{missing[0]}` has none.")
    return {
        name: _Seen(tuple(statistics.tensors[source] for source in sorted(sources))) for name, sources in makers.items()
    }


def _tensor(site: Site, chosen: Mapping[str, Range], activation_type: ActivationType) -> QuantizedTensor:
    if _name(site.value) not in chosen:
        raise ContractError(f"Every tensor that becomes integers needs a range, but `{_name(site.value)}` has none.")
    low, high = chosen[_name(site.value)]
    scale, zero_point = affine.parameters(low, high, activation_type)
    return QuantizedTensor(name=_name(site.value), scale=scale, zero_point=zero_point, readers=_readers(site))


def _readers(site: Site) -> tuple[Reader, ...] | None:
    if site.readers is None:
        return None
    return tuple(Reader(node=_name(node.outputs[0]), slot=slot) for node, slot in site.readers)


def _weight(
    node: ir.Node, operands: Weighted, *, bits: int, scales: Mapping[str, float], statistics: Statistics
) -> QuantizedWeight:
    activation = _name(node.inputs[operands.activation])
    weight = nodes.constant(node.inputs[operands.weight])
    if weight is None:
        raise ContractError(f"The weights of `{label(node)}` have to be constant: `place` chose them.")
    chosen = affine.least_squares_scales(weight, axis=operands.axis, bits=bits)
    bias = nodes.constant(nodes.bias_of(node, operands))
    if bias is not None:
        chosen = np.maximum(chosen, smallest_scales(bias, scales[activation], per_channel=operands.axis is not None))
    means = statistics.tensors[activation].channel_means
    shift = None
    if operands.bias is not None and means is not None:
        shift = weight_error_shift(node, operands, weight, chosen, means, bits=bits)
    return QuantizedWeight(
        node=_name(node.outputs[0]),
        slot=operands.weight,
        name=_name(node.inputs[operands.weight]),
        axis=operands.axis,
        bits=bits,
        scales=tuple(float(scale) for scale in np.atleast_1d(chosen)),
        activation=activation,
        bias_slot=operands.bias if bias is not None or shift is not None else None,
        bias_shift=() if shift is None else tuple(float(value) for value in shift),
    )


def smallest_scales(bias: Array, activation_scale: float, *, per_channel: bool) -> npt.NDArray[np.float32]:
    """Return the smallest scales of weights with which the bias, in steps of both scales' product, fits into int32.

    Args:
        bias: The bias, one number for each output channel.
        activation_scale: Scale of the activation, > 0.
        per_channel: Whether the weights have one scale for each output channel.

    Returns:
        Shape `[M]`, or `[]` for a single scale.
    """
    magnitude = np.abs(bias.reshape(-1).astype(np.float64))
    if not per_channel:
        magnitude = magnitude.max(initial=0.0)
    least: npt.NDArray[np.float32] = np.asarray(magnitude / (activation_scale * _LARGEST_BIAS), np.float32)
    return least


def _name(value: ir.Value | None) -> str:
    return nodes.required(value).name or ""
