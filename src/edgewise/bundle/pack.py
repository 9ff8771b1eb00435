"""One file for the way to the device, and back: a tar archive in xz streams, from the standard library alone.

Integers of a few bits that lie in bytes, and weights of which many are zero, shrink to about their entropy. The same
bundle gives the same bytes. `tar xJf` reads the file, too, but checks no hash. Where less is wanted, the file holds a
part of the bundle (`bundle/part.py`), under a manifest that says what was left out.

Whoever unpacks trusts nothing: only regular files that the manifest names, each within the space that there is, each
with its recorded hash, become a bundle; until all are there, they lie beside it under another name.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from edgewise.bundle.manifest import MANIFEST_FILE, Manifest, seal, unseal
from edgewise.bundle.part import part
from edgewise.bundle.read import Bundle, refuse_links
from edgewise.errors import BundleError, OutputError
from edgewise.records.codec import Record

_PART: Final = 1 << 20
"""Bytes of the archive in one xz stream: floats and integers are told apart at this distance."""

_SETTINGS: Final = tuple(
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 6,
        "dict_size": _PART,
        "lc": 0,  # the byte before says nothing about a weight
        "lp": position,
        "pb": position,
        "mode": lzma.MODE_NORMAL,
        "mf": lzma.MF_HC4,  # matches of 2 or 3 bytes among weights are chance, and cost more than they save
        "nice_len": 64,
        "depth": 4,
    }
    for position in (0, 2)
)
"""How each part is compressed: for bytes, and for words of four bytes. Both are tried. Normal numbers rounded to 4 bits
(entropy .383 of their bytes) become .404, xz's own preset makes .416 of them in five times the time. Two to a byte, as
ONNX has integers of 4 bits, they come nearer: the trained weights of two convolutional networks took 1.002 and 1.017
times the entropy of each tensor, and 1.003 times with half of them zero. A coder of our own would not pay."""

_MEMORY: Final = 64 << 20
"""Bytes that unpacking may take; a stream of our settings needs two megabytes."""

_LARGEST_MANIFEST: Final = 64 << 20
_BLOCK: Final = tarfile.BLOCKSIZE
_CHUNK: Final = 1 << 16
_DAMAGED: Final = "Copy the file again, or pack the bundle again with `edgewise bundle pack`."


class Packed(Record, frozen=True, kw_only=True):
    """What packing or unpacking moved.

    Attributes:
        bundle: Folder of the bundle.
        file: The packed file.
        files: Files of the bundle.
        bundle_bytes: Their bytes.
        file_bytes: Bytes of the packed file.
        left_out: What of the bundle is not there: rungs by name, and `test vectors`.
    """

    bundle: str
    file: str
    files: int
    bundle_bytes: int
    file_bytes: int
    left_out: tuple[str, ...] = ()


def pack(bundle: Bundle, file: Path, *, rungs: Sequence[str] | None = None, vectors: bool = True) -> Packed:
    """Write a bundle into one file. What lies in its folder but is not part of it (report, records) stays behind.

    Args:
        bundle: The bundle.
        file: Where to write; it must not exist.
        rungs: Names of the rungs that are packed; None for all of them.
        vectors: Whether the test vectors are packed. Without them, nobody can check on the device that the model still
            answers as it did; hashes are checked in any case.

    Returns:
        What was packed.

    Raises:
        RecipeError: If there is no rung of such a name, or none is named.
        BundleError: If a file of the bundle is missing, was changed, or is a symbolic link.
        OutputError: If `file` exists or cannot be written; nothing is left behind.
    """
    if file.exists():
        raise OutputError(f"`{file}` has to be a new file, but it exists.", hint="Choose another name with `--out`.")
    manifest, contents = part(bundle, rungs=rungs, vectors=vectors)
    if manifest != bundle.manifest:
        contents[MANIFEST_FILE] = seal(manifest)
    hashes = _hashes(manifest)
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    size = 0
    try:
        with temporary.open("xb") as target:
            writer = _Writer(target)
            for name in (MANIFEST_FILE, *sorted(hashes)):
                made = contents.get(name)
                size += (
                    _add(writer, bundle.folder, name, hashes.get(name)) if made is None else _put(writer, name, made)
                )
            writer.write(b"\0" * (2 * _BLOCK))
            writer.finish()
        packed = temporary.stat().st_size
        temporary.replace(file)
    except OSError as error:
        raise OutputError(
            f"`{file}` has to be writable and to have room for the packed bundle, but: {error.strerror or error}.",
            hint="Free some space, or choose another place with `--out`.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return _packed(manifest, bundle.folder, file, bundle_bytes=size, file_bytes=packed)


def _packed(manifest: Manifest, folder: Path, file: Path, *, bundle_bytes: int, file_bytes: int) -> Packed:
    return Packed(
        bundle=str(folder),
        file=str(file),
        files=1 + len(_hashes(manifest)),
        bundle_bytes=bundle_bytes,
        file_bytes=file_bytes,
        left_out=manifest.left_out if manifest.vectors else (*manifest.left_out, "test vectors"),
    )


def _hashes(manifest: Manifest) -> dict[str, str]:
    """Return the SHA-256 of every file but the manifest, by name relative to the bundle."""
    hashes = dict(manifest.files)
    for rung in manifest.ladder:
        hashes.update({f"{rung.folder}/{name}": digest for name, digest in rung.artifact.files.items()})
    return hashes


def _put(writer: _Writer, name: str, data: bytes) -> int:
    """Write a file that was made for the packed bundle, and return its bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    writer.write(info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % _BLOCK))
    return len(data)


