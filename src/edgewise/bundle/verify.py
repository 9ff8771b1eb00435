"""Replays the test vectors of a bundle where it lies."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from edgewise.bundle.manifest import LadderRung
from edgewise.bundle.read import Bundle
from edgewise.bundle.vectors import Vectors, difference
from edgewise.errors import BundleError, EdgewiseError
from edgewise.records.codec import Record
from edgewise.records.machine import Machine

Status: TypeAlias = Literal["identical", "within tolerance", "differs", "failed"]


class RungCheck(Record, frozen=True, kw_only=True):
    """What one rung made of the test vectors here.

    Attributes:
        rung: Its name.
        status: `identical` to the bit; `within tolerance` of what arithmetic explains; `differs`; or `failed` to run.
        difference: Largest difference as a multiple of its output's tolerance, or None where it is without bound.
        reason: Why it differs or failed, as a full sentence; empty otherwise.
    """

    rung: str
    status: Status
    difference: float | None
    reason: str


class Verification(Record, frozen=True, kw_only=True):
    """What became of a bundle on this machine.

    Attributes:
        passed: Whether every rung is identical or within its tolerance.
        same_isa: Whether this processor has the instructions on which the accuracy was proven. Where it has not,
            8-bit sums may saturate differently, and the certificate is a statement about the other machine.
        proven_on: Processor on which the accuracy was proven.
        here: This processor.
        rungs: Each rung, in the order of the ladder.
    """

    passed: bool
    same_isa: bool
    proven_on: str
    here: str
    rungs: tuple[RungCheck, ...]


def verify(bundle: Bundle, *, machine: Machine) -> Verification:
    """Run every rung on the test vectors and compare.

    Args:
        bundle: The bundle.
        machine: This machine (`measure.machine.describe`).

    Raises:
        BundleError: If a file is missing or was changed.
    """
    vectors = bundle.vectors()
    ladder = bundle.manifest.ladder
    if len(vectors.expected) != len(ladder):
        raise BundleError(
            f"The test vectors of `{bundle.folder}` have to cover {len(ladder)} rungs. Received "
            f"{len(vectors.expected)}."
        )
    checks = tuple(_check(bundle, position, rung, vectors) for position, rung in enumerate(ladder))
    proven = bundle.manifest.machine
    return Verification(
        passed=all(check.status in {"identical", "within tolerance"} for check in checks),
        same_isa=machine.fingerprint == proven.fingerprint,
        proven_on=proven.cpu,
        here=machine.cpu,
        rungs=checks,
    )


def _check(bundle: Bundle, position: int, rung: LadderRung, vectors: Vectors) -> RungCheck:
    try:
        session = bundle.session(position)
        try:
            answers = [session.run(feed) for feed in vectors.feeds]
        finally:
            session.close()
    except BundleError:
        raise
    except EdgewiseError as error:  # a runtime that is missing or refuses: the other rungs may still run
        return RungCheck(rung=rung.name, status="failed", difference=None, reason=error.message)
    worst, where, identical = 0.0, "", True
    for answer, expected in zip(answers, vectors.expected[position], strict=True):
        for name, array in expected.items():
            apart = difference(array, answer[name]) if name in answer else math.inf
            identical = identical and apart == 0
            allowed = rung.tolerance.get(name, 0.0)
            multiple = 0.0 if apart == 0 else apart / allowed if allowed > 0 else math.inf
            if multiple > worst:
                worst, where = (
                    multiple,
                    f"Output `{name}` is {apart:.3g} from the expected one; {allowed:.3g} is allowed.",
                )
    status: Status = "identical" if identical else "within tolerance" if worst <= 1 else "differs"
    return RungCheck(
        rung=rung.name,
        status=status,
        difference=worst if math.isfinite(worst) else None,
        reason=where if status == "differs" else "",
    )
