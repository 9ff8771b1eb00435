"""Writing: what lies there afterwards, and what lies there when writing fails at any step."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgewise
from edgewise.backends.protocol import Artifact
from edgewise.bundle import write as write_module
from edgewise.bundle.manifest import Manifest
from edgewise.bundle.read import Bundle
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.errors import BundleError, ContractError, OutputError
from edgewise.records.tensors import Array, Port
from edgewise.samples.preprocessing import Preprocessing

MakeRung = Callable[..., NewRung]
Samples = list[dict[str, Array]]
Written = tuple[Path, Manifest]


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_bundle_says_everything_and_reads_back(written: Written, contract: Contract, feeds: Samples) -> None:
    folder, manifest = written
    bundle = Bundle.load(folder)
    assert bundle.manifest == manifest
    assert manifest.edgewise == edgewise.__version__
    assert (manifest.model, manifest.created, manifest.default) == ("model.onnx", contract.created, 1)
    assert manifest.machine == contract.machine
    assert [port.name for port in (*manifest.inputs, *manifest.outputs)] == ["x", "y"]
    assert bundle.rungs == ("fake untouched", "fake int8-mse")
    for rung in manifest.ladder:
        for name, digest in rung.artifact.files.items():
            assert hashlib.sha256((folder / rung.folder / name).read_bytes()).hexdigest() == digest
    assert hashlib.sha256((folder / manifest.vectors).read_bytes()).hexdigest() == manifest.files[manifest.vectors]
    vectors = bundle.vectors()
    for feed, mine, answer in zip(vectors.feeds, feeds, vectors.expected[0], strict=True):
        np.testing.assert_array_equal(feed["x"], mine["x"])
        np.testing.assert_array_equal(answer["y"], mine["x"] * np.float32(2))
    np.testing.assert_array_equal(vectors.expected[1][2]["y"], feeds[2]["x"] * np.float32(2.01))


@pytest.mark.usefixtures("fake_backend")
def test_pre_processing_state_and_classes_travel(
    tmp_path: Path, make_rung: MakeRung, contract: Contract, feeds: Samples
) -> None:
    more = replace(contract, preprocessing=Preprocessing(scale=0.5), state={"y": "x"}, classes=("a", "b"))
    write(tmp_path, [make_rung()], default=0, contract=more, vectors=feeds)
    manifest = Bundle.load(tmp_path).manifest
    assert manifest.preprocessing == Preprocessing(scale=0.5)
    assert manifest.state == {"y": "x"}
    assert manifest.classes == ("a", "b")


def test_other_files_stay_and_nothing_else_is_left(
    written: Written, make_rung: MakeRung, contract: Contract, feeds: Samples
) -> None:
    folder, before = written
    (folder / "run.sqlite").write_bytes(b"records")
    (folder / "models" / "mine.onnx").write_bytes(b"of the user")
    (folder / ".bundle-tmp-1").mkdir()
    (folder / ".bundle-tmp-1" / "half").write_bytes(b"of a run that was killed")
    after = write(folder, [make_rung("3")], default=0, contract=contract, vectors=feeds)
    assert listing(folder) == sorted(
        [
            "manifest.json", "models", "models/mine.onnx", "run.sqlite",
            after.vectors, after.ladder[0].folder, f"{after.ladder[0].folder}/factor",
        ]
    )  # fmt: skip
    assert after.vectors != before.vectors
    assert Bundle.load(folder).session().run(feeds[0])["y"][0, 0] == -3


@pytest.mark.usefixtures("fake_backend")
def test_rungs_with_the_same_files_share_them(
    tmp_path: Path, make_rung: MakeRung, contract: Contract, feeds: Samples
) -> None:
    ladder = [make_rung(), make_rung(threads=2)]
    manifest = write(tmp_path, ladder, default=0, contract=contract, vectors=feeds)
    assert manifest.ladder[0].folder == manifest.ladder[1].folder
    assert len(list(tmp_path.glob("models/*/factor"))) == 1
    assert Bundle.load(tmp_path).rung(1).artifact.options.threads == 2


def test_writing_again_repairs_a_damaged_file(
    written: Written, make_rung: MakeRung, contract: Contract, feeds: Samples
) -> None:
    folder, manifest = written
    ladder = [make_rung(), make_rung("2.01", int8=True)]
    (folder / manifest.ladder[0].folder / "factor").write_text("7")
    assert write(folder, ladder, default=1, contract=contract, vectors=feeds) == manifest
    Bundle.load(folder).session(0)


def test_the_same_bundle_is_the_same_bytes(
    written: Written, make_rung: MakeRung, contract: Contract, feeds: Samples
) -> None:
    folder, _ = written
    before = {name: (folder / name).read_bytes() for name in listing(folder) if (folder / name).is_file()}
    write(folder, [make_rung(), make_rung("2.01", int8=True)], default=1, contract=contract, vectors=feeds)
    assert before == {name: (folder / name).read_bytes() for name in listing(folder) if (folder / name).is_file()}


class FailingDisk:
    """Counts what touches the disk, and lets one of the calls find it full."""

    def __init__(self, patch: pytest.MonkeyPatch, fails_at: int | None) -> None:
        self.calls = 0
        self.fails_at = fails_at
        patch.setattr(os, "fsync", self.wrapped(os.fsync))
        patch.setattr(Path, "replace", self.wrapped(Path.replace))
        patch.setattr(Path, "mkdir", self.wrapped(Path.mkdir))

    def wrapped(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            self.calls += 1
            if self.calls - 1 == self.fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **keywords)

        return call


def test_a_full_disk_at_any_step_leaves_a_whole_bundle(
    written: Written, make_rung: MakeRung, contract: Contract, feeds: Samples
) -> None:
    folder, before = written

    def attempt(factor: int, fails_at: int | None) -> int:
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, fails_at)
            write(folder, [make_rung(str(factor))], default=0, contract=contract, vectors=feeds)
        return disk.calls

    steps = attempt(100, None)
    assert steps >= 10
    for fails_at in range(steps):
        before = Bundle.load(folder).manifest
        with pytest.raises(OutputError, match="No space left") as caught:
            attempt(fails_at, fails_at)
        assert caught.value.hint is not None
        now = Bundle.load(folder)
        # The last step only makes the manifest's name durable: there the new bundle is already in place.
        assert (now.manifest == before) is (fails_at < steps - 1)
        now.session()
        now.vectors()
        assert not list(folder.glob(".bundle-tmp-*"))


def test_a_killed_process_leaves_the_old_bundle(
    written: Written, make_rung: MakeRung, contract: Contract, feeds: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = written

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write_module, "_sync_folder", die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(Killed):
            write(folder, [make_rung("5")], default=0, contract=contract, vectors=feeds)
    assert list(folder.glob(".bundle-tmp-*"))
    assert Bundle.load(folder).manifest == before
    write(folder, [make_rung("5")], default=0, contract=contract, vectors=feeds)
    assert not list(folder.glob(".bundle-tmp-*"))


@pytest.mark.usefixtures("fake_backend")
def test_a_file_in_the_way_is_an_output_error(
    tmp_path: Path, make_rung: MakeRung, contract: Contract, feeds: Samples
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="has to be writable"):
        write(tmp_path / "out", [make_rung()], default=0, contract=contract, vectors=feeds)
    with pytest.raises(OutputError, match="has to be writable"):
        write(tmp_path / "out" / "deeper", [make_rung()], default=0, contract=contract, vectors=feeds)


@pytest.mark.usefixtures("fake_backend")
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, make_rung: MakeRung, contract: Contract, feeds: Samples
) -> None:
    rung = make_rung()
    other = Artifact.of(
        {}, backend="fake", options=rung.candidate.options, inputs=(Port(name="z", dtype="float32", shape=(1,)),),
        outputs=(),
    )  # fmt: skip
    for ladder, default, vectors, words in (
        ([], 0, feeds, "default among its rungs"),
        ([rung], 1, feeds, "default among its rungs"),
        ([rung], -1, feeds, "default among its rungs"),
        ([rung], 0, [], "at least one test vector"),
        ([rung, replace(rung, artifact=other)], 0, feeds, "same inputs and outputs"),
    ):
        with pytest.raises(ContractError, match=words):
            write(tmp_path / "out", ladder, default=default, contract=contract, vectors=vectors)
    with pytest.raises(BundleError, match="name of its own"):
        write(tmp_path / "out", [rung, rung], default=0, contract=contract, vectors=feeds)
    assert not (tmp_path / "out").exists()
