"""SIGKILL at many moments, with real processes that measure: nothing is left behind, nothing is measured twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tests.pipeline.conftest import Task
from tests.pipeline.test_pipeline_resume import repeated

from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import verify
from edgewise.measure.machine import describe
from edgewise.pipeline.optimize import finished_run
from edgewise.records.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]

KILLS = 15


def start(task: Task, out: str) -> subprocess.Popen[bytes]:
    """Start the command."""
    arguments = ["optimize", str(task.model), "--data", str(task.samples), "--out", str(task.folder / out)]
    options = ["--max-drop", "5%", "--backends", "ort", "--budget", "20s"]
    return subprocess.Popen(
        [sys.executable, "-m", "edgewise", *arguments, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def known(run: Run) -> tuple[tuple[object, ...], dict[str, float]]:
    """Return what must be equal in two runs whose clocks differ."""
    drops = {outcome.candidate.name: outcome.drop for outcome in run.outcomes if outcome.drop is not None}
    candidates = [(outcome.candidate, outcome.size_bytes, outcome.declines) for outcome in run.outcomes]
    return (run.model, run.data, run.changes, run.declines, candidates), drops


def test_killed_at_many_moments(task: Task) -> None:
    began = time.monotonic()
    assert start(task, "whole").wait(300) == 0
    seconds = time.monotonic() - began
    draw = random.Random(20261122)  # noqa: S311 - moments, not secrets
    moments = sorted(draw.uniform(0.2, 0.7 * seconds) for _ in range(KILLS))
    kills = 0
    for moment in moments:
        process = start(task, "out")
        try:
            assert process.wait(moment) == 0
            break  # it had finished: what is left would only return at once
        except subprocess.TimeoutExpired:
            workers = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == [], "a worker outlived the run that started it"
    assert start(task, "out").wait(300) == 0
    assert kills >= 5
    assert repeated(task.records()) == {}
    groups = [key for stage, key in task.records() if stage == "timing"]
    assert groups.count("ort untouched") == 1  # all candidates of this task fit into one group
    run, whole = finished_run(task.out), finished_run(task.folder / "whole")
    (facts, drops), (whole_facts, whole_drops) = known(run), known(whole)
    assert facts == whole_facts
    assert {name: drops[name] for name in drops.keys() & whole_drops} == {
        name: whole_drops[name] for name in drops.keys() & whole_drops
    }
    assert run.ladder[0].candidate.is_untouched
    bundle = Bundle.load(task.out)
    assert verify(bundle, machine=describe()).passed
    assert not (task.out / "work").exists()
    assert 0 < run.seconds < 300
