"""The candidates of a run: every step on the graph that is known, on every backend, at every number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, get_args

from edgewise.records.candidate import (
    Candidate,
    Fuse,
    HalveWeights,
    Precision,
    Prune,
    Quantize,
    RunOptions,
    Step,
)

BASELINE_BACKEND: Final = "ort"
"""Where the untouched model runs that everything is compared with: the runtime that reads every ONNX file."""

QUANTIZED: Final = (
    Quantize(ranges="mse", rounding="nearest"),
    Quantize(ranges="output", rounding="second-order", extra_time=0.03),
)
"""Ways to quantize: the plain one, and the one that loses least in nearly the same time."""

SMALL: Final = (
    Quantize(scheme="w8", ranges="output", rounding="second-order"),
    Quantize(scheme="w4", ranges="output", rounding="second-order", extra_size=0.15),
    Quantize(scheme="w4", ranges="output", rounding="second-order"),
)
"""Weights alone: as slow as float, tried where a size is asked for; once with 8 bits for the layers that need them."""


def untouched(threads: int) -> Candidate:
    """Return the candidate that changes nothing."""
    return Candidate(steps=(), backend=BASELINE_BACKEND, options=RunOptions(threads=threads))


def propose(
    precisions: Mapping[str, Sequence[str]], threads: Sequence[int], *, small: bool = False
) -> tuple[Candidate, ...]:
    """Return all candidates, the untouched model first.

    Args:
        precisions: The precisions that each backend honours here, by backend name.
        threads: Numbers of threads of one inference.
        small: Whether candidates are tried as well that can win by their size alone.
    """
    recipes: list[tuple[Step, ...]] = [
        (),
        (Fuse(),),
        (Fuse(), HalveWeights()),
        *((Fuse(), step) for step in (*QUANTIZED, *(SMALL if small else ()))),
    ]
    found = [untouched(count) for count in threads]
    for backend, available in precisions.items():
        for steps in recipes:
            for precision in _known(available):
                if precision != "fp32" and (not steps or steps[-1] in {HalveWeights(), *SMALL}):
                    continue  # nothing is gained without fusion, which is exact; where size counts, float32 loses less
                for count in threads:
                    options = RunOptions(threads=count, precision=precision)
                    found.append(Candidate(steps=steps, backend=backend, options=options))
    return tuple(dict.fromkeys(found))


def pruned_form(candidate: Candidate, time: float, *, recovered: bool = False) -> Candidate:
    """Return a candidate with pruning behind its fusion.

    Args:
        candidate: A candidate that begins with `Fuse`.
        time: The time that is aimed at, as a share of its own.
        recovered: Whether what is left is trained on the whole model's answers.
    """
    first, *others = candidate.steps
    steps = (first, Prune(time=time, recovered=recovered), *others)
    return Candidate(steps=steps, backend=candidate.backend, options=candidate.options)


def _known(available: Sequence[str]) -> list[Precision]:
    return [precision for precision in get_args(Precision) if precision in available]


def timing_twin(candidate: Candidate) -> Candidate:
    """Return the candidate that takes the same time: neither ranges nor rounding move an instruction."""
    steps = tuple(
        Quantize(scheme=step.scheme, extra_time=step.extra_time, extra_size=step.extra_size)
        if isinstance(step, Quantize)
        else step
        for step in candidate.steps
    )
    return Candidate(steps=steps, backend=candidate.backend, options=candidate.options)
