"""The metric of candidates on a split; what was scored once is not scored again."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from edgewise.errors import ContractError
from edgewise.measure.accuracy import Scores, scores
from edgewise.pipeline.job import Job
from edgewise.pipeline.propose import untouched
from edgewise.records.candidate import Candidate
from edgewise.records.codec import Record

SplitName = Literal["select", "certify"]


class Pace(Record, frozen=True, kw_only=True):
    """Wall-clock seconds that scoring one sample took, reading and preparing it included."""

    seconds: float


def score(job: Job, candidate: Candidate, split: SplitName, *, first: int | None = None) -> Scores:
    """Return the scores of a candidate on a split, or on its first samples.

    Args:
        job: The run.
        candidate: A candidate that was built.
        split: Which split.
        first: How many samples, from the first on; None for all.
    """
    part = job.data.select if split == "select" else job.data.certify
    stage, store = f"scores {split} {len(part.indices[:first])}", job.workspace.store
    stored = store.get(stage, candidate.name, Scores)
    if stored is not None:
        return stored
    began = job.deadline.clock()
    made = _score(job, candidate, split, first)
    pace = Pace(seconds=(job.deadline.clock() - began) / made.n)
    store.put_all([(stage, candidate.name, made), (f"pace {stage}", candidate.name, pace)])
    return made


def pace_of(job: Job, candidate: Candidate) -> float:
    """Return the seconds that one sample took when a candidate was scored on the whole select split."""
    stored = job.workspace.store.get(f"pace scores select {len(job.data.select)}", candidate.name, Pace)
    if stored is None:
        raise ContractError(f"`{candidate.name}` has to be scored before its pace is known.")
    return stored.seconds


def _score(job: Job, candidate: Candidate, split: SplitName, first: int | None) -> Scores:
    part = job.data.select if split == "select" else job.data.certify
    with ExitStack() as stack:
        session = job.workshop.open(candidate)
        stack.callback(session.close)
        reference = None
        if job.label_free:
            original = job.workshop.open(untouched(job.request.effort.threads[0]))
            stack.callback(original.close)
            reference = original.run
        return scores(
            session.run,
            part.dataset,
            part.indices[:first],
            job.metric,
            reference=reference,
            progress=lambda _: job.progress.step(candidate.name),
        )
