"""Bundles in one file: the way there and back, and everything that a file from elsewhere may try."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgewise.bundle import pack as packing
from edgewise.bundle.manifest import MANIFEST_FILE, Manifest, seal
from edgewise.bundle.pack import Packed, pack, unpack
from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import verify
from edgewise.errors import BundleError, OutputError
from edgewise.records.codec import decode, encode

Written = tuple[Path, Manifest]
Member = tuple[tarfile.TarInfo, bytes]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def member(name: str, data: bytes = b"", **changes: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def members(file: Path) -> list[Member]:
    """Return what a packed file holds, read by Python's own tarfile."""
    with tarfile.open(file, "r:xz") as archive:
        return [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]  # files alone


def archive(file: Path, entries: list[Member], *, tail: bytes = b"\0" * 1024) -> Path:
    """Write an archive of our form with any members, sizes as their headers say."""
    raw = io.BytesIO()
    for info, data in entries:
        raw.write(info.tobuf(tarfile.USTAR_FORMAT))
        raw.write(data + b"\0" * (-len(data) % 512))
    file.write_bytes(lzma.compress(raw.getvalue() + tail))
    return file


@pytest.fixture
def packed(written: Written, tmp_path: Path) -> Path:
    pack(Bundle.load(written[0]), tmp_path / "bundle.tar.xz")
    return tmp_path / "bundle.tar.xz"


def test_there_and_back_is_exact(written: Written, packed: Path, tmp_path: Path) -> None:
    (written[0] / "report.html").write_text("no part of the bundle")
    found = unpack(packed, tmp_path / "there")
    before = contents(written[0])
    del before["report.html"]
    assert contents(tmp_path / "there") == before
    assert found == Packed(
        bundle=str(tmp_path / "there"),
        file=str(packed),
        files=len(before),
        bundle_bytes=sum(map(len, before.values())),
        file_bytes=packed.stat().st_size,
    )
    assert decode(encode(found), Packed) == found
    bundle = Bundle.load(tmp_path / "there")
    assert verify(bundle, machine=written[1].machine).passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.tar.xz", "out", "there"]


def test_the_same_bundle_gives_the_same_bytes_wherever_it_lies(written: Written, packed: Path, tmp_path: Path) -> None:
    other = shutil.copytree(written[0], tmp_path / "other")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    (other / MANIFEST_FILE).chmod(0o600)
    pack(Bundle.load(other), tmp_path / "again.tar.xz")
    assert (tmp_path / "again.tar.xz").read_bytes() == packed.read_bytes()
    assert all((info.mtime, info.uid, info.uname) == (0, 0, "") for info, _ in members(packed))


def test_weights_of_four_bits_shrink_to_about_their_entropy() -> None:
    weights = np.clip(np.rint(np.random.default_rng(0).standard_normal(600_000) * 2), -7, 7).astype(np.int8)
    target = io.BytesIO()
    writer = packing._Writer(target)
    writer.write(weights.tobytes())
    writer.finish()
    shares = np.unique(weights, return_counts=True)[1] / weights.size
    entropy = float(-(shares * np.log2(shares)).sum()) / 8
    assert entropy < len(target.getvalue()) / weights.size < 1.08 * entropy


