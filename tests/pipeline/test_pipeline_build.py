"""Candidates become artifacts, each once."""

from __future__ import annotations

from typing import Any

import pytest
from tests.pipeline.conftest import FUSED, INT8, Task, job_of

from edgewise.backends import registry
from edgewise.errors import BackendError, BundleError, ContractError
from edgewise.formats.onnx import save
from edgewise.pipeline.build import Build, Workshop
from edgewise.pipeline.propose import propose, untouched
from edgewise.pipeline.screen import build_all, entry
from edgewise.records.candidate import Candidate, Fuse, HalveWeights, RunOptions
from edgewise.testing.graphs import quantized_gemm


def test_a_candidate_is_built_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_of(task) as job:
        first = job.workshop.build(FUSED)
        assert first.failure == ""
        monkeypatch.setattr(Workshop, "_build", None)
        assert job.workshop.build(FUSED) == first


def test_only_what_was_built_can_be_opened_timed_or_delivered(task: Task) -> None:
    with job_of(task) as job:
        nothing = Build(spec=None, size_bytes=0, declines=(), failure="because")
        job.workspace.store.put("build", FUSED.name, nothing)
        assert build_all(job, [FUSED]) == {FUSED: "because"}
        with pytest.raises(ContractError, match="can be opened"):
            job.workshop.open(FUSED)
        with pytest.raises(ContractError, match="can be timed"):
            entry(job, FUSED)


def test_an_artifact_that_is_damaged_between_checking_and_opening_is_refused(task: Task) -> None:
    with job_of(task) as job:
        job.workshop.build(FUSED)
        next(path for path in job.workshop.folder(FUSED).iterdir()).write_bytes(b"x")
        with pytest.raises(BundleError, match="changed or truncated"):
            job.workshop.open(FUSED)


def test_building_leaves_the_users_model_as_it_was(task: Task) -> None:
    with job_of(task) as job:
        before = registry.get("ort").compile(job.model.fixed, RunOptions()).spec
        for candidate in propose({"ort": ("fp32",)}, (1,)):
            job.workshop.build(candidate)
        assert registry.get("ort").compile(job.model.fixed, RunOptions()).spec == before


def test_steps_are_applied_in_order(task: Task) -> None:
    with job_of(task) as job:
        halved, _ = job.workshop.graph(Candidate(steps=(Fuse(), HalveWeights()), backend="ort", options=RunOptions()))
        assert "Cast" in {node.op_type for node in halved.graph}
        quantized, _ = job.workshop.graph(INT8)
        assert "DequantizeLinear" in {node.op_type for node in quantized.graph}


def test_a_model_that_is_quantized_already_is_left_as_it_is_and_says_so(task: Task) -> None:
    save(quantized_gemm(features=8), task.model)
    with job_of(task) as job:
        failure = job.workshop.build(INT8).failure
    reason = "`in_q`: the model is quantized already, and is left as it is."
    assert failure == f"No node of this model can be quantized. {reason}"


def test_calibration_reads_each_of_its_samples_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_of(task) as job:
        _ = job.workshop.fused
        read: list[int] = []
        dataset = type(job.data.calibrate.dataset)
        feeds = dataset.feeds

        def noting(self: Any, index: int) -> Any:
            read.append(index)
            return feeds(self, index)

        monkeypatch.setattr(dataset, "feeds", noting)
        assert job.workshop.material.statistics.samples == len(job.data.calibrate)
        assert read == list(job.data.calibrate.indices)


def test_what_is_prepared_in_vain_is_no_error(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_arguments: object, **_options: object) -> None:
        raise BackendError("no")

    with job_of(task) as job:
        monkeypatch.setattr("edgewise.pipeline.build.fuse", refuses)
        job.workshop.prepare([FUSED, INT8])
        assert build_all(job, [untouched(1), FUSED]) == {FUSED: "no"}
        assert job.workshop.findings().declines[0].reason == "no"
