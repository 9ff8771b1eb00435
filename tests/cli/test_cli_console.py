"""Progress: bars on a terminal, notes alone elsewhere; errors in one form."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from tests.cli.conftest import Bench, command, process

from edgewise.cli.bars import Bars, Count, Left
from edgewise.cli.console import Notes, fail, progress
from edgewise.errors import BackendError, DataError


def on_a_terminal(arguments: list[str]) -> tuple[int, bytes, str]:
    """Run a command whose standard error is a terminal; return its code, its standard output, what was drawn."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"}
    ) as running:
        os.close(theirs)
        drawn = b""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # Linux says so when the other side is closed
                    break
                if not piece:
                    break
                drawn += piece
        os.close(ours)
        assert running.stdout is not None
        out = running.stdout.read()
        code = running.wait(timeout=10)
    return code, out, drawn.decode()


def test_bars_are_drawn_on_a_terminal_and_never_in_the_data(bench: Bench) -> None:
    line = command("eval", bench.model, "--data", bench.samples, "--json")
    code, out, drawn = on_a_terminal(line)
    assert code == 0
    assert out == process(*line[3:]).stdout.encode()
    assert b"\x1b" not in out
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert "240/240" in shown


def test_an_error_on_a_terminal(tmp_path: Path) -> None:
    code, out, drawn = on_a_terminal(command("inspect", tmp_path / "none.onnx"))
    assert (code, out) == (2, b"")
    assert "\x1b[31m\x1b[1merror:\x1b[0m The model has to exist." in drawn
    assert drawn.count("\n") == 2


def test_nothing_but_data_where_there_is_no_terminal(bench: Bench) -> None:
    said = process("eval", bench.model, "--data", bench.samples)
    assert said.returncode == 0
    assert not said.stderr
    assert "\x1b" not in said.stdout


def test_notes_are_printed_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as shown:
        assert isinstance(shown, Notes)
        shown.stage("Reading", 3)
        shown.step("one")
        shown.note("A sentence [with] brackets.")
    assert capsys.readouterr() == ("", "A sentence [with] brackets.\n")


def test_an_error_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(DataError("It has to be `[x]`.", hint="Do it.")) == 2
    assert fail(BackendError("It failed.")) == 70
    assert capsys.readouterr() == ("", "error: It has to be `[x]`.\nhint: Do it.\nerror: It failed.\n")


def test_a_stage_without_steps_shows_neither_count_nor_guess() -> None:
    with Progress(Count(), Left(), console=Console(file=io.StringIO())) as drawn:
        bars = Bars(drawn)
        bars.stage("Timing")
        (timing,) = drawn.tasks
        assert (Count().render(timing).plain, Left().render(timing).plain) == ("", "")
        bars.stage("Scoring", 40)
        bars.step("one")
        assert timing.finished
        scoring = drawn.tasks[1]
        assert Count().render(scoring).plain == "1/40"
        assert not scoring.finished
