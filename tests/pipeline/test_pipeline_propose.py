"""The list of candidates."""

from __future__ import annotations

from edgewise.pipeline.propose import QUANTIZED, SMALL, propose, timing_twin, untouched
from edgewise.records.candidate import Candidate, Fuse, Quantize, RunOptions


def test_the_untouched_model_comes_first_at_every_number_of_threads() -> None:
    candidates = propose({"ort": ("fp32",)}, (1, 2))
    assert candidates[:2] == (untouched(1), untouched(2))


def test_names_are_unique() -> None:
    candidates = propose({"ort": ("fp32",), "openvino": ("fp32", "bf16")}, (1, 2))
    assert len({candidate.name for candidate in candidates}) == len(candidates)


def test_every_way_to_quantize_is_tried_on_every_backend_in_every_precision() -> None:
    candidates = propose({"ort": ("fp32",), "openvino": ("fp32", "bf16")}, (1,))
    tried = {
        (candidate.backend, candidate.options.precision, step)
        for candidate in candidates
        for step in candidate.steps
        if isinstance(step, Quantize)
    }
    places = {("ort", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")}
    assert tried == {(*place, step) for place in places for step in QUANTIZED}


def test_weights_alone_are_quantized_where_size_is_asked_for() -> None:
    candidates = propose({"ort": ("fp32",), "openvino": ("fp32", "bf16")}, (1,), small=True)
    tried = [(c.backend, c.options.precision, c.steps[-1]) for c in candidates if c.steps and c.steps[-1] in SMALL]
    assert tried == [(backend, "fp32", step) for backend in ("ort", "openvino") for step in SMALL]


def test_the_untouched_model_is_never_run_in_another_precision() -> None:
    candidates = propose({"openvino": ("fp32", "bf16")}, (1,))
    assert all(candidate.options.precision == "fp32" for candidate in candidates if candidate.is_untouched)


def test_candidates_that_differ_in_ranges_and_rounding_alone_share_a_timing_twin() -> None:
    def twin(step: Quantize) -> Candidate:
        return timing_twin(Candidate(steps=(Fuse(), step), backend="ort", options=RunOptions()))

    assert twin(Quantize(ranges="mse")) == twin(Quantize(ranges="output", rounding="second-order"))
    assert len({twin(step) for step in QUANTIZED}) == len(QUANTIZED)
    assert timing_twin(untouched(1)) == untouched(1)
