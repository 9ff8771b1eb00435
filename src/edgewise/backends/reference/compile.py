"""Makes artifacts of the reference evaluator: an ONNX file, and refuses what the evaluator would get wrong."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from edgewise.backends.isolation import node_name, operator, refused_nodes
from edgewise.backends.ports import input_ports, output_ports
from edgewise.backends.protocol import Artifact
from edgewise.backends.reference import session
from edgewise.backends.serialization import MODEL_FILE, onnx_files
from edgewise.backends.words import trimmed
from edgewise.errors import BackendError, RecipeError
from edgewise.records.candidate import RunOptions
from edgewise.records.findings import Decline

_IGNORED: Final = {
    "LSTM": frozenset({"activations", "activation_alpha", "activation_beta", "clip", "input_forget"}),
    "GRU": frozenset({"activations", "activation_alpha", "activation_beta", "clip"}),
    "RNN": frozenset({"activation_alpha", "activation_beta", "clip"}),
}
"""Attributes that the evaluator accepts and ignores (onnx 1.23, `reference/ops/op_lstm.py` and its neighbours)."""

_SEQUENCE_LENGTHS = 4  # index of the input `sequence_lens`, which it ignores as well


def compile_model(model: ir.Model, options: RunOptions) -> Artifact:
    """Return `model` as an artifact.

    `graph_optimization` is `off` or `all`: the evaluator never rewrites. `threads` has to be 1, of Python; the matrix
    products of numpy may use more, which no result depends on.

    Raises:
        RecipeError: If an option cannot be honoured.
        BackendError: If an operator has no complete implementation in the evaluator.
    """
    if options.precision != "fp32":
        raise RecipeError(f"Backend `reference` computes in `fp32`. Received precision `{options.precision}`.")
    if options.threads != 1:
        raise RecipeError(f"Backend `reference` has one thread. Received {options.threads}.")
    if ignored := _ignored(model):
        first = ignored[0]
        raise BackendError(
            f"The ONNX reference evaluator cannot run node `{first.node}` ({first.operator}): {first.reason}."
        )
    files = {MODEL_FILE: onnx_files(model)[MODEL_FILE]}
    artifact = Artifact.of(
        files, backend="reference", options=options, inputs=input_ports(model), outputs=output_ports(model)
    )
    session.ReferenceSession(artifact).close()
    return artifact


def why_not(model: ir.Model) -> tuple[Decline, ...]:
    """Return the nodes that the evaluator has no implementation for, or only an incomplete one."""
    words = _refusal(model)
    declines = _ignored(model)
    if words is not None:
        nodes = refused_nodes(model, "reference", _refusal)
        declines = (*declines, *(nodes or (Decline(stage="reference", node="", operator="", reason=words),)))
    return declines


def _ignored(model: ir.Model) -> tuple[Decline, ...]:
    declines = []
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx") or node.op_type not in _IGNORED:
            continue
        what = [f"attribute `{name}`" for name in sorted(_IGNORED[node.op_type].intersection(node.attributes))]
        if len(node.inputs) > _SEQUENCE_LENGTHS and node.inputs[_SEQUENCE_LENGTHS] is not None:
            what.append("input `sequence_lens`")
        if what:
            reason = f"the evaluator ignores its {' and '.join(what)}"
            declines.append(Decline(stage="reference", node=node_name(node), operator=operator(node), reason=reason))
    return tuple(declines)


def _refusal(model: ir.Model) -> str | None:
    try:
        session.evaluator(onnx_files(model)[MODEL_FILE])
    except BackendError as error:
        return trimmed(error.__cause__ or error)
    return None
