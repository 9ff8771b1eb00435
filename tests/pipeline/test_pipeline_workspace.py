"""The directory of a run: locked, resumed, refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgewise.errors import BackendMissingError, DataError, ModelError, OutputError, RecipeError, UserError
from edgewise.pipeline.workspace import clear, open_workspace
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


def fail_after(out: Path, stage: str, error: BaseException) -> None:
    """Begin a run that fails after it has stored one record."""
    with open_workspace(out, "key", overwrite=False) as workspace:
        workspace.store.put(stage, "k", CHANGE)
        workspace.work.mkdir()
        raise error


@pytest.mark.parametrize("error", [ModelError, DataError, RecipeError, BackendMissingError])
@pytest.mark.parametrize("created", [True, False])
def test_a_run_on_what_cannot_be_used_leaves_nothing(tmp_path: Path, error: type[UserError], created: bool) -> None:
    out = tmp_path / "out"
    if not created:
        out.mkdir()
    with pytest.raises(error):
        fail_after(out, "build", error("It cannot be used."))
    assert out.exists() is not created
    with open_workspace(out, "b", overwrite=False):
        pass


@pytest.mark.parametrize(("error", "stage"), [(DataError, "timing"), (OutputError, "build"), (KeyboardInterrupt, "s")])
def test_a_run_that_failed_otherwise_or_later_is_kept(tmp_path: Path, error: type[BaseException], stage: str) -> None:
    with pytest.raises(error):
        fail_after(tmp_path / "out", stage, error("It failed."))
    with open_workspace(tmp_path / "out", "key", overwrite=False) as workspace:
        assert workspace.store.get(stage, "k", Change) == CHANGE


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


@pytest.mark.parametrize("name", ["work", "models", "sources", "manifest.json"])
def test_a_directory_without_records_is_never_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("not made by edgewise")
    for overwrite in (False, True):
        with (
            pytest.raises(OutputError, match=f"it holds `{name}`"),
            open_workspace(tmp_path, "key", overwrite=overwrite),
        ):
            pass
    assert (tmp_path / name / "precious").exists()


def test_a_run_that_was_killed_before_its_key_was_written_begins(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"")
    with open_workspace(tmp_path, "key", overwrite=False) as workspace:
        assert workspace.store.count("run-key") == 1
    with open_workspace(tmp_path, "key", overwrite=False) as workspace:
        assert workspace.store.count("run-key") == 1


def test_clearing_removes_drafts_and_the_records_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_workspace(tmp_path, "key", overwrite=False):
        pass
    for name in ("models", "work", ".bundle-tmp-7"):
        (tmp_path / name).mkdir()
    for name in ("manifest.json", ".report.html-7"):
        (tmp_path / name).write_text("")
    removed: list[str] = []
    remove = shutil.rmtree
    unlink = Path.unlink

    def noting_tree(path: Path) -> None:
        removed.append(path.name)
        remove(path)

    def noting_file(path: Path, **options: bool) -> None:
        removed.append(path.name)
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", noting_tree)
        patch.setattr(Path, "unlink", noting_file)
        clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == []
    assert removed[-1] == "run.sqlite"
    assert len(removed) == 6
