"""A bundle's model for other tools."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.pipeline.conftest import Task

from edgewise.backends import registry
from edgewise.bundle.read import Bundle
from edgewise.errors import BundleError, OutputError, RecipeError
from edgewise.formats.registry import load
from edgewise.pipeline.export import export, graph_file


def test_onnx_of_an_openvino_rung_is_the_graph_behind_it(finished: Task, tmp_path: Path) -> None:
    (path,) = export(finished.out, to="onnx", out=tmp_path / "new" / "m.onnx")
    assert path == tmp_path / "new" / "m.onnx"
    model = load(path)
    assert "DequantizeLinear" in {node.op_type for node in model.graph}
    assert {node.domain for node in model.graph} == {""}


def test_onnx_of_an_onnx_runtime_rung_is_its_artifact(finished: Task, tmp_path: Path) -> None:
    (path,) = export(finished.out, to="onnx", out=tmp_path / "m.onnx", rung="ort untouched")
    assert [path.read_bytes()] == list(Bundle.load(finished.out).artifact("ort untouched").files.values())


@pytest.mark.parametrize("rung", [None, "ort untouched"])
def test_openvino(finished: Task, tmp_path: Path, rung: str | None) -> None:
    written = export(finished.out, to="openvino", out=tmp_path / "m.xml", rung=rung)
    assert sorted(path.name for path in written) == ["m.bin", "m.xml"]
    assert registry.get("openvino").version()


def test_what_exists_is_not_replaced(finished: Task, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export(finished.out, to="onnx", out=tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"


def test_unknown_formats_and_rungs_are_refused(finished: Task, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="`--to` has to be one of `onnx`, `openvino`"):
        export(finished.out, to="tflite", out=tmp_path / "m")
    with pytest.raises(RecipeError, match="A rung has to be one of"):
        export(finished.out, to="onnx", out=tmp_path / "m", rung="nothing")


def test_a_place_that_cannot_be_written_is_refused(finished: Task, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="has to be writable"):
        export(finished.out, to="onnx", out=tmp_path / "file" / "m.onnx")


@pytest.mark.parametrize("what", ["run.sqlite", "sources", "changed"])
def test_a_graph_that_is_gone_or_changed_is_refused(finished: Task, tmp_path: Path, what: str) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.out, out)
    if what == "run.sqlite":
        (out / what).unlink()
    elif what == "sources":
        shutil.rmtree(out / what)
    else:
        path = next((out / "sources").iterdir())
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BundleError, match="was changed" if what == "changed" else "is not in"):
        graph_file(Bundle.load(out))
