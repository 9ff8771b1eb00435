"""What has to hold after every pass, checked from the outside."""

from __future__ import annotations

from typing import Any, TypeAlias

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.errors import ContractError
from edgewise.passes.rewriting import STANDARD_DOMAINS, all_graphs, all_nodes

Signature: TypeAlias = tuple[Any, ...]


def signature(model: ir.Model) -> Signature:
    """Return a value that is equal for two models of the same structure that share their weights.

    Weights are compared by identity: copies share them, and a pass that changes one makes a new one.
    """
    parts = [_graph_signature(graph) for graph in all_graphs(model)]
    return (tuple(parts), tuple(sorted(model.functions)), tuple(sorted(model.graph.opset_imports.items())))


def _graph_signature(graph: ir.Graph) -> Signature:
    nodes = tuple(
        (
            node.op_identifier(),
            tuple(None if value is None else value.name for value in node.inputs),
            tuple(value.name for value in node.outputs),
            tuple((name, _attribute_signature(attribute)) for name, attribute in sorted(node.attributes.items())),
        )
        for node in graph
    )
    weights = tuple((name, id(value.const_value)) for name, value in sorted(graph.initializers.items()))
    return (nodes, weights, tuple(v.name for v in graph.inputs), tuple(v.name for v in graph.outputs))


def _attribute_signature(attribute: ir.Attr) -> Any:
    if attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return "body"  # its nodes are compared as a graph of their own
    if attribute.type in {ir.AttributeType.TENSOR, ir.AttributeType.TENSORS, ir.AttributeType.SPARSE_TENSOR}:
        return id(attribute.value)
    return repr(attribute.value)


def interface(model: ir.Model) -> Signature:
    """Return names, types and shapes of the inputs that have to be fed and of the outputs."""
    given = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return tuple(
        tuple((value.name, str(value.type), str(value.shape)) for value in values)
        for values in (given, model.graph.outputs)
    )


def check(name: str, before: ir.Model, after: ir.Model) -> None:
    """Check that a pass kept its contract.

    Args:
        name: Name of the pass.
        before: The model before it.
        after: The model after it.

    Raises:
        ContractError: If `after` is not legal ONNX, has another interface, or uses a domain that `before` did not.
    """
    if interface(before) != interface(after):
        raise ContractError(
            f"Pass `{name}` has to keep inputs and outputs. Before: {interface(before)}. After: {interface(after)}."
        )
    allowed = STANDARD_DOMAINS | {node.domain for node in all_nodes(before)}
    for node in all_nodes(after):
        if node.domain not in allowed:
            raise ContractError(
                f"Pass `{name}` has to emit standard operators only. Received `{node.domain}.{node.op_type}` "
                f"at node `{node.name}`."
            )
    try:
        common.CheckerPass(full_check=False)(after)
    except (onnx.checker.ValidationError, ir.passes.PassError) as error:
        raise ContractError(f"Pass `{name}` has to leave a legal model. The ONNX checker says: {error}") from error


def is_legal(model: ir.Model) -> bool:
    """Return whether the ONNX checker accepts `model`."""
    try:
        common.CheckerPass(full_check=False)(model)
    except (onnx.checker.ValidationError, ir.passes.PassError):
        return False
    return True
