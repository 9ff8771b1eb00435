"""What `import edgewise` offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.conftest import FakeMeasures, Task, answers

import edgewise
from edgewise.compress.quantize.reasons import read_reasons
from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.formats.onnx import save, to_bytes
from edgewise.passes.contract import is_legal
from edgewise.pipeline import bench as bench_module
from edgewise.pipeline.inspect import inspect
from edgewise.records.candidate import RangeMethod
from edgewise.testing.graphs import GraphBuilder, conv_net, mlp, two_input_net


def pictures(count: int = 12) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    draw = np.random.default_rng(0)
    return [draw.standard_normal((3, 16, 16)).astype(np.float32) for _ in range(count)]


def test_load_fixes_the_batch(tmp_path: Path) -> None:
    save(mlp(batch="n"), tmp_path / "m.onnx")
    model = edgewise.load(tmp_path / "m.onnx")
    assert [list(value.shape or ()) for value in model.graph.inputs] == [[1, 16]]
    open_model = mlp()
    open_model.graph.inputs[0].shape = ir.Shape([1, "features"])
    save(open_model, tmp_path / "open.onnx")
    with pytest.raises(RecipeError, match="--shape"):
        edgewise.load(str(tmp_path / "open.onnx"))
    fixed = edgewise.load(tmp_path / "open.onnx", shapes={"x": (1, 16)})
    assert list(fixed.graph.inputs[0].shape or ()) == [1, 16]
    with pytest.raises(ModelError):
        edgewise.load(tmp_path / "none.onnx")


@pytest.mark.parametrize("ranges", ["min-max", "percentile", "entropy", "mse"])
def test_quantize_gives_legal_standard_qdq_that_answers_alike(ranges: RangeMethod) -> None:
    model = conv_net()
    before = to_bytes(model)
    quantized = edgewise.quantize(model, pictures(), "w8a8", ranges=ranges, extra_time=0)
    assert to_bytes(model) == before
    assert is_legal(quantized)
    operators = [node.op_type for node in quantized.graph]
    assert operators.count("QuantizeLinear") >= 4
    assert "BatchNormalization" not in operators
    assert {node.domain for node in quantized.graph} == {""}
    x = np.stack(pictures(40))
    assert np.mean(answers(model, {"image": x}) == answers(quantized, {"image": x})) >= 0.85


def test_quantize_takes_arrays_by_name_and_any_iterable() -> None:
    draw = np.random.default_rng(0)
    samples = (
        {"left": draw.standard_normal(6).astype(np.float32), "right": draw.standard_normal(3).astype(np.float32)}
        for _ in range(8)
    )
    assert "QuantizeLinear" in {node.op_type for node in edgewise.quantize(two_input_net(), samples).graph}


def test_quantize_refuses_what_cannot_be() -> None:
    with pytest.raises(RecipeError, match="w5a8"):
        edgewise.quantize(conv_net(), pictures(), "w5a8")
    with pytest.raises(RecipeError, match="A backend has to be one of"):
        edgewise.quantize(conv_net(), pictures(), backend="tpu")
    with pytest.raises(RecipeError, match=r"`ranges` has to be one of min-max, .*, output. Received `widest`"):
        edgewise.quantize(conv_net(), pictures(), ranges="widest")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least one sample"):
        edgewise.quantize(conv_net(), [])
    with pytest.raises(DataError, match="Sample 1"):
        edgewise.quantize(conv_net(), [pictures()[0], np.zeros(3, np.float32)])
    with pytest.raises(RecipeError, match=r"`rounding` has to be one of second-order, nearest. Received `up`"):
        edgewise.quantize(conv_net(), pictures(), rounding="up")  # type: ignore[arg-type]
    for share in (-0.1, float("nan")):
        with pytest.raises(RecipeError, match="`extra_time` has to be a share of at least 0"):
            edgewise.quantize(conv_net(), pictures(), extra_time=share)
    b = GraphBuilder("nothing")
    b.output(b.node("Sin", b.input("x", (1, 4))), "y", (1, 4))
    with pytest.raises(RecipeError, match="No node of this model can be quantized"):
        edgewise.quantize(b.build(), [np.zeros(4, np.float32)])


@pytest.mark.parametrize("given", ["model.onnx", Path("model.onnx"), ir.to_proto(mlp())])
def test_a_model_has_to_be_loaded(given: Any) -> None:
    with pytest.raises(ModelError, match=f"as `edgewise.load` returns it. Received {type(given).__name__}"):
        edgewise.quantize(given, pictures())


@pytest.mark.parametrize("given", ["photos", None, 8])
def test_a_scheme_has_to_be_one_whatever_its_type(given: Any) -> None:
    with pytest.raises(RecipeError, match=f"has to look like .* Received `{given}`"):
        edgewise.quantize(conv_net(), pictures(), given)


@pytest.mark.parametrize("given", [5, "photos", {"image": pictures()[0]}])
def test_samples_have_to_be_a_list_of_samples(given: Any) -> None:
    with pytest.raises(DataError, match=f"a list of samples.*Received {type(given).__name__}"):
        edgewise.quantize(conv_net(), given)


@pytest.mark.parametrize("given", ["photo.png", None, [[1.0, 2.0], [3.0]]])
def test_a_sample_has_to_hold_numbers(given: Any) -> None:
    with pytest.raises(DataError, match="Sample 1 has to hold arrays"):
        edgewise.quantize(conv_net(), [pictures()[0], given])


def test_a_sample_may_be_a_list_of_numbers() -> None:
    arrays = [np.asarray(array) for array in np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)]
    lists = [array.tolist() for array in arrays]
    one, other = (edgewise.quantize(mlp(), given, extra_time=0) for given in (arrays, lists))
    assert to_bytes(one) == to_bytes(other)


def test_optimize_and_bundle(task: Task, measures: FakeMeasures) -> None:
    result = edgewise.optimize(task.model, task.samples, out=task.out, max_drop=0.1, backends=["ort"], seed=2)
    assert result.run.data.seed == 2
    session = edgewise.Bundle.load(task.out).session()
    assert session.run({"x": np.zeros((1, 8), np.float32)})["probabilities"].shape == (1, 4)
    session.close()
    assert measures.groups


def test_bench(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMeasures()
    monkeypatch.setattr(bench_module, "measure_group", fake.measure_group)
    monkeypatch.setattr(bench_module, "cold_start_and_memory", fake.cold_start_and_memory)
    result = edgewise.bench(task.model, data=task.samples, budget_s=1.5)
    assert [row.name for row in result.rows] == ["model.onnx: ort"]
    assert fake.groups == [(("model.onnx: ort",), 1.5)]


def test_what_stayed_float_is_in_the_model_and_shown(tmp_path: Path) -> None:
    b = GraphBuilder("partly")
    value = b.node("Gemm", b.input("x", (1, 8)), b.weight(8, 8), name="first")
    b.output(b.node("MatMul", value, b.node("Transpose", value), name="product"), "y", (1, 1))
    model = b.build()
    quantized = edgewise.quantize(model, [np.ones(8, np.float32)], "w8a16", extra_time=0)
    assert not model.metadata_props
    reasons = read_reasons(quantized)
    assert reasons == read_reasons(quantized.clone())
    assert len(reasons) == len(set(reasons))
    ir.save(quantized, tmp_path / "m.onnx")
    assert inspect(tmp_path / "m.onnx", {}).quantization == reasons
