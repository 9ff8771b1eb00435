"""What only processes show: interrupts, two runs at once, full disks, little memory, missing packages, closed pipes."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.cli.conftest import Bench, Place, command, contents, optimize

MIB = 1 << 20


def started(arguments: list[str], **options: object) -> subprocess.Popen[str]:
    """Start a command as the leader of a group of processes, as a shell does."""
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # options are of any kind
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def records(folder: Path) -> list[tuple[int, str, str]]:
    """Return number, stage and key of all records of a run, or nothing where there are none yet."""
    try:
        with sqlite3.connect(f"file:{folder / 'run.sqlite'}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT id, stage, key FROM records ORDER BY id").fetchall()
    except sqlite3.OperationalError:
        return []


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 120.0) -> None:
    """Wait until something holds while a process runs."""
    end = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def group(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that are left of a command's group."""
    return [other.pid for other in psutil.process_iter() if _group_of(other.pid) == process.pid]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process_and_goes_on(place: Place) -> None:
    out = place.tmp / "out"
    line = command(*optimize(place, "--max-drop", "20%", "--budget", "5s"))
    process = started(line)
    wait_for(lambda: any(stage == "timing" for _, stage, _ in records(out)), process)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert not stdout
    assert stderr.splitlines()[-1] == "Interrupted. What was finished is kept; the same command goes on from there."
    assert "Traceback" not in stderr
    assert not group(process)
    assert not (out / "manifest.json").exists()
    before = records(out)
    again = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0, again.stderr
    after = records(out)
    assert after[: len(before)] == before
    finished = [(stage, key) for _, stage, key in before if stage in {"build", "timing", "plan"}]
    for measurement in finished:
        assert sum(record[1:] == measurement for record in after) == 1
    assert "\nreport  " in again.stdout


@pytest.mark.slow
def test_two_runs_in_one_directory(place: Place) -> None:
    line = command(*optimize(place, "--max-drop", "20%", "--budget", "30s"))
    first = started(line)
    try:
        wait_for(lambda: bool(records(place.tmp / "out")), first)
        second = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == 2
        assert not second.stdout
        assert second.stderr.startswith("error: Another run is at work in ")
        assert "\nhint: " in second.stderr
        assert first.poll() is None
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


@pytest.mark.slow
def test_an_interrupted_stream_ends_with_a_whole_line(bench: Bench) -> None:
    process = started(command("run", bench.bundle))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{bench.samples}\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(240)]
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert not stdout
    assert not stderr
    assert json.loads(lines[-1])["input"] == f"{bench.samples}[239]"


