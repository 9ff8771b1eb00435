"""Beyond int8: how much faster the pruned int8 model is than the best int8 model of the whole network."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact
from edgewise.measure.accuracy import Scores
from edgewise.measure.latency import ratio
from edgewise.records.candidate import Precision
from edgewise.records.certificate import Certificate
from edgewise.records.measurements import Latency
from pruning_models import (
    Extent,
    Split,
    accuracy_row,
    compiled,
    drop_row,
    failure,
    macs,
    points,
    pruned,
    say,
    split,
    wanted,
    why_no_recovery,
)
from quantization_cost import in_turns
from quantized import ToolError, graph_of, ready_backends
from rows import Row

FEEDS: Final = 8
"""Samples that are run in rotation while latency is measured."""


@dataclass(frozen=True)
class Attempt:
    """One pruned int8 model that is asked for.

    Attributes:
        words: How the rows name it.
        time: Measured time that is aimed at, as a share of the whole model's: a little less than the ask.
        speed_up: How much faster than the whole model's best int8 it has to be.
        drop: Largest drop against float in points.
        fewer_macs: How many times fewer multiply-accumulates do instead of speed; None where speed alone counts.
        recovers: Whether it is trained on the float model's answers.
    """

    words: str
    time: float
    speed_up: float
    drop: float
    fewer_macs: float | None = None
    recovers: bool = False


ATTEMPTS: Final = {
    "resnet56": (
        Attempt("pruned, int8", 0.75, 1.25, 1.0),
        Attempt("pruned, recovered, int8", 0.66, 1.4, 1.0, recovers=True),
    ),
    "ecg_cnn": (
        Attempt("pruned, int8", 0.45, 2.0, 0.3, fewer_macs=3.0),
        Attempt("pruned, recovered, int8", 0.45, 2.0, 0.3, fewer_macs=3.0, recovers=True),
    ),
}


@dataclass(frozen=True)
class Measured:
    """One attempt's result.

    Attributes:
        proof: Its drop against float.
        fewer_macs: Multiply-accumulates of the whole model as a multiple of its own.
    """

    proof: Certificate
    fewer_macs: float


def beyond_int8(
    zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str], extent: Extent
) -> list[Row]:
    """Return the rows of speed beyond int8.

    Args:
        zoo: Folder of the zoo.
        names: Models; None for all.
        command: The command that measures it again.
        left_out: Gets a sentence for everything that could not be measured.
        extent: How long it is measured.
    """
    rows: list[Row] = []
    for name in wanted(ATTEMPTS, names):
        say(f"{name}: beyond int8")
        rows += _of_one(split(zoo, name, extent), ATTEMPTS[name], f"{command} --only {name}", left_out, extent)
    return rows


def _of_one(parts: Split, attempts: Sequence[Attempt], command: str, left_out: list[str], extent: Extent) -> list[Row]:
    name = parts.subject.name
    original = parts.score(compiled(parts.subject.model, "ort"))
    whole, rows = _whole(parts, original, command, left_out)
    rows.insert(0, accuracy_row(f"{name}: float", original, None, command))
    if not whole:
        return rows
    made = {
        f"float in {backend}, {precision}": compiled(parts.subject.model, backend, precision)
        for backend in ready_backends()
        for precision in precisions(backend)
    }
    made |= whole
    best = whole[fastest(_timed(parts, made, left_out, extent.timing_s / 2), whole)]
    measured: dict[str, Measured] = {}
    for attempt in attempts:
        reason = why_no_recovery() if attempt.recovers else ""
        if reason:
            left_out.append(f"{name}: {attempt.words}: {reason}")
            continue
        say(f"{name}: {attempt.words}")
        try:
            made[attempt.words], measured[attempt.words] = _attempted(parts, attempt, original, best, extent)
        except ToolError as error:
            rows.append(failure(f"{name}: {attempt.words}", error, command, left_out))
    latencies = _timed(parts, made, left_out, extent.timing_s)
    return rows + attempt_rows(name, attempts, tuple(whole), latencies, measured, command=command)


def _whole(parts: Split, original: Scores, command: str, left_out: list[str]) -> tuple[dict[str, Artifact], list[Row]]:
    """Return the int8 models of the whole network, in every backend and precision, and their drops."""
    whole: dict[str, Artifact] = {}
    rows = []
    for backend in ready_backends():
        words = f"int8 in {backend}"
        try:
            graph = graph_of(parts.subject.model, parts.calibration, "w8a8", backend)
            for precision in precisions(backend):
                whole[f"{words}, {precision}"] = compiled(graph, backend, precision)
        except ToolError as error:
            rows.append(failure(f"{parts.subject.name}: {words}", error, command, left_out))
    for words, artifact in whole.items():
        rows.append(drop_row(f"{parts.subject.name}: {words}", parts.proof(original, artifact), None, command))
    return whole, rows


def precisions(backend: str) -> list[Precision]:
    """Return the types in which a backend computes what is not int8: the best int8 model may need the shorter one."""
    known: tuple[Precision, ...] = get_args(Precision)
    return [precision for precision in known if precision in registry.get(backend).precisions()]


def _attempted(
    parts: Split, attempt: Attempt, original: Scores, best: Artifact, extent: Extent
) -> tuple[Artifact, Measured]:
    """Prune, quantize and score for the backend and precision of the whole network's best int8 model."""
    backend = best.spec.backend
    goal: dict[str, float] = {"latency": attempt.time}
    if attempt.recovers:
        goal["recover_s"] = extent.recover_s
    model = pruned(parts.subject.model, parts.samples, backend=backend, **goal)
    graph = graph_of(model, parts.calibration, "w8a8", backend)
    artifact = compiled(graph, backend, best.spec.options.precision)
    return artifact, Measured(parts.proof(original, artifact), macs(parts.subject.model) / macs(model))


