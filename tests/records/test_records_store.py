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


def test_a_store_that_is_only_read_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a run?" / "run.sqlite"
    path.parent.mkdir()
    with Store(path) as store:
        store.put("passes", "a", CHANGE)
    before = path.read_bytes()
    with Store(path, writable=False) as store:
        assert store.get("passes", "a", Change) == CHANGE
        with pytest.raises(OutputError, match="readonly"):
            store.put("passes", "b", CHANGE)
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="unable to open"):
        Store(tmp_path / "missing.sqlite", writable=False)
    assert not (tmp_path / "missing.sqlite").exists()


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "run.sqlite") as store:
        store.put("passes", "a", CHANGE)
        with pytest.raises(OutputError, match="does not fit"):
            store.get("passes", "a", Decline)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="unable to open"):
        Store(tmp_path / "missing" / "run.sqlite")


def test_records_that_belong_together_are_stored_together_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path / "run.sqlite") as store:
        store.put_all([("timing", "a", CHANGE), ("timing", "b", CHANGE)])
        assert store.count("timing") == 2
        # The second cannot be stored; then the first must not be, either.
        store._connection.execute("CREATE TRIGGER no BEFORE INSERT ON records WHEN NEW.key = 'd' BEGIN SELECT "
                                  "RAISE(ABORT, 'refused'); END")  # fmt: skip
        with pytest.raises(OutputError, match="refused"):
            store.put_all([("timing", "c", CHANGE), ("timing", "d", CHANGE)])
        assert store.get("timing", "c", Change) is None
        store.put("timing", "e", CHANGE)  # no transaction was left open
    with Store(tmp_path / "run.sqlite") as store:
        assert store.count("timing") == 3


def test_all_records_of_a_stage_come_in_order(tmp_path: Path) -> None:
    with Store(tmp_path / "run.sqlite") as store:
        for number in range(3):
            store.put("s", str(-number), Change(stage="", node=str(number), what=""))
        store.put("t", "", CHANGE)
        assert [record.node for record in store.get_all("s", Change)] == ["0", "1", "2"]
        with pytest.raises(OutputError, match="does not fit"):
            store.get_all("s", Decline)


def test_spans_last_from_a_record_to_the_last_before_the_next(tmp_path: Path) -> None:
    made = ["00", "01", "03", "30", "31.5", "29", "50"]
    stages = ["x", "session", "x", "session", "x", "x", "session"]
    with Store(tmp_path / "run.sqlite") as store:
        for stage, seconds in zip(stages, made, strict=True):
            store.put(stage, "", CHANGE)
            store._connection.execute(
                "UPDATE records SET made = ? WHERE id = (SELECT MAX(id) FROM records)",
                (f"2026-01-01T00:00:{seconds}{'00' if '.' in seconds else '.000'}+00:00",),
            )
        # The clock that was set back in the second session does not shorten it.
        assert store.spans("session") == [2.0, 1.5, 0.0]
        assert store.spans("nothing") == []
