"""Sequential rounding: what it improves, what each layer sees, and what it leaves alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest
from msgspec.structs import replace

from edgewise.analysis.target import Target
from edgewise.compress.gram import Moments
from edgewise.compress.quantize import sequence
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.plan import Plan, observed_tensors, plan
from edgewise.compress.quantize.sequence import round_weights
from edgewise.compress.runner import Opener
from edgewise.compress.statistics import collect, observe
from edgewise.records.candidate import Quantize
from edgewise.records.tensors import Array, Feeds, Run
from edgewise.testing.graphs import GraphBuilder

MakeRun = Callable[[ir.Model], Run]


def correlated_net() -> ir.Model:
    """Return three layers whose inputs are correlated, which is what second-order rounding makes use of."""
    draw = np.random.default_rng(3)
    b = GraphBuilder("correlated")
    b.input("x", [1, 6, 8, 8])
    first = b.node("Relu", b.node("Conv", "x", b.constant(draw.standard_normal((16, 6, 3, 3)).astype(np.float32))))
    second = b.node("Relu", b.node("Conv", first, b.constant(draw.standard_normal((16, 16, 1, 1)).astype(np.float32))))
    pooled = b.node("Flatten", b.node("GlobalAveragePool", second))
    b.output(b.node("MatMul", pooled, b.constant(draw.standard_normal((16, 5)).astype(np.float32))), "y")
    return b.build()


def samples(count: int, seed: int = 0) -> list[Feeds]:
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((6, 6)).astype(np.float32)
    smooth = [np.repeat(np.repeat(draw.standard_normal((6, 4, 4)), 2, 1), 2, 2) for _ in range(count)]
    return [{"x": np.einsum("ij,jhw->ihw", mixing, one.astype(np.float32))[None]} for one in smooth]


def planned(model: ir.Model, target: Target, make_run: MakeRun, bits: int) -> Plan:
    names = observed_tensors(model, target)
    made = collect(make_run(observe(model, names)), samples(24), names)
    target = dataclasses.replace(target, exact_product_bits=bits)
    return plan(model, made, target, Quantize(ranges="min-max"))


def opener(make_run: MakeRun, opened: list[ir.Model] | None = None) -> Opener:
    @contextmanager
    def open_model(model: ir.Model) -> Iterator[Run]:
        if opened is not None:
            opened.append(model)
        yield make_run(model)

    return open_model


def noise(model: ir.Model, quantized: ir.Model, make_run: MakeRun) -> float:
    """Return the squared error relative to the squared output, on samples that nothing was fitted to."""
    run, other = make_run(model), make_run(quantized)
    pairs = [(run(feed)["y"], other(feed)["y"]) for feed in samples(40, seed=77)]
    return float(sum(np.sum((a - b) ** 2) for a, b in pairs) / sum(np.sum(a**2) for a, _ in pairs))


@pytest.mark.parametrize("bits", [3, 4])
def test_few_bits_lose_much_less_than_to_the_nearest(bits: int, needs_output_pairs: Target, ort_run: MakeRun) -> None:
    model = correlated_net()
    nearest = planned(model, needs_output_pairs, ort_run, bits)
    rounded = round_weights(model, nearest, opener(ort_run), samples(32, seed=5))
    before, after = (noise(model, apply(model, one), ort_run) for one in (nearest, rounded))
    assert after < before / 2
    for weight in rounded.weights:
        assert weight.integers is not None
        assert np.abs(weight.integers.numpy().astype(int)).max() <= 2 ** (bits - 1) - 1


def test_a_layer_sees_what_the_quantized_layers_before_it_make(
    needs_output_pairs: Target, ort_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[tuple[Array, Array]]] = {}
    add = Moments.add

    def spy(self: Moments, x: Array, x_hat: Array, *, sample: int) -> None:
        seen.setdefault(id(self), []).append((x, x_hat))
        add(self, x, x_hat, sample=sample)

    monkeypatch.setattr(Moments, "add", spy)
    model = correlated_net()
    nearest = planned(model, needs_output_pairs, ort_run, 4)
    feeds = samples(6)
    rounded = round_weights(model, nearest, opener(ort_run), feeds)
    last = list(seen.values())[-1]
    name = rounded.weights[-1].activation
    # What the last layer's moments got is what the finished model gives there, and not what the float model does.
    finished = apply(model, rounded)
    reader = next(node for node in finished.graph if node.outputs[0].name == rounded.weights[-1].node)
    behind = reader.inputs[0]
    assert behind is not None
    assert behind.name is not None
    run_float, run_quantized = ort_run(observe(model, [name])), ort_run(observe(finished, [behind.name]))
    step = next(tensor.scale for tensor in rounded.tensors if tensor.name == name)
    for (x, x_hat), feed in zip(last, feeds, strict=True):
        np.testing.assert_allclose(x, run_float(feed)[name], rtol=1e-5, atol=1e-6)
        # One step: the runtime may round a value at a border between two integers the other way.
        np.testing.assert_allclose(x_hat, run_quantized(feed)[behind.name], atol=1.01 * step)
        assert np.abs(x - x_hat).max() > step


def test_layers_that_read_one_tensor_share_its_runs(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    opened: list[ir.Model] = []
    draw = np.random.default_rng(1)
    b = GraphBuilder("heads")
    b.input("x", [1, 6, 8, 8])
    stem = b.node("Relu", b.node("Conv", "x", b.constant(draw.standard_normal((8, 6, 1, 1)).astype(np.float32))))
    heads = [b.node("Conv", stem, b.constant(draw.standard_normal((4, 8, 1, 1)).astype(np.float32))) for _ in range(3)]
    b.output(b.node("Concat", *heads, axis=1), "y")
    model = b.build()
    round_weights(model, planned(model, needs_output_pairs, ort_run, 8), opener(ort_run, opened), samples(3))
    # The stem reads the model's input: nothing has to run for it.
    assert len(opened) == 2


def test_what_has_no_second_order_keeps_its_nearest_integers_and_says_so(
    needs_output_pairs: Target, ort_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence, "moments_for", lambda *_: "it is too wide")
    model = correlated_net()
    nearest = planned(model, needs_output_pairs, ort_run, 8)
    rounded = round_weights(model, nearest, opener(ort_run), samples(3))
    assert rounded.weights == nearest.weights
    reasons = [decline.reason for decline in rounded.declines]
    assert reasons[-3:] == ["its weights are rounded to the nearest integers: it is too wide"] * 3


@pytest.mark.filterwarnings("error")
def test_inputs_too_large_for_moments_keep_the_nearest_integers_and_say_so(
    needs_output_pairs: Target, ort_run: MakeRun
) -> None:
    model = correlated_net()
    nearest = planned(model, needs_output_pairs, ort_run, 8)
    large = [{"x": feed["x"] * np.float32(1e30)} for feed in samples(3)]
    rounded = round_weights(model, nearest, opener(ort_run), large)
    for before, after in zip(nearest.weights, rounded.weights, strict=True):
        assert (before.scales, before.bias_shift) == (after.scales, after.bias_shift)
    # Only the first layer sees them: the others see what its range leaves.
    reasons = [decline.reason for decline in rounded.declines[len(nearest.declines) :]]
    assert reasons[0] == "its weights are rounded to the nearest integers: inputs above 1.1e+15 have no second moments"


def test_layers_that_share_weights_are_rounded_each_for_itself(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    draw = np.random.default_rng(0)
    b = GraphBuilder("shared")
    b.input("x", [1, 6, 8, 8])
    weight = b.constant(draw.standard_normal((6, 6, 1, 1)).astype(np.float32))
    b.output(b.node("Conv", b.node("Relu", b.node("Conv", "x", weight)), weight), "y")
    model = b.build()
    rounded = round_weights(model, planned(model, needs_output_pairs, ort_run, 4), opener(ort_run), samples(16))
    one, other = (made.integers for made in rounded.weights)
    assert one != other
    assert noise(model, apply(model, rounded), ort_run) < 0.1


def test_a_plan_without_weights_stays_as_it_is(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    model = correlated_net()
    nothing = replace(planned(model, needs_output_pairs, ort_run, 8), weights=())
    assert round_weights(model, nothing, opener(ort_run), samples(2)) == nothing
