"""What was scored once is not scored again."""

from __future__ import annotations

import pytest
from tests.pipeline.conftest import Task, job_of

from edgewise.errors import ContractError
from edgewise.pipeline.propose import untouched
from edgewise.pipeline.score import pace_of, score


def test_scores_are_stored_with_their_pace(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_of(task) as job:
        with pytest.raises(ContractError, match="has to be scored before"):
            pace_of(job, untouched(1))
        first = score(job, untouched(1), "select")
        assert first.value == 1.0  # the labels are what it answers
        assert pace_of(job, untouched(1)) == 0.0  # the clock stood still
        part = score(job, untouched(1), "select", first=10)
        assert part.n == 10
        monkeypatch.setattr("edgewise.pipeline.score.scores", None)
        assert score(job, untouched(1), "select") == first
        assert score(job, untouched(1), "select", first=10) == part


def test_a_metric_against_the_original_needs_it_beside(task: Task) -> None:
    with job_of(task, metric="agreement") as job:
        assert job.label_free
        found = score(job, untouched(1), "certify")
        assert found.value == 1.0
        assert found.n == len(job.data.certify)
