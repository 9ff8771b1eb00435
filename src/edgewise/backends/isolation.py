"""Finds the nodes that a runtime refuses, by handing it each kind of node in a model of its own.

A runtime that refuses a model names at most the first culprit. A user wants all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edgewise.records.findings import Decline

if TYPE_CHECKING:
    import onnx_ir as ir


_STANDARD = ("", "ai.onnx")


def refused_nodes(model: ir.Model, stage: str, refusal: Callable[[ir.Model], str | None]) -> tuple[Decline, ...]:
    """Return the nodes that `refusal` gives a reason for when they stand alone, in graph order.

    Nodes with subgraphs stand for themselves only through the nodes in them. Nodes that read a value of unknown type
    are tried only where their operator is not a standard one: behind an unknown operator nothing has a type.

    Args:
        model: The whole model, with inferred types as far as they are known. It is not changed.
        stage: Name of the backend, for the findings.
        refusal: Tries to open a model; returns the runtime's words, or None where it opens.
    """
    import onnx_ir as ir  # noqa: PLC0415 - the backends' packages are imported on devices, which have no onnx_ir

    declines = []
    known: dict[object, str | None] = {}
    for node in _nodes(model.graph):
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in _attributes(node)):
            continue
        if node.domain in _STANDARD and any(value is not None and value.dtype is None for value in node.inputs):
            continue
        kind = _kind(node)
        if kind not in known:
            known[kind] = refusal(_alone(model, node))
        reason = known[kind]
        if reason is not None:
            declines.append(Decline(stage=stage, node=node_name(node), operator=operator(node), reason=reason))
    return tuple(declines)


def node_name(node: ir.Node) -> str:
    """Return the node's name, or its first output's where it has none."""
    return node.name or next((str(value.name) for value in node.outputs if value.name), "")


def operator(node: ir.Node) -> str:
    """Return the operator type, with its domain where that is not the standard one."""
    return f"{node.domain}::{node.op_type}" if node.domain not in _STANDARD else node.op_type


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    yield from graph.all_nodes()


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return list(node.attributes.values())


def _kind(node: ir.Node) -> object:
    """Return what decides whether a runtime has a kernel: operator, types and ranks, attributes."""
    inputs = tuple(None if value is None else (value.dtype, _rank(value)) for value in node.inputs)
    attributes = tuple(sorted((name, str(attribute)) for name, attribute in node.attributes.items()))
    return (node.domain, node.op_type, node.overload, inputs, len(node.outputs), attributes)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _alone(model: ir.Model, node: ir.Node) -> ir.Model:
    """Return a model of a copy of `node`: constants stay constants, everything else becomes an input."""
    import onnx_ir as ir  # noqa: PLC0415 - as above

    copies: dict[ir.Value, ir.Value] = {}
    for value in node.inputs:
        if value is not None and value not in copies:
            copies[value] = ir.Value(
                name=value.name or f"input{len(copies)}",
                type=value.type or ir.TensorType(ir.DataType.FLOAT),
                shape=value.shape,
                const_value=value.const_value,
            )
    alone = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else copies[value] for value in node.inputs],
        list(node.attributes.values()),
        overload=node.overload,
        outputs=[ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs],
        name=node.name,
    )
    graph = ir.Graph(
        [value for value in copies.values() if value.const_value is None],
        [value for value in alone.outputs if value.name],
        nodes=[alone],
        initializers=[value for value in copies.values() if value.const_value is not None],
        opset_imports=dict(model.graph.opset_imports),
        name="alone",
    )
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
