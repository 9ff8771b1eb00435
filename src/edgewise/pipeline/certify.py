"""Opens the certify split: rungs are tested safest first, each at full level, until the first that fails.

Where there are no samples nothing is certified: every rung is compared with the untouched model on synthetic ones.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from edgewise.errors import BackendError, DataError
from edgewise.measure.certificate import MOST_RUNGS, fixed_sequence
from edgewise.measure.certificate import certify as certify_scores
from edgewise.measure.fidelity import compare
from edgewise.pipeline.job import Job
from edgewise.pipeline.ledger import open_certify_set
from edgewise.pipeline.score import score
from edgewise.records.candidate import Candidate, Quantize
from edgewise.records.certificate import Certificate, SyntheticCheck
from edgewise.records.codec import Record
from edgewise.records.tensors import Outputs
from edgewise.report import quantities
from edgewise.samples.state import run_sequence

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
        rungs: The rungs that were tested, safest first. Without samples: those that stayed within the tolerance.
        found: What was proven of each, or seen where there were no samples.
        notes: What the user should know, in full sentences.
        rejected: Why the others may not be shipped, where there were no samples.
    """

    rungs: tuple[Candidate, ...]
    found: tuple[Certificate | SyntheticCheck, ...]
    notes: tuple[str, ...]
    rejected: Mapping[Candidate, str] = field(default_factory=dict)


def certify(job: Job, ladder: Sequence[Candidate]) -> Proof:
    """Test the rungs up to and including the first that fails.

    Fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995): the order was fixed before the split was opened, so
    every rung is tested at the full level, and the first failure ends the tests.

    Args:
        job: The run.
        ladder: At most `MOST_RUNGS` candidates, safest first.
    """
    if not ladder:
        return Proof((), (), ())
    if job.data.synthetic:
        return _compare(job, ladder)
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
            max_drop=job.bound,
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
    return Proof(tuple(ladder[: len(certificates)]), tuple(certificates), tuple(notes))


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


def _compare(job: Job, ladder: Sequence[Candidate]) -> Proof:
    """Compare each rung with the untouched model on synthetic samples; those outside the tolerance are left out."""
    job.progress.stage("Comparing on synthetic samples", len(job.data.certify) * len(ladder))
    passed: dict[Candidate, SyntheticCheck] = {}
    rejected: dict[Candidate, str] = {}
    for candidate in ladder:
        if job.data.unranged and _fixes_ranges(candidate):
            rejected[candidate] = (
                f"it holds the input `{job.data.unranged[0]}` to a range, but nothing tells the range of its pixels; "
                f"`--settings` with a [preprocessing] table does"
            )
            continue
        try:
            check = job.workspace.store.recall(
                "synthetic-check",
                candidate.name,
                SyntheticCheck,
                lambda one=candidate: _check(job, one),  # type: ignore[misc]
            )
        except (BackendError, DataError) as error:
            rejected[candidate] = f"it could not be compared on synthetic samples: {error.message}"
            continue
        if check.passed:
            passed[candidate] = check
        else:
            rejected[candidate] = (
                f"on {quantities.plural(check.n, 'synthetic sample')} the output `{check.output}` is off by "
                f"{quantities.share(check.error)} of its standard deviation, more than the tolerance of "
                f"{quantities.share(check.tolerance)}"
            )
    return Proof(tuple(passed), tuple(passed.values()), (), rejected)


def _fixes_ranges(candidate: Candidate) -> bool:
    """Return whether activations are held to ranges that came from the samples."""
    return any(isinstance(step, Quantize) and "a" in step.scheme for step in candidate.steps)


def _check(job: Job, candidate: Candidate) -> SyntheticCheck:
    with ExitStack() as stack:
        original = job.workshop.open(job.untouched[0])
        stack.callback(original.close)
        other = job.workshop.open(candidate)
        stack.callback(other.close)

        def pairs() -> Iterator[tuple[Outputs, Outputs]]:
            part = job.data.certify
            for index in part.indices:
                feeds = part.dataset.feeds(int(index))
                first, second = (run_sequence(one.run, feeds, part.dataset.state) for one in (original, other))
                yield first, second
                job.progress.step(candidate.name)

        found = compare(pairs())
    output = max(found.errors, key=lambda name: found.errors[name])
    error = min(found.errors[output], sys.float_info.max)  # records are JSON, which has no infinity
    return SyntheticCheck(
        tolerance=job.bound,
        passed=error <= job.bound,
        error=error,
        output=output,
        agreement=found.agreement,
        n=found.n,
        isa=job.machine.fingerprint,
    )
