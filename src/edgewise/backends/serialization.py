"""A graph as the bytes of an ONNX file, with its weights beside it where one file cannot hold them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # onnx brings no stubs

from edgewise.errors import ResourceError
from edgewise.formats import weightless

MODEL_FILE: Final = "model.onnx"
DATA_FILE: Final = "model.onnx.data"

_LARGEST_PROTOBUF = 2**31 - 2**20  # protobuf's limit is 2 GiB; 1 MiB is left for everything but weights
_SMALLEST_EXTERNAL = 1024  # bytes; shapes and axes stay in the model, where runtimes look for them


def onnx_files(model: ir.Model, *, largest: int = _LARGEST_PROTOBUF) -> dict[str, bytes]:
    """Return `model.onnx` and, where the weights exceed `largest` bytes, `model.onnx.data`.

    The same graph gives the same bytes.

    Args:
        model: The graph; it is not changed.
        largest: Bytes of weights up to which one file holds all.

    Raises:
        ResourceError: If there is no memory for the bytes.
    """
    if (size := weight_bytes(model)) <= largest:
        if any(isinstance(tensor, ir.ExternalTensor) for tensor in _tensors(model)):
            model = model.clone()  # the bytes hold the weights themselves, not the name of the file that they lie in
            weightless.mapped(model)
        try:
            return {MODEL_FILE: ir.serde.serialize_model(model).SerializeToString(deterministic=True)}
        except (EncodeError, MemoryError) as error:  # protobuf gives no reason, but its limit is not reached
            raise ResourceError(
                f"A copy of the model's {size:,} bytes of weights has to fit into memory, but it does not.",
                hint="Close other programs, or use a machine with more memory.",
            ) from error
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        path = Path(folder) / MODEL_FILE
        ir.save(model, path, external_data=DATA_FILE, size_threshold_bytes=_SMALLEST_EXTERNAL)
        return {name: (path.parent / name).read_bytes() for name in (MODEL_FILE, DATA_FILE)}


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all constants of the model, those in subgraphs included."""
    return sum(tensor.nbytes for tensor in _tensors(model))


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
