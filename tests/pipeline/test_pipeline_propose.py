"""The list of candidates."""

from __future__ import annotations

from edgewise.pipeline.propose import RANGE_METHODS, propose, timing_twin, untouched
from edgewise.records.candidate import Quantize


def test_the_untouched_model_comes_first_at_every_number_of_threads() -> None:
    candidates = propose({"ort": ("fp32",)}, (1, 2))
    assert candidates[:2] == (untouched(1), untouched(2))


def test_names_are_unique() -> None:
    candidates = propose({"ort": ("fp32",), "openvino": ("fp32", "bf16")}, (1, 2))
    assert len({candidate.name for candidate in candidates}) == len(candidates)


def test_every_range_method_is_tried_on_every_backend_in_every_precision() -> None:
    candidates = propose({"ort": ("fp32",), "openvino": ("fp32", "bf16")}, (1,))
    tried = {
        (candidate.backend, candidate.options.precision, step.ranges)
        for candidate in candidates
        for step in candidate.steps
        if isinstance(step, Quantize)
    }
    places = {("ort", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")}
    assert tried == {(*place, ranges) for place in places for ranges in RANGE_METHODS}


def test_the_untouched_model_is_never_run_in_another_precision() -> None:
    candidates = propose({"openvino": ("fp32", "bf16")}, (1,))
    assert all(candidate.options.precision == "fp32" for candidate in candidates if candidate.is_untouched)


def test_candidates_that_differ_in_ranges_alone_share_a_timing_twin() -> None:
    candidates = propose({"ort": ("fp32",)}, (1,))
    quantized = [c for c in candidates if any(isinstance(step, Quantize) for step in c.steps)]
    assert len(quantized) == len(RANGE_METHODS)
    assert len({timing_twin(candidate) for candidate in quantized}) == 1
    assert timing_twin(untouched(1)) == untouched(1)
