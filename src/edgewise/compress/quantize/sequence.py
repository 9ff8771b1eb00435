"""Rounds the weights of one layer after the other: each sees the inputs that the layers before it, quantized, make."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir
from msgspec.structs import replace

from edgewise.compress.gram import LARGEST_INPUT, Moments
from edgewise.compress.prefix import prefix
from edgewise.compress.quantize import affine, operators
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.operators import Weighted
from edgewise.compress.quantize.placement import STAGE, label
from edgewise.compress.quantize.plan import Plan, QuantizedTensor, QuantizedWeight, smallest_scales, with_integers
from edgewise.compress.quantize.rounding import moments_for, round_weight
from edgewise.compress.runner import Opener
from edgewise.errors import ContractError
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array, Feeds

WAVES: Final = 16
"""Parts in which the layers are rounded: before each the samples are run once, so layers of one part do not see each
other's rounding."""

LARGEST_WAVE: Final = 48 << 20
"""Most numbers in the Gram matrices of one wave: 2 x 384 MiB in float64."""


@dataclass(frozen=True)
class _Layer:
    """One layer that is going to be rounded."""

    node: ir.Node
    operands: Weighted
    weight: Array
    planned: QuantizedWeight
    moments: Moments

    @property
    def source(self) -> str:
        """Name of the tensor that the layer reads."""
        return self.planned.activation

    @property
    def size(self) -> int:
        """Numbers in its Gram matrix."""
        return self.moments.unfolding.groups * self.moments.unfolding.columns**2


def round_weights(
    model: ir.Model, whole: Plan, open_model: Opener, feeds: Sequence[Feeds], *, waves: int = WAVES
) -> Plan:
    """Return `whole` with integers that were chosen by second-order rounding, and with the biases corrected for it.

    Args:
        model: The float model for which the plan was made; not changed.
        whole: The plan, with ranges and nearest rounding.
        open_model: Opens the models that are run: parts of `model`, and parts of it quantized.
        feeds: Unlabelled samples; each is run twice a wave.
        waves: Most waves, >= 1.

    Returns:
        The plan; weights that second-order rounding is not defined for keep their nearest integers, and a decline says
        why.
    """
    quantized = {tensor.name: tensor for tensor in whole.tensors}
    rounded: dict[str, QuantizedWeight] = {}
    declines: list[Decline] = []
    for wave in _waves(list(_layers(model, whole, declines)), waves):
        # Layers that come later are left float: nothing that is observed depends on them.
        so_far = apply(model, replace(whole, weights=tuple(rounded.values())))
        for sample, before, after in _inputs(model, so_far, {layer.source for layer in wave}, open_model, feeds):
            for layer in wave:
                x, x_hat = before[layer.source], after[layer.source]
                if layer.source in quantized:
                    x_hat = _round_trip(x_hat, quantized[layer.source], whole.activation_type)
                layer.moments.add(x, x_hat, sample=sample)
        for layer in wave:
            if layer.moments.is_too_large:
                declines.append(_decline(layer.node, f"inputs above {LARGEST_INPUT:.2g} have no second moments"))
            rounded[layer.planned.node] = _round(layer, quantized.get(layer.source))
    weights = tuple(rounded.get(weight.node, weight) for weight in whole.weights)
    return replace(whole, weights=weights, declines=(*whole.declines, *declines))


def _layers(model: ir.Model, whole: Plan, declines: list[Decline]) -> Iterator[_Layer]:
    """Yield the layers of the plan in graph order, and list those that second-order rounding is not defined for."""
    planned = {weight.node: weight for weight in whole.weights}
    for node in model.graph:
        weight = planned.get(node.outputs[0].name or "")
        if weight is None:
            continue
        layer = _layer(node, weight)
        if isinstance(layer, str):
            declines.append(_decline(node, layer))
        else:
            yield layer


def _decline(node: ir.Node, why: str) -> Decline:
    reason = f"its weights are rounded to the nearest integers: {why}"
    return Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=reason)


def _layer(node: ir.Node, planned: QuantizedWeight) -> _Layer | str:
    """Return a layer of the plan, or why second-order rounding is not defined for it."""
    values = operators.constant(node.inputs[planned.slot])
    if values is None:
        raise ContractError(f"A plan belongs to one model, and in this one `{label(node)}` has no constant weights.")
    if node.op_type not in operators.WEIGHTED:
        return f"{node.op_type} does not multiply with them"
    operands = operators.weighted(node)
    if isinstance(operands, str):
        return operands
    if (operands.weight, operands.axis) != (planned.slot, planned.axis):
        return "their scales do not lie along the layer's outputs"
    if operators.required(node.inputs[operands.activation]).shape is None:
        return "the number of dimensions of its input is not known"
    moments = moments_for(node, operands, values)
    return moments if isinstance(moments, str) else _Layer(node, operands, values, planned, moments)


def _waves(layers: Sequence[_Layer], waves: int) -> Iterator[list[_Layer]]:
    """Yield the layers in `waves` parts of equal length, in more where their Gram matrices would not fit."""
    longest = -(-len(layers) // max(1, waves))
    wave: list[_Layer] = []
    for layer in layers:
        if wave and (len(wave) == longest or sum(other.size for other in wave) + layer.size > LARGEST_WAVE):
            yield wave
            wave = []
        wave.append(layer)
    if wave:
        yield wave


def _inputs(
    model: ir.Model, so_far: ir.Model, sources: Collection[str], open_model: Opener, feeds: Iterable[Feeds]
) -> Iterator[tuple[int, Feeds, Feeds]]:
    """Yield for every sample its number, and the tensors `sources` in both models."""
    made = sorted({value.name or "" for node in model.graph for value in node.outputs} & set(sources))
    if not made:
        yield from ((sample, feed, feed) for sample, feed in enumerate(feeds))
        return
    with open_model(prefix(model, made)) as run_float, open_model(prefix(so_far, made)) as run_quantized:
        for sample, feed in enumerate(feeds):
            yield sample, {**feed, **run_float(feed)}, {**feed, **run_quantized(feed)}


def _round_trip(values: Array, tensor: QuantizedTensor, dtype: str) -> Array:
    """Return `values` as the integers stand for them."""
    integers = affine.quantize_array(values, tensor.scale, tensor.zero_point, dtype)
    return affine.dequantize_array(integers, tensor.scale, tensor.zero_point)


def _round(layer: _Layer, source: QuantizedTensor | None) -> QuantizedWeight:
    """Return the layer's weights as they are rounded.

    Args:
        layer: A layer whose inputs were seen.
        source: The activation that it reads, or None where that stays float.
    """
    bias = operators.constant(operators.bias_of(layer.node, layer.operands))
    floor = None
    if bias is not None and source is not None:
        floor = smallest_scales(bias, source.scale, per_channel=layer.operands.axis is not None)
    planned = layer.planned
    rounded = round_weight(
        layer.node,
        layer.operands,
        layer.weight,
        layer.moments,
        bits=planned.bits,
        block=planned.block,
        floor=floor,
    )
    if rounded.bias_shift is not None and planned.bias_slot is None:
        planned = replace(planned, bias_slot=layer.operands.bias)
    return with_integers(planned, rounded.integers, rounded.scales, rounded.bias_shift)
