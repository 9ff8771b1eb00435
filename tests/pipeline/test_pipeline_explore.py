"""Rejections in the search."""

from __future__ import annotations

import msgspec
import numpy as np
from tests.pipeline.conftest import INT8, FakeMeasures, Task, job_of

from edgewise.pipeline.explore import explore
from edgewise.pipeline.propose import untouched
from edgewise.pipeline.score import score


def test_a_candidate_that_loses_too_much_is_rejected_at_first_sight(task: Task, measures: FakeMeasures) -> None:
    with np.load(task.samples) as arrays:
        x, y = np.tile(arrays["x"], (4, 1)), np.tile(arrays["y"], 4)
    np.savez(task.samples, x=x, y=y)
    with job_of(task, max_drop=0.01) as job:
        # It was right on none of the first samples.
        original = score(job, untouched(1), "select", first=64)
        zeros = msgspec.structs.replace(original, value=0.0, values=np.zeros(64, "<f8").tobytes())
        job.workspace.store.put("scores select 64", INT8.name, zeros)
        found = explore(job)
    outcome = next(o for o in found.outcomes if o.candidate.name == INT8.name)
    assert outcome.fate == "rejected"
    assert outcome.reason.startswith("on 64 select samples it already loses at least")
    assert measures.groups
