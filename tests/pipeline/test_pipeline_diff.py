"""Where two models part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.conftest import Task
from tests.pipeline.quantize_nets import NEAREST, ORT, material_of, uneven

from edgewise.errors import DataError, ModelError
from edgewise.formats.onnx import save
from edgewise.pipeline.diff import diff
from edgewise.pipeline.quantize import Quantizer
from edgewise.pipeline.request import DataRequest
from edgewise.testing.graphs import GraphBuilder, mlp, random_feeds


def test_a_model_does_not_differ_from_itself(finished: Task) -> None:
    found = diff(finished.model, finished.model, data=DataRequest(samples=str(finished.samples)), samples=5)
    assert found.samples == 5
    assert found.culprits() == ()
    assert {error.sqnr_db for error in found.tensors} == {None}
    assert len(found.tensors) == 5


def test_the_node_that_was_changed_comes_first(finished: Task, tmp_path: Path) -> None:
    model = mlp(features=8, hidden=48)
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    weight = gemm.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    values = weight.const_value.numpy().copy()
    values[0] *= 1.5
    weight.const_value = ir.tensor(values, name=weight.name)
    save(model, tmp_path / "b.onnx")
    found = diff(finished.model, tmp_path / "b.onnx", data=DataRequest(samples=str(finished.samples)), samples=8)
    off = {error.tensor: error for error in found.tensors if error.sqnr_db is not None}
    assert [error.operator for error in off.values()] == ["Gemm", "Softmax"]
    # A relative error of half a row of four: about 20 log10(2 / 0.5) with all rows alike.
    gemm_error = next(error for error in off.values() if error.operator == "Gemm")
    assert gemm_error.sqnr_db is not None
    assert 0 < gemm_error.sqnr_db < 40
    assert gemm_error.arises_db is None  # nothing before it is off
    assert gemm_error.largest > 0


def test_scaled_channels_are_no_error(tmp_path: Path) -> None:
    """Equalization divides channels: what rounding does is left, and the weights before it are found."""
    model = uneven()
    feeds = [random_feeds(model, seed=seed) for seed in range(16)]
    quantizer = Quantizer(material_of(model, feeds), ORT)
    decision = quantizer.decide(NEAREST)
    assert decision.prepared == "equalized"
    save(model, tmp_path / "a.onnx")
    save(quantizer.model(decision), tmp_path / "b.onnx")
    np.savez(tmp_path / "s.npz", image=np.concatenate([feed["image"] for feed in feeds]))
    found = diff(tmp_path / "a.onnx", tmp_path / "b.onnx", data=DataRequest(samples=str(tmp_path / "s.npz")), samples=8)
    assert set(found.rescaled) == {error.tensor for error in found.tensors if error.tensor != "y"}
    assert min(error.sqnr_db or np.inf for error in found.tensors) > 15
    assert found.quantization is not None
    assert found.quantization.weights_found == 2


def test_a_bundle_is_compared_by_the_graph_behind_its_default(finished: Task) -> None:
    found = diff(finished.model, finished.out, data=DataRequest(samples=str(finished.samples)), samples=50)
    assert found.names == ("model.onnx", "out")
    output = next(error for error in found.tensors if error.tensor == "probabilities")
    assert output.sqnr_db is not None
    assert output.sqnr_db > 15


def test_what_has_nothing_in_common_is_refused(finished: Task, tmp_path: Path) -> None:
    b = GraphBuilder("other")
    b.output(b.node("Relu", b.input("x", (1, 8)), name="alone"), "elsewhere", (1, 8))
    save(b.build(), tmp_path / "b.onnx")
    data = DataRequest(samples=str(finished.samples))
    with pytest.raises(ModelError, match="share none"):
        diff(finished.model, tmp_path / "b.onnx", data=data)
    with pytest.raises(DataError, match="At least one sample"):
        diff(finished.model, finished.model, data=data, samples=0)
