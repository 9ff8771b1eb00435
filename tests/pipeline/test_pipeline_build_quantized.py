"""Candidates that quantize: what they share is decided once, and stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.pipeline.conftest import INT8, MakeTask, Task, job_of
from tests.pipeline.quantize_nets import Times, chain, uneven

from edgewise.formats.onnx import to_bytes
from edgewise.pipeline.build import Workshop
from edgewise.pipeline.judge import opened
from edgewise.pipeline.quantize import Decision, Quantizer
from edgewise.records.candidate import Candidate, Fuse, Precision, Quantize, RunOptions
from edgewise.records.tensors import Array
from edgewise.testing.graphs import recurrent_cell

BEST = Quantize(ranges="output", rounding="second-order")


def candidate(step: Quantize, backend: str = "ort", *, threads: int = 1, precision: Precision = "fp32") -> Candidate:
    options = RunOptions(threads=threads, precision=precision)
    return Candidate(steps=(Fuse(), step), backend=backend, options=options)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Quantize]]:
    """Return what was decided: the backend and the step of each call."""
    calls: list[tuple[str, Quantize]] = []
    decide = Quantizer.decide

    def noting(self: Quantizer, step: Quantize) -> Decision:
        calls.append((self.target.backend, step))
        return decide(self, step)

    monkeypatch.setattr(Quantizer, "decide", noting)
    return calls


def pictures(count: int = 60) -> dict[str, Array]:
    return {"image": np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def test_a_recipe_is_decided_once_for_all_numbers_of_threads_and_precisions(
    task: Task, decided: list[tuple[str, Quantize]]
) -> None:
    other = Quantize(ranges="mse", rounding="second-order")
    with job_of(task) as job:
        for step in (INT8.steps[-1], other):
            assert isinstance(step, Quantize)
            graphs = [
                job.workshop.graph(candidate(step, threads=threads, precision=precision))[0]
                for threads in (1, 2)
                for precision in ("fp32", "bf16")
            ]
            assert len({to_bytes(graph) for graph in graphs}) == 1
        assert decided == [("ort", INT8.steps[-1]), ("ort", other)]
        assert [key for stage, key in task.records() if stage == "plan"] == [
            "ort w8a8 mse nearest 0 0",
            "ort w8a8 mse second-order 0 0",
        ]


def test_each_backend_has_a_decision_of_its_own(task: Task, decided: list[tuple[str, Quantize]]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    with job_of(task) as job:
        for backend in ("ort", "openvino", "ort"):
            job.workshop.graph(candidate(BEST, backend))
        assert [backend for backend, _ in decided] == ["ort", "openvino"]
        assert len({plan for stage, plan in task.records() if stage == "plan"}) == 2


def test_the_backends_share_one_pass_over_the_samples(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    with job_of(task) as job:
        for backend in ("ort", "openvino"):
            job.workshop.graph(candidate(BEST, backend))
            monkeypatch.setattr("edgewise.pipeline.build.gather", None)


def test_what_was_decided_is_resumed_without_calibrating_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_of(task) as job:
        before = to_bytes(job.workshop.graph(INT8)[0])
        assert job.workshop._decision(Quantize(), candidate(Quantize())).prepared == "as it is"
    monkeypatch.setattr("edgewise.pipeline.build.gather", None)
    monkeypatch.setattr(Quantizer, "decide", None)
    step = INT8.steps[-1]
    assert isinstance(step, Quantize)
    with job_of(task) as job:
        job.workshop.prepare([INT8, candidate(step, threads=2)])
        assert to_bytes(job.workshop.graph(INT8)[0]) == before
        assert job.workshop.build(candidate(step, threads=2)).failure == ""


def test_what_was_not_decided_yet_is_calibrated_when_it_is_prepared(task: Task) -> None:
    with job_of(task) as job:
        job.workshop.graph(INT8)
    with job_of(task) as job:
        job.workshop.prepare([INT8, candidate(BEST)])
        assert "material" in vars(job.workshop)


def test_an_equalized_decision_is_resumed_bit_by_bit(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples tell again how channels were scaled."""
    nearest = Quantize(ranges="output", rounding="nearest")  # integers that were chosen would be in the plan
    made = make_task(uneven(), **pictures())
    options: dict[str, Any] = {"metric": "cosine", "max_drop": 0.1}
    with job_of(made, **options) as job:
        before = to_bytes(job.workshop.graph(candidate(nearest))[0])
        decision = job.workshop._decision(nearest, candidate(nearest))
        assert decision.prepared == "equalized"
        assert before == to_bytes(job.workshop._quantizer(candidate(nearest)).model(decision))
    monkeypatch.setattr(Quantizer, "decide", None)
    with job_of(made, **options) as job:
        assert to_bytes(job.workshop.graph(candidate(nearest))[0]) == before


def test_the_time_that_is_left_and_notes_reach_the_decision(task: Task) -> None:
    class Notes:
        heard: list[str]

        def __init__(self) -> None:
            self.heard = []

        def stage(self, title: str, steps: int | None = None) -> None:
            del title, steps

        def step(self, what: str = "") -> None:
            del what

        def note(self, sentence: str) -> None:
            self.heard.append(sentence)

    with job_of(task) as job:
        notes = Notes()
        hurried = Workshop(job.model, job.data.calibrate, job.workspace, notes, lambda: 0.0)
        hurried.graph(candidate(BEST))
        assert len(notes.heard) == 1
        assert "second-order rounding" in notes.heard[0]


def test_recipes_differ_by_the_time_that_float_may_take(make_task: MakeTask, times: Any) -> None:
    fake: Times = times()
    x = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    made = make_task(chain(), x=x)
    with job_of(made, metric="cosine") as job:
        for extra_time in (0.015, 0.025):
            step = Quantize(ranges="output", rounding="nearest", extra_time=extra_time)
            assert len(job.workshop._decision(step, candidate(step)).kept) == round(100 * extra_time - 0.5)
    assert set(fake.options) == {RunOptions()}


def test_a_recurrent_model_is_calibrated_on_the_states_that_it_makes_itself(make_task: MakeTask) -> None:
    x = np.random.default_rng(0).standard_normal((30, 5, 4)).astype(np.float32)
    made = make_task(recurrent_cell(), x=x)
    data = {"state": {"new_state": "state"}}
    with job_of(made, data=data, metric="cosine") as job:
        material = job.workshop.material
        count = len(job.data.calibrate)
        assert len(material.feeds) == material.statistics.samples == 5 * count
        with opened(job.workshop.fused[0]) as run:
            for index, feed in enumerate(material.feeds):
                if index % 5 == 0:
                    np.testing.assert_array_equal(feed["state"], np.zeros((1, 8), np.float32))
                else:
                    before = material.feeds[index - 1]
                    np.testing.assert_allclose(feed["state"], run(before)["new_state"], rtol=1e-5, atol=1e-6)
                sample = int(job.data.calibrate.indices[index // 5])
                np.testing.assert_array_equal(feed["x"], x[sample, index % 5][None])
        assert job.workshop.build(candidate(BEST)).failure == ""
