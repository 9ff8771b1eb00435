"""Opening: every kind of damage is refused, and a device imports next to nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.backends import registry
from edgewise.bundle.manifest import MANIFEST_FILE, SCHEMA, Manifest
from edgewise.bundle.read import Bundle
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.errors import BundleError, RecipeError
from edgewise.records.candidate import Candidate, RunOptions
from edgewise.records.tensors import Array
from edgewise.testing import graphs

Samples = list[dict[str, Array]]
Written = tuple[Path, Manifest]

MODULES_CEILING = 310
"""Modules after opening a bundle in ONNX Runtime: 275 were counted with Python 3.11, numpy 2.4 and onnxruntime
1.32, and a tenth more. It may grow with numpy and onnxruntime; it must not grow with edgewise."""


def reseal(folder: Path, change: Callable[[dict[str, Any]], None], *, schema: int = SCHEMA) -> None:
    """Change the manifest and make the seal fit, as somebody would who knows how."""
    path = folder / MANIFEST_FILE
    inner = json.loads(path.read_bytes())["manifest"]
    change(inner)
    text = json.dumps(inner)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f'{{"schema": {schema}, "sha256": "{digest}", "manifest": {text}}}')


def test_sessions_are_opened_by_default_position_and_name(written: Written, feeds: Samples) -> None:
    bundle = Bundle.load(str(written[0]))
    two, more = feeds[0]["x"] * np.float32(2), feeds[0]["x"] * np.float32(2.01)
    for which, expected in ((None, more), (0, two), (1, more), ("fake untouched", two), ("fake int8-mse", more)):
        np.testing.assert_array_equal(bundle.session(which).run(feeds[0])["y"], expected)


@pytest.mark.parametrize("which", ["nothing", 2, -1])
def test_a_rung_that_does_not_exist_is_refused(written: Written, which: str | int) -> None:
    with pytest.raises(RecipeError, match="`fake untouched`, `fake int8-mse`"):
        Bundle.load(written[0]).session(which)


def test_no_bundle_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="has to be the folder of a bundle") as caught:
            Bundle.load(path)
        assert "edgewise optimize" in str(caught.value.hint)


def test_every_changed_byte_of_a_model_is_refused(written: Written) -> None:
    folder, manifest = written
    rung = manifest.ladder[1]
    path = folder / rung.folder / "factor"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(BundleError, match="changed or truncated"):
            Bundle.load(folder).session(1)
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="changed or truncated"):
        Bundle.load(folder).session(1)
    path.unlink()
    with pytest.raises(BundleError, match="has to be readable"):
        Bundle.load(folder).session(1)
    Bundle.load(folder).session(0)  # what is whole still runs


def test_every_truncation_of_the_manifest_is_refused(written: Written) -> None:
    path = written[0] / MANIFEST_FILE
    whole = path.read_bytes()
    for length in range(0, len(whole.rstrip()), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            Bundle.load(written[0])


def test_every_edit_of_the_manifest_is_refused(written: Written) -> None:
    path = written[0] / MANIFEST_FILE
    whole = path.read_bytes()
    start = whole.index(b'"manifest": ') + len(b'"manifest": ')
    for position in range(start, len(whole) - 3, 11):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(BundleError):
            Bundle.load(written[0])
    path.write_bytes(whole.replace(b'"default": 1', b'"default": 0'))
    with pytest.raises(BundleError, match="changed since"):
        Bundle.load(written[0])


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b'{"schema": "one"}', b"\xff\xfe", b"PK\x03\x04"])
def test_what_is_no_manifest_is_refused(written: Written, text: bytes) -> None:
    (written[0] / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(BundleError, match="has to be a bundle's manifest"):
        Bundle.load(written[0])


def test_a_newer_schema_says_to_upgrade_whatever_else_it_holds(written: Written) -> None:
    (written[0] / MANIFEST_FILE).write_text(f'{{"schema": {SCHEMA + 1}, "all": "different"}}')
    with pytest.raises(BundleError, match=f"Received schema {SCHEMA + 1}") as caught:
        Bundle.load(written[0])
    assert "upgrade" in str(caught.value.hint)


def escape(inner: dict[str, Any], name: str) -> None:
    files = inner["ladder"][1]["artifact"]["files"]
    files[name] = files.pop("factor")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda inner: inner.update(surprise=1), "unknown field `surprise`"),
        (lambda inner: inner.pop("model"), "missing required field `model`"),
        (lambda inner: inner.update(default=2), "default among 2 rungs"),
        (lambda inner: inner.update(default=-1), "default among 2 rungs"),
        (lambda inner: inner["ladder"][1].update(name="fake untouched"), "name of its own"),
        (lambda inner: inner.update(vectors="other.npz"), "hash of `other.npz`"),
        (lambda inner: inner["ladder"][0].update(folder="../elsewhere"), "inside the bundle"),
        (lambda inner: inner["ladder"][0].update(folder="/etc"), "inside the bundle"),
        (lambda inner: inner["ladder"][0].update(folder=""), "inside the bundle"),
        (lambda inner: escape(inner, "../../../secret"), "inside the bundle"),
        (lambda inner: escape(inner, "a/../../b"), "inside the bundle"),
        (lambda inner: escape(inner, "..\\b"), "inside the bundle"),
        (lambda inner: escape(inner, "C:b"), "inside the bundle"),
        (lambda inner: escape(inner, "a\0b"), "inside the bundle"),
        (lambda inner: inner.update(preprocessing={"scale": 0}), "scale"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(
    written: Written, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    reseal(written[0], change)
    with pytest.raises(BundleError, match=words):
        Bundle.load(written[0])


def test_the_same_fields_in_another_order_are_accepted(written: Written) -> None:
    reseal(written[0], lambda inner: inner.update(model=inner.pop("model")))
    assert Bundle.load(written[0]).manifest == written[1]


def test_a_backend_that_this_edgewise_lacks_is_said(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(written[0])
    monkeypatch.delitem(registry.BACKENDS, "fake")
    with pytest.raises(BundleError, match="Received `fake`"):
        bundle.session()


@pytest.mark.parametrize("what", ["manifest", "folder", "file", "vectors"])
def test_symbolic_links_are_refused(written: Written, tmp_path: Path, what: str) -> None:
    folder, manifest = written
    rung = manifest.ladder[1].folder
    names = {"manifest": MANIFEST_FILE, "folder": rung, "file": f"{rung}/factor", "vectors": manifest.vectors}
    place = folder / names[what]
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    try:
        place.symlink_to(elsewhere)
    except OSError:
        pytest.skip("this system does not let this user make symbolic links")

    def use() -> None:
        bundle = Bundle.load(folder)
        bundle.session(1)
        bundle.vectors()

    with pytest.raises(BundleError, match="symbolic link"):
        use()


def test_vectors_that_are_missing_or_changed_are_refused(written: Written) -> None:
    folder, manifest = written
    path = folder / manifest.vectors
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="changed or truncated"):
        Bundle.load(folder).vectors()
    path.write_bytes(b"nothing")
    digest = hashlib.sha256(b"nothing").hexdigest()
    reseal(folder, lambda inner: inner["files"].update({manifest.vectors: digest}))
    with pytest.raises(BundleError, match="has to hold test vectors"):
        Bundle.load(folder).vectors()
    path.unlink()
    with pytest.raises(BundleError, match="has to be readable"):
        Bundle.load(folder).vectors()


def test_a_device_imports_only_what_it_runs(tmp_path: Path, contract: Contract) -> None:
    model = graphs.conv_net()
    options = RunOptions()
    artifact = registry.get("ort").compile(model, options)
    candidate = Candidate(steps=(), backend="ort", options=options)
    rung = NewRung(candidate=candidate, artifact=artifact, certificate=None, certified=True, timing=None)
    write(tmp_path, [rung], default=0, contract=contract, vectors=[graphs.random_feeds(model)])
    program = (
        "import sys, time; begin = time.perf_counter()\n"
        "from edgewise.bundle.read import Bundle\n"
        "session = Bundle.load(sys.argv[1]).session()\n"
        "import json; print(json.dumps([time.perf_counter() - begin, sorted(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=True)
    seconds, modules = msgspec.json.decode(done.stdout, type=tuple[float, list[str]])
    print(f"{len(modules)} modules, {seconds * 1e3:.0f} ms")
    packages = {name.partition(".")[0] for name in modules}
    heavy = "onnx onnx_ir onnxscript torch scipy pydantic rich typer jinja2 psutil PIL google"
    assert not packages & set(heavy.split())
    folders = {name.split(".")[1] for name in modules if name.startswith("edgewise.")}
    assert folders <= {"backends", "bundle", "errors", "records", "samples"}
    assert len(modules) <= MODULES_CEILING
