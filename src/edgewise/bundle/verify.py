"""Replays the test vectors of a bundle where it lies, and says whether what was proven holds there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from edgewise.bundle.manifest import LadderRung
from edgewise.bundle.read import Bundle
from edgewise.bundle.vectors import Vectors, difference
from edgewise.errors import BundleError, EdgewiseError
from edgewise.records.codec import Record
from edgewise.records.machine import Machine

Status: TypeAlias = Literal["identical", "within tolerance", "differs", "failed", "opens"]

Proof: TypeAlias = Literal["same instructions", "same sums", "saturates", "unknown"]


class RungCheck(Record, frozen=True, kw_only=True):
    """What one rung made of the test vectors here.

    Attributes:
        rung: Its name.
        status: `identical` to the bit; `within tolerance` of what arithmetic explains; `differs`; or `failed` to run.
            Without test vectors, `opens`: its files have their hashes and its runtime takes it, and that is all.
        difference: Largest difference as a multiple of its output's tolerance, or None where it is without bound.
        reason: Why it differs or failed, as a full sentence; empty otherwise.
        saturates: Whether its weights are wider than those whose products this processor sums exactly, and were not
            where its accuracy was proven.
    """

    rung: str
    status: Status
    difference: float | None
    reason: str
    saturates: bool


class Verification(Record, frozen=True, kw_only=True):
    """What became of a bundle on this machine.

    Attributes:
        passed: Whether every rung is identical or within its tolerance; without test vectors, whether every rung opens.
        same_isa: Whether this processor has the instructions on which the accuracy was proven.
        proof: Whether the certificates carry over. `same instructions`: yes. `same sums`: yes, 8-bit sums are exact on
            both, and floating-point ones differ by rounding, which the vectors bound. `saturates`: not for the rungs
            that say so. `unknown`: there may be sums that saturate on one of them, and nobody has measured it.
        proven_on: Processor on which the accuracy was proven.
        here: This processor.
        synthetic: Whether the bundle was made without samples: then nothing was certified, and there is no proof that
            could carry over.
        exact_product_bits: Weight bits up to which 8-bit sums are exact here, by backend, as measured.
        rungs: Each rung, in the order of the ladder.
        compared: Whether there were test vectors to compare answers with; packing can leave them out.
        left_out: Rungs that packing left out.
    """

    passed: bool
    same_isa: bool
    proof: Proof
    proven_on: str
    here: str
    synthetic: bool
    exact_product_bits: dict[str, int]
    rungs: tuple[RungCheck, ...]
    compared: bool = True
    left_out: tuple[str, ...] = ()


def verify(bundle: Bundle, *, machine: Machine) -> Verification:
    """Run every rung on the test vectors and compare. Where packing left them out, open every rung.

    Args:
        bundle: The bundle.
        machine: This machine (`measure.machine.describe`), with the bundle's backends measured where that can be done.

    Raises:
        BundleError: If a file is missing or was changed.
    """
    vectors = bundle.vectors() if bundle.manifest.vectors else None
    ladder = bundle.manifest.ladder
    if vectors is not None and len(vectors.expected) != len(ladder):
        raise BundleError(
            f"The test vectors of `{bundle.folder}` have to cover {len(ladder)} rungs. Received "
            f"{len(vectors.expected)}."
        )
    proven = bundle.manifest.machine
    checks = tuple(
        msgspec.structs.replace(
            _check(bundle, position, rung, vectors), saturates=_saturates(rung, proven=proven, here=machine)
        )
        for position, rung in enumerate(ladder)
    )
    return Verification(
        passed=all(check.status in {"identical", "within tolerance", "opens"} for check in checks),
        same_isa=_same_isa(proven, machine),
        proof=_proof(checks, ladder, proven=proven, here=machine),
        proven_on=proven.cpu,
        here=machine.cpu,
        synthetic=any(rung.check is not None for rung in ladder),
        exact_product_bits=machine.exact_product_bits,
        rungs=checks,
        compared=vectors is not None,
        left_out=bundle.manifest.left_out,
    )


def _same_isa(proven: Machine, here: Machine) -> bool:
    return (here.architecture, here.isa) == (proven.architecture, proven.isa)


def _proof(checks: Sequence[RungCheck], ladder: Sequence[LadderRung], *, proven: Machine, here: Machine) -> Proof:
    if any(check.saturates for check in checks):
        return "saturates"
    backends = {rung.artifact.backend for rung in ladder}
    before, now = proven.exact_product_bits, here.exact_product_bits
    if _same_isa(proven, here) and all(
        before.get(name, bits) == bits for name, bits in now.items() if name in backends
    ):
        return "same instructions"
    return "same sums" if all(_exact(rung, proven) and _exact(rung, here) for rung in ladder) else "unknown"


def _exact(rung: LadderRung, machine: Machine) -> bool:
    """Return whether it is known that a machine sums the 8-bit products of a rung exactly."""
    if rung.product_bits is None:
        return False
    return rung.product_bits <= machine.exact_product_bits.get(rung.artifact.backend, 0)


def _saturates(rung: LadderRung, *, proven: Machine, here: Machine) -> bool:
    """Return whether a rung's 8-bit sums saturate here and did not, as far as it is known, where it was proven."""
    backend = rung.artifact.backend
    bits = here.exact_product_bits.get(backend)
    if bits is None or rung.product_bits is None or rung.product_bits <= bits:
        return False
    return proven.exact_product_bits.get(backend, rung.product_bits) >= rung.product_bits


def _check(bundle: Bundle, position: int, rung: LadderRung, vectors: Vectors | None) -> RungCheck:
    try:
        session = bundle.session(position)
        try:
            answers = [session.run(feed) for feed in vectors.feeds] if vectors is not None else []
        finally:
            session.close()
    except BundleError:
        raise
    except EdgewiseError as error:  # a runtime that is missing or refuses: the other rungs may still run
        return RungCheck(rung=rung.name, status="failed", difference=None, reason=error.message, saturates=False)
    if vectors is None:
        return RungCheck(rung=rung.name, status="opens", difference=None, reason="", saturates=False)
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
        saturates=False,
    )
