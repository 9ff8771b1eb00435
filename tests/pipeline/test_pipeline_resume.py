"""A run that is interrupted at any moment goes on where it stopped, and measures nothing twice."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.pipeline.conftest import FakeMeasures, Task, records_of

from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import verify
from edgewise.errors import OutputError
from edgewise.formats.onnx import save
from edgewise.measure.machine import describe
from edgewise.pipeline import deliver
from edgewise.pipeline.optimize import Result, Session, optimize
from edgewise.pipeline.progress import Quiet
from edgewise.records.run import Run
from edgewise.records.store import Store
from edgewise.testing.graphs import mlp

MANY = {"session"}
"""Stages of which there is one record for each time that the run was begun or resumed."""


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing of edgewise catches it."""


@contextmanager
def killed_after(records: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End whatever runs inside when that many transactions have been written."""
    left = records

    def dying(method: Any) -> Any:
        def wrapped(*arguments: Any) -> None:
            nonlocal left
            method(*arguments)
            left -= 1
            if left == 0:
                raise Killed

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dying(Store.put))
        patch.setattr(Store, "put_all", dying(Store.put_all))
        yield


def repeated(records: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return what was recorded more than once. The untouched model is timed once in each group of workers."""
    counts = Counter(record for record in records if record[0] not in MANY)
    counts.pop(("timing", "ort untouched"), None)
    return {record: count for record, count in counts.items() if count > 1}


def shape(run: Run) -> dict[str, Any]:
    """Return what of a run does not depend on the clock."""
    return {
        "ladder": [(rung.candidate, rung.certified, rung.size_bytes) for rung in run.ladder],
        # Two runs on the same samples know of each other.
        "certificates": [
            rung.certificate and msgspec.structs.replace(rung.certificate, reused=0) for rung in run.ladder
        ],
        "chosen": run.chosen,
        "outcomes": [(o.candidate, o.fate, o.size_bytes, o.drop, o.declines) for o in run.outcomes],
        "data": run.data,
        "changes": run.changes,
        "declines": run.declines,
        "notes": [note for note in run.notes if "certify samples, or some of them" not in note],
        "verdict": run.verdict,
    }


def check_bundle(result: Result) -> None:
    """Check that the bundle is the one of the run, and whole."""
    bundle = Bundle.load(result.folder)
    assert verify(bundle, machine=describe()).passed
    assert bundle.rungs == tuple(rung.candidate.name for rung in result.run.ladder)
    assert (result.folder / "report.html").stat().st_size > 1000
    assert not (result.folder / "work").exists()


def test_a_run_killed_after_every_single_record_measures_nothing_twice(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = task.run(out=task.folder / "whole")
    kills = 0
    while True:
        try:
            # The second record of each session is the first that was not there before: `session` itself comes first.
            with killed_after(2, monkeypatch):
                result = task.run()
            break
        except Killed:
            kills += 1
    assert kills > 20
    assert repeated(task.records()) == {}
    # The first was killed before it had begun its session; after the last, everything was finished.
    assert len([1 for stage, _ in task.records() if stage == "session"]) == kills - 1
    assert shape(result.run) == shape(whole.run)
    check_bundle(result)
    # One group in each run was timed for the search, one for the ladder.
    assert len(measures.groups) == 4
    assert len(measures.footprints) == 2 * len(result.run.ladder)


@pytest.mark.usefixtures("measures")
def test_a_run_that_goes_on_says_so(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Quiet, "note", lambda _self, note: heard.append(note))
    with pytest.raises(Killed), killed_after(8, monkeypatch):
        task.run()
    assert not any("goes on" in note for note in heard)
    task.run()
    assert any("holds a part of this run: it goes on" in note for note in heard)


@pytest.mark.parametrize("when", [8, 20])
def test_the_work_folder_may_be_lost(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    with pytest.raises(Killed), killed_after(when, monkeypatch):
        task.run()
    shutil.rmtree(task.out / "work")
    result = task.run()
    assert repeated(task.records()) == {}
    assert len(measures.groups) == 2
    check_bundle(result)


def test_a_damaged_artifact_is_made_again(task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed), killed_after(14, monkeypatch):
        task.run()
    damaged = sorted(path for path in (task.out / "work").rglob("*") if path.is_file())
    assert len(damaged) > 2
    damaged[0].write_bytes(b"")
    damaged[1].write_bytes(damaged[1].read_bytes()[:-7])
    damaged[2].unlink()
    result = task.run()
    assert repeated(task.records()) == {}
    assert len(measures.groups) == 2
    check_bundle(result)


def test_a_bundle_whose_writing_was_interrupted_is_written(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_arguments: object, **_options: object) -> None:
        (task.out / ".bundle-tmp-1").mkdir()
        (task.out / ".bundle-tmp-1" / "manifest.json").write_text("{")
        (task.out / "models").mkdir()
        (task.out / "models" / "ort-12345678").mkdir()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(deliver, "write", dies)
        with pytest.raises(Killed):
            task.run()
    result = task.run()
    assert len(measures.groups) == 2
    assert not (task.out / ".bundle-tmp-1").exists()
    assert not (task.out / "models" / "ort-12345678").exists()
    check_bundle(result)


def test_a_report_that_could_not_be_written_leaves_a_run_that_goes_on(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _text: str, **_options: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError, match=r"report\.html.*No space left"):
            task.run()
    assert sorted(path.name for path in task.out.glob(".report*")) == []
    check_bundle(task.run())
    assert len(measures.groups) == 2


def test_a_finished_run_returns_at_once(task: Task, measures: FakeMeasures) -> None:
    first = task.run()
    before = task.records()
    again = task.run()
    assert again == first
    assert task.records() == before
    assert len(measures.groups) == 2


@pytest.mark.parametrize("what", ["manifest.json", "models", "report.html"])
def test_a_finished_run_whose_files_are_gone_writes_them_again(task: Task, measures: FakeMeasures, what: str) -> None:
    first = task.run()
    path = task.out / what
    if path.is_dir():
        next(path.glob("ort-*/*")).write_bytes(b"damaged")
    else:
        path.unlink()
    again = task.run()
    assert shape(again.run) == shape(first.run)
    assert len(measures.groups) == 2
    check_bundle(again)


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": 0.09},
        {"metric": "agreement"},
        {"max_size_bytes": 10_000_000},
        {"data": {"seed": 1}},
        {"effort": {"threads": (2,)}},
        {"accept_uncertified": True},
    ],
    ids=str,
)
def test_other_options_are_refused_and_overwrite_replaces(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    with pytest.raises(Killed), killed_after(3, monkeypatch):
        task.run()
    before = task.records()
    with pytest.raises(OutputError, match="another model, other data, other options") as caught:
        task.run(**options)
    assert "--overwrite" in str(caught.value.hint)
    assert task.records() == before
    with pytest.raises(Killed), killed_after(3, monkeypatch):
        task.run(overwrite=True, **options)
    assert len([1 for stage, _ in task.records() if stage == "beginning"]) == 1
    assert not measures.groups


def test_another_model_and_other_samples_are_refused(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed), killed_after(3, monkeypatch):
        task.run()
    samples = task.samples.read_bytes()
    with np.load(task.samples) as arrays:
        x, y = arrays["x"].copy(), arrays["y"]
        x[7, 3] += 1
        np.savez(task.samples, x=x, y=y)
    with pytest.raises(OutputError, match="other data"):
        task.run()
    task.samples.write_bytes(samples)
    save(mlp(features=8, hidden=48, seed=1), task.model)
    with pytest.raises(OutputError, match="another model"):
        task.run()
    assert not measures.groups


def test_another_budget_resumes(task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed), killed_after(20, monkeypatch):
        task.run(effort={"budget_s": 100.0})
    before = task.records()
    task.run(effort={"budget_s": 300.0})
    assert task.records()[: len(before)] == before
    assert repeated(task.records()) == {}
    assert len(measures.groups) == 2


def test_the_ladder_stays_fixed_once_the_certify_split_may_have_been_opened(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With this little time one candidate alone is scored; with more time after a kill, others would be, and other
    # rungs would be tested on a split that was opened already.
    whole = task.run(out=task.folder / "whole", effort={"budget_s": 0.001})
    assert any("time budget ended" in outcome.reason for outcome in whole.run.outcomes)
    opened = [stage for stage, _ in records_of(task.folder / "whole")].index("certify-set")
    with pytest.raises(Killed), killed_after(_transactions(task.folder / "whole", opened), monkeypatch):
        task.run(effort={"budget_s": 0.001})
    assert task.records()[-1][0] == "certify-set"
    resumed = task.run(effort={"budget_s": 1000.0})
    assert shape(resumed.run) == shape(whole.run)
    assert measures.groups[1][0] == measures.groups[3][0]


def test_seconds_count_every_session_and_no_interruption(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0

    def clock() -> float:
        nonlocal now
        now += 0.25
        return now

    with pytest.raises(Killed), killed_after(12, monkeypatch):
        optimize(task.request(), clock=clock)
    with Store(task.out / "run.sqlite") as store:
        (first,) = store.spans("session")
        (read,) = store.get_all("session", Session)
    assert read.seconds == 0.25
    assert 0 < first < 60
    began, now = now + 3600, now + 3600
    result = optimize(task.request(), clock=clock)
    # The last reading of the clock is the one that makes `seconds`, or little later.
    assert result.run.seconds == pytest.approx(first + read.seconds + now - began, abs=1.0)
    assert len(measures.groups) == 2


def test_time_that_earlier_sessions_took_counts_towards_the_budget(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "spans", lambda _store, _stage: [50.0, 60.0])
    task.run(effort={"budget_s": 100.0})
    assert all(budget_s <= 3.0 for _, budget_s in measures.groups)


def _transactions(folder: Path, upto: int) -> int:
    """Return how many transactions wrote the first records of a run, up to and including that index."""
    records = records_of(folder)[: upto + 1]
    together = (
        sum(stage == "timing" for stage, _ in records) - 1 + sum(stage.startswith("pace") for stage, _ in records)
    )
    return len(records) - together
