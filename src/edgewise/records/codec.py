"""Records to JSON and back, validated.

msgspec rather than pydantic: records travel to the device, where imports are paid for at every cold start
(docs/adr/0002-msgspec-for-records.md has the measurement).
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records: immutable, and unknown fields are an error.

    Subclasses write `frozen=True, kw_only=True` again: type checkers see neither through inheritance.
    """


def encode(record: Record) -> bytes:
    """Return `record` as canonical JSON: fields in their declared order, mappings sorted."""
    return msgspec.json.encode(record, order="deterministic")


def decode(data: bytes | str, kind: type[T]) -> T:
    """Return the record of type `kind` that `data` holds.

    Raises:
        msgspec.ValidationError: If a field is missing, unknown or of another type; the message holds its path.
        msgspec.DecodeError: If `data` is not JSON.
    """
    return msgspec.json.decode(data, type=kind)


def indent(data: bytes) -> bytes:
    """Return the JSON document `data` with two spaces of indentation, for files that people open."""
    return msgspec.json.format(data, indent=2)