@pytest.mark.parametrize("size", [0, 1, packing._PART - 1, packing._PART, packing._PART + 1, 3 * packing._PART + 7])
def test_parts_of_any_size_come_back(size: int, tmp_path: Path) -> None:
    data = np.random.default_rng(size).integers(0, 4, size, np.uint8).tobytes() + b"\0" * 512
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("r+b") as target:
        writer = packing._Writer(target)
        writer.write(data[: size // 2])
        writer.write(data[size // 2 :])
        writer.finish()
        target.seek(0)
        reader = packing._Reader(tmp_path / "file", target)
        assert reader.read(size) == data[:size]
        reader.finish()


def refused(file: Path, tmp_path: Path, fragment: str) -> None:
    """Check that a file is refused in plain words, and that nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BundleError, match=fragment) as caught:
        unpack(file, tmp_path / "there")
    assert caught.value.message.startswith(f"`{file}")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off(packed: Path, tmp_path: Path, share: float) -> None:
    data = packed.read_bytes()
    packed.write_bytes(data[: int(share * len(data))])
    refused(packed, tmp_path, "cut off")


def test_every_changed_byte_is_noticed(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        packed.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        with pytest.raises(BundleError):
            unpack(packed, tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("add", "fragment"),
    [
        (member("../escaped", b"x"), "Received `../escaped`"),
        (member("/tmp/escaped", b"x"), "Received `/tmp/escaped`"),  # noqa: S108 - a name that is refused
        (member("models/more", b"x"), "Received `models/more`"),
        (member("models/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "`models/link` is none"),
        (member("models/link", type=tarfile.LNKTYPE, linkname="manifest.json"), "`models/link` is none"),
        (member("models", type=tarfile.DIRTYPE), "`models` is none"),
        (member("models/device", type=tarfile.CHRTYPE), "`models/device` is none"),
        (member("models/long", type=tarfile.GNUTYPE_LONGNAME), "`models/long` is none"),
        (member("pax", type=tarfile.XHDTYPE, size=1 << 32), "`pax` is none"),
    ],
)
def test_members_that_no_bundle_has(packed: Path, tmp_path: Path, add: Member, fragment: str) -> None:
    entries = members(packed)
    refused(archive(packed, [entries[0], add, *entries[1:]]), tmp_path, fragment)
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda entries: entries[1:], "has to begin with `manifest.json`"),
        (lambda _: [], "has to begin with `manifest.json`"),
        (lambda entries: entries[:-1], "is missing"),
        (lambda entries: [*entries, entries[-1]], "each file once"),
        (lambda entries: [*entries[:-1], member(entries[-1][0].name, b"other")], "was changed"),
        (lambda entries: [member(MANIFEST_FILE, b"{}"), *entries[1:]], "manifest"),
        (lambda entries: [member(MANIFEST_FILE, size=1 << 30), *entries[1:]], "has to begin with `manifest.json`, of"),
    ],
)
def test_archives_that_are_no_bundle(
    packed: Path, tmp_path: Path, change: Callable[[list[Member]], list[Member]], fragment: str
) -> None:
    refused(archive(packed, change(members(packed))), tmp_path, fragment)


def test_what_follows_the_bundle_is_refused(packed: Path, tmp_path: Path) -> None:
    entries = members(packed)
    refused(archive(packed, entries, tail=b"\0" * 1536), tmp_path, "something follows")
    refused(archive(packed, entries, tail=b"\0" * 512), tmp_path, "cut off")
    archive(packed, entries)
    packed.write_bytes(packed.read_bytes() + lzma.compress(b"more"))
    refused(packed, tmp_path, "something follows")
    packed.write_bytes(b"no archive at all" * 100)
    refused(packed, tmp_path, "has to be a packed bundle")


def test_a_manifest_that_leads_out_of_the_bundle_is_refused(written: Written, packed: Path, tmp_path: Path) -> None:
    bad = decode(encode(written[1]).replace(written[1].vectors.encode(), b"../vectors.npz"), Manifest)
    entries = members(packed)
    refused(archive(packed, [member(MANIFEST_FILE, seal(bad)), *entries[1:]]), tmp_path, "inside the bundle")


def test_members_larger_than_the_disk_are_refused_before_they_are_written(packed: Path, tmp_path: Path) -> None:
    entries = members(packed)
    huge = member(entries[1][0].name, size=1 << 32)  # less than a header can say, more than a test's disk need have
    archive(packed, [entries[0], huge])
    usage = shutil.disk_usage(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
        with pytest.raises(OutputError, match="4,294,967,296 bytes"):
            unpack(packed, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_streams_that_ask_for_much_memory_are_refused(packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]))
    refused(packed, tmp_path, "[Mm]emory")


def test_places_that_hold_something_stay_as_they_are(written: Written, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="has to be a new file"):
        pack(Bundle.load(written[0]), packed)
    (tmp_path / "there").mkdir()
    unpack(packed, tmp_path / "there")  # an empty one is as good as none
    with pytest.raises(OutputError, match="has to be new or empty"):
        unpack(packed, tmp_path / "there")
    with pytest.raises(OutputError, match="has to be writable"):
        pack(Bundle.load(written[0]), tmp_path / "no folder" / "file")
    with pytest.raises(BundleError, match="has to be readable"):
        unpack(tmp_path / "absent", tmp_path / "other")


def test_a_damaged_bundle_is_not_packed(written: Written, tmp_path: Path) -> None:
    folder, manifest = written
    path = folder / manifest.ladder[1].folder / "factor"
    whole = path.read_bytes()
    path.write_bytes(b"3")
    with pytest.raises(BundleError, match="changed or truncated"):
        pack(Bundle.load(folder), tmp_path / "file")
    path.unlink()
    with pytest.raises(BundleError, match="has to be readable"):
        pack(Bundle.load(folder), tmp_path / "file")
    (tmp_path / "elsewhere").write_bytes(whole)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="symbolic link"):
        pack(Bundle.load(folder), tmp_path / "file")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["elsewhere", "out"]


def test_unpacking_imports_nothing_heavy(packed: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from edgewise.cli.app import run; assert run(sys.argv[1:]) == 0; "
        "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'openvino', 'scipy', 'psutil', 'rich', 'PIL'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    arguments = ["bundle", "unpack", str(packed), "--out", str(tmp_path / "there")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "there" / MANIFEST_FILE).exists()
