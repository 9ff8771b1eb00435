"""A model as protobuf without its weights: what onnx's own C++ functions are given.

They take a serialized message, which is limited to 2 GiB and copied several times. Weights decide neither about
shapes nor about operator versions, so large ones travel as additional graph inputs of the same type and shape.
Small ones stay: they may be the `shape` of a Reshape or the `axes` of a reduction.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # onnx brings no stubs

from edgewise.errors import ModelError
from edgewise.records.tensors import Array

_LARGE_BYTES = 1024
"""128 int64 numbers: more than any shape, axes or pads has. Empirical, the same as in onnx-ir."""


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return `model` as protobuf, its large initializers as graph inputs behind the real ones.

    `model` is not changed. Weights inside subgraphs and attributes stay where they are.

    Raises:
        ModelError: If what is left is still too large for protobuf.
    """
    copy = model.clone()
    graph = copy.graph
    inputs = set(graph.inputs)
    for name, value in tuple(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _LARGE_BYTES:
            continue
        value.shape = ir.Shape(tensor.shape.numpy())
        value.dtype = tensor.dtype
        value.const_value = None
        del graph.initializers[name]
        if value not in inputs:
            graph.inputs.append(value)
    in_memory(copy)
    try:
        return ir.to_proto(copy)
    except (EncodeError, ValueError) as error:
        raise ModelError(
            f"Constants inside of nodes and subgraphs have to be smaller than 2 GiB together: {error}.",
            hint="Export the model so that its weights are initializers of the main graph.",
        ) from error


def check(model: ir.Model) -> None:
    """Check `model` by onnx's own rules: attributes, number of inputs, unique names, versions.

    Raises:
        onnx.checker.ValidationError: If it breaks one.
    """
    proto = to_proto(model)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            # The checker insists on a shape here; runtimes do not, and exporters leave it out.
            value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(proto)


def in_memory(model: ir.Model) -> None:
    """Read the weights that lie in other files, in place: in initializers, subgraphs and attributes."""
    _replace_external(model, lambda tensor: tensor.numpy().copy())


def mapped(model: ir.Model) -> None:
    """Make plain tensors of the weights that lie in other files, in place, without reading them.

    They are read from their files as the system's memory map is used. Serializing them writes their values, where
    onnx-ir would write the file's name: a runtime that is given bytes does not know the folder of that file.
    """
    _replace_external(model, lambda tensor: tensor.numpy())


def _replace_external(model: ir.Model, read: Callable[[ir.ExternalTensor], Array]) -> None:
    def plain(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        return ir.Tensor(read(tensor), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)

    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = plain(value.const_value)
    for node in model.graph.all_nodes():
        for name, attribute in tuple(node.attributes.items()):
            if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                continue
            tensor = attribute.as_tensor()
            if isinstance(tensor, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, plain(tensor))


def restore(proto: onnx.ModelProto, original: ir.Model) -> ir.Model:
    """Return `proto`, which was made of `original` by `to_proto`, with the weights in their places again.

    The weights are shared with `original`.
    """
    model = ir.from_proto(proto)
    own = {value.name for value in original.graph.inputs}
    for value in tuple(model.graph.inputs):
        name = value.name
        if name is None or name in own or name not in original.graph.initializers:
            continue
        model.graph.inputs.remove(value)
        value.const_value = original.graph.initializers[name].const_value
        model.graph.register_initializer(value)
    for name, value in model.graph.initializers.items():
        if (shared := original.graph.initializers.get(name)) is not None:
            value.const_value = shared.const_value
    return model
