"""Opens the certify split: rungs are tested safest first, each at full level, until the first that fails."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Final

from edgewise.measure.certificate import certify as certify_scores
from edgewise.measure.certificate import fixed_sequence
from edgewise.pipeline.job import Job
from edgewise.pipeline.ledger import open_certify_set
from edgewise.pipeline.request import MAX_RUNGS
from edgewise.pipeline.score import score
from edgewise.records.candidate import Candidate
from edgewise.records.certificate import Certificate

CONFIDENCE: Final = 0.95
"""Level of every one-sided bound."""


def certify(job: Job, ladder: Sequence[Candidate]) -> tuple[Certificate, ...]:
    """Return the certificates of the rungs up to and including the first that fails.

    Fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995): the order was fixed before the split was opened, so
    every rung is tested at the full level, and the first failure ends the tests.

    Args:
        job: The run.
        ladder: At most `MAX_RUNGS` candidates, safest first.
    """
    if not ladder:
        return ()
    part = job.data.certify
    job.progress.stage("Certifying", len(part) * (1 + min(len(ladder), MAX_RUNGS)))
    reused = open_certify_set(job.data.certify_sha256, _identity(job)) or 0
    original = None if job.label_free else score(job, job.untouched[0], "certify")

    def test(candidate: Candidate) -> Certificate:
        return certify_scores(
            original,
            score(job, candidate, "certify"),
            metric=job.metric,
            max_drop=job.request.goal.max_drop,
            confidence=CONFIDENCE,
            reused=reused,
            isa=job.machine.fingerprint,
        )

    return fixed_sequence(partial(test, candidate) for candidate in ladder[:MAX_RUNGS])


def _identity(job: Job) -> str:
    """Return what tells this run from others: one that is resumed stays the same."""
    return hashlib.sha256(str(job.workspace.folder.resolve()).encode() + job.run_id.encode()).hexdigest()
