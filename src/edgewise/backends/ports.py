"""Inputs and outputs of a graph as records. Used where artifacts are made, not on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

from edgewise.errors import ModelError
from edgewise.records.tensors import Port

_NO_NUMBERS: Final = frozenset({ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128})


def input_ports(model: ir.Model) -> tuple[Port, ...]:
    """Return the inputs that have to be fed: those without a default value.

    Raises:
        ModelError: If an input is not a tensor of numbers of known type and rank.
    """
    return _ports([value for value in model.graph.inputs if value.name not in model.graph.initializers])


def output_ports(model: ir.Model) -> tuple[Port, ...]:
    """Return the outputs.

    Raises:
        ModelError: If an output is not a tensor of numbers of known type and rank.
    """
    return _ports(model.graph.outputs)


def _ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    return tuple(_port(value) for value in values)


def _port(value: ir.Value) -> Port:
    if not _is_tensor(value.type) or value.dtype is None or value.dtype in _NO_NUMBERS:
        raise ModelError(
            f"`{value.name}` has to be a tensor of real numbers or booleans. Its type in the model is `{value.type}`.",
            hint="Sequences, maps, strings and complex numbers cannot be inputs or outputs: remove "
            "that output or convert it; scikit-learn models are converted with options={'zipmap': False}.",
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


def _is_tensor(kind: ir.TypeProtocol | None) -> bool:
    """Return whether a value is an array to its user; that of an optional tensor is."""
    return isinstance(kind, ir.TensorType) or (isinstance(kind, ir.OptionalType) and _is_tensor(kind.elem_type))
