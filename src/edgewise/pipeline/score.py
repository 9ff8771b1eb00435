"""The metric of candidates on a split; what was scored once is not scored again."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from edgewise.measure.accuracy import Scores, scores
from edgewise.pipeline.job import Job
from edgewise.pipeline.propose import untouched
from edgewise.records.candidate import Candidate

SplitName = Literal["select", "certify"]


def score(job: Job, candidate: Candidate, split: SplitName, *, first: int | None = None) -> Scores:
    """Return the scores of a candidate on a split, or on its first samples.

    Args:
        job: The run.
        candidate: A candidate that was built.
        split: Which split.
        first: How many samples, from the first on; None for all.
    """
    part = job.data.select if split == "select" else job.data.certify
    indices = part.indices[:first]
    return job.workspace.store.recall(
        f"scores {split} {len(indices)}",
        candidate.name,
        Scores,
        lambda: _score(job, candidate, split, first),
    )


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
