"""`edgewise.quantize`: what is asked for arrives, and every scheme works from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.quantize_nets import Times, cepstra, cepstral_feeds, decides

import edgewise
from edgewise.compress.quantize.recipe import GROUP_SIZES
from edgewise.compress.quantize.restore import quantized_nodes
from edgewise.compress.quantize.sensitivity import noise_to_signal
from edgewise.errors import RecipeError
from edgewise.formats.onnx import to_bytes
from edgewise.passes.contract import is_legal
from edgewise.pipeline import library
from edgewise.pipeline.judge import opened
from edgewise.pipeline.quantize import Quantizer
from edgewise.pipeline.synthetic import synthetic_samples
from edgewise.records.candidate import Quantize
from edgewise.records.tensors import Array
from edgewise.testing.graphs import conv_net, mlp, quantized_conv


def pictures(count: int = 12) -> list[Array]:
    draw = np.random.default_rng(0)
    return [draw.standard_normal((3, 16, 16)).astype(np.float32) for _ in range(count)]


def sqnr_db(model: ir.Model, quantized: ir.Model, count: int = 30) -> float:
    """Return the signal-to-noise ratio of `scores` on new pictures, in decibels."""
    noise = signal = 0.0
    with opened(model) as right, opened(quantized) as given:
        for picture in np.random.default_rng(1).standard_normal((count, 1, 3, 16, 16)).astype(np.float32):
            one, other = noise_to_signal(right({"image": picture})["scores"], given({"image": picture})["scores"])
            noise, signal = noise + one, signal + other
    return -10 * float(np.log10(noise / signal))


@pytest.mark.parametrize(
    ("scheme", "types", "least_db"),
    [
        ("w8a8", {"INT8", "UINT8"}, 35),
        ("w6a8", {"INT8", "UINT8"}, 30),
        ("w4a8", {"INT8", "UINT8"}, 15),
        ("w8a16", {"INT8", "UINT16"}, 35),
        ("w4a16", {"INT8", "UINT16"}, 15),
        ("w8", {"INT8"}, 35),
        ("w4", {"INT4"}, 15),
        ("w2", {"INT2"}, 0),
    ],
)
def test_every_scheme_works_from_end_to_end(scheme: str, types: set[str], least_db: float) -> None:
    """Each bit is 6 dB; 8 bits of weights and activations leave about 40 of them here (empirical)."""
    model = conv_net()
    quantized = edgewise.quantize(model, pictures(), scheme, extra_time=0)
    assert is_legal(quantized)
    assert quantized_nodes(quantized)
    held = {value.dtype.name for value in quantized.graph.initializers.values() if value.dtype is not None}
    assert types <= held
    assert ("QuantizeLinear" in {node.op_type for node in quantized.graph}) is ("a" in scheme)
    assert sqnr_db(model, quantized) > least_db


def test_groups_of_weights_work_from_end_to_end() -> None:
    model = mlp(features=64, hidden=64)
    samples = list(np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32))
    quantized = edgewise.quantize(model, samples, f"w4g{GROUP_SIZES[1]}")
    blocks = [
        node.attributes.get_int("block_size", 0) for node in quantized.graph if node.op_type == "DequantizeLinear"
    ]
    assert GROUP_SIZES[1] in blocks


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Quantize]:
    """Return every step that is decided."""
    found: list[Quantize] = []
    decide = Quantizer.decide

    def noting(self: Quantizer, step: Quantize) -> Any:
        found.append(step)
        return decide(self, step)

    monkeypatch.setattr(Quantizer, "decide", noting)
    return found


def test_what_is_asked_for_is_passed_on(steps: list[Quantize]) -> None:
    edgewise.quantize(conv_net(), pictures(2), "w4a8", ranges="entropy", rounding="nearest", extra_time=0)
    assert steps == [Quantize(scheme="w4a8", ranges="entropy", rounding="nearest", extra_time=0)]


def test_unless_something_else_is_asked_for_the_way_that_loses_least_is_taken(
    steps: list[Quantize], times: Callable[..., Times]
) -> None:
    times()
    edgewise.quantize(conv_net(), pictures(2))
    assert steps == [Quantize(scheme="w8a8", ranges="output", rounding="second-order", extra_time=0.02)]


def test_extra_time_keeps_the_layer_in_float_that_does_the_damage(times: Callable[..., Times]) -> None:
    times()
    samples = [feed["x"][0] for feed in cepstral_feeds()]
    whole = edgewise.quantize(cepstra(), samples, extra_time=0)
    relieved = edgewise.quantize(cepstra(), samples, extra_time=0.015)
    assert set(quantized_nodes(whole)) - set(quantized_nodes(relieved)) == {"first"}


def test_without_extra_time_two_calls_give_the_same_bytes() -> None:
    first, second = (edgewise.quantize(conv_net(), pictures(), "w4a8", extra_time=0) for _ in range(2))
    assert to_bytes(first) == to_bytes(second)


def test_samples_are_read_once_and_not_before_they_are_needed() -> None:
    read: list[int] = []

    def reading() -> Iterator[Array]:
        for index, picture in enumerate(pictures()):
            read.append(index)
            yield picture
            picture.fill(np.nan)  # as a reader does that uses its buffer again

    given = edgewise.quantize(conv_net(), reading(), extra_time=0)
    assert read == list(range(12))
    assert to_bytes(given) == to_bytes(edgewise.quantize(conv_net(), pictures(), extra_time=0))


def test_without_samples_synthetic_ones_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[ir.Model] = []

    def noting(model: ir.Model) -> Any:
        drawn.append(model)
        return list(synthetic_samples(model))[:20]

    monkeypatch.setattr(library, "synthetic_samples", noting)
    model = conv_net()
    quantized = edgewise.quantize(model, None, extra_time=0)
    assert len(drawn) == 1
    assert sqnr_db(model, quantized) > 20


def test_a_refusal_names_the_first_node_and_why() -> None:
    samples = [np.zeros((8, 8, 8), np.float32)]
    with pytest.raises(RecipeError, match=r"can be quantized\. `in_q`: the model is quantized already"):
        edgewise.quantize(quantized_conv(), samples)


@pytest.mark.parametrize("scheme", ["w8a8", "w4"])
def test_a_model_that_gives_only_decisions_is_quantized(scheme: str) -> None:
    samples = list(np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32))
    quantized = edgewise.quantize(decides("argmax"), samples, scheme, extra_time=0)
    assert set(quantized_nodes(quantized)) == {"first", "last"}
    assert [value.name for value in quantized.graph.outputs] == ["y"]
