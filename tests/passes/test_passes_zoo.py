"""The default passes on real models, judged by ONNX Runtime with its own optimizations off."""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest

from edgewise.formats.opset import raise_opset
from edgewise.passes.agreement import difference, tolerance
from edgewise.passes.apply import optimize
from edgewise.passes.bind_defaults import BindDefaults
from edgewise.records.tensors import Feeds, Outputs
from edgewise.testing.graphs import random_feeds

ZOO = Path(os.environ.get("EDGEWISE_ZOO", Path(__file__).parents[2] / ".." / "shared" / "zoo"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ZOO / "zoo.toml").exists(), reason=f"the model zoo is not at {ZOO}; set EDGEWISE_ZOO"),
]

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "ppocrv4_mobile_rec": {"x": (1, 3, 48, 320)},
    "silero_vad": {"input": (1, 576), "state": (2, 1, 128)},
}

MOST_NODES = {
    # Convolutions, their activations, sums, one pooling, one view, one Gemm: nothing else is left.
    "resnet20": 52,
    "resnet56": 142,
    "efficientnet_lite0": 94,
    "vww": 59,
    "ad01": 19,
    "kwt1": 404,
    "ppocrv4_mobile_rec": 192,
    "silero_vad": 130,
}


def models() -> list[str]:
    if not (ZOO / "zoo.toml").exists():
        return []
    entries = tomllib.loads((ZOO / "zoo.toml").read_text())["model"]
    return [entry["path"] for entry in entries if entry["path"].endswith(".onnx")]


def load(path: str) -> tuple[str, ir.Model]:
    model = ir.load(ZOO / path)
    name = Path(path).stem
    shapes = SHAPES.get(name, {})
    for value in model.graph.inputs:
        dims = shapes.get(value.name or "", tuple(dim if isinstance(dim, int) else 1 for dim in value.shape or ()))
        value.shape = ir.Shape(dims)
    BindDefaults().rewrite(model)
    return name, raise_opset(model)


def run(model: ir.Model, feeds: Feeds) -> Outputs:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    arrays: list[Any] = session.run(names, dict(feeds))
    return dict(zip(names, arrays, strict=True))


@pytest.mark.parametrize("path", models())
def test_keeps_the_function(path: str) -> None:
    name, model = load(path)
    feeds = random_feeds(model, seed=1)
    if "sr" in feeds:
        feeds["sr"][...] = 16000
    after, _ = optimize(model)
    reason = difference(run(model, feeds), run(after, feeds), tolerance(model))
    assert reason is None, reason
    operators = Counter(node.op_type for node in after.graph.all_nodes())
    assert "BatchNormalization" not in operators
    assert sum(operators.values()) <= MOST_NODES.get(name, sum(1 for _ in model.graph.all_nodes()))