def _add(writer: _Writer, folder: Path, name: str, expected: str | None) -> int:
    """Write one file and its header, and return its bytes."""
    refuse_links(folder, name)
    path = folder / name
    try:
        source = path.open("rb")
    except OSError as error:
        raise BundleError(
            f"`{path}` has to be readable, but: {error.strerror}.",
            hint="The bundle is incomplete; copy it again or make it again with `edgewise optimize`.",
        ) from error
    with source:
        info = tarfile.TarInfo(name)
        info.size = os.fstat(source.fileno()).st_size
        try:
            writer.write(info.tobuf(tarfile.USTAR_FORMAT))
        except ValueError as error:
            raise BundleError(f"`{path}` has to fit into a tar archive, but: {error}.") from error
        digest, left = hashlib.sha256(), info.size
        while left and (data := source.read(min(_CHUNK, left))):
            digest.update(data)
            writer.write(data)
            left -= len(data)
        writer.write(b"\0" * (-info.size % _BLOCK))
    if left or (expected is not None and digest.hexdigest() != expected):
        raise BundleError(
            f"`{path}` has to be as it was written, but it was changed or truncated since.",
            hint="Copy the bundle again or make it again with `edgewise optimize`.",
        )
    return info.size


class _Writer:
    """Cuts what is written into parts and compresses each as an xz stream of its own."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._waiting = bytearray()

    def write(self, data: bytes) -> None:
        self._waiting += data
        while len(self._waiting) >= _PART:
            self._compress(bytes(self._waiting[:_PART]))
            del self._waiting[:_PART]

    def finish(self) -> None:
        if self._waiting:
            self._compress(bytes(self._waiting))
            self._waiting.clear()

    def _compress(self, part: bytes) -> None:
        tried = (lzma.compress(part, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[one]) for one in _SETTINGS)
        self._target.write(min(tried, key=len))


def unpack(file: Path, folder: Path) -> Packed:
    """Make a bundle of a packed file, and check every hash.

    Args:
        file: What `pack` wrote.
        folder: Where the bundle will lie; it must not exist, or be empty.

    Returns:
        What was unpacked.

    Raises:
        BundleError: If the file is damaged, was changed, or holds anything but a bundle.
        OutputError: If `folder` holds something or cannot be written; nothing is left behind.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise OutputError(f"`{folder}` has to be new or empty, but it is not.", hint="Choose another one with `--out`.")
    try:
        source = file.open("rb")
    except OSError as error:
        raise BundleError(f"`{file}` has to be readable, but: {error.strerror}.") from error
    place = folder.resolve()
    staging = place.with_name(f".{place.name}-{os.getpid()}")
    with source:
        try:
            staging.mkdir(parents=True)
            manifest, size = _extract(file, source, staging)
            if place.exists():
                place.rmdir()
            staging.replace(place)
        except OSError as error:
            raise OutputError(
                f"`{folder}` has to be writable and to have room for the bundle, but: {error.strerror or error}.",
                hint="Free some space, or choose another place with `--out`.",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        packed = os.fstat(source.fileno()).st_size
    return _packed(manifest, folder, file, bundle_bytes=size, file_bytes=packed)


def _extract(file: Path, source: IO[bytes], staging: Path) -> tuple[Manifest, int]:
    """Write the files into `staging`; return their manifest, and their bytes."""
    reader = _Reader(file, source)
    members = _members(file, reader)
    name, size = next(members, ("", 0))
    if name != MANIFEST_FILE or size > _LARGEST_MANIFEST:
        raise _refused(file, f"has to begin with `{MANIFEST_FILE}`, of at most {_LARGEST_MANIFEST:,} bytes")
    sealed = reader.read(size)
    reader.read(-size % _BLOCK)
    manifest = unseal(sealed, Path(f"{file}/{MANIFEST_FILE}"))
    hashes = _hashes(manifest)
    (staging / MANIFEST_FILE).write_bytes(sealed)
    total, missing = size, dict(hashes)
    for name, size in members:
        expected = missing.pop(name, None)
        if expected is None:
            raise _refused(file, f"has to hold what its manifest names, each file once. Received `{name}`")
        if size > shutil.disk_usage(staging).free:
            raise OutputError(
                f"`{staging.parent}` has to have room for `{name}`, which takes {size:,} bytes.",
                hint="Free some space, or choose another place with `--out`.",
            )
        if _write(reader, staging / name, size) != expected:
            raise _refused(file, f"has to hold files with the recorded hashes. `{name}` was changed")
        total += size
    if missing:
        raise _refused(file, f"has to hold what its manifest names. `{min(missing)}` is missing")
    reader.finish()
    return manifest, total


def _members(file: Path, reader: _Reader) -> Iterator[tuple[str, int]]:
    """Yield name and size of each member; whoever takes them reads its contents and padding before the next one.

    Headers are read one by one, since `tarfile` itself follows extended ones, whose sizes nobody has checked.
    """
    while (header := reader.read(_BLOCK)).strip(b"\0"):
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.TarError, UnicodeError) as error:
            raise _refused(file, f"has to be a packed bundle, but: {error}") from error
        if info.type != tarfile.REGTYPE or info.size < 0:
            raise _refused(file, f"has to hold regular files. `{info.name}` is none")
        yield info.name, info.size


