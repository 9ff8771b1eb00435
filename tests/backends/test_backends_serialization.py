"""One file where it fits, two where it does not."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.backends import registry
from edgewise.backends.ort import session
from edgewise.backends.ports import input_ports, output_ports
from edgewise.backends.protocol import Artifact
from edgewise.backends.serialization import DATA_FILE, MODEL_FILE, onnx_files, weight_bytes
from edgewise.errors import ModelError
from edgewise.records.candidate import RunOptions
from edgewise.testing import graphs


def test_weights_beyond_the_limit_lie_in_a_file_beside_the_model() -> None:
    model = graphs.mlp(features=64, hidden=64)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    files = onnx_files(model, largest=1000)
    assert set(files) == {MODEL_FILE, DATA_FILE}
    assert len(files[DATA_FILE]) >= 64 * 64 * 4
    assert len(files[MODEL_FILE]) < 4000
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert files == onnx_files(model, largest=1000)


def test_ort_opens_two_files_from_memory() -> None:
    model = graphs.mlp(features=64, hidden=64)
    ports = {"inputs": input_ports(model), "outputs": output_ports(model)}
    feeds = graphs.random_feeds(model)
    one, two = (
        session.OrtSession(Artifact.of(files, backend="ort", options=RunOptions(), **ports)).run(feeds)
        for files in (onnx_files(model), onnx_files(model, largest=1000))
    )
    np.testing.assert_array_equal(one["probabilities"], two["probabilities"])


def test_openvino_converts_from_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    pytest.importorskip("openvino", reason="openvino is not installed")
    from edgewise.backends.openvino import compile as compiler  # noqa: PLC0415 - only where openvino is installed

    model = graphs.mlp(features=64, hidden=64)
    backend = registry.get("openvino")
    one = backend.compile(model, RunOptions())
    monkeypatch.setattr(compiler, "onnx_files", lambda given: onnx_files(given, largest=1000))
    assert backend.compile(model, RunOptions()).files["model.bin"] == one.files["model.bin"]


def test_weights_in_subgraphs_and_attributes_count() -> None:
    model = graphs.branching_net()
    assert weight_bytes(model) == 3 * 4  # the threshold and one constant in each branch
    node = ir.node("Constant", [], {"value": ir.tensor(np.zeros(5, np.float32))})
    model.graph.append(node)
    assert weight_bytes(model) == 8 * 4


def test_inputs_with_a_default_need_no_feed() -> None:
    model = graphs.mlp()
    weight = next(iter(model.graph.initializers.values()))
    model.graph.inputs.append(weight)
    assert [port.name for port in input_ports(model)] == ["x"]


def test_unknown_types_and_ranks_are_refused_by_name() -> None:
    model = graphs.mlp()
    model.graph.outputs[0].shape = None
    with pytest.raises(ModelError, match=r"`probabilities`.*number of dimensions"):
        output_ports(model)
    model.graph.outputs[0].type = None
    with pytest.raises(ModelError, match=r"`probabilities`.*element type"):
        output_ports(model)


def test_a_dimension_without_a_name_is_a_question_mark() -> None:
    model = graphs.mlp()
    model.graph.inputs[0].shape = ir.Shape([None, 16])
    assert input_ports(model)[0].shape == ("?", 16)
