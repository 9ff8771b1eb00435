"""The noise of each layer against its definition, and that a run records it."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.conftest import FUSED, INT8, Task, job_of
from tests.pipeline.quantize_nets import ORT, material_of, uneven

from edgewise.compress.statistics import observe
from edgewise.errors import BackendError
from edgewise.pipeline import noise as module
from edgewise.pipeline.judge import open_judge
from edgewise.pipeline.noise import measure, quantization_noise
from edgewise.pipeline.optimize import finished_run
from edgewise.pipeline.quantize import Quantizer
from edgewise.records.candidate import Quantize
from edgewise.records.codec import decode, encode
from edgewise.records.quantization import BINS, QuantizationNoise
from edgewise.records.run import Run
from edgewise.records.tensors import Array, Feeds
from edgewise.testing.graphs import GraphBuilder


def models(*, scale: float = 1.0) -> tuple[ir.Model, ir.Model]:
    """Return two Gemms with a Relu between them, and the same on integers; `scale` multiplies the first weights."""
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal((8, 8)).astype(np.float32) for name in ("one", "two")}
    made = []
    for integers in (False, True):
        b = GraphBuilder("gemms")
        value = b.input("x", (1, 8))
        for name, weight in weights.items():
            held = b.constant(weight * np.float32(1 if integers or name == "two" else scale), f"{name}_w")
            if integers:
                step = np.float32(np.abs(weight).max() / 127)
                stored = b.constant(np.rint(weight / step).astype(np.int8))
                held = b.node("DequantizeLinear", stored, b.constant(step), b.constant(np.int8(0)))
                grid = (b.constant(np.float32(0.05)), b.constant(np.uint8(128)))
                value = b.node("DequantizeLinear", b.node("QuantizeLinear", value, *grid), *grid)
            value = b.node("Gemm", value, held, name=name)
            if name == "one":
                value = b.node("Relu", value, name="relu")
        b.output(value, "y", (1, 8))
        made.append(b.build())
    return made[0], made[1]


def feeds() -> list[Feeds]:
    return [{"x": x} for x in np.random.default_rng(1).normal(0, 3, (10, 1, 8)).astype(np.float32)]


def tensors(model: ir.Model, name: str) -> Array:
    session = open_judge(observe(model, [name]))
    try:
        return np.concatenate([session.run(feed)[name] for feed in feeds()])
    finally:
        session.close()


def test_the_ratio_is_that_of_the_outputs_behind_the_fused_activation() -> None:
    before, quantized = models()
    found = measure(quantized, before, feeds(), name="int8")
    assert (found.candidate, found.samples, found.weights) == ("int8", 10, True)
    assert [layer.node for layer in found.layers] == ["one", "two"]
    for layer, tensor in zip(found.layers, ("relu_out", "y"), strict=True):
        right, wrong = tensors(before, tensor).astype(np.float64), tensors(quantized, tensor).astype(np.float64)
        expected = 10 * math.log10(float(np.sum(right**2) / np.sum((right - wrong) ** 2)))
        assert layer.sqnr_db == pytest.approx(expected)
        assert layer.operator == "Gemm"
        assert layer.why


def test_histograms_hold_every_value_and_the_range() -> None:
    before, quantized = models()
    found = measure(quantized, before, feeds(), name="int8")
    assert {one.tensor for one in found.histograms} == {"x", "relu_out"}
    for one in found.histograms:
        assert len(one.counts) <= BINS
        assert sum(one.counts) == 80
        assert (one.low, one.high) == pytest.approx((-6.4, 6.35))
        values = tensors(quantized, one.tensor) if one.tensor != "x" else np.concatenate([f["x"] for f in feeds()])
        counted, _ = np.histogram(values, one.start + one.width * np.arange(len(one.counts) + 1))
        assert counted.tolist() == list(one.counts)
        outside = (values < one.low - 0.025) | (values > one.high + 0.025)
        assert one.clipped == pytest.approx(float(np.mean(outside)))
    assert any(one.clipped > 0 for one in found.histograms)
    assert decode(encode(found), QuantizationNoise) == found


def test_weights_that_were_changed_before_are_left_out() -> None:
    before, quantized = models(scale=3.0)
    small: list[Feeds] = [{"x": 0.3 * feed["x"]} for feed in feeds()]  # nothing of them is clipped
    found = measure(quantized, before, small, name="int8")
    assert not found.weights
    # The same graph with rounded weights: what is left is the rounding of the activations.
    assert all(layer.sqnr_db is not None and layer.sqnr_db > 20 for layer in found.layers)


def test_the_weights_of_an_equalized_model_are_compared_in_its_scales() -> None:
    quantizer = Quantizer(material_of(uneven()), ORT)
    decision = quantizer.decide(Quantize(ranges="output", rounding="nearest"))
    assert decision.prepared == "equalized"
    found = measure(quantizer.model(decision), quantizer.material.model, quantizer.material.feeds, name="int8")
    assert found.weights
    # Against the equalized model itself. One factor is fitted to the 27 weights of a channel by least squares, which
    # takes a 27th of their noise away, 0.16 dB; about three times that for channels that are fitted better.
    prepared = quantizer._source(decision).model
    expected = measure(quantizer.model(decision), prepared, quantizer.material.feeds, name="int8")
    for layer, other in zip(found.layers, expected.layers, strict=True):
        assert layer.sqnr_db == pytest.approx(other.sqnr_db, abs=0.5)


def test_a_quantized_candidate_is_measured_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_of(task) as job:
        assert quantization_noise(job, FUSED) is None
        found = quantization_noise(job, INT8)
        assert found is not None
        assert found.candidate == INT8.name
        assert found.layers
        monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("it was measured before"))
        assert quantization_noise(job, INT8) == found


def test_what_cannot_be_measured_is_no_reason_to_fail(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise BackendError("it does not run")

    monkeypatch.setattr(module, "measure", fails)
    notes: list[str] = []
    with job_of(task) as job:
        monkeypatch.setattr(job.progress, "note", notes.append)
        assert quantization_noise(job, INT8) is None
    assert "it does not run" in notes[0]


def test_an_old_run_has_no_noise(finished: Task) -> None:
    run = finished_run(finished.out)
    assert run is not None
    fields = msgspec.to_builtins(run)
    del fields["noise"]
    assert msgspec.convert(fields, Run).noise is None