def _write(reader: _Reader, path: Path, size: int) -> str:
    """Write the next `size` bytes into a new file, and return their SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), size
    with path.open("xb") as target:
        while left:
            data = reader.read(min(_CHUNK, left))
            digest.update(data)
            target.write(data)
            left -= len(data)
    reader.read(-size % _BLOCK)
    return digest.hexdigest()


def _refused(file: Path, what: str) -> BundleError:
    return BundleError(f"`{file}` {what}.", hint=_DAMAGED)


class _Reader:
    """Reads concatenated xz streams in bounded memory. `lzma.LZMAFile` would take what a stream asks for."""

    def __init__(self, file: Path, source: IO[bytes]) -> None:
        self._file, self._source = file, source
        self._decompressor: Any = None
        self._ready = bytearray()

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            BundleError: If there are fewer, or the streams are damaged.
        """
        while len(self._ready) < size:
            data = self._more()
            if not data:
                raise _refused(self._file, "has to be a whole packed bundle, but it is cut off")
            self._ready += data
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def finish(self) -> None:
        """Check that nothing but the second empty block is left.

        Raises:
            BundleError: If there is more, or less.
        """
        if self.read(_BLOCK).strip(b"\0") or self._ready or self._more():
            raise _refused(self._file, "has to end behind its last file, but something follows")

    def _more(self) -> bytes:
        """Return some more bytes, and none at the end."""
        try:
            while True:
                rest = b"" if self._decompressor is None else self._decompressor.unused_data
                if self._decompressor is None or self._decompressor.eof:
                    rest = rest or self._source.read(_CHUNK)
                    if not rest:
                        return b""
                    self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
                elif self._decompressor.needs_input:
                    rest = self._source.read(_CHUNK)
                    if not rest:
                        raise _refused(self._file, "has to be a whole packed bundle, but it is cut off")
                data: bytes = self._decompressor.decompress(rest, _CHUNK)
                if data:
                    return data
        except lzma.LZMAError as error:
            raise _refused(self._file, f"has to be a packed bundle, but: {error}") from error
