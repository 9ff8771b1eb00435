"""Which weights are worth more bits than were asked for: a knapsack of measured damage against bytes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgewise.analysis.target import Target
from edgewise.compress import nodes
from edgewise.compress.quantize.plan import Plan, widest_bits
from edgewise.records.candidate import Quantize
from edgewise.search.allocation import Option, least_damage


def worth_more_bits(
    model: ir.Model, narrow: Plan, target: Target, damages: Mapping[str, float], step: Quantize
) -> tuple[str, ...]:
    """Return the weights that get as many bits as there may be, so that the least damage is left for the bytes.

    Bytes are those of the integers without padding, as a packed bundle holds them. What more bits leave of a weight's
    damage follows from its step: noise goes with its square, so each bit leaves a quarter.

    Args:
        model: The model for which `narrow` was made.
        narrow: A plan.
        target: For which it was made.
        damages: Noise at the model's outputs where one weight alone is quantized as planned, by the weight's name.
        step: `extra_size` is the share of the plan's bytes that may be added.

    Returns:
        Names of initializers, in the plan's order.
    """
    most = widest_bits(narrow, target)
    bits = {weight.name: weight.bits for weight in narrow.weights}
    sizes = {value.name: _size(value) for node in model.graph for value in node.inputs if value and value.name in bits}
    names = [name for name in bits if bits[name] < most and damages.get(name, 0.0) > 0]
    items = [
        (
            Option(cost=0.0, damage=damages[name]),
            Option(cost=sizes[name] * (most - bits[name]) / 8, damage=damages[name] / 4 ** (most - bits[name])),
        )
        for name in names
    ]
    budget = step.extra_size * sum(sizes[name] * bits[name] / 8 for name in bits)
    found = least_damage(items, budget)
    return tuple(name for name, choice in zip(names, found.choices if found else (), strict=False) if choice)


def _size(value: ir.Value) -> int:
    weight = nodes.constant(value)
    return 0 if weight is None else int(weight.size)
