"""The ledger counts other runs that opened a certify set."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.pipeline.ledger import ledger_path, open_certify_set


def test_other_runs_are_counted_once_each(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.sqlite"
    assert open_certify_set("set-a", "run-1", path=path) == 0
    assert open_certify_set("set-a", "run-1", path=path) == 0  # resumed
    assert open_certify_set("set-a", "run-2", path=path) == 1
    assert open_certify_set("set-b", "run-3", path=path) == 0
    assert open_certify_set("set-a", "run-1", path=path) == 1


def test_a_ledger_that_cannot_be_written_knows_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert open_certify_set("set-a", "run-1", path=tmp_path / "file" / "ledger.sqlite") is None


def test_a_damaged_ledger_knows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is no database at all, though it is long enough" * 30)
    assert open_certify_set("set-a", "run-1", path=path) is None


def test_the_ledger_lies_in_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert ledger_path().is_relative_to(tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ledger_path() == tmp_path / ".local" / "state" / "edgewise" / "certify-sets.sqlite"
