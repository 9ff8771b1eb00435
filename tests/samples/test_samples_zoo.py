"""Every data set of the zoo, prepared as its manifest says, fits every model that it is for."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgewise.records.tensors import Port
from edgewise.samples.bind import bind
from edgewise.samples.open import open_source
from edgewise.samples.preprocessing import from_table
from edgewise.samples.split import split

ZOO = Path(os.environ.get("EDGEWISE_ZOO", Path(__file__).parents[2].parent / "shared" / "zoo"))
pytestmark = pytest.mark.skipif(not ZOO.is_dir(), reason=f"the model zoo is not at {ZOO}")


def _models() -> list[dict[str, Any]]:
    if not ZOO.is_dir():
        return []
    entries: list[dict[str, Any]] = tomllib.loads((ZOO / "zoo.toml").read_text(encoding="utf-8"))["model"]
    return [entry for entry in entries if entry["format"] == "onnx" and "data" in entry]


@pytest.mark.parametrize("entry", _models(), ids=lambda entry: entry["name"])
def test_samples_fit_the_model(entry: dict[str, Any]) -> None:
    preprocessing = from_table(entry.get("preprocessing", {}), where=entry["name"], folder=ZOO)
    folder = ZOO / entry["data"]
    label = entry.get("target") or ("text" if entry["metric"] == "word_accuracy" else None)
    source = open_source(str(folder / "images" if (folder / "images").is_dir() else folder), preprocessing, label=label)
    graph = onnx.load(ZOO / entry["path"]).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_port(value) for value in graph.input if value.name not in weights)
    dataset = bind(source, inputs)
    assert len(dataset) == entry.get("n", len(dataset))
    dataset.feeds(len(dataset) - 1)
    parts = split(len(dataset), dataset.labels(), 0)
    assert len(parts.calibrate) + len(parts.select) + len(parts.certify) == len(dataset)


def _port(value: onnx.ValueInfoProto) -> Port:
    sizes = [size.dim_value or size.dim_param or "?" for size in value.type.tensor_type.shape.dim]
    return Port(name=value.name, dtype="float32", shape=tuple(sizes))
