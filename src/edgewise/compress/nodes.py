"""What can be read off a node: what is constant, and where weights, biases and activations are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from edgewise.errors import ContractError
from edgewise.records.tensors import Array

_GRAPHS: Final = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


@dataclass(frozen=True)
class Weighted:
    """The operands of a node that multiplies an activation with constant weights.

    Attributes:
        activation: Input index of the activation.
        weight: Input index of the weights.
        axis: Axis of the output channels in the weights; None where one scale has to do for all.
        bias: Input index of the bias, or None where the operator has none.
        input_axis: Axis of the input channels in the activation.
    """

    activation: int
    weight: int
    axis: int | None
    bias: int | None
    input_axis: int


def constant(value: ir.Value | None) -> Array | None:
    """Return what `value` always is, or None if it is not constant (or can be overridden as an input)."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def required(value: ir.Value | None) -> ir.Value:
    """Return an operand that the ONNX standard requires.

    Raises:
        ContractError: If it is not there: such a model does not pass the checker and must not come this far.
    """
    if value is None or not value.name:
        raise ContractError("Every required operand has to be there and to have a name.")
    return value


def attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a number among `node`'s attributes."""
    found = node.attributes.get(name)
    return default if found is None else float(found.value)


def has_subgraphs(node: ir.Node) -> bool:
    """Whether `node` is one such as If, Loop or Scan."""
    return any(kind.type in _GRAPHS for kind in node.attributes.values())


def is_standard(node: ir.Node) -> bool:
    """Whether `node` is an operator of the ONNX standard."""
    return node.domain in {"", "ai.onnx"}


def bias_of(node: ir.Node, operands: Weighted) -> ir.Value | None:
    """Return the bias of `node`, or None where it has none."""
    if operands.bias is None or len(node.inputs) <= operands.bias:
        return None
    return node.inputs[operands.bias]


def output_channels(node: ir.Node, operands: Weighted, weight: Array) -> int:
    """Return how many channels the output of `node` has."""
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1] * attribute(node, "group", 1))
    return int(weight.shape[-1 if operands.axis is None else operands.axis])


def unused_name(taken: set[str | None], name: str) -> str:
    """Return `name`, or with a number behind it where it is taken; it then is taken, too."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
