"""The form that every benchmark has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewise.records.machine import Machine
from rows import Row, finish

_MACHINE = Machine(
    cpu="a processor", architecture="x86_64", isa=("avx2",), cores=2, memory_bytes=1, system="Linux",
    governor=None, load=None, python="3.11", packages={"numpy": "2.0"},
)  # fmt: skip


def test_the_table_the_file_and_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row(row="power", value=78.125, unit="%", ask=">= 75", met=True, n=2000, command="make bench"),
        Row(row="time", value=12345.6, unit="s", ask="<= 2", met=False, n=1, command="make bench"),
    ]
    finish(rows, _MACHINE, tmp_path / "rows.json", left_out=["ECG, because the zoo is absent."])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["row", "value", "unit", "ask", "met", "n"]
    assert lines[2].split() == ["power", "78.12", "%", ">=", "75", "yes", "2000"]
    assert "12346" in lines[3]
    assert "NO" in lines[3]
    assert lines[4] == "left out: ECG, because the zoo is absent."
    assert lines[5].startswith("machine: a processor, 2 processors, avx2; Linux; governor unknown; load unknown")
    assert lines[-1] == "1 of 2 rows met"
    written = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [list(row) for row in written] == [["row", "value", "unit", "ask", "met", "n", "command"]] * 2
    assert written[0]["value"] == 78.125


def test_no_rows_and_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    finish([], _MACHINE)
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 0 rows met"
