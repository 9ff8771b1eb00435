"""Parts of a bundle: what stays, what the manifest says of the rest, and what can still be verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.bundle.manifest import Manifest
from edgewise.bundle.pack import pack, unpack
from edgewise.bundle.part import part
from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import verify
from edgewise.errors import BundleError, OutputError, RecipeError

Written = tuple[Path, Manifest]

UNTOUCHED, INT8 = "fake untouched", "fake int8-mse"


def sent(written: Written, tmp_path: Path, **choice: object) -> Bundle:
    """Return what arrives of a bundle of which a part is packed."""
    packed = pack(Bundle.load(written[0]), tmp_path / "file", **choice)  # type: ignore[arg-type]  # as given
    found = unpack(tmp_path / "file", tmp_path / "there")
    assert (found.files, found.bundle_bytes, found.left_out) == (packed.files, packed.bundle_bytes, packed.left_out)
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert (len(files), sum(path.stat().st_size for path in files)) == (found.files, found.bundle_bytes)
    return Bundle.load(tmp_path / "there")


def test_the_whole_is_a_part_too(written: Written) -> None:
    manifest, contents = part(Bundle.load(written[0]), rungs=None, vectors=True)
    assert (manifest, contents) == (written[1], {})
    assert part(Bundle.load(written[0]), rungs=[INT8, UNTOUCHED], vectors=True) == (written[1], {})


def test_without_vectors_every_rung_opens_and_that_is_said(written: Written, tmp_path: Path) -> None:
    there = sent(written, tmp_path, vectors=False)
    assert there.rungs == (UNTOUCHED, INT8)
    assert there.manifest.files == {}
    found = verify(there, machine=written[1].machine)
    assert found.passed
    assert not found.compared
    assert [check.status for check in found.rungs] == ["opens", "opens"]
    with pytest.raises(BundleError, match="packing left them out"):
        there.vectors()
    # The hashes are checked all the same.
    (there.folder / there.manifest.ladder[1].folder / "factor").write_bytes(b"3")
    with pytest.raises(BundleError, match="changed"):
        verify(there, machine=written[1].machine)


def test_one_rung_keeps_its_own_vectors(written: Written, tmp_path: Path) -> None:
    there = sent(written, tmp_path, rungs=[INT8])
    assert (there.rungs, there.manifest.default, there.manifest.left_out) == ((INT8,), 0, (UNTOUCHED,))
    vectors, whole = there.vectors(), Bundle.load(written[0]).vectors()
    assert len(vectors.expected) == 1
    for one, other in zip(vectors.expected[0], whole.expected[1], strict=True):
        assert np.array_equal(one["y"], other["y"])
    found = verify(there, machine=written[1].machine)
    assert found.passed
    assert found.compared
    assert found.left_out == (UNTOUCHED,)
    assert [check.status for check in found.rungs] == ["identical"]


def test_the_default_is_the_first_that_stays(written: Written) -> None:
    assert written[1].default == 1
    manifest, _ = part(Bundle.load(written[0]), rungs=[UNTOUCHED], vectors=False)
    assert manifest.ladder[manifest.default].name == UNTOUCHED


def test_a_part_of_a_part_says_all_that_is_missing(written: Written, tmp_path: Path) -> None:
    there = sent(written, tmp_path, rungs=[INT8])
    packed = pack(there, tmp_path / "again", vectors=False)
    assert packed.left_out == (UNTOUCHED, "test vectors")
    assert pack(Bundle.load(written[0]), tmp_path / "all").left_out == ()


def test_a_missing_vectors_file_is_no_part(written: Written, tmp_path: Path) -> None:
    """What the manifest names has to be there: leaving out is said by the manifest alone."""
    (written[0] / written[1].vectors).unlink()
    with pytest.raises(BundleError, match="has to be readable"):
        pack(Bundle.load(written[0]), tmp_path / "file")
    with pytest.raises(BundleError, match="has to be readable"):
        pack(Bundle.load(written[0]), tmp_path / "file", rungs=[INT8])
    assert pack(Bundle.load(written[0]), tmp_path / "file", vectors=False).files == 3


def test_wrong_names_are_refused(written: Written, tmp_path: Path) -> None:
    bundle = Bundle.load(written[0])
    with pytest.raises(RecipeError, match="Received `int4`"):
        pack(bundle, tmp_path / "file", rungs=["int4"])
    with pytest.raises(RecipeError, match="At least one rung"):
        pack(bundle, tmp_path / "file", rungs=[])
    assert not (tmp_path / "file").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="has to be a new file"):
        pack(bundle, tmp_path / "file", vectors=False)
