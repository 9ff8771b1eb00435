"""One file where it fits, two where it does not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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
    ports: dict[str, Any] = {"inputs": input_ports(model), "outputs": output_ports(model)}
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
    with pytest.raises(ModelError, match=r"`probabilities`.*tensor of real numbers"):
        output_ports(model)


def test_a_dimension_without_a_name_is_a_question_mark() -> None:
    model = graphs.mlp()
    model.graph.inputs[0].shape = ir.Shape([None, 16])
    assert input_ports(model)[0].shape == ("?", 16)


def test_weights_in_other_files_are_in_the_bytes(tmp_path: Path) -> None:
    """A runtime that is given bytes does not know the folder in which the other file lies."""
    model = graphs.mlp(features=64)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    loaded = ir.load(tmp_path / "m.onnx")
    assert any(isinstance(value.const_value, ir.ExternalTensor) for value in loaded.graph.initializers.values())
    feeds = graphs.random_feeds(model)
    ort = registry.get("ort")
    expected = ort.open(ort.compile(model, RunOptions())).run(feeds)
    received = ort.open(ort.compile(loaded, RunOptions())).run(feeds)
    np.testing.assert_array_equal(received["probabilities"], expected["probabilities"])


@pytest.mark.parametrize(
    "kind",
    [
        ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)),
        ir.OptionalType(ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))),
        ir.TensorType(ir.DataType.STRING),
        ir.TensorType(ir.DataType.COMPLEX64),
    ],
    ids=["sequence", "optional sequence", "string", "complex"],
)
def test_outputs_that_are_no_arrays_of_numbers_are_refused(kind: ir.TypeProtocol) -> None:
    """scikit-learn's ZipMap gives a sequence of maps, its classifiers strings: neither can be compared or certified."""
    model = graphs.mlp()
    model.graph.outputs[0].type = kind
    with pytest.raises(ModelError, match=r"`probabilities` has to be a tensor of real numbers") as caught:
        output_ports(model)
    assert "zipmap" in str(caught.value.hint)


def test_an_optional_tensor_is_an_array_to_its_user() -> None:
    model = graphs.mlp()
    model.graph.inputs[0].type = ir.OptionalType(ir.TensorType(ir.DataType.FLOAT))
    assert input_ports(model)[0].dtype == "float32"
