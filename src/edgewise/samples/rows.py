"""Arrays in files, read one row at a time: `.npy` files and members of `.npz` archives.

Rows are read rather than mapped: mapped pages would count as this process's memory for as long as there is room, and
a measurement of memory could not tell them from what edgewise needs. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from edgewise.errors import DataError, ResourceError
from edgewise.records.tensors import Array

_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Header:
    """What the header of an array says.

    Attributes:
        shape: Shape of the array.
        dtype: Type of its elements.
        fortran: Whether the first axis varies fastest.
        data_start: Offset of the data behind the begin of the header.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    data_start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


class Rows:
    """An array whose rows are read when they are asked for.

    Args:
        file: An open file; it is kept open.
        header: Its header.
        start: Offset of the data in `file`.
        where: What to call it in messages.
    """

    def __init__(self, file: IO[bytes], header: Header, start: int, where: str) -> None:
        self._file = file
        self._start = start
        self.shape = header.shape
        self.dtype = header.dtype
        self.where = where
        self._mapped = None
        if header.fortran and len(header.shape) > 1:
            # A row lies scattered over the whole file: let the operating system gather it.
            self._mapped = np.memmap(file, header.dtype, "r", start, header.shape, "F")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Array:
        """Return one row, a new array.

        Raises:
            DataError: If the file has become shorter or cannot be read.
        """
        if self._mapped is not None:
            return np.array(self._mapped[index], order="C")
        shape = self.shape[1:]
        size = math.prod(shape) * self.dtype.itemsize
        try:
            data = os.pread(self._file.fileno(), size, self._start + index * size)
        except OSError as error:
            raise DataError(f"Row {index} of {self.where} has to be readable, but: {error.strerror}.") from error
        if len(data) != size:
            raise DataError(f"Row {index} of {self.where} has to be there, but the file has become shorter.")
        return np.frombuffer(bytearray(data), self.dtype, math.prod(shape)).reshape(shape)

    def all(self) -> Array:
        """Return the whole array; for labels and constants."""
        if not self.shape:
            data = os.pread(self._file.fileno(), self.dtype.itemsize, self._start)
            return np.frombuffer(data, self.dtype, 1).reshape(())
        return np.stack([self[index] for index in range(len(self))]) if len(self) else np.empty(self.shape, self.dtype)


def open_npy(path: Path) -> Rows:
    """Return the array of an `.npy` file.

    Raises:
        DataError: If it is no such file, is cut off, or would have to be unpickled.
    """
    where = f"`{path}`"
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{where} has to be readable, but: {error.strerror}.") from error
    header = read_header(file, where)
    lack = header.data_start + header.nbytes - os.fstat(file.fileno()).st_size
    if lack > 0:
        raise _cut_off(where, lack)
    return Rows(file, header, header.data_start, where)


