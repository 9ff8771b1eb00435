"""Cheap rejection: build every candidate, time those that differ in time, drop what cannot win."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psutil

from edgewise.errors import ContractError
from edgewise.measure.latency import measure_group, ratio
from edgewise.measure.process import Entry
from edgewise.pipeline.job import Job
from edgewise.pipeline.propose import timing_twin
from edgewise.records.candidate import Candidate
from edgewise.records.codec import Record
from edgewise.records.measurements import Latency, Ratio

SCREEN_SHARE: Final = 0.10
"""Share of the time left that goes into the first timing."""

LONGEST_SCREEN_S: Final = 20.0
SHORTEST_SCREEN_S: Final = 0.5
"""Even where the budget is spent: without times there is no result."""

WORKER_BYTES: Final = 250 << 20
"""Resident memory of a worker without its model: interpreter, numpy and runtime (measured: 90 to 210 MiB)."""


class Timing(Record, frozen=True, kw_only=True):
    """How long a candidate takes, or why that is not known.

    Attributes:
        latency: Its latency, or None.
        speedup: Against the untouched model of the same group, or None.
        failure: Why there is no latency; empty where there is one.
    """

    latency: Latency | None
    speedup: Ratio | None
    failure: str


def build_all(job: Job, candidates: Sequence[Candidate]) -> dict[Candidate, str]:
    """Build every candidate; return why those failed that could not be built."""
    failures = {}
    job.workshop.prepare(candidates)
    job.progress.stage("Building candidates", len(candidates))
    for candidate in candidates:
        build = job.workshop.build(candidate)
        if build.spec is None:
            failures[candidate] = build.failure
        job.progress.step(candidate.name)
    return failures


def time_all(job: Job, candidates: Sequence[Candidate], baseline: Candidate) -> dict[Candidate, Timing]:
    """Time one of each set of candidates that take the same time, in groups that each hold the baseline.

    Args:
        job: The run.
        candidates: Candidates that were built, the baseline among them.
        baseline: What each is compared with.
    """
    representatives: dict[Candidate, Candidate] = {}
    for candidate in candidates:
        representatives.setdefault(timing_twin(candidate), candidate)
    missing = [
        twin
        for twin, candidate in representatives.items()
        if candidate != baseline and job.workspace.store.get("timing", twin.name, Timing) is None
    ]
    groups = _groups(job, [representatives[twin] for twin in missing])
    if not groups and job.workspace.store.get("timing", baseline.name, Timing) is None:
        groups = [[]]  # nothing else could be built
    if groups:
        job.progress.stage("Timing candidates in turns", len(groups))
    for index, group in enumerate(groups):
        share_s = min(LONGEST_SCREEN_S, SCREEN_SHARE * job.deadline.left_s) / (len(groups) - index)
        members = [baseline, *group]
        timings = _time(job, members, max(SHORTEST_SCREEN_S, share_s))
        # One transaction: a group was measured as a whole, so it is never in part measured again.
        job.workspace.store.put_all(
            ("timing", timing_twin(member).name, timing) for member, timing in zip(members, timings, strict=True)
        )
        job.progress.step()
    return {candidate: _stored(job, timing_twin(candidate)) for candidate in candidates}


def _time(job: Job, group: Sequence[Candidate], budget_s: float) -> list[Timing]:
    """Time a group whose first member is the baseline."""
    results = measure_group(
        [entry(job, candidate) for candidate in group],
        job.timing_feeds(),
        budget_s=budget_s,
        seed=job.request.data.seed,
    )
    baseline = results[0]
    if not isinstance(baseline, Latency):
        raise baseline
    return [
        Timing(latency=result, speedup=ratio(baseline, result), failure="")
        if isinstance(result, Latency)
        else Timing(latency=None, speedup=None, failure=result.message)
        for result in results
    ]


def entry(job: Job, candidate: Candidate) -> Entry:
    """Return what a worker must know of a candidate that was built."""
    spec = job.workshop.build(candidate).spec
    if spec is None:
        raise ContractError(f"Only a candidate that was built can be timed, but `{candidate.name}` was not.")
    return Entry(candidate.name, job.workshop.folder(candidate), spec)


def _groups(job: Job, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Split candidates into groups whose workers fit into half of the free memory, with one place for the baseline."""
    if not candidates:
        return []
    largest = max(job.workshop.build(candidate).size_bytes for candidate in candidates)
    # A runtime keeps its own copy of the weights beside the file's, and activations; four times the file is ample.
    fits = int(psutil.virtual_memory().available / 2 / (WORKER_BYTES + 4 * largest)) - 1
    size = max(1, fits)
    return [list(candidates[start : start + size]) for start in range(0, len(candidates), size)]


def _stored(job: Job, twin: Candidate) -> Timing:
    timing = job.workspace.store.get("timing", twin.name, Timing)
    if timing is None:
        raise ContractError(f"`{twin.name}` was to be timed, but was not.")
    return timing
