"""Names of candidates: what a user reads, and the key under which everything about one is stored."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from edgewise.records.candidate import (
    Candidate,
    Fuse,
    GraphOptimization,
    HalveWeights,
    Precision,
    Prune,
    Quantize,
    RangeMethod,
    Rounding,
    RunOptions,
    Step,
)
from edgewise.records.codec import decode, encode


def named(*steps: Step, backend: str = "ort", **options: int | str) -> str:
    return Candidate(steps=steps, backend=backend, options=RunOptions(**options)).name  # type: ignore[arg-type]


RANGES = tuple(itertools.chain.from_iterable(map(get_args, get_args(RangeMethod))))

STEPS = tuple(
    Quantize(scheme=scheme, ranges=ranges, rounding=rounding, extra_time=extra_time)
    for scheme, ranges, rounding, extra_time in itertools.product(
        ("w8a8", "w4a8", "w8a16", "w8", "w4", "w4g32"), RANGES, get_args(Rounding), (0.0, 0.02, 0.15, 0.2, 0.07, 0.005)
    )
)


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (Quantize(), "int8-mse"),
        (Quantize(ranges="output", rounding="second-order"), "int8"),
        (Quantize(ranges="output", rounding="nearest"), "int8-output"),
        (Quantize(ranges="min-max", rounding="second-order"), "int8-min-max-second-order"),
        (Quantize(ranges="output", rounding="second-order", extra_time=0.02), "int8-mixed2"),
        (Quantize(ranges="output", rounding="second-order", extra_time=0.07), "int8-mixed7"),
        (Quantize(ranges="output", rounding="second-order", extra_time=0.005), "int8-mixed0.5"),
        (Quantize(ranges="mse", extra_time=0.15), "int8-mse-mixed15"),
        (Quantize(scheme="w4a8", ranges="output", rounding="second-order"), "w4a8"),
        (Quantize(scheme="w4", ranges="output", rounding="second-order"), "w4"),
    ],
)
def test_the_name_of_a_quantized_candidate_is_what_was_asked_for(step: Quantize, word: str) -> None:
    """The ranges and the rounding that lose least go without saying."""
    assert named(Fuse(), step) == f"ort {word}"


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (Prune(time=0.7), "pruned70"),
        (Prune(time=0.555), "pruned56"),
        (Prune(time=0.7, recovered=True), "pruned70-recovered"),
    ],
)
def test_the_name_of_a_pruned_candidate_says_what_it_aims_at(step: Prune, word: str) -> None:
    assert named(Fuse(), step) == f"ort {word}"
    assert named(Fuse(), step, Quantize()) == f"ort {word} int8-mse"


def test_names_of_all_ways_to_quantize_differ() -> None:
    assert len({named(Fuse(), step) for step in STEPS}) == len(STEPS) == 360


def test_names_of_all_options_differ() -> None:
    recipes: tuple[tuple[Step, ...], ...] = ((), (Fuse(),), (Fuse(), HalveWeights()), (Fuse(), Quantize()))
    names = [
        named(*steps, backend=backend, precision=precision, graph_optimization=level, threads=threads)
        for steps in recipes
        for backend in ("ort", "openvino")
        for precision in get_args(Precision)
        for level in get_args(GraphOptimization)
        for threads in (1, 2, 4)
    ]
    assert len(set(names)) == len(names)


def test_names_say_what_is_out_of_the_ordinary() -> None:
    assert named() == "ort untouched"
    assert named(Fuse()) == "ort fused"
    assert named(Fuse(), HalveWeights(), threads=2) == "ort fp16-weights 2-threads"
    best = Quantize(ranges="output", rounding="second-order", extra_time=0.02)
    assert named(Fuse(), best, backend="openvino", precision="bf16") == "openvino int8-mixed2 bf16"
    assert named(graph_optimization="off") == "ort untouched as-written"


def test_a_name_is_a_folder() -> None:
    """Artifacts lie in folders that are named after their candidates."""
    for step in STEPS:
        assert not set(named(Fuse(), step)) & set('/\\:*?"<>|')


def test_candidates_come_back_as_they_were_stored() -> None:
    steps: tuple[Step, ...] = (*STEPS, Fuse(), HalveWeights())
    for step in steps:
        candidate = Candidate(steps=(Fuse(), step), backend="ort", options=RunOptions(threads=2))
        assert decode(encode(candidate), Candidate) == candidate
