"""Latency, memory and cold start of models and bundles, measured in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from edgewise.errors import DataError, RecipeError
from edgewise.measure.latency import measure_group, ratio
from edgewise.measure.machine import describe
from edgewise.measure.memory import cold_start_and_memory
from edgewise.measure.process import Entry
from edgewise.pipeline.inputs import preprocessing_of
from edgewise.pipeline.progress import Progress, Quiet
from edgewise.pipeline.request import DataRequest
from edgewise.pipeline.subjects import Subject, is_bundle, open_subject
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import Record
from edgewise.records.machine import Machine
from edgewise.records.measurements import ColdStart, Latency, PeakMemory, Ratio
from edgewise.records.tensors import Array, Feeds, Port
from edgewise.samples.bind import bind
from edgewise.samples.open import open_source
from edgewise.samples.state import first_step

FEEDS: Final = 8
"""Samples that are timed in rotation."""


class BenchRow(Record, frozen=True, kw_only=True):
    """One model or bundle.

    Attributes:
        name: What was measured, and how it was run.
        latency: Its latency.
        speedup: Against the first row, from the same rounds.
        cold_start: Cold start.
        memory: Peak memory of a fresh process.
        size_bytes: Bytes of the artifact.
    """

    name: str
    latency: Latency
    speedup: Ratio
    cold_start: ColdStart
    memory: PeakMemory
    size_bytes: int


class Bench(Record, frozen=True, kw_only=True):
    """All rows, and the machine on which they were measured."""

    rows: tuple[BenchRow, ...]
    machine: Machine


def bench(
    paths: Sequence[Path],
    *,
    data: DataRequest | None,
    shapes: dict[str, tuple[int | None, ...]],
    backends: Sequence[str],
    threads: int,
    budget_s: float,
    progress: Progress | None = None,
) -> Bench:
    """Measure models and bundles against each other.

    Args:
        paths: Model files and bundles.
        data: Samples to run on; None for random numbers.
        shapes: Shapes of dynamic inputs.
        backends: Where model files are run: each file on each of them.
        threads: Threads of one inference for model files; a bundle has its own number.
        budget_s: Seconds for the timing.
        progress: Hears what is done.

    Raises:
        UserError: If a model, bundle, backend or sample cannot be used.
    """
    progress = progress or Quiet()
    if budget_s <= 0:
        raise RecipeError(f"`--time` has to be positive. Received {budget_s:g} seconds.")
    progress.stage("Reading models")
    options = RunOptions(threads=threads)
    subjects: list[Subject] = []
    for path in paths:
        namesakes = {other for other in paths if other.name == path.name} - {path}
        for backend in backends[:1] if is_bundle(path) else backends:
            subject = open_subject(path, shapes=shapes, backend=backend, options=options)
            if namesakes:
                subject = replace(subject, name=subject.name.replace(path.name, str(path), 1))
            subjects.append(subject)
    feeds = _feeds(subjects[0], data)
    with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as scratch:
        entries = [_entry(subject, Path(scratch) / str(index)) for index, subject in enumerate(subjects)]
        progress.stage(f"Timing in turns ({budget_s:.0f} s)")
        latencies = []
        for result in measure_group(entries, feeds, budget_s=budget_s):
            if not isinstance(result, Latency):
                raise result
            latencies.append(result)
        progress.stage("Cold start and memory", len(entries))
        rows = []
        for subject, entry, latency in zip(subjects, entries, latencies, strict=True):
            cold_start, memory = cold_start_and_memory(entry, feeds)
            progress.step(subject.name)
            rows.append(
                BenchRow(
                    name=subject.name,
                    latency=latency,
                    speedup=ratio(latencies[0], latency),
                    cold_start=cold_start,
                    memory=memory,
                    size_bytes=subject.artifact.size_bytes,
                )
            )
    return Bench(rows=tuple(rows), machine=describe())


def _entry(subject: Subject, folder: Path) -> Entry:
    subject.artifact.write(folder)
    return Entry(subject.name, folder, subject.artifact.spec)


def _feeds(subject: Subject, data: DataRequest | None) -> list[Feeds]:
    if data is None:
        return [random_feeds(subject.inputs, seed) for seed in range(FEEDS)]
    preprocessing = subject.preprocessing or preprocessing_of(data)
    state = data.state or dict(subject.state)
    dataset = bind(open_source(data.samples, preprocessing, label=data.label), subject.inputs, state=state)
    return [first_step(dataset.feeds(index), state) for index in range(min(FEEDS, len(dataset)))]


def random_feeds(inputs: Sequence[Port], seed: int) -> dict[str, Array]:
    """Return normal numbers for inputs of real numbers, and zeros for all others: zero is a legal index everywhere.

    Raises:
        DataError: If an input has dynamic dimensions.
    """
    draw = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for port in inputs:
        shape = [size for size in port.shape if isinstance(size, int)]
        if len(shape) != len(port.shape):
            raise DataError(
                f"Random numbers need a fixed shape, but the input `{port.name}` has {list(port.shape)}.",
                hint=f"Give samples with `--data`, or the shape with `--shape {port.name}=...`.",
            )
        kind = np.dtype(port.dtype)
        feeds[port.name] = draw.standard_normal(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, dtype=kind)
    return feeds
