"""The facts about a model that a run records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from edgewise.analysis.cost import layer_costs, total_macs
from edgewise.analysis.liveness import activation_peak_bytes
from edgewise.analysis.values import STANDARD_DOMAINS, is_standard, with_inferred_shapes
from edgewise.records.run import ModelFacts
from edgewise.records.tensors import Port

NOT_WEIGHTS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING})
"""Element types of shapes, axes and flags, not of what was trained."""


def model_facts(model: ir.Model, name: str, sha256: str) -> ModelFacts:
    """Return the facts about `model`.

    Args:
        model: The model. Dimensions that are not fixed count as 1.
        name: File name.
        sha256: Hash of the model, weights included.
    """
    shaped = with_inferred_shapes(model)
    tensors = list(_weights(shaped))
    given = [value for value in shaped.graph.inputs if value.name not in shaped.graph.initializers]
    operators = Counter(_operator(node) for node in ir.traversal.RecursiveGraphIterator(shaped.graph))
    return ModelFacts(
        name=name,
        sha256=sha256,
        opset=shaped.graph.opset_imports.get("", shaped.graph.opset_imports.get("ai.onnx", 0)),
        inputs=tuple(port(value) for value in given),
        outputs=tuple(port(value) for value in shaped.graph.outputs),
        operators=dict(sorted(operators.items())),
        macs=total_macs(layer_costs(shaped)),
        parameters=sum(tensor.size for tensor in tensors if tensor.dtype not in NOT_WEIGHTS),
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        activation_peak_bytes=activation_peak_bytes(shaped),
    )


def port(value: ir.Value) -> Port:
    """Return an input or output as a record; `?` is a dimension without a size or name, `unknown` a missing type."""
    dims = () if value.shape is None else tuple(value.shape)
    shape = tuple(dim if isinstance(dim, int) else (dim.value or "?") for dim in dims)
    return Port(name=value.name or "", dtype=_type_name(value.dtype), shape=shape)


def _type_name(dtype: ir.DataType | None) -> str:
    if dtype is None:
        return "unknown"
    return "str" if dtype == ir.DataType.STRING else dtype.numpy().name


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every constant tensor once: initializers and Constant nodes, in bodies as well."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_standard(node, "Constant"):
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                yield tensor
