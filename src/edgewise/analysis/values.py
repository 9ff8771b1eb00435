"""Sizes of values, as far as they are known."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
"""Operators whose first output is their first input, seen otherwise: runtimes move nothing."""


def with_inferred_shapes(model: ir.Model) -> ir.Model:
    """Return a copy, which shares the weights, with the shapes that ONNX can infer. `model` stays as it is."""
    copy = model.clone()
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    return copy


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Return whether `node` is one of these operators of the standard domain."""
    return node.domain in STANDARD_DOMAINS and node.op_type in operators


def is_constant(value: ir.Value) -> bool:
    """Return whether `value` is an initializer or the output of a Constant node."""
    producer = value.producer()
    return value.is_initializer() or (producer is not None and is_standard(producer, "Constant"))


def label(node: ir.Node) -> str:
    """Return the node's name, or that of its first output where it has none."""
    return node.name or (node.outputs[0].name if node.outputs else None) or node.op_type


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Return the node's input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def known_dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape with 1 for every dimension that is not known, or None where the rank is not known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else 1 for dim in value.shape)


def is_known(value: ir.Value | None) -> bool:
    """Return whether every dimension and the element type of `value` are known."""
    return (
        value is not None
        and value.shape is not None
        and value.dtype is not None
        and all(isinstance(dim, int) for dim in value.shape)
    )


def elements(value: ir.Value | None) -> int:
    """Return the number of elements, dimensions that are not known counted as 1, and 0 without a rank."""
    dims = known_dims(value)
    return 0 if dims is None else math.prod(dims)


def size_bytes(value: ir.Value | None) -> int:
    """Return the bytes of a value, dimensions that are not known counted as 1, and 0 without a type or rank."""
    if value is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    return math.ceil(elements(value) * value.dtype.itemsize)


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that a node carries: the branches of If, the body of Loop and Scan."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
