"""The directory of a run: locked, resumed, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.errors import OutputError
from edgewise.pipeline.workspace import open_workspace
from edgewise.records.findings import Change

CHANGE = Change(stage="s", node="n", what="did")


def test_the_same_run_finds_its_records_again(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with open_workspace(out, "key", overwrite=False) as workspace:
        workspace.store.put("s", "k", CHANGE)
    with open_workspace(out, "key", overwrite=False) as workspace:
        assert workspace.store.get("s", "k", Change) == CHANGE


def test_another_run_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "key", overwrite=False):
        pass
    with pytest.raises(OutputError, match="another model") as caught, open_workspace(tmp_path, "b", overwrite=False):
        pass
    assert caught.value.hint is not None
    assert "--overwrite" in caught.value.hint


def test_overwrite_replaces_another_run_and_leaves_foreign_files(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "key", overwrite=False) as workspace:
        workspace.store.put("s", "k", CHANGE)
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "a").write_text("a")
    (tmp_path / "mine.txt").write_text("mine")
    with open_workspace(tmp_path, "b", overwrite=True) as workspace:
        assert workspace.store.get("s", "k", Change) is None
    assert not (tmp_path / "models").exists()
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_overwrite_replaces_damaged_records(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"damaged" * 200)
    with pytest.raises(OutputError), open_workspace(tmp_path, "key", overwrite=False):
        pass
    with open_workspace(tmp_path, "key", overwrite=True) as workspace:
        assert workspace.store.count("run-key") == 1


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with (
        open_workspace(tmp_path, "key", overwrite=False),
        pytest.raises(OutputError, match="Another run is at work"),
        open_workspace(tmp_path, "key", overwrite=False),
    ):
        pass


def test_the_lock_is_freed_when_a_run_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_workspace(tmp_path, "key", overwrite=False):
        raise RuntimeError
    with open_workspace(tmp_path, "key", overwrite=False):
        pass


def test_a_directory_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"), open_workspace(tmp_path, "key", overwrite=False):
        pass


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="writable"), open_workspace(tmp_path / "out", "key", overwrite=False):
        pass


def test_tidy_removes_the_work_folder_alone(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "key", overwrite=False) as workspace:
        (workspace.work / "a").mkdir(parents=True)
        workspace.tidy()
        assert not workspace.work.exists()
        assert (tmp_path / "run.sqlite").exists()
