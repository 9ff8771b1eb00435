"""The outermost layer of a protobuf message: enough to recognise a model file by its structure.

Source: the protobuf encoding (https://protobuf.dev/programming-guides/encoding) and `onnx.proto`, message ModelProto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_MODEL_FIELDS: Final = {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES}
"""ir_version, producer_name, producer_version, domain, model_version, doc_string, graph, opset_import."""

_MORE_MODEL_FIELDS: Final = {14: _BYTES, 20: _BYTES, 25: _BYTES, 26: _BYTES}
"""metadata_props, training_info, functions, configuration."""


@dataclass(frozen=True)
class Outline:
    """The fields of a message in the order in which they were met.

    Attributes:
        fields: Number and wire type of each.
        complete: Whether the last field ended exactly where the data end.
        sound: Whether everything before that end was well-formed.
    """

    fields: tuple[tuple[int, int], ...]
    complete: bool
    sound: bool


def outline(data: bytes | memoryview, size: int, *, most: int = 64) -> Outline:
    """Return the outermost fields of the message that begins with `data`.

    Args:
        data: The first bytes of the message, or all of it.
        size: Length of the whole message in bytes; what lies beyond `data` is skipped, not read.
        most: Fields after which to stop.
    """
    fields: list[tuple[int, int]] = []
    at = 0
    while at < size and len(fields) < most:
        if at >= len(data):
            return Outline(tuple(fields), complete=True, sound=True)
        tag, after = _varint(data, at)
        if after is None:
            return Outline(tuple(fields), complete=False, sound=True)
        number, kind = tag >> 3, tag & 7
        if number == 0 or kind not in {_VARINT, _FIXED64, _BYTES, _FIXED32}:
            return Outline(tuple(fields), complete=False, sound=False)
        fields.append((number, kind))
        end = _end(data, after, kind)
        if end is None or end > size:
            return Outline(tuple(fields), complete=False, sound=True)
        at = end
    return Outline(tuple(fields), complete=True, sound=True)


def looks_like_onnx(found: Outline) -> bool:
    """Return whether the fields are those of an ONNX ModelProto, complete or cut off."""
    known = {**_MODEL_FIELDS, **_MORE_MODEL_FIELDS}
    if not found.fields or not found.sound:
        return False
    if any(known.get(number) != kind for number, kind in found.fields):
        return False
    # Field 1 is a number here, and text or a message in TensorFlow's GraphDef and Caffe's NetParameter.
    return (1, _VARINT) in found.fields or (7, _BYTES) in found.fields


def looks_like_tensorflow_graph(found: Outline) -> bool:
    """Return whether the fields are those of a TensorFlow GraphDef: a long row of nodes."""
    nodes = sum(field == (1, _BYTES) for field in found.fields)
    return found.sound and nodes >= 2 and all(field in {(1, 2), (2, 2), (3, 0), (4, 2)} for field in found.fields)


def _end(data: bytes | memoryview, at: int, kind: int) -> int | None:
    """Return where the value that begins at `at` ends; None if its length is cut off."""
    if kind == _FIXED64:
        return at + 8
    if kind == _FIXED32:
        return at + 4
    value, after = _varint(data, at)
    if after is None:
        return None
    return after if kind == _VARINT else after + value


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int | None]:
    """Return the number at `at` and where it ends; None for the end if it is cut off or longer than 10 bytes."""
    value = 0
    for shift in range(10):
        if at + shift >= len(data):
            return 0, None
        byte = data[at + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    return 0, None
