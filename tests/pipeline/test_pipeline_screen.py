"""Cheap rejection: groups of workers, each with the untouched model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import psutil
import pytest
from tests.pipeline.conftest import FUSED, Clock, FakeMeasures, Task, job_of

from edgewise.errors import BackendError
from edgewise.pipeline import screen
from edgewise.pipeline.explore import explore
from edgewise.pipeline.propose import untouched
from edgewise.pipeline.screen import build_all, time_all
from edgewise.records.candidate import Candidate, Fuse, HalveWeights, HistogramMethod, Quantize, RunOptions, Step


def test_every_group_holds_the_baseline(task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_of(task) as job:
        steps: list[tuple[Step, ...]] = [(), (Fuse(),), (Fuse(), HalveWeights())]
        steps += [(Fuse(), Quantize(ranges=method)) for method in get_args(HistogramMethod)]
        candidates = [Candidate(steps=one, backend="ort", options=RunOptions()) for one in steps]
        build_all(job, candidates)
        room = SimpleNamespace(available=2.2 * 3 * (screen.WORKER_BYTES + (1 << 20)))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: room)
        timings = time_all(job, candidates, candidates[0])
        # Four range methods take the same time, so one of them is timed.
        assert [names for names, _ in measures.groups] == [
            ("ort untouched", "ort fused", "ort fp16-weights"),
            ("ort untouched", "ort int8-min-max"),
        ]
        assert set(timings) == set(candidates)
        int8 = [timings[candidate] for candidate in candidates if "int8" in candidate.name]
        assert int8 == [int8[0]] * 4
        assert int8[0].speedup is not None
        assert int8[0].speedup.value == pytest.approx(2.0)
        time_all(job, candidates, candidates[0])
        assert len(measures.groups) == 2


def test_the_baseline_alone_is_timed_where_nothing_else_was_built(task: Task, measures: FakeMeasures) -> None:
    with job_of(task) as job:
        baseline = untouched(1)
        build_all(job, [baseline])
        for _ in range(2):
            timing = time_all(job, [baseline], baseline)[baseline]
            assert timing.speedup is not None
            assert timing.speedup.value == pytest.approx(1.0)
        assert len(measures.groups) == 1


def test_a_baseline_that_cannot_be_timed_ends_the_run(task: Task, measures: FakeMeasures) -> None:
    measures.failing = {"ort untouched"}
    with job_of(task) as job, pytest.raises(BackendError, match="ended with status 3"):
        explore(job)


def test_the_first_timing_takes_a_tenth_of_what_is_left(task: Task, measures: FakeMeasures) -> None:
    clock = Clock()
    with job_of(task, clock=clock, effort={"budget_s": 90.0}) as job:
        clock.now += 40
        build_all(job, [untouched(1), FUSED])
        time_all(job, [untouched(1), FUSED], untouched(1))
    assert [budget_s for _, budget_s in measures.groups] == [pytest.approx(5.0)]
