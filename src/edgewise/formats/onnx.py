"""ONNX files: one file, or one file with its weights in others beside it.

Reading checks what has to hold before anything else is done. Writing is all or nothing. The user's file is never
changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # onnx brings no stubs
from onnx_ir.passes.common import InlinePass

from edgewise.errors import ModelError, OutputError, ResourceError
from edgewise.formats import weightless, wire
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array

OLDEST_OPSET: Final = 7
"""The oldest version of the standard operator set that is read, as in ONNX Runtime."""

STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Domains of operators that the ONNX standard defines."""

RUNTIME_DOMAINS: Final = frozenset({"com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental"})
"""Domains of operators that are no standard, but that ONNX Runtime carries."""

WEIGHTED_OPERATORS: Final = frozenset({
    "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "GRU", "Gemm", "GroupNormalization",
    "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "PRelu", "RMSNormalization", "RNN",
})  # fmt: skip
"""Operators whose constant inputs are weights. An infinite constant anywhere else may be an attention mask, the bound
of a Clip or the start of a maximum, and is legitimate."""

_PROTOBUF_LIMIT_BYTES: Final = 2**31 - 1
_EXTERNAL_FROM_BYTES: Final = 2**30
"""Weights larger than this together are written beside the model: half of what protobuf allows."""

_CHUNK = 1 << 22


def load(path: Path) -> ir.Model:
    """Return the model in `path`; weights in other files are mapped into memory, not read.

    Initializers that are also graph inputs, as old exporters write them, are initializers only, functions that the
    model brings along are inlined, and no two nodes have one name.

    Raises:
        ModelError: If the file is damaged or not ONNX, if data beside it are missing, short or outside of its
            folder, or if it holds operators that no supported runtime knows.
        ResourceError: If it does not fit into memory.
    """
    proto = _parse(path)
    _check_structure(proto, path)
    _check_opset(proto, path)
    try:
        model = ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"The graph has to be valid ONNX. `{path}`: {_innermost(error)}.",
            hint="Export the model again; `python -m onnx.bin.checker` may say more.",
        ) from error
    ir.external_data.set_base_dir(model.graph, path.absolute().parent)
    _check_external_data(model, path)
    _check_operators(model, path)
    model = _normalised(model, path)
    _check_validity(model, path)
    return model


def to_bytes(model: ir.Model) -> bytes:
    """Return `model` as one ONNX file, weights included.

    Raises:
        ResourceError: If it is larger than the 2 GiB that one protobuf file can have.
    """
    try:
        data: bytes = ir.to_proto(_internal(model)).SerializeToString()
    except (EncodeError, ValueError) as error:
        raise ResourceError(
            f"A model in one file has to be smaller than 2 GiB: {error}.",
            hint="Models of that size can only be written to a folder, with their weights in a second file.",
        ) from error
    return data


