"""Where the noise of a quantized candidate arises: each layer against the same graph in floating point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Final

import msgspec
import numpy as np
import onnx_ir as ir

from edgewise.analysis.values import with_inferred_shapes
from edgewise.compress.histogram import Histogram
from edgewise.compress.quantize.causes import ActivationNoise, Diagnosis, activations, diagnose, tapped
from edgewise.compress.quantize.placement import final, label
from edgewise.compress.quantize.restore import integers_of, matched, quantized_nodes, restored
from edgewise.compress.quantize.sensitivity import noise_to_signal
from edgewise.compress.statistics import observe
from edgewise.errors import EdgewiseError
from edgewise.pipeline.culprits import closest
from edgewise.pipeline.job import Job
from edgewise.pipeline.judge import open_judge
from edgewise.records.candidate import Candidate, Quantize
from edgewise.records.quantization import BINS, LayerNoise, QuantizationNoise, TensorHistogram
from edgewise.records.tensors import Array, Feeds
from edgewise.samples.state import steps

SAMPLES: Final = 16
"""Calibration samples on which the noise is measured: the ratios then differ by tenths of a decibel (empirical)."""

HISTOGRAMS: Final = 6
"""Activations of which the record keeps a histogram."""


def quantization_noise(job: Job, candidate: Candidate) -> QuantizationNoise | None:
    """Return where the noise of a candidate arises; None for one that is not quantized, or where it cannot be measured.

    Args:
        job: The run. What was measured once is not measured again.
        candidate: One of its candidates that was built.
    """
    at = next((index for index, step in enumerate(candidate.steps) if isinstance(step, Quantize)), None)
    if at is None:
        return None
    stored = job.workspace.store.get("noise", candidate.name, QuantizationNoise)
    if stored is not None:
        return stored
    job.progress.stage("Measuring quantization noise")
    try:
        quantized, _ = job.workshop.graph(candidate)
        before, _ = job.workshop.graph(msgspec.structs.replace(candidate, steps=candidate.steps[:at]))
        if not quantized_nodes(quantized):
            return None
        made = measure(quantized, before, _feeds(job, before), name=candidate.name)
    except EdgewiseError as error:
        job.progress.note(f"No quantization noise for `{candidate.name}`: {error.message}")
        return None
    job.workspace.store.put("noise", candidate.name, made)
    return made


def _feeds(job: Job, model: ir.Model) -> list[Feeds]:
    split = job.data.calibrate
    with closing(open_judge(model)) as session:
        return [
            step
            for index in split.indices[:SAMPLES]
            for step in steps(session.run, split.dataset.feeds(int(index)), split.dataset.state)
        ]


def measure(quantized: ir.Model, before: ir.Model, feeds: Sequence[Feeds], *, name: str) -> QuantizationNoise:
    """Return where the noise of a QDQ graph arises.

    Args:
        quantized: The graph.
        before: The model from which it was made, before its channels were scaled, if they were. Where the weights of
            a layer are not found in it all the same, the graph with all of its layers restored takes its place: then
            what rounding did to the weights is no part of the noise.
        feeds: Samples, at least one.
        name: What the record is called.

    Raises:
        EdgewiseError: If a graph cannot be run.
    """
    quantized = with_inferred_shapes(quantized)
    nodes = quantized_nodes(quantized)
    before, _ = closest(before, quantized)
    weights = len(set(matched(quantized, before)) & set(nodes)) == _stored_weights(quantized, nodes)
    reference = before if weights else restored(quantized, nodes)
    ours, theirs = _outputs(quantized, nodes), _outputs(reference, nodes)
    pairs = {node: (ours[node], theirs[node]) for node in nodes if node in ours and node in theirs}
    sums = {node: [0.0, 0.0] for node in pairs}
    seen = activations(quantized, nodes)
    histograms = {tensor: Histogram() for tensors in seen.values() for tensor in tensors}
    with ExitStack() as stack:
        given = observe(tapped(quantized, nodes), [one for one, _ in pairs.values()])
        run = stack.enter_context(closing(open_judge(given))).run
        right = stack.enter_context(closing(open_judge(observe(reference, [other for _, other in pairs.values()])))).run
        for feed in feeds:
            found, expected = run(feed), right(feed)
            for node, (one, other) in pairs.items():
                if found[one].shape == expected[other].shape:
                    noise, signal = noise_to_signal(expected[other], found[one])
                    sums[node][0] += noise
                    sums[node][1] += signal
            for tensor, histogram in histograms.items():
                _count(histogram, feed[tensor] if tensor in feed else found[tensor])
        diagnoses = diagnose(quantized, run, feeds, nodes=nodes, reference=reference)
    operators = {label(node): node.op_type for node in quantized.graph}
    return QuantizationNoise(
        candidate=name,
        samples=len(feeds),
        layers=tuple(
            LayerNoise(
                node=one.node,
                operator=operators[one.node],
                sqnr_db=_sqnr(*sums[one.node]) if one.node in sums else None,
                cause=one.cause,
                why=one.words,
            )
            for one in diagnoses
        ),
        histograms=tuple(_worst(diagnoses, seen, histograms)),
        weights=weights,
    )


def _stored_weights(model: ir.Model, nodes: Sequence[str]) -> int:
    """Return how many of the nodes have weights that are stored as integers."""
    wanted = set(nodes)
    return sum(
        label(node) in wanted and any(integers_of(value) is not None for value in node.inputs) for node in model.graph
    )


def _outputs(model: ir.Model, nodes: Sequence[str]) -> dict[str, str]:
    """Return the tensor that each node makes, behind its fused activations, by label."""
    wanted = set(nodes)
    return {label(node): final(node.outputs[0]).name or "" for node in model.graph if label(node) in wanted}


def _sqnr(noise: float, signal: float) -> float | None:
    """Return the ratio in decibels; None without any noise, and for noise without any signal, which has no ratio."""
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def _count(histogram: Histogram, values: Array) -> None:
    real = np.asarray(values, np.float32).reshape(-1)
    real = real[np.isfinite(real)]
    if real.size:
        histogram.add(real, float(real.min()), float(real.max()))


def _worst(
    diagnoses: Sequence[Diagnosis],
    seen: Mapping[str, Mapping[str, ActivationNoise]],
    histograms: Mapping[str, Histogram],
) -> Iterator[TensorHistogram]:
    """Yield the histograms of the activations that suffer most, each tensor once."""
    ranked = sorted(diagnoses, key=lambda one: (-one.activation_nsr, one.node))
    drawn: set[str] = set()
    for one in ranked:
        for tensor, noise in seen[one.node].items():
            if tensor not in drawn and len(drawn) < HISTOGRAMS and histograms[tensor].count:
                drawn.add(tensor)
                yield _histogram(one, tensor, noise, histograms[tensor])


def _histogram(one: Diagnosis, tensor: str, noise: ActivationNoise, found: Histogram) -> TensorHistogram:
    group = -(-len(found.counts) // BINS)
    centres = (found.edges[:-1] + found.edges[1:]) / 2
    outside = (centres < noise.grid.low - noise.grid.scale / 2) | (centres > noise.grid.high + noise.grid.scale / 2)
    padded = np.pad(found.counts, (0, -len(found.counts) % group)).reshape(-1, group)
    return TensorHistogram(
        tensor=tensor,
        node=one.node,
        start=float(found.edges[0]),
        width=found.width * group,
        counts=tuple(int(count) for count in padded.sum(axis=1)),
        low=noise.grid.low,
        high=noise.grid.high,
        clipped=float(found.counts[outside].sum() / found.count),
        why=one.words,
    )
