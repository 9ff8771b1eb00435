"""What was proven about accuracy, on samples that no decision ever saw."""

from __future__ import annotations

from typing import Literal, TypeAlias

from edgewise.records.codec import Record

Claim: TypeAlias = Literal["drop", "flip-rate"]


class Certificate(Record, frozen=True, kw_only=True):
    """A one-sided confidence bound on what one rung of the ladder lost.

    Attributes:
        claim: `drop`: the metric's mean loss against the original. `flip-rate`: without labels, the share of
            samples on which the answer changes (an upper bound of the loss of accuracy).
        metric: The metric.
        max_drop: The bound that was asked for, in points of the metric (0.01 is one point of accuracy),
            or as a fraction of the original's value when `relative`.
        relative: Whether drops are relative to the original's value.
        passed: Whether `upper <= max_drop`, decided at `confidence`.
        original: Value of the metric on the certify split, before.
        optimized: The same, after.
        drop: Observed drop (or flip rate).
        lower: One-sided lower confidence bound of the true drop.
        upper: One-sided upper confidence bound of the true drop: what is certified.
        confidence: Level of each one-sided bound, for example 0.95.
        method: Name and source of the procedure.
        exact: Whether the level holds at every sample size; False marks a bootstrap.
        n: Samples in the certify split.
        worse: Samples on which only the original was right, or None where that is not defined.
        better: Samples on which only the optimized model was right, or None.
        samples_needed: About how many certify samples would show the bound asked for if the observed drop is the
            true one; None when it was shown, or when no number would do.
        reused: How many earlier runs have already opened these very certify samples.
        isa: Fingerprint of the instruction set on which this was proven.
    """

    claim: Claim
    metric: str
    max_drop: float
    relative: bool
    passed: bool
    original: float
    optimized: float
    drop: float
    lower: float
    upper: float
    confidence: float
    method: str
    exact: bool
    n: int
    worse: int | None
    better: int | None
    samples_needed: int | None
    reused: int
    isa: str


class SyntheticCheck(Record, frozen=True, kw_only=True):
    """What was seen of a rung where there were no samples: no certificate, whatever it says.

    It compares the rung with the untouched model on synthetic samples that no decision of the search saw. What holds
    there may not hold on real ones.

    Attributes:
        tolerance: Largest relative error of any output that was allowed (`measure/fidelity.py`).
        passed: Whether every output stayed within it. A rung that did not is never shipped.
        error: Relative error of the worst output.
        output: Name of that output.
        agreement: Share of samples on which the first output decides the same.
        n: Synthetic samples.
        isa: Fingerprint of the instruction set on which they were run.
    """

    tolerance: float
    passed: bool
    error: float
    output: str
    agreement: float
    n: int
    isa: str