def save(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`, all or nothing; weights of more than 1 GiB go to `NAME.data` beside it.

    Raises:
        OutputError: If the place cannot be written or is full.
    """
    large = sum(tensor.nbytes for tensor in _tensors(model)) > _EXTERNAL_FROM_BYTES
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.absolute().parent) as folder:
            draft = Path(folder) / path.name
            if large:
                ir.save(model, draft, format="protobuf", external_data=f"{path.name}.data")
                Path(f"{draft}.data").replace(Path(f"{path}.data"))
            else:
                draft.write_bytes(to_bytes(model))
            draft.replace(path)
    except OSError as error:
        raise OutputError(f"The model has to be written to `{path}`, but: {error.strerror or error}.") from error


def foreign_operators(model: ir.Model) -> tuple[Decline, ...]:
    """Return the nodes whose operators are not of the ONNX standard, subgraphs included.

    Only the runtime that they belong to can run them; they are neither fused nor quantized.
    """
    return tuple(
        Decline(
            stage="import",
            node=node_name(node),
            operator=f"{node.domain}::{node.op_type}",
            reason=f"`{node.domain}::{node.op_type}` is not an operator of the ONNX standard; only the runtime that "
            f"defines it can run it",
        )
        for node in model.graph.all_nodes()
        if node.domain not in STANDARD_DOMAINS
    )


def check_weights(model: ir.Model) -> None:
    """Check that the constants hold numbers: no NaN anywhere, and no infinity in a weight.

    Reads every weight once, in pieces.

    Raises:
        ModelError: Naming the first tensor that does, and how many of its values are affected.
    """
    for name, tensor, is_weight in _constants(model):
        if not tensor.dtype.is_floating_point():
            continue
        nan, infinite = _count_non_finite(tensor.numpy())
        what = "NaN" if nan else "infinite" if infinite and is_weight else None
        if what is not None:
            raise ModelError(
                f"The weights have to be numbers. `{name}` {list(tensor.shape.numpy())} has {nan or infinite:,} of "
                f"{tensor.size:,} values that are {what}.",
                hint="The training or the export went wrong: check the checkpoint, and half precision for overflow.",
            )


def node_name(node: ir.Node) -> str:
    """Return a node's name, or the name of its first output where it has none."""
    return node.name or next((value.name for value in node.outputs if value.name), "") or ""


def _parse(path: Path) -> onnx.ModelProto:
    """Return the file as a protobuf message."""
    try:
        size = path.stat().st_size
        if size > _PROTOBUF_LIMIT_BYTES:
            raise ModelError(
                f"An ONNX file has to be smaller than 2 GiB. `{path}` has {size:,} bytes.",
                hint="Save it with external data: onnx.save(model, path, save_as_external_data=True).",
            )
        data = path.read_bytes()
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except OSError as error:
        raise ModelError(f"The model has to be readable. `{path}`: {error.strerror}.") from error
    except MemoryError as error:
        raise _too_large(path, size) from error
    except DecodeError as error:
        if "alloc failed" in str(error):  # how newer versions of protobuf say that memory ran out
            raise _too_large(path, size) from error
        found = wire.outline(data, len(data))
        if wire.looks_like_onnx(found) and not found.complete:
            raise ModelError(
                f"`{path}` has to be a whole ONNX file, but it ends in the middle ({size:,} bytes).",
                hint="The copy or the download was cut off: fetch it again.",
            ) from error
        raise ModelError(
            f"`{path}` ({size:,} bytes) has to be an ONNX file, but it cannot be decoded.",
            hint="It is damaged, or not ONNX: copy or export it again.",
        ) from error
    return proto


def _too_large(path: Path, size: int) -> ResourceError:
    return ResourceError(f"`{path}` ({size:,} bytes) has to fit into memory, but it does not.")


def _check_structure(proto: onnx.ModelProto, path: Path) -> None:
    """Check that there is a graph with outputs, and nothing that would be lost."""
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(
            f"An ONNX file has to hold a graph. `{path}` holds none.",
            hint="It is cut off or no model: export it again.",
        )
    if not proto.graph.output:
        raise ModelError(f"The graph has to have an output. `{path}` has none.", hint="Export the model again.")
    if proto.graph.sparse_initializer:
        names = ", ".join(f"`{tensor.values.name}`" for tensor in proto.graph.sparse_initializer[:3])
        raise ModelError(
            f"Weights have to be dense. `{path}` holds sparse initializers: {names}.",
            hint="Export the model with dense weights.",
        )


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    """Check that the standard operators have a version, and one that is known."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}]
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        if all(node.domain not in {"", "ai.onnx"} for node in proto.graph.node):
            return
        raise ModelError(
            f"An ONNX file has to say which version of the standard operators it uses. `{path}` does not.",
            hint="It is cut off or damaged: export it again.",
        )
    if not OLDEST_OPSET <= versions[0] <= newest:
        older = versions[0] < OLDEST_OPSET
        raise ModelError(
            f"The version of the standard operators (opset) has to be {OLDEST_OPSET} to {newest}. "
            f"`{path}` has {versions[0]}.",
            hint=f"Export the model with a newer opset, for example {OLDEST_OPSET + 10}."
            if older
            else "Export the model with an older opset, or upgrade the package `onnx`.",
        )


def _check_external_data(model: ir.Model, path: Path) -> None:
    """Check that all weights in other files are there, long enough, and inside of the model's folder."""
    folder = path.absolute().parent.resolve()
    sizes: dict[Path, int] = {}
    for tensor in _tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        data = Path(tensor.path)
        where = f"`{path}` keeps `{tensor.name}` in `{tensor.location}`"
        if not data.resolve().is_relative_to(folder):
            raise ModelError(
                f"Weights have to lie in the model's own folder. {where}, which is outside of it.",
                hint="Copy the model and its data as plain files into one folder.",
            )
        if data not in sizes:
            sizes[data] = _external_size(data, where)
        begin, length = tensor.offset or 0, tensor.length or tensor.nbytes
        if length < tensor.nbytes or begin + length > sizes[data]:
            raise ModelError(
                f"{where}, bytes {begin:,} to {begin + max(length, tensor.nbytes):,}, but that file has only "
                f"{sizes[data]:,} bytes, or the entry is too short.",
                hint="The data file is cut off or belongs to another model: copy both again.",
            )


def _external_size(data: Path, where: str) -> int:
    try:
        status = data.stat()
        with data.open("rb"):
            pass
    except OSError as error:
        raise ModelError(
            f"{where}, which cannot be read: {error.strerror}.",
            hint="Copy the data file into the folder of the model; both belong together.",
        ) from error
    if status.st_nlink > 1:
        # onnx-ir refuses such files when the weights are read: they may be another's file, linked into the folder.
        raise ModelError(
            f"{where}, which has {status.st_nlink} hard links; it has to be a file of its own.",
            hint="Copy the data file instead of linking it.",
        )
    return status.st_size


def _check_operators(model: ir.Model, path: Path) -> None:
    """Check that every operator is known to the standard, to the model itself, or to a runtime."""
    unknown: dict[str, str] = {}
    custom: dict[str, str] = {}
    for node in (*model.graph.all_nodes(), *(n for function in model.functions.values() for n in function.all_nodes())):
        if node.op_identifier() in model.functions or node.domain in RUNTIME_DOMAINS:
            continue
        if node.domain not in STANDARD_DOMAINS:
            custom.setdefault(f"{node.domain}::{node.op_type}", node_name(node))
        elif not _is_defined(node, model):
            unknown.setdefault(node.op_type, node_name(node))
    if unknown:
        raise ModelError(
            f"Operators have to be in the standard at the version that the model asks for "
            f"(opset {model.opset_imports.get('')}). `{path}` has others: {_listed(unknown)}.",
            hint="Export the model again with an opset that has these operators.",
        )
    if custom:
        raise ModelError(
            f"Operators have to be of the ONNX standard or of ONNX Runtime. `{path}` has custom ones: "
            f"{_listed(custom)}.",
            hint="Export the model with standard operators, or with a function body for each custom one.",
        )


def _is_defined(node: ir.Node, model: ir.Model) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = model.opset_imports.get(domain, model.opset_imports.get(node.domain, 1))
    try:
        onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return False
    return True


def _normalised(model: ir.Model, path: Path) -> ir.Model:
    """Return the model with functions inlined and without initializers among its inputs."""
    if model.functions:
        try:
            model = InlinePass()(model).model
        except Exception as error:
            raise ModelError(
                f"The functions that `{path}` brings along have to be inlined, which failed: {_innermost(error)}.",
                hint="Export the model with its functions inlined.",
            ) from error
    graph = model.graph
    for value in tuple(graph.inputs):
        if value.name in graph.initializers:
            graph.inputs.remove(value)
    _put_in_order(model, path)
    _name_apart(model)
    # Before IR version 4 every initializer had to be an input as well.
    model.ir_version = max(model.ir_version, 4)
    return model


def _name_apart(model: ir.Model) -> None:
    """Give nodes that are called like an earlier one a name of their own.

    ONNX allows two nodes of one name, ONNX Runtime does not, and what is found out about a node is told by its name.
    """
    taken, seen = {node_name(node) for node in model.graph.all_nodes()}, set[str]()
    for node in model.graph.all_nodes():
        name, number = node_name(node), 1
        while node_name(node) in seen:
            number += 1
            if f"{name}_{number}" not in taken:
                node.name = f"{name}_{number}"
        seen.add(node_name(node))


def _put_in_order(model: ir.Model, path: Path) -> None:
    """Sort the nodes if one reads what a later one computes; runtimes allow it, the standard does not."""
    if next(_undefined(model.graph, frozenset()), None) is None:
        return
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError(
            f"The graph has to be without a cycle. `{path}` has one.", hint="Export the model again."
        ) from error
    for node, name in _undefined(model.graph, frozenset()):
        raise ModelError(
            f"Everything that is read has to be computed. In `{path}` the node `{node_name(node)}` reads `{name}`, "
            f"which nothing gives.",
            hint="The file is damaged or was edited: export the model again.",
        )


def _undefined(graph: ir.Graph, outside: frozenset[ir.Value]) -> Iterator[tuple[ir.Node, str]]:
    """Yield each node that reads a value before it is known, and the value's name; subgraphs included."""
    known = {*outside, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                yield node, value.name or ""
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _undefined(attribute.as_graph(), frozenset(known))
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    yield from _undefined(inner, frozenset(known))
        known.update(node.outputs)


def _check_validity(model: ir.Model, path: Path) -> None:
    """Check the graph by onnx's own rules: order, attributes, number of inputs, unique names."""
    try:
        weightless.check(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"The graph has to be valid ONNX. `{path}`: {' '.join(str(error).split())}",
            hint="Export the model again.",
        ) from error


def _internal(model: ir.Model) -> ir.Model:
    """Return `model` with every weight in memory; the model itself if that is so already."""
    if not any(isinstance(tensor, ir.ExternalTensor) for tensor in _tensors(model)):
        return model
    copy = model.clone()
    weightless.in_memory(copy)
    return copy


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every constant tensor of the model: initializers and attributes, subgraphs included."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for _, tensor in _attribute_tensors(model.graph.all_nodes()):
        yield tensor


def _attribute_tensors(nodes: Iterable[ir.Node]) -> Iterator[tuple[ir.Node, ir.TensorProtocol]]:
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield node, attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from ((node, tensor) for tensor in attribute.as_tensors())


def _constants(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol, bool]]:
    """Yield name, tensor, and whether a weighted operator reads it, for every constant."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value, _is_weight(value)
    for node, tensor in _attribute_tensors(model.graph.all_nodes()):
        is_weight = node.op_type == "Constant" and _is_weight(node.outputs[0])
        yield node_name(node), tensor, is_weight


def _is_weight(value: ir.Value) -> bool:
    return any(node.op_type in WEIGHTED_OPERATORS for node, _ in value.uses())


def _count_non_finite(array: Array) -> tuple[int, int]:
    """Return how many values are NaN and how many are infinite; looks at pieces, for weights larger than memory."""
    flat = array.reshape(-1)
    nan = infinite = 0
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        finite = int(np.isfinite(piece).sum())
        if finite < piece.size:
            nans = int(np.isnan(piece).sum())
            nan += nans
            infinite += piece.size - finite - nans
    return nan, infinite


def _listed(found: dict[str, str]) -> str:
    """Return operators, each with the first node that has it, at most eight."""
    names = [f"`{operator}` (node `{node}`)" for operator, node in sorted(found.items())]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _innermost(error: BaseException) -> str:
    """Return the words of the error at the root of a chain, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
