"""Inputs and outputs of a graph as records. Used where artifacts are made, not on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgewise.errors import ModelError
from edgewise.records.tensors import Port

if TYPE_CHECKING:
    import onnx_ir as ir


def input_ports(model: ir.Model) -> tuple[Port, ...]:
    """Return the inputs that have to be fed: those without a default value.

    Raises:
        ModelError: If an input is not a tensor of known type and rank.
    """
    return _ports([value for value in model.graph.inputs if value.name not in model.graph.initializers])


def output_ports(model: ir.Model) -> tuple[Port, ...]:
    """Return the outputs.

    Raises:
        ModelError: If an output is not a tensor of known type and rank.
    """
    return _ports(model.graph.outputs)


def _ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    return tuple(_port(value) for value in values)


def _port(value: ir.Value) -> Port:
    if value.dtype is None:
        raise ModelError(
            f"`{value.name}` has to be a tensor of known element type. Its type in the model is `{value.type}`.",
            hint="Sequences, maps and optional values cannot be inputs or outputs.",
        )
    if value.shape is None:
        raise ModelError(
            f"`{value.name}` has to have a known number of dimensions, but the model states none and none could "
            f"be inferred.",
            hint="Give the inputs fixed shapes with `--shape`, or export the model with shapes on its outputs.",
        )
    return Port(
        name=str(value.name),
        dtype=value.dtype.numpy().name,
        shape=tuple(size if isinstance(size, int) else str(size.value or "?") for size in value.shape),
    )
