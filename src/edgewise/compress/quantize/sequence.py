"""Rounds the weights of one layer after the other: each sees the inputs that the layers before it, quantized, make."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from msgspec.structs import replace

from edgewise.compress import nodes
from edgewise.compress.gram import LARGEST_INPUT, Moments, moments_for
from edgewise.compress.nodes import Weighted
from edgewise.compress.prefix import prefix
from edgewise.compress.quantize import affine, operators
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.placement import STAGE, label
from edgewise.compress.quantize.plan import Plan, QuantizedTensor, QuantizedWeight, smallest_scales, with_integers
from edgewise.compress.quantize.rounding import round_weight
from edgewise.compress.runner import Opener
from edgewise.errors import ContractError
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array, Feeds


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


def round_weights(model: ir.Model, whole: Plan, open_model: Opener, feeds: Sequence[Feeds]) -> Plan:
    """Return `whole` with integers that were chosen by second-order rounding, and with the biases corrected for it.

    Args:
        model: The float model for which the plan was made; not changed.
        whole: The plan, with ranges and nearest rounding.
        open_model: Opens the models that are run: parts of `model`, and parts of it quantized.
        feeds: Unlabelled samples. Each is run through both models once for every layer, as far as that layer.

    Returns:
        The plan; weights that second-order rounding is not defined for keep their nearest integers, and a decline says
        why.
    """
    quantized = {tensor.name: tensor for tensor in whole.tensors}
    rounded: dict[str, QuantizedWeight] = {}
    declines: list[Decline] = []
    by_source = itertools.groupby(_layers(model, whole, declines), key=lambda layer: layer.source)
    for source, readers in by_source:
        layers = list(readers)
        # Layers that come later are left float: nothing that is observed depends on them.
        so_far = apply(model, replace(whole, weights=tuple(rounded.values())))
        for sample, (x, made) in enumerate(_inputs(model, so_far, source, open_model, feeds)):
            x_hat = _rounded(made, quantized.get(source), whole.activation_type)
            for layer in layers:
                layer.moments.add(x, x_hat, sample=sample)
        for layer in layers:
            if layer.moments.is_too_large:
                declines.append(_decline(layer.node, f"inputs above {LARGEST_INPUT:.2g} have no second moments"))
            rounded[layer.planned.node] = _round(layer, quantized.get(source))
    weights = tuple(rounded.get(weight.node, weight) for weight in whole.weights)
    # A plan that is rounded again keeps its reasons once.
    return replace(whole, weights=weights, declines=tuple(dict.fromkeys((*whole.declines, *declines))))


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
    values = nodes.constant(node.inputs[planned.slot])
    if values is None:
        raise ContractError(f"A plan belongs to one model, and in this one `{label(node)}` has no constant weights.")
    if node.op_type not in operators.WEIGHTED:
        return f"{node.op_type} does not multiply with them"
    operands = operators.weighted(node)
    if isinstance(operands, str):
        return operands
    if (operands.weight, operands.axis) != (planned.slot, planned.axis):
        return "their scales do not lie along the layer's outputs"
    if nodes.required(node.inputs[operands.activation]).shape is None:
        return "the number of dimensions of its input is not known"
    moments = moments_for(node, values)
    return moments if isinstance(moments, str) else _Layer(node, operands, values, planned, moments)


def _inputs(
    model: ir.Model, so_far: ir.Model, source: str, open_model: Opener, feeds: Iterable[Feeds]
) -> Iterator[tuple[Array, Array]]:
    """Yield for every sample the tensor `source` in both models."""
    if source in {value.name for value in model.graph.inputs}:
        yield from ((feed[source], feed[source]) for feed in feeds)
        return
    with open_model(prefix(model, [source])) as run_float, open_model(prefix(so_far, [source])) as run_quantized:
        for feed in feeds:
            yield run_float(feed)[source], run_quantized(feed)[source]


def _rounded(values: Array, tensor: QuantizedTensor | None, dtype: str) -> Array:
    return values if tensor is None else affine.round_trip(values, tensor.scale, tensor.zero_point, dtype)


def _round(layer: _Layer, source: QuantizedTensor | None) -> QuantizedWeight:
    """Return the layer's weights as they are rounded.

    Args:
        layer: A layer whose inputs were seen.
        source: The activation that it reads, or None where that stays float.
    """
    bias = nodes.constant(nodes.bias_of(layer.node, layer.operands))
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
