"""The certify split is opened once, and the first failure ends the tests."""

from __future__ import annotations

from typing import Any

import pytest
from tests.pipeline.conftest import FUSED, INT8, Task, job_of

from edgewise.errors import BackendError
from edgewise.pipeline.build import Workshop
from edgewise.pipeline.certify import Opening, certify
from edgewise.records.candidate import Candidate
from edgewise.records.certificate import Certificate


def test_the_sequence_ends_at_the_first_failure(task: Task) -> None:
    with job_of(task, max_drop=0.011) as job:
        proof = certify(job, [INT8, FUSED])
        assert [certificate.passed for certificate in proof.found] == [False]
        stored = {key for stage, key in task.records() if stage.startswith("scores certify")}
        assert stored == {"ort untouched", INT8.name}
    assert proof.notes == ()


def test_a_rung_that_fails_on_a_certify_sample_ends_the_sequence(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_of(task) as job:
        open_it = Workshop.open

        def failing(workshop: Workshop, candidate: Candidate) -> Any:
            if candidate == INT8:
                raise BackendError("it overflows here.")
            return open_it(workshop, candidate)

        monkeypatch.setattr(Workshop, "open", failing)
        proof = certify(job, [FUSED, INT8])
    assert [certificate.passed for certificate in proof.found] == [True]
    assert proof.notes == (f"`{INT8.name}` could not be tested on the certify split: it overflows here.",)


def test_nothing_is_opened_for_an_empty_ladder(task: Task) -> None:
    with job_of(task) as job:
        assert certify(job, []).found == ()
    assert "certify-set" not in {stage for stage, _ in task.records()}


def test_other_runs_are_counted_in_words(task: Task) -> None:
    with job_of(task) as job:
        job.workspace.store.put("certify-set", "", Opening(reused=2))
        proof = certify(job, [FUSED])
    (certificate,) = proof.found
    assert isinstance(certificate, Certificate)
    assert certificate.reused == 2
    assert "opened by 2 other runs before" in proof.notes[0]
