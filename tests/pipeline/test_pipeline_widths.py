"""Layers whose few bits do the most damage get 8 of them, for so many bytes as were allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from msgspec.structs import replace
from tests.pipeline.quantize_nets import BEST, NEAREST, ORT, material_of, noise_of

import edgewise
from edgewise.errors import RecipeError
from edgewise.formats.onnx import to_bytes
from edgewise.pipeline.quantize import Decision, Quantizer
from edgewise.pipeline.widths import worth_more_bits
from edgewise.records.candidate import Candidate, Fuse, Quantize, RunOptions
from edgewise.records.tensors import Feeds
from edgewise.testing.graphs import GraphBuilder, random_feeds

WIDTH = 128


def spoilt(*, seed: int = 0) -> ir.Model:
    """Return four layers of one size; in the third, a weight of each output is 30 times as large as the others.

    Its 4-bit integers are next to nothing for all the others. What it is multiplied with is small.
    """
    b, draw = GraphBuilder("spoilt", seed=seed), np.random.default_rng(seed)
    value = b.input("x", (1, WIDTH))
    for index in range(4):
        weight = draw.standard_normal((WIDTH, WIDTH)).astype(np.float32) / np.float32(np.sqrt(WIDTH))
        if index == 1:
            weight[0] /= 300
        if index == 2:
            weight[:, 0] *= 30
        value = b.node("Gemm", value, b.constant(weight), b.weight(WIDTH, fan_in=16), name=f"layer{index}", transB=1)
        value = b.node("Tanh", value, name=f"bend{index}") if index < 3 else value
    b.output(value, "y", (1, WIDTH))
    return b.build()


def feeds(count: int = 16) -> list[Feeds]:
    return [random_feeds(spoilt(), seed=seed) for seed in range(count)]


def widths(decision: Decision) -> list[int]:
    return [weight.bits for weight in decision.plan.weights]


@pytest.mark.parametrize("scheme", ["w4", "w4a8"])
def test_the_layer_that_suffers_most_gets_8_bits(scheme: str) -> None:
    quantizer = Quantizer(material_of(spoilt(), feeds()), ORT)
    uniform = quantizer.decide(replace(NEAREST, scheme=scheme))
    assert widths(uniform) == [4, 4, 4, 4]
    mixed = quantizer.decide(replace(NEAREST, scheme=scheme, extra_size=0.25))
    assert widths(mixed) == [4, 4, 8, 4]
    assert mixed.noise < 0.5 * uniform.noise
    assert mixed.noise == pytest.approx(noise_of(quantizer, mixed))
    assert mixed.wide == (mixed.plan.weights[2].name,)
    assert mixed.wide[0] in mixed.trials[-1].node
    (note,) = [decline for decline in mixed.plan.declines if "8 bits" in decline.reason]
    assert (note.node, note.reason) == ("layer2", "its weights have 8 bits: fewer do more damage here than elsewhere")


def test_the_file_grows_by_no_more_than_was_asked_for() -> None:
    quantizer = Quantizer(material_of(spoilt(), feeds()), ORT)
    small = len(to_bytes(quantizer.model(quantizer.decide(replace(NEAREST, scheme="w4")))))
    one = 4 * WIDTH * WIDTH // 8  # bytes that four more bits take in one layer
    for layers, share in ((0, 0.2), (1, 0.3), (2, 0.5), (4, 1.0)):
        decision = quantizer.decide(replace(NEAREST, scheme="w4", extra_size=share))
        assert widths(decision).count(8) == layers
        assert len(to_bytes(quantizer.model(decision))) == pytest.approx(small + layers * one, abs=200)


def test_what_is_wider_is_rounded_again_with_the_rest() -> None:
    quantizer = Quantizer(material_of(spoilt(), feeds(32)), ORT)
    decision = quantizer.decide(replace(BEST, scheme="w4", extra_size=0.25))
    assert widths(decision) == [4, 4, 8, 4]
    assert "second-order rounding" in decision.trials[-1].node
    assert decision.noise <= min(trial.nsr for trial in decision.trials)
    assert len(set(decision.plan.declines)) == len(decision.plan.declines)


def test_8_bits_have_nothing_to_gain() -> None:
    quantizer = Quantizer(material_of(spoilt(), feeds()), ORT)
    step = replace(NEAREST, scheme="w8")
    assert quantizer.decide(replace(step, extra_size=0.5)) == quantizer.decide(step)


def test_weights_that_saturate_in_pairs_get_7_bits() -> None:
    quantizer = Quantizer(material_of(spoilt(), feeds()), dataclasses.replace(ORT, exact_product_bits=7))
    decision = quantizer.decide(replace(NEAREST, scheme="w4a8", extra_size=0.25))
    assert widths(decision) == [4, 4, 7, 4]


def test_where_time_is_short_all_have_the_bits_that_were_asked_for() -> None:
    notes: list[str] = []
    quantizer = Quantizer(material_of(spoilt(), feeds()), ORT, left_s=lambda: 1e-6, note=notes.append)
    assert not quantizer.decide(replace(NEAREST, scheme="w4", extra_size=0.25)).wide
    assert any("which weights need more bits" in note for note in notes)


def test_weights_that_two_layers_read_count_once() -> None:
    b = GraphBuilder("shared")
    weight = b.weight(WIDTH, WIDTH)
    value = b.node("Gemm", b.input("x", (1, WIDTH)), weight, name="one", transB=1)
    b.output(b.node("Gemm", b.node("Tanh", value), weight, name="other", transB=1), "y", (1, WIDTH))
    model = b.build()
    quantizer = Quantizer(material_of(model), ORT)
    decision = quantizer.decide(replace(NEAREST, scheme="w4", extra_size=1.0))
    assert widths(decision) == [8, 8]
    assert len(decision.wide) == 1


@pytest.mark.parametrize(
    ("damages", "share", "expected"),
    [
        ((1.0, 1.0, 5.0, 1.0), 0.25, (2,)),
        ((1.0, 2.0, 5.0, 1.0), 0.5, (1, 2)),
        ((0.0, 0.0, 0.0, 0.0), 1.0, ()),
        ((1.0, 1.0, 1.0, 1.0), 0.0, ()),
    ],
)
def test_the_knapsack(damages: Sequence[float], share: float, expected: tuple[int, ...]) -> None:
    quantizer = Quantizer(material_of(spoilt(), feeds(2)), ORT)
    plan = quantizer.decide(replace(NEAREST, scheme="w4")).plan
    names = [weight.name for weight in plan.weights]
    step = Quantize(scheme="w4", extra_size=share)
    found = worth_more_bits(quantizer.material.model, plan, ORT, dict(zip(names, damages, strict=True)), step)
    assert found == tuple(names[index] for index in expected)


def test_it_is_asked_for_by_name() -> None:
    step = Quantize(scheme="w4", ranges="output", rounding="second-order", extra_size=0.15)
    assert Candidate(steps=(Fuse(), step), backend="ort", options=RunOptions()).name == "ort w4-wider15"
    samples = [feed["x"][0] for feed in feeds(4)]
    uniform, mixed = (edgewise.quantize(spoilt(), samples, "w4", extra_size=share) for share in (0.0, 0.3))
    assert len(to_bytes(uniform)) < len(to_bytes(mixed))
    with pytest.raises(RecipeError, match=r"`extra_size` has to be a share of at least 0. Received -1"):
        edgewise.quantize(spoilt(), samples, "w4", extra_size=-1)
