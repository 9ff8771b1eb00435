"""The store keeps what was put, whatever happens to the process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.errors import OutputError
from edgewise.records.findings import Change, Decline
from edgewise.records.store import STORE_SCHEMA, Store

CHANGE = Change(stage="fold", node="bn1", what="folded")


def test_the_newest_record_of_a_key_counts_and_the_older_stays(tmp_path: Path) -> None:
    with Store(tmp_path / "run.sqlite") as store:
        store.put("passes", "a", CHANGE)
        store.put("passes", "a", Change(stage="fold", node="bn2", what="folded"))
        newest = store.get("passes", "a", Change)
        assert newest is not None
        assert newest.node == "bn2"
        assert store.count("passes") == 2


def test_stages_do_not_see_each_other(tmp_path: Path) -> None:
    with Store(tmp_path / "run.sqlite") as store:
        store.put("passes", "a", CHANGE)
        assert store.get("latency", "a", Change) is None


def test_recall_makes_a_record_once_across_processes(tmp_path: Path) -> None:
    made = []

    def make() -> Change:
        made.append(1)
        return CHANGE

    for _ in range(3):
        with Store(tmp_path / "run.sqlite") as store:
            assert store.recall("passes", "a", Change, make) == CHANGE
    assert made == [1]


def test_a_killed_process_loses_nothing_that_put_returned_from(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    program = (
        "import sys; from pathlib import Path; from edgewise.records.store import Store;"
        "from edgewise.records.findings import Change\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for i in range(100000):\n"
        "    store.put('s', str(i), Change(stage='s', node=str(i), what='w')); print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = -1
    for line in child.stdout:
        last = int(line)
        if last >= 20:
            os.kill(child.pid, signal.SIGKILL)
            break
    child.wait()
    with Store(path) as store:
        assert store.get("s", str(last), Change) is not None
        assert store.count("s") >= last + 1


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 40)
    with pytest.raises(OutputError, match="readable and writable"):
        Store(tmp_path / "run.sqlite")


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {STORE_SCHEMA + 1}")
    connection.close()
    with pytest.raises(OutputError, match=f"up to {STORE_SCHEMA}"):
        Store(path)


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "run.sqlite") as store:
        store.put("passes", "a", CHANGE)
        with pytest.raises(OutputError, match="does not fit"):
            store.get("passes", "a", Decline)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="unable to open"):
        Store(tmp_path / "missing" / "run.sqlite")
