"""The candidates of a run: every step on the graph that is known, on every backend, at every number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, get_args

from edgewise.records.candidate import (
    Candidate,
    Fuse,
    HalveWeights,
    HistogramMethod,
    Precision,
    Quantize,
    RunOptions,
    Step,
)

BASELINE_BACKEND: Final = "ort"
"""Where the untouched model runs that everything is compared with: the runtime that reads every ONNX file."""

RANGE_METHODS: Final[tuple[HistogramMethod, ...]] = get_args(HistogramMethod)


def untouched(threads: int) -> Candidate:
    """Return the candidate that changes nothing."""
    return Candidate(steps=(), backend=BASELINE_BACKEND, options=RunOptions(threads=threads))


def propose(precisions: Mapping[str, Sequence[str]], threads: Sequence[int]) -> tuple[Candidate, ...]:
    """Return all candidates, the untouched model first.

    Args:
        precisions: The precisions that each backend honours here, by backend name.
        threads: Numbers of threads of one inference.
    """
    recipes: list[tuple[Step, ...]] = [
        (),
        (Fuse(),),
        (Fuse(), HalveWeights()),
        *((Fuse(), Quantize(ranges=ranges)) for ranges in RANGE_METHODS),
    ]
    found = [untouched(count) for count in threads]
    for backend, available in precisions.items():
        for steps in recipes:
            for precision in _known(available):
                if precision != "fp32" and (not steps or HalveWeights() in steps):
                    continue  # fusion is exact, so nothing is gained without it; and bf16 rounds more than fp16 weights
                for count in threads:
                    options = RunOptions(threads=count, precision=precision)
                    found.append(Candidate(steps=steps, backend=backend, options=options))
    return tuple(dict.fromkeys(found))


def _known(available: Sequence[str]) -> list[Precision]:
    return [precision for precision in get_args(Precision) if precision in available]


def timing_twin(candidate: Candidate) -> Candidate:
    """Return the candidate that takes the same time: the method by which ranges are chosen moves no instruction."""
    steps = tuple(Quantize(scheme=step.scheme) if isinstance(step, Quantize) else step for step in candidate.steps)
    return Candidate(steps=steps, backend=candidate.backend, options=candidate.options)
