"""Stores weights as float16 and computes in float32: half the size, the same speed.

Each float32 weight becomes a float16 initializer and a Cast to float32 in the graph. ONNX Runtime and OpenVINO fold the
Cast when they load the model.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.passes.protocol import Findings
from edgewise.records.findings import Change, Decline
from edgewise.records.tensors import Array

STAGE: Final = "halve_weights"

LEAST_VALUES: Final = 256
"""Smaller weights stay as they are: the Cast's own entry in the file would be as large as what is saved."""

_WEIGHT_SLOTS: Final = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}

_HALF_STEP: Final = 2.0**-11
"""Half of the distance between neighbouring float16 numbers, relative to them, where they are normal (IEEE 754)."""


def halve_weights(model: ir.Model) -> tuple[ir.Model, Findings]:
    """Return a copy of `model` whose float32 weights are stored as float16, and what was done and declined.

    Weights of convolutions, matrix products, embeddings and recurrent operators are halved, in subgraphs as well. Each
    value changes by at most half a float16 step, which is 2**-11 of it, unless it is subnormal in float16; a tensor is
    declined where that adds up to more than 2**-11 of the tensor's norm, or where a value exceeds float16's range.

    Args:
        model: The model; not changed.
    """
    copy = model.clone()
    findings = Findings()
    names = {name for graph in copy.graphs() for name in _names(graph)}
    for graph in copy.graphs():
        for value in list(graph.initializers.values()):
            if value.is_graph_input() or value.dtype != ir.DataType.FLOAT or value.const_value is None:
                continue
            reader = _weight_reader(value) or next((node for node, _ in value.uses()), None)
            if reader is None:
                continue
            label = reader.name or reader.outputs[0].name or ""
            weight = value.const_value.numpy()
            if _weight_reader(value) is not None:
                reason = why_not(weight)
            elif weight.size >= LEAST_VALUES:
                reason = f"is not read as weights but by {reader.op_type}"
            else:
                continue  # Scales, shifts and shapes: too many to list, too small to matter.
            if reason is not None:
                findings.declines.append(
                    Decline(stage=STAGE, node=label, operator=reader.op_type, reason=f"`{value.name}` {reason}")
                )
                continue
            _halve(graph, value, weight, names)
            findings.changes.append(Change(stage=STAGE, node=label, what=f"stored `{value.name}` as float16"))
    return copy, findings


def why_not(weight: Array) -> str | None:
    """Return why `weight` should not be float16, as the end of a sentence that begins with its name."""
    if weight.size < LEAST_VALUES:
        return f"has {weight.size} values: halving fewer than {LEAST_VALUES} saves nothing"
    if not np.isfinite(weight).all():
        return "holds NaN or infinities"
    largest, limit = float(np.abs(weight).max()), float(np.finfo(np.float16).max)
    if largest > limit:
        return f"holds values up to {largest:.4g}, and float16 ends at {limit:.0f}"
    error = np.linalg.norm((weight - weight.astype(np.float16).astype(np.float32)).astype(np.float64))
    norm = np.linalg.norm(weight.astype(np.float64))
    if error > _HALF_STEP * norm:
        return (
            f"would lose {error / norm:.2g} of its norm, because float16 ends at 6e-08; the limit is {_HALF_STEP:.2g}"
        )
    return None


def _weight_reader(value: ir.Value) -> ir.Node | None:
    """Return the first node that reads `value` as its weights."""
    for node, slot in value.uses():
        if node.domain in {"", "ai.onnx"} and slot in _WEIGHT_SLOTS.get(node.op_type, ()):
            return node
    return None


def _halve(graph: ir.Graph, value: ir.Value, weight: Array, names: set[str | None]) -> None:
    """Replace the initializer `value` by float16 and a Cast, for all of its readers."""
    name = value.name or ""
    half_name, cast_name = _unique(f"{name}_float16", names), _unique(f"{name}_to_float32", names)
    half = ir.Value(
        name=half_name,
        type=ir.TensorType(ir.DataType.FLOAT16),
        shape=value.shape,
        const_value=ir.Tensor(weight.astype(np.float16), name=half_name),
    )
    cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, name=cast_name)
    # The Cast's result takes over name, readers and, where it is one, the place among the outputs.
    value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
    del graph.initializers[name]
    cast.outputs[0].name = name
    cast.outputs[0].dtype = ir.DataType.FLOAT
    cast.outputs[0].shape = value.shape
    graph.register_initializer(half)
    graph.insert_before(graph[0], cast)


def _names(graph: ir.Graph) -> list[str | None]:
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return [*(value.name for value in values), *(node.name for node in graph)]


def _unique(name: str, names: set[str | None]) -> str:
    """Return `name`, or one like it, that is not taken yet; from now on it is."""
    while name in names:
        name += "_"
    names.add(name)
    return name
