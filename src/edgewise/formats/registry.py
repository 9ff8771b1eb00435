"""The model formats, as a table. Adding one is a file and a line in `FORMATS`.

A file is recognised by what it holds, not by its name. What other frameworks write is recognised, too, so that the
message can say what it is and how to turn it into ONNX.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from edgewise.errors import ModelError
from edgewise.formats import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Head:
    """What is looked at to recognise a file.

    Attributes:
        path: The file or folder.
        data: Its first bytes; empty for a folder.
        size: Its length in bytes.
    """

    path: Path
    data: bytes
    size: int


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        module: The module that has `load(path) -> ir.Model`.
        says: The format's own name.
        matches: Whether a file is of this format.
    """

    module: str
    says: str
    matches: Callable[[Head], bool]


@dataclass(frozen=True)
class ForeignFormat:
    """A format that is recognised, but not read.

    Attributes:
        says: What the file is.
        matches: Whether a file is of this format.
        cure: How to make ONNX of it.
    """

    says: str
    matches: Callable[[Head], bool]
    cure: str


class _Loader(Protocol):
    def load(self, path: Path) -> ir.Model: ...


def _is_onnx(head: Head) -> bool:
    return wire.looks_like_onnx(wire.outline(head.data, head.size))


def _is_tensorflow_graph(head: Head) -> bool:
    return wire.looks_like_tensorflow_graph(wire.outline(head.data, head.size))


def _is_zip_with(*words: bytes) -> Callable[[Head], bool]:
    """Return a test for a zip archive in whose first bytes one of `words` appears."""

    def matches(head: Head) -> bool:
        return head.data.startswith(b"PK\x03\x04") and any(word in head.data for word in words)

    return matches


def _named(*suffixes: str) -> Callable[[Head], bool]:
    return lambda head: head.path.suffix.lower() in suffixes


_TO_ONNX_TORCH = "Export it where the model's code is: torch.onnx.export(model, example_inputs, 'model.onnx')."
_TO_ONNX_KERAS = "Convert it with tf2onnx: python -m tf2onnx.convert --keras MODEL --output model.onnx"

FORMATS: Final = {
    "onnx": Format("edgewise.formats.onnx", says="ONNX", matches=_is_onnx),
}

FOREIGN_FORMATS: Final = (
    ForeignFormat(
        "a TensorFlow SavedModel",
        lambda head: head.path.is_dir() and (head.path / "saved_model.pb").is_file(),
        "Convert it with tf2onnx: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx",
    ),
    ForeignFormat(
        "a TensorFlow Lite model",
        lambda head: head.data[4:8] == b"TFL3",
        "Convert it with tf2onnx: python -m tf2onnx.convert --tflite MODEL --output model.onnx",
    ),
    ForeignFormat("an HDF5 file (Keras)", lambda head: head.data.startswith(b"\x89HDF\r\n\x1a\n"), _TO_ONNX_KERAS),
    ForeignFormat("a Keras archive", _is_zip_with(b"model.weights.h5", b"config.json"), _TO_ONNX_KERAS),
    ForeignFormat(
        "a NumPy archive (`.npz`), which holds samples rather than a model",
        lambda head: head.data.startswith(b"PK\x03\x04") and head.path.suffix.lower() == ".npz",
        "Give the model as the model and this file with --data.",
    ),
    ForeignFormat("a PyTorch file", lambda head: head.data.startswith(b"PK\x03\x04"), _TO_ONNX_TORCH),
    ForeignFormat(
        "a PyTorch file of the old kind", lambda head: head.data.startswith(b"\x80\x02\x8a\x0a"), _TO_ONNX_TORCH
    ),
    ForeignFormat("a NumPy array", lambda head: head.data.startswith(b"\x93NUMPY"), "Give it with --data."),
    ForeignFormat(
        "an OpenVINO model",
        lambda head: head.data.lstrip().startswith(b"<?xml") and b"<net " in head.data,
        "Give the ONNX model from which it was made.",
    ),
    ForeignFormat(
        "an ONNX Runtime model (`.ort`)",
        lambda head: head.data[4:8] == b"ORTM",
        "Give the ONNX model from which it was made.",
    ),
    ForeignFormat(
        "a pointer of Git LFS, not the file itself",
        lambda head: head.data.startswith(b"version https://git-lfs"),
        "Fetch the file: git lfs pull",
    ),
    ForeignFormat(
        "a TensorFlow graph",
        _is_tensorflow_graph,
        "Convert it with tf2onnx: python -m tf2onnx.convert --graphdef MODEL --inputs ... --outputs ... "
        "--output model.onnx",
    ),
    # Names are the last resort: these formats have no mark of their own.
    ForeignFormat(
        "a Caffe model",
        _named(".caffemodel", ".prototxt"),
        "Convert the .prototxt and the .caffemodel together into ONNX first.",
    ),
    ForeignFormat("a PyTorch file", _named(".pt", ".pth", ".pt2"), _TO_ONNX_TORCH),
)
"""Recognised in this order."""


def load(path: Path) -> ir.Model:
    """Return the model in `path`, checked.

    Raises:
        ModelError: If the file is missing, empty, damaged, of another format, or holds what edgewise cannot handle.
        ResourceError: If the model does not fit into memory.
    """
    head = _head(path)
    for format_ in FORMATS.values():
        if format_.matches(head):
            return cast("_Loader", importlib.import_module(format_.module)).load(path)
    known = " or ".join(format_.says for format_ in FORMATS.values())
    for foreign in FOREIGN_FORMATS:
        if foreign.matches(head):
            raise ModelError(
                f"A model has to be in the format {known}, which is all that this version reads. "
                f"`{path}` is {foreign.says}.",
                hint=foreign.cure,
            )
    if path.is_dir():
        raise ModelError(
            f"A model has to be a file. `{path}` is a folder.",
            hint=_name_models(path),
        )
    raise ModelError(
        f"A model has to be in the format {known}. `{path}` ({head.size:,} bytes) does not begin like one.",
        hint="If it should be ONNX, the file is damaged: copy or export it again.",
    )


def _head(path: Path) -> Head:
    """Return what is looked at to recognise `path`."""
    if path.is_dir():
        return Head(path, b"", 0)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            data = file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise ModelError(
            f"The model has to exist. There is no `{path}`.", hint="Check the spelling and the folder."
        ) from error
    except OSError as error:
        raise ModelError(f"The model has to be readable. `{path}`: {error.strerror}.") from error
    if size == 0:
        raise ModelError(f"A model has to hold something. `{path}` is empty.", hint="Copy or export it again.")
    return Head(path, data, size)


def _name_models(folder: Path) -> str:
    """Return a hint that names the ONNX files of a folder."""
    models = sorted(path.name for path in folder.glob("*.onnx"))
    if not models:
        return "Name the file itself; this folder has no `.onnx` file."
    return f"Name the file itself: {', '.join(models[:5])}."