def _timed(parts: Split, made: Mapping[str, Artifact], left_out: list[str], seconds: float) -> dict[str, Latency]:
    feeds = [parts.subject.dataset.feeds(int(index)) for index in parts.scored[:FEEDS]]
    with tempfile.TemporaryDirectory(prefix="edgewise-pruning-") as folder:
        return in_turns(made, feeds, Path(folder), left_out, seconds=seconds)


def fastest(latencies: Mapping[str, Latency], names: Iterable[str]) -> str:
    """Return the fastest of some models; those that were not timed come last."""
    return min(names, key=lambda words: latencies[words].median_us if words in latencies else float("inf"))


def attempt_rows(
    name: str,
    attempts: Sequence[Attempt],
    whole: Sequence[str],
    latencies: Mapping[str, Latency],
    measured: Mapping[str, Measured],
    *,
    command: str,
) -> list[Row]:
    """Return all latencies, and for each attempt its drop and how much faster it is than the best of `whole`.

    Args:
        name: The model.
        attempts: What was asked for.
        whole: Names of the whole network's int8 models.
        latencies: Of everything, from the same rounds.
        measured: What came of the attempts that could be made.
        command: The command that measures it again.
    """
    rows = [
        Row(f"{name}: latency, {words}", latency.median_us / 1e3, "ms", "none", True, latency.runs, command)
        for words, latency in latencies.items()
    ]
    timed = [words for words in whole if words in latencies]
    for attempt in attempts:
        if attempt.words not in measured:
            continue
        found = measured[attempt.words]
        what = f"{name}: {attempt.words}"
        rows.append(drop_row(what, found.proof, attempt.drop, command))
        kept = points(found.proof) <= attempt.drop
        fewer = attempt.fewer_macs is not None and found.fewer_macs >= attempt.fewer_macs
        if attempt.words in latencies and timed:
            best = fastest(latencies, timed)
            gain = ratio(latencies[best], latencies[attempt.words])
            ask = f">= {attempt.speed_up:g}{_or_macs(attempt)} at <= {attempt.drop:g} points"
            ask += f" ({gain.low:.2f} to {gain.high:.2f})"
            met = kept and (gain.value >= attempt.speed_up or fewer)
            rows.append(Row(f"{what} against {best}", gain.value, "x", ask, met, gain.rounds, command))
        else:
            rows.append(Row(f"{what} could not be timed", 1, "failures", "0", False, 1, command))
        rows.append(Row(f"{what}, fewer MACs", found.fewer_macs, "x", "none", True, 1, command))
    return rows


def _or_macs(attempt: Attempt) -> str:
    return "" if attempt.fewer_macs is None else f", or {attempt.fewer_macs:g}x fewer MACs,"