class Archive:
    """An `.npz` file.

    Args:
        path: The file.

    Raises:
        DataError: If it is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
            self._zip = zipfile.ZipFile(self._file)
        except OSError as error:
            raise DataError(f"`{path}` has to be readable, but: {error.strerror}.") from error
        except zipfile.BadZipFile as error:
            raise DataError(
                f"`{path}` has to be an `.npz` archive, but: {error}.",
                hint="It is cut off or of another kind; save it with numpy.savez(path, x=..., y=...).",
            ) from error
        self.names = tuple(
            info.filename.removesuffix(".npy") for info in self._zip.infolist() if info.filename.endswith(".npy")
        )

    def where(self, name: str) -> str:
        """Return what an array is called in messages."""
        return f"`{name}` in `{self._path}`"

    def header(self, name: str) -> Header:
        """Return the header of an array.

        Raises:
            DataError: If it is damaged or would have to be unpickled.
        """
        with self._reading(name), self._zip.open(f"{name}.npy") as member:
            return read_header(member, self.where(name))

    def open(self, name: str) -> Rows:
        """Return an array. A compressed one is unpacked to a temporary file, which vanishes with the process.

        Raises:
            DataError: If it is damaged or would have to be unpickled.
            ResourceError: If there is no room for the temporary file.
        """
        info = self._zip.getinfo(f"{name}.npy")
        header = self.header(name)
        if info.compress_type == zipfile.ZIP_STORED:
            if (lack := header.data_start + header.nbytes - info.file_size) > 0:
                raise _cut_off(self.where(name), lack)
            return Rows(self._file, header, self._data_start(info) + header.data_start, self.where(name))
        return Rows(self._unpacked(info, name), header, header.data_start, self.where(name))

    def _unpacked(self, info: zipfile.ZipInfo, name: str) -> IO[bytes]:
        """Return an open temporary file without a name that holds the member; killed or not, nothing is left."""
        try:
            file = tempfile.TemporaryFile(prefix="edgewise-")  # noqa: SIM115  it lives as long as the rows
            with self._reading(name), self._zip.open(info) as member:
                shutil.copyfileobj(member, file, _BLOCK_BYTES)
            file.flush()
        except OSError as error:
            raise ResourceError(
                f"{self.where(name)} has to be unpacked to a temporary file of {info.file_size:,} bytes, but: "
                f"{error.strerror}.",
                hint="Free space in the temporary folder, name another with TMPDIR, or save the samples uncompressed.",
            ) from error
        return file

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        """Return where a stored member's bytes begin: behind its local header (APPNOTE 6.3, section 4.3.7)."""
        local = os.pread(self._file.fileno(), 30, info.header_offset)
        return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")

    def _reading(self, name: str) -> _Reading:
        return _Reading(self.where(name))


class _Reading:
    """Maps what zipfile raises for damaged members."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | NotImplementedError):
            raise DataError(
                f"{self._where} has to be readable, but: {error}.", hint="The file is damaged: copy or save it again."
            ) from error


def read_header(file: IO[bytes], where: str) -> Header:
    """Return the header at the position of `file`.

    Raises:
        DataError: If there is none, or the array holds Python objects, which would have to be unpickled.
    """
    try:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise DataError(
                f"{where} has to be in version 1 or 2 of NumPy's format. It is in version {version[0]}.",
                hint="Save it again without structured types.",
            )
        shape, fortran, dtype = reader(file)
    except ValueError as error:
        raise DataError(
            f"{where} has to be a NumPy array, but: {error}.", hint="The file is damaged: copy or save it again."
        ) from error
    if dtype.hasobject:
        raise DataError(
            f"{where} has to hold numbers or texts of fixed length. It holds Python objects, which are "
            f"never unpickled.",
            hint="Convert it before saving: array.astype('float32'), or array.astype('U') for texts.",
        )
    return Header(shape, dtype, fortran, file.tell())


class Spool:
    """Arrays written one after another to a temporary file without a name, and read back in any order."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="edgewise-")  # noqa: SIM115  it lives as long as the spool
        self._end = 0

    def add(self, array: Array) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
        """Write `array` and return its ticket.

        Raises:
            ResourceError: If there is no room.
        """
        ticket = (self._end, array.shape, array.dtype)
        try:
            self._file.write(np.ascontiguousarray(array).data if array.size else b"")
        except OSError as error:
            raise ResourceError(
                f"The samples have to be written to a temporary file, but: {error.strerror}.",
                hint="Free space in the temporary folder, or name another with the environment variable TMPDIR.",
            ) from error
        self._end += array.nbytes
        return ticket

    def get(self, ticket: tuple[int, tuple[int, ...], np.dtype[Any]]) -> Array:
        """Return the array of a ticket, a new one."""
        start, shape, dtype = ticket
        self._file.flush()
        size = math.prod(shape) * dtype.itemsize
        data = bytearray(os.pread(self._file.fileno(), size, start))
        return np.frombuffer(data, dtype, math.prod(shape)).reshape(shape)


def _cut_off(where: str, lack: int) -> DataError:
    return DataError(
        f"{where} has to be whole, but its last {lack:,} bytes are missing.", hint="Copy or save it again."
    )
