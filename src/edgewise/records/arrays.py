"""Arrays as bytes and back: one as a field of a record; many with names, as samples for workers and test vectors.

Many are an uncompressed `.npz` without pickles, in which the names may hold anything (`/`, `..`, `file`), because they
are kept in an index and not as names in the archive; and which keeps the element types that numpy has only through
`ml_dtypes`, such as bfloat16.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from edgewise.records.codec import Record
from edgewise.records.tensors import Array


class StoredArray(Record, frozen=True, kw_only=True):
    """An array as a field of a record.

    Attributes:
        dtype: numpy's name of its element type, for example `int8`.
        shape: Its dimensions.
        data: Its elements in C order, little endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Array) -> StoredArray:
        """Return `array`, which holds numbers of one of numpy's own types, as a field."""
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        return cls(dtype=array.dtype.name, shape=array.shape, data=little.tobytes())

    def numpy(self) -> Array:
        """Return the array; it cannot be written to."""
        return np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)


_INDEX: Final = "index"
_BITS: Final = {1: np.uint8, 2: np.uint16}


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Return `arrays` as bytes. Equal arrays give equal bytes.

    Args:
        arrays: Arrays of numbers by name, of any shape, in any order that has to be kept.

    Raises:
        ValueError: If an array holds objects.
    """
    index = [(name, array.dtype.name) for name, array in arrays.items()]
    members = {f"a{number}": _storable(array) for number, array in enumerate(arrays.values())}
    buffer = io.BytesIO()
    # The archive's own `**members` would clash with numpy's parameter names; `a0`, `a1` ... do not.
    np.savez(buffer, allow_pickle=False, **{_INDEX: np.frombuffer(msgspec.json.encode(index), np.uint8)}, **members)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Array]:
    """Return the arrays in `data`, by name, in the order in which they were packed.

    Raises:
        ValueError: If `data` is not what `pack` makes.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as members:
            index = msgspec.json.decode(members[_INDEX].tobytes(), type=list[tuple[str, str]])
            return {name: _restored(members[f"a{number}"], kind) for number, (name, kind) in enumerate(index)}
    except (
        zipfile.BadZipFile,
        KeyError,
        EOFError,
        TypeError,
        ValueError,
        OSError,
        AttributeError,
        msgspec.MsgspecError,
    ) as error:
        raise ValueError(f"These {len(data)} bytes are not packed arrays: {error}") from error


def _storable(array: Array) -> Array:
    if array.dtype.kind != "V":
        return array
    # numpy.ascontiguousarray would give an array without dimensions one.
    return np.asarray(array, order="C").view(_BITS[array.dtype.itemsize])


def _restored(array: Array, kind: str) -> Array:
    if array.dtype.name == kind:
        return array
    import ml_dtypes  # noqa: PLC0415 - only models with such types pay for it

    return array.view(np.dtype(getattr(ml_dtypes, kind)))
