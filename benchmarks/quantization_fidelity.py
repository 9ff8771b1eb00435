"""Fidelity at w8a8: how often, and by how much, quantized classifiers answer otherwise than float."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from answers import FEWEST_FLIPS, Distance, compare, pooled
from peers.quantizers import RIVALS
from quantized import ToolError, artifact_of, open_session, ours, ready_backends, rival_artifact, rival_names
from rows import Row
from zoo_models import CLASSIFIERS, Subject, open_subject

Outputs = npt.NDArray[Any]

MOST_FLIPS: Final = 0.8
"""Times the best rival's flips."""


@dataclass(frozen=True)
class Measured:
    """What all tools answer after one calibration.

    Attributes:
        indices: Which samples were evaluated.
        outputs: Outputs `[N, C]` by the tool's name.
        failed: For each tool that could not quantize, a sentence.
    """

    indices: npt.NDArray[np.int64]
    outputs: dict[str, Outputs] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def float_answers(zoo: Path, name: str) -> Outputs:
    """Return the outputs `[N, C]` of the untouched model on every labelled sample."""
    subject = open_subject(zoo, name)
    return subject.answers(subject.float_session(), np.arange(len(subject.dataset)))


def measure(zoo: Path, name: str, seed: int) -> Measured:
    """Quantize a model with every tool from the same calibration samples, and run each on the others."""
    subject = open_subject(zoo, name)
    samples, indices = subject.split(seed)
    found = Measured(indices)
    began = time.monotonic()
    for tool, answers in _quantized(subject, samples, indices):
        print(f"{name}, seed {seed}: {tool} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if isinstance(answers, ToolError):
            found.failed.append(f"{name}, seed {seed}, {answers}")
        else:
            found.outputs[tool] = answers
    return found


def _quantized(
    subject: Subject, samples: Sequence[Any], indices: npt.NDArray[np.int64]
) -> Iterator[tuple[str, Outputs | ToolError]]:
    for backend in ready_backends():
        try:
            artifact = artifact_of(subject, samples, backend)
            yield ours(backend), subject.answers(open_session(artifact), indices)
        except ToolError as error:
            yield ours(backend), error
    with tempfile.TemporaryDirectory(prefix="edgewise-rivals-") as folder:
        for rival in RIVALS:
            try:
                artifact = rival_artifact(rival, subject, samples, Path(folder))
                yield rival.name, subject.answers(open_session(artifact), indices)
            except ToolError as error:
                yield rival.name, error


def fidelity(
    zoo: Path, names: Sequence[str] | None, *, seeds: int, jobs: int, command: str, left_out: list[str]
) -> list[Row]:
    """Return the rows of fidelity.

    Args:
        zoo: Folder of the zoo.
        names: Models; all classifiers where None.
        seeds: Calibrations, each with samples of its own.
        jobs: Processes at a time.
        command: The command that measures a model's rows again, without its name.
        left_out: Gets a sentence for everything that could not be measured.
    """
    chosen = [name for name in CLASSIFIERS if names is None or name in names]
    rows: list[Row] = []
    # A fresh process for each task: nothing is kept from one to the next, and memory goes back.
    with ProcessPoolExecutor(
        max_workers=jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        originals = {name: pool.submit(float_answers, zoo, name) for name in chosen}
        quantized = {name: [pool.submit(measure, zoo, name, seed) for seed in range(seeds)] for name in chosen}
        for name in chosen:
            print(f"{name}: fidelity ...", file=sys.stderr, flush=True)
            measured = [future.result() for future in quantized[name]]
            left_out += [sentence for one in measured for sentence in one.failed]
            rows += fidelity_rows(name, distances(originals[name].result(), measured), f"{command} --only {name}")
    return rows


def distances(original: Outputs, measured: Sequence[Measured]) -> dict[str, Distance]:
    """Return the distance of every tool that quantized the model after each calibration.

    Args:
        original: Outputs of the float model on all samples.
        measured: One a calibration.
    """
    tools = [name for name in measured[0].outputs if all(name in one.outputs for one in measured)]
    return {tool: pooled([(original[one.indices], one.outputs[tool]) for one in measured]) for tool in tools}


def fidelity_rows(name: str, found: Mapping[str, Distance], command: str) -> list[Row]:
    """Return two rows for each tool, and two for edgewise in each backend beside its best rivals.

    Args:
        name: The model.
        found: The distance of each tool.
        command: The command that measures it again.
    """
    rows = []
    for tool, distance in found.items():
        rows.append(Row(f"{name}: flips, {tool}", distance.flips, "flips", "none", True, distance.n, command))
        rows.append(Row(f"{name}: mean KL, {tool}", distance.kl, "nats", "none", True, distance.n, command))
    rivals = {tool: distance for tool, distance in found.items() if tool in rival_names()}
    for tool in (ours(backend) for backend in ready_backends()):
        if tool not in found:
            rows.append(Row(f"{name}: {tool} fails", 1, "failures", "0", False, 1, command))
        elif rivals:
            rows += _beside(name, tool, found[tool], rivals, command)
    return rows


def _beside(name: str, tool: str, own: Distance, rivals: Mapping[str, Distance], command: str) -> list[Row]:
    verdict = compare(own, rivals)
    ask = f"<= {MOST_FLIPS}" if verdict.flips_count else f"none: fewer than {FEWEST_FLIPS} rival flips, KL decides"
    met = verdict.flips <= MOST_FLIPS or not verdict.flips_count
    return [
        Row(f"{name}: {tool}, flips beside {verdict.flips_of}", verdict.flips, "x", ask, met, own.n, command),
        Row(f"{name}: {tool}, mean KL beside {verdict.kl_of}", verdict.kl, "x", "< 1", verdict.kl < 1, own.n, command),
    ]
