"""Deadlines, and what the stages share."""

from __future__ import annotations

import numpy as np
from tests.pipeline.conftest import Clock, Task, job_of

from edgewise.pipeline.job import Deadline


def test_a_deadline_never_has_less_than_nothing_left() -> None:
    clock = Clock()
    deadline = Deadline.after(5.0, clock)
    assert deadline.left_s == 5.0
    clock.now += 3
    assert deadline.left_s == 2.0
    clock.now += 3
    assert deadline.left_s == 0.0


def test_timing_feeds_are_the_first_select_samples(task: Task) -> None:
    with job_of(task) as job:
        feeds = job.timing_feeds(3)
        expected = [job.data.select.dataset.feeds(int(index))["x"] for index in job.data.select.indices[:3]]
        assert all(np.array_equal(feed["x"], array) for feed, array in zip(feeds, expected, strict=True))
        assert job.steps_per_sample == 1
