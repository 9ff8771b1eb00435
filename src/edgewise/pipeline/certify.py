"""Opens the certify split: rungs are tested safest first, each at full level, until the first that fails."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from edgewise.errors import BackendError, DataError
from edgewise.measure.certificate import MOST_RUNGS, fixed_sequence
from edgewise.measure.certificate import certify as certify_scores
from edgewise.pipeline.job import Job
from edgewise.pipeline.ledger import open_certify_set
from edgewise.pipeline.score import score
from edgewise.records.candidate import Candidate
from edgewise.records.certificate import Certificate
from edgewise.records.codec import Record

CONFIDENCE: Final = 0.95
"""Level of every one-sided bound."""


class Opening(Record, frozen=True, kw_only=True):
    """The certify split was opened; stored, so that a resumed run counts the same runs before it.

    Attributes:
        reused: How many other runs had opened it before; None where the ledger could not be read or written.
    """

    reused: int | None


@dataclass(frozen=True)
class Proof:
    """What was tested on the certify split.

    Attributes:
        certificates: Of the rungs up to and including the first that failed.
        notes: What the user should know, in full sentences.
    """

    certificates: tuple[Certificate, ...]
    notes: tuple[str, ...]


def certify(job: Job, ladder: Sequence[Candidate]) -> Proof:
    """Test the rungs up to and including the first that fails.

    Fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995): the order was fixed before the split was opened, so
    every rung is tested at the full level, and the first failure ends the tests.

    Args:
        job: The run.
        ladder: At most `MOST_RUNGS` candidates, safest first.
    """
    if not ladder:
        return Proof((), ())
    part = job.data.certify
    job.progress.stage("Certifying", len(part) * (1 + min(len(ladder), MOST_RUNGS)))
    opening = job.workspace.store.recall("certify-set", "", Opening, lambda: _open(job))
    notes = [note] if (note := _note(opening)) else []
    original = None if job.label_free else score(job, job.untouched[0], "certify")

    certificates: list[Certificate] = []

    def test(candidate: Candidate) -> Certificate:
        certificate = certify_scores(
            original,
            score(job, candidate, "certify"),
            metric=job.metric,
            max_drop=job.request.goal.max_drop,
            confidence=CONFIDENCE,
            reused=opening.reused or 0,
            isa=job.machine.fingerprint,
        )
        certificates.append(certificate)
        return certificate

    try:
        fixed_sequence(partial(test, candidate) for candidate in ladder[:MOST_RUNGS])
    except (BackendError, DataError) as error:
        # A rung that cannot be tested has not passed: it ends the sequence, and those before it keep what they have.
        notes.append(f"`{ladder[len(certificates)].name}` could not be tested on the certify split: {error.message}")
    return Proof(tuple(certificates), tuple(notes))


def _open(job: Job) -> Opening:
    return Opening(reused=open_certify_set(job.data.certify_sha256, _identity(job)))


def _note(opening: Opening) -> str:
    if opening.reused is None:
        return (
            "The ledger of opened certify sets could not be written, so whether another run has used these certify "
            "samples before is not known; `edgewise doctor` names its file."
        )
    if opening.reused:
        runs = "another run" if opening.reused == 1 else f"{opening.reused} other runs"
        return (
            f"The certify samples, or some of them, were opened by {runs} before. If anything was decided on what "
            f"they showed, the certificate says too much: fresh samples make it hold again."
        )
    return ""


def _identity(job: Job) -> str:
    """Return what tells this run from others: one that is resumed stays the same."""
    return hashlib.sha256(str(job.workspace.folder.resolve()).encode() + job.run_id.encode()).hexdigest()
