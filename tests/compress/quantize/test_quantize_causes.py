"""Each reason for damage is told of a layer that suffers from exactly that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from edgewise.compress.quantize.causes import ActivationNoise, Diagnosis, Grid, diagnose, outlier, tapped
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder

MakeRun = Callable[[ir.Model], Run]
CHANNELS = 16
SAMPLES = 8


def layer(  # every argument is one thing that can go wrong
    *, low: float = -4.0, high: float = 4.0, bits: int = 8, weight_gain: float = 1.0, outlier_weight: float = 1.0,
    per_channel: bool = True,
) -> tuple[ir.Model, ir.Model]:  # fmt: skip
    """Return a Conv and the same on integers with the range, width and scales asked for."""
    weight = np.random.default_rng(0).standard_normal((8, CHANNELS, 3, 3)).astype(np.float32)
    weight[0] *= outlier_weight
    models = []
    for integers in (False, True):
        b = GraphBuilder("layer")
        x = b.input("x", (1, CHANNELS, 6, 6))
        w = b.constant(weight, "w")
        if integers:
            largest = 2 ** (bits - 1) - 1
            peaks = np.abs(weight).max(axis=(1, 2, 3) if per_channel else None)
            scales = (weight_gain * peaks / largest).astype(np.float32)
            steps = scales[:, None, None, None] if per_channel else scales
            stored = np.clip(np.rint(weight / steps), -largest, largest).astype(np.int8)
            zero = np.zeros(scales.shape, np.int8)
            w = b.node("DequantizeLinear", b.constant(stored), b.constant(scales), b.constant(zero), axis=0)
            step = np.float32((high - low) / 255)
            grid = (b.constant(step), b.constant(np.uint8(round(-low / step))))
            x = b.node("DequantizeLinear", b.node("QuantizeLinear", x, *grid), *grid)
        b.output(b.node("Conv", x, w, name="conv"), "y")
        models.append(b.build())
    return models[0], models[1]


def diagnosed(models: tuple[ir.Model, ir.Model], make_run: MakeRun, *, known: bool = True, **samples: Any) -> Diagnosis:
    model, integers = models
    run = make_run(tapped(integers))
    feeds = [{"x": x} for x in values(**samples)]
    (found,) = diagnose(integers, run, feeds, nodes=["conv"], reference=model if known else None)
    assert found.node == "conv"
    return found


def values(*, gain: float = 1.0, channel: float = 1.0, spikes: float = 0.0) -> list[npt.NDArray[np.float32]]:
    """Return uniform numbers in [-4, 4] with one channel of another size and some spikes beyond."""
    draw = np.random.default_rng(1)
    found = draw.uniform(-4, 4, (SAMPLES, 1, CHANNELS, 6, 6)) * gain
    found[:, :, 0] *= channel
    if spikes:
        found[:, :, 1, 0, 0] = spikes
    return list(found.astype(np.float32))


def test_clipped_values(ort_run: MakeRun) -> None:
    found = diagnosed(layer(), ort_run, spikes=20.0)
    assert found.cause == "range"
    # One of 16 x 36 values in each sample.
    assert found.clipped == pytest.approx(1 / (CHANNELS * 36))
    assert "0.17% of its values" in found.words


def test_a_range_that_is_far_too_wide(ort_run: MakeRun) -> None:
    found = diagnosed(layer(low=-400, high=400), ort_run)
    assert found.cause == "range"
    assert found.clipped == 0
    assert "x what the values are" in found.words


def test_an_outlier_channel(ort_run: MakeRun) -> None:
    found = diagnosed(layer(low=-200, high=200), ort_run, channel=50.0)
    assert found.cause == "outlier-channel"
    assert found.outlier == pytest.approx(50, rel=0.05)
    assert "49x the median channel's range" in found.words


def test_an_outlier_channel_of_weights_that_share_one_scale(ort_run: MakeRun) -> None:
    found = diagnosed(layer(outlier_weight=40.0, per_channel=False), ort_run)
    assert found.cause == "outlier-channel"
    assert "its weights" in found.words
    assert diagnosed(layer(outlier_weight=40.0), ort_run).cause == "rounding"


def test_integers_at_the_ends(ort_run: MakeRun) -> None:
    found = diagnosed(layer(low=-1, high=1), ort_run)
    assert found.cause == "saturation"
    assert found.clipped == pytest.approx(0.75, abs=0.03)  # of uniform numbers in [-4, 4]
    assert found.activation_nsr > 0.3


def test_weights_beyond_the_ends(ort_run: MakeRun) -> None:
    found = diagnosed(layer(weight_gain=0.3), ort_run)
    assert found.cause == "saturation"
    assert "weights" in found.words


@pytest.mark.parametrize("bits", [2, 4])
def test_coarse_weights(bits: int, ort_run: MakeRun) -> None:
    found = diagnosed(layer(bits=bits), ort_run)
    assert found.cause == "rounding"
    assert "its weights" in found.words
    assert found.weight_nsr > found.activation_nsr
    assert diagnosed(layer(bits=bits), ort_run, known=False).cause == "rounding"


def test_the_noise_ratios_are_those_of_the_output(ort_run: MakeRun) -> None:
    model, integers = layer(bits=4)
    found = diagnosed((model, integers), ort_run)
    feeds = [{"x": x} for x in values()]
    right = np.concatenate([ort_run(model)(feed)["y"] for feed in feeds])
    wrong = np.concatenate([ort_run(integers)(feed)["y"] for feed in feeds])
    measured = float(np.sum((right - wrong) ** 2) / np.sum(right**2))
    # Independent inputs: what is estimated is the expectation over 8 x 8 x 16 outputs, each of 144 terms.
    assert found.activation_nsr + found.weight_nsr == pytest.approx(measured, rel=0.2)
    unknown = diagnosed((model, integers), ort_run, known=False)
    assert unknown.weight_nsr == pytest.approx(found.weight_nsr, rel=0.3)


def test_a_grid_is_read_from_its_node() -> None:
    _, integers = layer(low=-1, high=3)
    quantize = next(node for node in integers.graph if node.op_type == "QuantizeLinear")
    found = Grid.of(quantize)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-1, 3), abs=found.scale)
    assert found.high - found.low == pytest.approx(255 * found.scale)


def test_noise_of_nothing_and_of_infinities() -> None:
    noise = ActivationNoise(Grid(-1, 1, 1 / 128), None)
    assert (noise.clipped, noise.spread, noise.outlier) == (0, 0, 1)
    noise.add(np.zeros((0,), np.float32))
    noise.add(np.array([np.inf, 0.5], np.float32))
    assert noise.clipped == 0
    assert float(noise.signal.sum()) == 0.25
    assert outlier(np.array([0.0, 0.0, 1.0, 1.0, 9.0])) == 9


def test_what_a_range_from_zero_cuts_off_behind_an_operator_is_a_relu(ort_run: MakeRun) -> None:
    b = GraphBuilder("cut")
    x = b.input("x", (1, CHANNELS, 6, 6))
    step, zero = b.constant(np.float32(0.04)), b.constant(np.uint8(0))
    x = b.node("Conv", x, b.weight(CHANNELS, CHANNELS, 1, 1))
    x = b.node("DequantizeLinear", b.node("QuantizeLinear", x, step, zero), step, zero)
    w = b.constant(np.ones((8, CHANNELS, 1, 1), np.int8))
    w = b.node("DequantizeLinear", w, b.constant(np.float32(0.1)), b.constant(np.int8(0)))
    b.output(b.node("Conv", x, w, name="conv"), "y")
    model = b.build()
    (found,) = diagnose(model, ort_run(tapped(model, ["conv"])), [{"x": x} for x in values()], nodes=["conv"])
    assert found.clipped < 0.01
    assert found.cause == "rounding"