def test_each_line_is_answered_at_once(bench: Bench, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    process = started(command("run", bench.bundle))
    assert process.stdin is not None
    assert process.stdout is not None
    for line in (f"{tmp_path / 'x.npy'}\n", "[1, 2]\n", f"{tmp_path / 'x.npy'}\n"):
        process.stdin.write(line)
        process.stdin.flush()
        # The pipe is still open: an answer that waits for more input would never come.
        answer = json.loads(process.stdout.readline())
        assert ("error" in answer) == (line == "[1, 2]\n")
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 2
    assert stderr.startswith("error: Every line of standard input has to be answered, but 1 could not be.")


def test_a_reader_that_leaves_is_no_error(bench: Bench) -> None:
    process = started(command("run", bench.bundle, "--input", bench.samples))
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["input"].endswith("[0]")
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr is not None
    assert not process.stderr.read()
    process.stderr.close()


def limited(kind: int, size: int, arguments: list[str]) -> list[str]:
    """Return a command line that runs under a limit of the system; what exceeds it fails instead of being killed."""
    code = (
        "import os, resource, signal, sys; "
        f"resource.setrlimit({kind}, ({size}, {size})); "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "os.execv(sys.executable, sys.argv[1:])"
    )
    return [sys.executable, "-c", code, *arguments]


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_finished(place: Place) -> None:
    out = place.tmp / "out"
    line = command(*optimize(place, "--max-drop", "20%", "--budget", "2s"))
    said = subprocess.run(
        limited(resource.RLIMIT_FSIZE, 40_000, line), capture_output=True, text=True, check=False, timeout=120
    )
    assert said.returncode == 2, said.stderr
    assert not said.stdout
    assert said.stderr.splitlines()[-2].startswith("error: ")
    assert said.stderr.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in said.stderr
    assert not (out / "manifest.json").exists()
    before = records(out)
    assert before
    again = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0, again.stderr
    assert records(out)[: len(before)] == before


@pytest.mark.parametrize("arguments", [("export", "--to", "onnx", "--out"), ("report", "--out")])
def test_a_full_disk_leaves_no_half_file(
    arguments: tuple[str, ...], bench: Bench, finished: Path, tmp_path: Path
) -> None:
    name, *options = arguments
    place = finished if name == "report" else bench.bundle
    line = command(name, place, *options, tmp_path / "file.onnx")
    said = subprocess.run(
        limited(resource.RLIMIT_FSIZE, 4096, line), capture_output=True, text=True, check=False, timeout=60
    )
    assert said.returncode == 2, said.stderr
    assert said.stderr.startswith(("error: The report `", f"error: `{tmp_path / 'file.onnx'}` has to be writable"))
    assert "Traceback" not in said.stderr
    assert not contents(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_is_full(bench: Bench) -> None:
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            command("run", bench.bundle, "--input", bench.samples),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert said.returncode == 2
    assert said.stderr.splitlines()[0] == (
        "error: The output has to have room on its disk, but: No space left on device."
    )


@pytest.mark.slow
def test_a_model_larger_than_memory(tmp_path: Path) -> None:
    import onnx  # noqa: PLC0415  only here

    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, (8192, 16384), bytes(4 * 8192 * 16384), raw=True)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 8192))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 16384))],
        [weight],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "large.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((40, 8192), np.float32))
    before = set(tmp_path.iterdir())
    for limit in (900 * MIB, 1500 * MIB, 2200 * MIB):
        line = command("eval", tmp_path / "large.onnx", "--data", tmp_path / "x.npz", "--metric", "cosine")
        said = subprocess.run(
            limited(resource.RLIMIT_AS, limit, line), capture_output=True, text=True, check=False, timeout=120
        )
        assert said.returncode == 2, said.stderr
        assert not said.stdout
        assert "memory" in said.stderr
        assert "Traceback" not in said.stderr
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("arguments", [("optimize", "--budget", "1s"), ("bench",)])
def test_a_backend_that_is_not_installed(arguments: tuple[str, ...], bench: Bench, tmp_path: Path) -> None:
    name, *options = arguments
    line = [name, bench.model, *options, "--backends", "openvino", "--data", bench.samples]
    if name == "optimize":
        line += ["--out", tmp_path / "out"]
    said = without("openvino", [str(word) for word in line])
    assert said.returncode == 2
    assert not said.stdout
    assert "openvino" in said.stderr.splitlines()[0]
    assert said.stderr.splitlines()[1] == "hint: pip install 'edgewise[openvino]'"
    assert not contents(tmp_path)


def without(package: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Call the command line where a package is not installed."""
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from edgewise.cli.app import run
sys.exit(run({arguments!r}))
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_a_bundle_runs_without_the_optimizer(bench: Bench) -> None:
    code = f"""
import sys
from edgewise.cli.app import run
code = run(["run", {str(bench.bundle)!r}, "--input", {str(bench.samples)!r}])
heavy = "onnx onnx_ir onnxscript torch scipy pydantic pydantic_core rich typer jinja2 sqlite3 psutil PIL".split()
found = sorted(name for name in heavy if name in sys.modules)
print(code, found, file=sys.stderr)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert said.stderr == "0 []\n"
    assert len(said.stdout.splitlines()) == 240
