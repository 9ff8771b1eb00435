"""Nets with one weakness each, and times that a test decides: for the tests of `pipeline/quantize.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgewise.analysis.target import Target
from edgewise.backends import registry
from edgewise.compress.quantize.restore import quantized_nodes
from edgewise.compress.quantize.sensitivity import noise_to_signal
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline.judge import opened
from edgewise.pipeline.quantize import (
    Decision,
    Material,
    Quantizer,
    gather,
)
from edgewise.records.candidate import Quantize, RunOptions
from edgewise.records.tensors import Feeds
from edgewise.testing.graphs import GraphBuilder, random_feeds

ORT = registry.get("ort").target()
NEAREST = Quantize(ranges="output", rounding="nearest")
BEST = Quantize(ranges="output", rounding="second-order")


def material_of(model: ir.Model, feeds: Sequence[Feeds] | None = None, targets: Sequence[Target] = (ORT,)) -> Material:
    feeds = feeds or [random_feeds(model, seed=seed) for seed in range(16)]
    return gather(fuse(model)[0], targets, lambda _run: iter(feeds))


def noise_of(quantizer: Quantizer, decision: Decision) -> float:
    """Return the noise-to-signal ratio at the only output on all samples: what the decision says it measured."""
    noise = signal = 0.0
    with opened(quantizer.material.model) as right, opened(quantizer.model(decision)) as given:
        for feeds in quantizer.material.feeds:
            (expected,), (found,) = right(feeds).values(), given(feeds).values()
            parts = noise_to_signal(expected, found)
            noise, signal = noise + parts[0], signal + parts[1]
    return noise / signal


def cepstra(*, first: float = 0.01, seed: int = 0) -> ir.Model:
    """Return a tiny linear layer on coefficients of which the first is a hundred times larger, and larger ones behind.

    8 bits for the whole input leave next to nothing of the other coefficients, on which the answer depends.

    Args:
        first: Size of the weights of the first coefficient; those of the others have 1.
        seed: Seed of all weights.
    """
    b, draw = GraphBuilder("cepstra", seed=seed), np.random.default_rng(seed)
    weight = draw.standard_normal((12, 16)).astype(np.float32)
    weight[:, 0] *= first
    value = b.node("Gemm", b.input("x", (1, 16)), b.constant(weight), b.weight(12, fan_in=4), name="first", transB=1)
    value = b.node("Sigmoid", value, name="bend")  # not linear: nothing can be equalized through it
    value = b.node("Gemm", value, b.weight(64, 12), b.weight(64, fan_in=4), name="wide", transB=1)
    value = b.node("Relu", value, name="relu")
    b.output(b.node("Gemm", value, b.weight(10, 64), b.weight(10, fan_in=4), name="last", transB=1), "y", (1, 10))
    return b.build()


def cepstral_feeds(count: int = 24) -> list[Feeds]:
    draw = np.random.default_rng(1)
    scale = np.array([100.0] + [1.0] * 15, np.float32)
    return [{"x": (draw.standard_normal((1, 16)) * scale).astype(np.float32)} for _ in range(count)]


def uneven(*, most: float = 1000, seed: int = 0) -> ir.Model:
    """Return two convolutions between which channels differ `most`-fold in size, all of them as important.

    The function is the same for all sizes.
    """
    b, draw = GraphBuilder("uneven", seed=seed), np.random.default_rng(seed)
    sizes = np.geomspace(1, most, 16).astype(np.float32)
    first = draw.standard_normal((16, 3, 3, 3)).astype(np.float32) * sizes[:, None, None, None]
    second = draw.standard_normal((8, 16, 1, 1)).astype(np.float32) / sizes[:, None, None]
    value = b.node("Conv", b.input("image", (1, 3, 8, 8)), b.constant(first), name="first", pads=[1, 1, 1, 1])
    value = b.node("Relu", value, name="relu")
    b.output(b.node("Conv", value, b.constant(second), name="second"), "y", (1, 8, 8, 8))
    return b.build()


def chain(length: int = 12) -> ir.Model:
    """Return layers that are all of one size, each with a twelfth of the work."""
    b = GraphBuilder("chain")
    value = b.input("x", (1, 16))
    for index in range(length):
        value = b.node("Gemm", value, b.weight(16, 16), b.weight(16, fan_in=4), name=f"layer{index}", transB=1)
        value = b.node("Relu", value, name=f"relu{index}") if index < length - 1 else value
    b.output(value, "y", (1, 16))
    return b.build()


@dataclass
class Times:
    """Stands for `extra_times`: what nodes cost in float, by name.

    Attributes:
        cost: Share of the time for each node that a variant keeps in float.
        crowded: Added to the cost of a variant that keeps several.
        asked: What each variant that was timed keeps, those of one call together.
        options: How variants were run.
    """

    cost: Callable[[str], float]
    crowded: float = 0.0
    asked: list[list[set[str]]] = field(default_factory=list)
    options: list[RunOptions] = field(default_factory=list)

    def __call__(
        self, _backend: str, base: ir.Model, variants: Sequence[ir.Model], options: RunOptions, _feed: Feeds
    ) -> list[float]:
        kept = [set(quantized_nodes(base)) - set(quantized_nodes(variant)) for variant in variants]
        self.asked.append(kept)
        self.options.append(options)
        return [sum(map(self.cost, names)) + self.crowded * (len(names) > 1) for names in kept]


def decides(ending: str) -> ir.Model:
    """Return a net that gives whole numbers alone."""
    b = GraphBuilder("decides")
    value = b.node("Gemm", b.input("x", (1, 16)), b.weight(32, 16), name="first", transB=1)
    value = b.node("Gemm", b.node("Relu", value), b.weight(10, 32), name="last", transB=1)
    if ending == "greater":
        b.output(b.node("Greater", value, b.constant(np.float32(0)), name="greater"), "y", (1, 10), "bool")
        return b.build()
    value = b.node("ArgMax", value, axis=-1, name="best")
    if ending == "shifted":
        value = b.node("Add", value, b.constant(np.array(1, np.int64)), name="shift")
    b.output(value, "y", (1, 1), "int64")
    return b.build()
