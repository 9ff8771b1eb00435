"""What a model holds and what can be done with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.backends import registry
from edgewise.errors import BackendMissingError, ModelError
from edgewise.formats.onnx import save
from edgewise.pipeline import inspect as module
from edgewise.pipeline.inspect import inspect, measure_peaks
from edgewise.testing.graphs import GraphBuilder, conv_net


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MATRIX", 64)
    monkeypatch.setattr(module, "COPIED", 1 << 16)


def test_a_convolutional_net(tmp_path: Path) -> None:
    save(conv_net(), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx", {})
    assert found.facts.operators["Conv"] == 3
    assert sum(layer.macs for layer in found.layers) == found.facts.macs > 0
    assert found.fused_nodes is not None
    assert found.fused_nodes < len(found.layers)
    assert {change.stage for change in found.changes} >= {"fold_batch_norm"}
    assert found.least_us > 0
    views = {view.backend: view for view in found.backends}
    assert set(views) == {"ort", "openvino"}
    assert views["ort"].state == "runs"
    assert views["ort"].quantized >= 4
    assert views["ort"].lacks == ()


def test_what_can_be_pruned_is_listed(tmp_path: Path) -> None:
    save(conv_net(), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx", {}).prunable
    assert found is not None
    assert all(group.size > 1 and group.makers and group.readers for group in found.groups)
    assert found.groups
    assert {region.kind for region in found.regions} <= {"branch", "stretch"}
    assert found.pinned[-1].reason.startswith("the model's output")


def test_an_operator_that_a_backend_lacks_is_named(tmp_path: Path) -> None:
    b = GraphBuilder("distances")
    value = b.node("CDist", b.input("x", (1, 4)), b.weight(3, 4), domain="com.microsoft", metric="euclidean")
    b.output(value, "y", (1, 3))
    save(b.build(), tmp_path / "m.onnx")
    views = {view.backend: view for view in inspect(tmp_path / "m.onnx", {}).backends}
    assert views["ort"].state == "runs"
    assert views["openvino"].state == "lacks operators"
    assert "CDist" in views["openvino"].lacks[0].operator


def test_a_model_that_cannot_be_fused_is_still_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_arguments: object) -> None:
        raise ModelError("not legal.")

    save(conv_net(), tmp_path / "m.onnx")
    monkeypatch.setattr(module, "fuse", refuses)
    found = inspect(tmp_path / "m.onnx", {})
    assert found.fused_nodes is None
    assert found.declines[-1].reason == "not legal."
    assert {view.state for view in found.backends} == {"runs"}


def test_a_backend_that_is_missing_says_how_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object) -> None:
        raise BackendMissingError("no", hint="pip install it")

    save(conv_net(), tmp_path / "m.onnx")
    monkeypatch.setattr(type(registry.get("openvino")), "why_not", missing)
    views = {view.backend: view for view in inspect(tmp_path / "m.onnx", {}).backends}
    assert views["openvino"].state == "missing"
    assert views["openvino"].lacks[0].reason == "pip install it"


def test_peaks_are_measured() -> None:
    peaks = measure_peaks()
    assert peaks.macs_per_us > 0
    assert peaks.bytes_per_us > 0
