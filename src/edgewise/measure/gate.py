"""Never a regression: whether a candidate may replace what it was measured against. Pure decisions on numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgewise.records.measurements import Latency, Ratio

LARGEST_GAIN: Final = 64.0
"""A gain beyond this on the same threads is more likely a broken benchmark. 8-bit arithmetic gives at most 4 times
the products of float32 per instruction, a dot-product instruction 4 times that, a matrix unit (AMX) 4 times again:
4 x 4 x 4."""

SLOWDOWN_FOR_SIZE: Final = 0.05
"""What a smaller model may at most cost in time, to be called "the same speed". Empirical: the noise of a median."""


@dataclass(frozen=True)
class Verdict:
    """A decision and the reason for it.

    Attributes:
        accepted: Whether the candidate may replace the reference.
        suspicious: Whether the number is one that cannot be true; then it is never accepted.
        reason: Why, as a clause that can follow "because".
    """

    accepted: bool
    suspicious: bool
    reason: str


def faster(speedup: Ratio, *, implausible: str | None = None) -> Verdict:
    """Decide whether a candidate is faster than what it would replace: only if the whole interval is above 1.

    Args:
        speedup: Ratio to what it would replace, from the same rounds.
        implausible: What `why_implausible` said of it.
    """
    if implausible is not None:
        return Verdict(accepted=False, suspicious=True, reason=implausible)
    interval = f"[{speedup.low:.3f}, {speedup.high:.3f}] at {speedup.confidence:.0%}"
    if speedup.low > 1:
        return Verdict(accepted=True, suspicious=False, reason=f"it is {speedup.value:.2f} times as fast, {interval}")
    if speedup.high < 1:
        return Verdict(accepted=False, suspicious=False, reason=f"it is slower: {speedup.value:.2f} times, {interval}")
    return Verdict(accepted=False, suspicious=False, reason=f"it was not shown to be faster: {interval} includes 1")


def smaller(
    speedup: Ratio,
    *,
    size_bytes: int,
    reference_bytes: int,
    slowdown: float = SLOWDOWN_FOR_SIZE,
    implausible: str | None = None,
) -> Verdict:
    """Decide whether a candidate may replace the reference for its size: smaller, and shown not to be slower.

    Args:
        speedup: Ratio to what it would replace, from the same rounds.
        size_bytes: Size of the candidate.
        reference_bytes: Size of what it would replace.
        slowdown: How much slower it may be, >= 0: 0.05 lets it take 5 % more time.
        implausible: What `why_implausible` said of it.
    """
    if implausible is not None:
        return Verdict(accepted=False, suspicious=True, reason=implausible)
    if size_bytes >= reference_bytes:
        reason = f"it is not smaller: {size_bytes} bytes against {reference_bytes}"
        return Verdict(accepted=False, suspicious=False, reason=reason)
    if speedup.low * (1 + slowdown) <= 1:
        reason = (
            f"it was not shown to keep the speed within {slowdown:.0%}: "
            f"[{speedup.low:.3f}, {speedup.high:.3f}] at {speedup.confidence:.0%}"
        )
        return Verdict(accepted=False, suspicious=False, reason=reason)
    reason = f"it is {reference_bytes / size_bytes:.2f} times smaller and keeps the speed"
    return Verdict(accepted=True, suspicious=False, reason=reason)


def why_implausible(
    speedup: Ratio,
    reference: Latency,
    candidate: Latency,
    *,
    empty_call_us: float,
    macs: int | None = None,
    macs_per_second: float | None = None,
) -> str | None:
    """Return why a gain cannot be true, or None. An unexplained gain is as often a broken benchmark as a good idea.

    Args:
        speedup: Ratio of `reference` to `candidate`.
        reference: Latency of what would be replaced.
        candidate: Latency of what would replace it.
        empty_call_us: Time of calling a function that does nothing, in microseconds.
        macs: Multiply-accumulates of one inference of the candidate, where known.
        macs_per_second: The most of them that this machine does in a second on the candidate's threads, where known.
    """
    allowed = LARGEST_GAIN * max(1.0, candidate.threads / reference.threads)
    if speedup.value > allowed:
        return f"a gain of {speedup.value:.0f} times is beyond what arithmetic allows ({allowed:.0f} times)"
    if candidate.median_us <= empty_call_us:
        return (
            f"{candidate.median_us:.3f} us is not longer than calling a function that does nothing "
            f"({empty_call_us:.3f} us)"
        )
    if macs is not None and macs_per_second is not None:
        least_us = macs / macs_per_second * 1e6
        if candidate.median_us < least_us:
            return f"{candidate.median_us:.1f} us is shorter than its products alone take here ({least_us:.1f} us)"
    return None
