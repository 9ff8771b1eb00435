"""The layer that was made to do the damage is found, its reason is told, and its price is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.conftest import Task, latency

from edgewise.compress.quantize.placement import KEPT
from edgewise.compress.quantize.reasons import write_reasons
from edgewise.errors import BackendError, EdgewiseError, RecipeError
from edgewise.formats.onnx import save
from edgewise.measure.process import Entry
from edgewise.pipeline import culprits as module
from edgewise.pipeline.culprits import Culprits, Sampled, Timing, cost, culprits
from edgewise.pipeline.diff import diff
from edgewise.pipeline.judge import open_judge
from edgewise.pipeline.progress import Quiet
from edgewise.pipeline.request import DataRequest
from edgewise.records.findings import Decline
from edgewise.records.measurements import Latency
from edgewise.records.tensors import Array, Feeds
from edgewise.testing.graphs import GraphBuilder

LAYERS = ("a", "b", "c", "d")


def models(*, bad: str = "b", bits: int = 2, softmax: bool = True) -> tuple[ir.Model, ir.Model]:
    """Return four Gemms and a MatMul, and the same with the Gemms on 8-bit integers, one with coarser weights."""
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal((16, 16)).astype(np.float32) / 4 for name in LAYERS}
    made = []
    for integers in (False, True):
        b = GraphBuilder("gemms")
        value = b.input("x", (1, 16))
        for name, weight in weights.items():
            held = b.constant(weight, f"{name}_w")
            if integers:
                largest = 2 ** ((bits if name == bad else 8) - 1) - 1
                scale = (np.abs(weight).max(axis=0) / largest).astype(np.float32)
                stored = np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8)
                zero = np.zeros(16, np.int8)
                held = b.node("DequantizeLinear", b.constant(stored), b.constant(scale), b.constant(zero), axis=1)
                grid = (b.constant(np.float32(8 / 255)), b.constant(np.uint8(128)))
                value = b.node("DequantizeLinear", b.node("QuantizeLinear", value, *grid), *grid)
            value = b.node("Gemm", value, held, name=name)
        value = b.node("MatMul", value, b.constant(np.eye(16, dtype=np.float32)), name="last")
        b.output(b.node("Softmax", value, name="soft") if softmax else value, "y", (1, 16))
        made.append(b.build())
    return made[0], made[1]


def samples(count: int = 24) -> Array:
    return np.random.default_rng(3).standard_normal((count, 1, 16)).astype(np.float32)


def run(pair: tuple[ir.Model, ir.Model], *, labels: Sequence[int] | None = None, worst: int = 0) -> Culprits:
    feeds: list[Feeds] = [{"x": x} for x in samples()]
    return culprits(*pair, feeds, labels=labels, timing=Timing(worst=worst, budget_s=1.0), progress=Quiet())


def test_the_bad_layer_comes_first_with_its_reason() -> None:
    found = run(models())
    first = found.layers[0]
    assert (first.node, first.operator, first.cause) == ("b", "Gemm", "rounding")
    assert "weights" in first.why
    assert first.share is not None
    assert first.share > 0.5
    assert first.flips is not None
    assert first.flips > 0
    assert first.points is None
    assert found.measure == "KL"
    assert found.rest == 0
    assert found.weights_found == 4
    assert sorted(layer.node for layer in found.layers) == list(LAYERS)
    gains = [layer.gained or 0.0 for layer in found.layers]
    assert gains == sorted(gains, reverse=True)


def test_a_layer_in_floating_point_is_told_with_the_reason_of_the_plan() -> None:
    (last,) = run(models()).floats
    assert (last.node, last.cause, last.share, last.gained) == ("last", "unsupported", None, None)
    assert last.why == "it was left in floating point, although it could be 8-bit"
    first, second = models()
    for model in (first, second):
        node = next(node for node in model.graph if node.name == "last")
        weight = node.inputs[1]
        assert weight is not None
        weight.const_value = ir.tensor(np.full((16, 16), np.inf, np.float32), name=weight.name)
    floats = module._floats(first, second, "ort")
    assert "NaN or infinities" in floats[0].why


def test_layers_that_do_damage_jointly_are_named_together() -> None:
    """The answer is lost where the signs in either of two layers in a row are: restoring one of them gains nothing."""
    draw = np.random.default_rng(0)
    made = []
    for integers in (False, True):
        b = GraphBuilder("lost")
        value = b.input("x", (1, 16))
        for name in LAYERS:
            weight = np.eye(16, dtype=np.float32) + 0.01 * draw.standard_normal((16, 16)).astype(np.float32)
            held = b.constant(weight, f"{name}_w")
            if integers:
                stored = np.rint(127 * weight).clip(-127, 127).astype(np.int8)
                if name in {"b", "c"}:
                    stored[:] = 0
                held = b.node(
                    "DequantizeLinear", b.constant(stored), b.constant(np.float32(1 / 127)), b.constant(np.int8(0))
                )
                grid = (b.constant(np.float32(8 / 255)), b.constant(np.uint8(128)))
                value = b.node("DequantizeLinear", b.node("QuantizeLinear", value, *grid), *grid)
            value = b.node("Gemm", value, held, name=name)
        b.output(b.node("Reshape", value, b.constant(np.array([1, 4, 4], np.int64))), "numbers", (1, 4, 4))
        made.append(b.build())
    found = run((made[0], made[1]))
    assert set(found.joint) == {"b", "c"}
    assert found.joint_share > 0.5
    assert run(models()).joint == ()


def test_a_layer_that_was_kept_for_its_damage_is_told_from_one_that_cannot_be_quantized() -> None:
    first, second = models()
    write_reasons(second, [Decline(stage="quantize", node="last", operator="MatMul", reason=KEPT)])
    (last,) = run((first, second)).floats
    assert (last.cause, last.why) == ("kept", KEPT)


def test_labels_give_points() -> None:
    pair = models()
    session = open_judge(pair[0])
    labels = [int(np.argmax(session.run({"x": x})["y"])) for x in samples()]
    session.close()
    found = run(pair, labels=labels)
    assert found.metric == "top1"
    first = found.layers[0]
    assert first.points is not None
    assert first.flips is not None
    # The labels are the reference's answers, so points and flips count the same.
    assert first.points == pytest.approx(first.flips / 24)
    assert run(pair, labels=["cat"] * 24).metric == ""  # type: ignore[list-item]


def test_one_row_of_numbers_is_taken_for_scores() -> None:
    pair = models(softmax=False)
    for model in pair:
        model.graph.outputs[0].name = "numbers"
    feeds: list[Feeds] = [{"x": x} for x in samples()]
    found = culprits(*pair, feeds, labels=None, timing=Timing(worst=0, budget_s=1.0), progress=Quiet())
    assert found.measure == "KL"
    assert found.layers[0].node == "b"


def test_costs_of_the_worst_are_timed_against_the_quantized_model(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[tuple[list[str], int, float]] = []

    def fake(entries: Sequence[Entry], feeds: Sequence[Feeds], *, budget_s: float) -> list[Latency | EdgewiseError]:
        groups.append(([entry.name for entry in entries], len(feeds), budget_s))
        return [latency(100.0), latency(130.0), BackendError("it died")]

    monkeypatch.setattr(module, "measure_group", fake)
    found = run(models(), worst=2)
    assert groups == [(["the quantized model", "b", found.layers[1].node], 8, 1.0)]
    price = found.layers[0].cost
    assert price is not None
    assert price.low <= price.extra_us <= price.high
    assert price.extra_us == pytest.approx(30, abs=1)
    assert [layer.cost for layer in found.layers[1:]] == [None, None, None]
    assert found.backend == "ort"
    with pytest.raises(RecipeError, match="--time"):
        culprits(*models(), [], labels=None, timing=Timing(worst=1, budget_s=0), progress=Quiet())


def test_a_layer_that_is_faster_in_floating_point_has_a_negative_cost() -> None:
    found = cost(latency(100.0), latency(80.0))
    assert found.low <= found.extra_us <= found.high < 0
    assert found.extra_us == pytest.approx(-20, abs=0.5)
    assert found.confidence == 0.95


def test_a_model_before_its_fusion_serves_as_well(task: Task, tmp_path: Path) -> None:
    first, second = models()
    save(first, tmp_path / "a.onnx")
    save(second, tmp_path / "b.onnx")
    np.savez(tmp_path / "s.npz", x=samples()[:, 0])
    data = DataRequest(samples=str(tmp_path / "s.npz"))
    found = diff(tmp_path / "a.onnx", tmp_path / "b.onnx", data=data, samples=6)
    assert found.quantization is not None
    assert found.quantization.whole.n == 6
    assert found.quantization.layers[0].node == "b"
    assert diff(tmp_path / "b.onnx", tmp_path / "b.onnx", data=data, samples=2).quantization is None
    assert diff(task.model, task.model, data=DataRequest(samples=str(task.samples))).quantization is None


def test_samples_are_read_when_they_are_asked_for() -> None:
    read: list[int] = []

    def one(index: int) -> Feeds:
        read.append(index)
        return {"x": np.full(1, index)}

    sampled = Sampled(one, 3)
    assert read == []
    assert [int(feed["x"][0]) for feed in sampled] == [0, 1, 2]
    assert len(sampled) == 3
