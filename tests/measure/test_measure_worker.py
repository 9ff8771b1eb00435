"""The worker process and its parent's side: protocol, failures, and no process that stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from edgewise.errors import BackendError, BundleError, ContractError, RecipeError, ResourceError
from edgewise.measure.latency import WAITING_SHARE
from edgewise.measure.process import WORKER_COMMAND, Entry, WorkerProcess, feeds_file
from edgewise.measure.turns import peak_resident_bytes, read_feeds, write_feeds
from edgewise.records.tensors import Array

Make = Callable[..., Entry]
Samples = list[dict[str, Array]]


@contextmanager
def working(entry: Entry, feeds: Samples, **options: Any) -> Iterator[WorkerProcess]:
    with feeds_file(feeds) as path, WorkerProcess(entry, path, **options) as worker:
        yield worker


def gone(pid: int, *, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def test_a_turn_lasts_its_slice_and_rotates_the_samples(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    entry = fake_entry("a", busy_us=2000, log=str(log))
    with working(entry, feeds, command=fake_command) as worker:
        loaded = worker.load()
        times = worker.turn(slice_ns=20_000_000)
        again = worker.turn(slice_ns=1, untimed_ns=1)
    assert loaded.first_run_ns >= 2_000_000
    assert loaded.load_ns > 0
    assert loaded.import_ns > 0
    assert min(times.durations_ns) >= 2_000_000
    # The run that is under way when the slice ends is counted, so all but it fit.
    assert sum(times.durations_ns[:-1]) < 20_000_000 <= sum(times.durations_ns) + 2_000_000
    assert times.runs == len(times.durations_ns)
    assert (again.runs, len(again.durations_ns)) == (2, 1)
    values = [line.split()[1] for line in log.read_text().splitlines()]
    assert len(values) == 1 + times.runs + again.runs
    assert values[1:] == [("1", "2", "3")[i % 3] for i in range(len(values) - 1)]


def test_what_a_runtime_prints_does_not_break_the_protocol(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    entry = fake_entry("a", chatty=True)
    with working(entry, feeds, command=fake_command) as worker:
        worker.load()
        assert worker.turn(slice_ns=1).runs == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_the_worker_stays_on_its_core_and_says_so(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    core = max(os.sched_getaffinity(0))
    with feeds_file(feeds) as path:
        with WorkerProcess(fake_entry("a"), path, cores=(core,), command=fake_command) as worker:
            assert worker.load().pinned
            assert psutil.Process(worker.pid).cpu_affinity() == [core]
        with WorkerProcess(fake_entry("a"), path, command=fake_command) as worker:
            assert not worker.load().pinned


def test_a_core_that_does_not_exist_is_reported_as_not_pinned(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    entry = fake_entry("a")
    with working(entry, feeds, cores=(1000,), command=fake_command) as worker:
        assert not worker.load().pinned


def test_a_worker_uses_no_processor_while_it_waits(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    with working(fake_entry("a"), feeds, command=fake_command) as worker:
        worker.load()
        worker.warm(limit_ns=1)
        worker.turn(slice_ns=1_000_000)
        before = psutil.Process(worker.pid).cpu_times()
        time.sleep(0.3)
        after = psutil.Process(worker.pid).cpu_times()
        times = worker.turn(slice_ns=1)
    assert times.waited_ns >= 300_000_000
    assert times.waiting_used_ns < WAITING_SHARE * times.waited_ns
    # cpu_times counts in ticks of 10 ms: one tick may fall due.
    assert (after.user + after.system) - (before.user + before.system) <= 0.011


def test_a_spinning_worker_is_seen(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    with working(fake_entry("a", spin=True), feeds, command=fake_command) as worker:
        worker.load()
        worker.warm(limit_ns=1)
        worker.turn(slice_ns=1)
        time.sleep(0.3)
        times = worker.turn(slice_ns=1)
    assert times.waiting_used_ns >= WAITING_SHARE * times.waited_ns


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"exit_at_run": 2}, ["`a`", "ended with status 3", "the fake leaves"]),
        pytest.param(
            {"die_at_run": 2},
            ["`a`", "SIGKILL", "the fake gives up", "memory runs out"],
            marks=pytest.mark.skipif(os.name == "nt", reason="no signals on Windows"),
        ),
    ],
)
def test_a_death_names_the_candidate_and_the_last_words(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples, script: dict[str, int], words: list[str]
) -> None:
    with working(fake_entry("a", **script), feeds, command=fake_command) as worker:
        worker.load()
        with pytest.raises(BackendError) as caught:
            worker.turn(slice_ns=1)
    for word in words:
        assert word in str(caught.value)


def test_an_error_of_the_backend_keeps_its_class_and_hint(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    entry = fake_entry("a", refuse_at_run=1)
    with working(entry, feeds, command=fake_command) as worker:
        with pytest.raises(ResourceError, match="`a`: The fake has to have more") as caught:
            worker.load()
        assert caught.value.hint == "Give it more."


def test_memory_that_runs_out_is_a_resource_error(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    entry = fake_entry("a", out_of_memory_at_run=1)
    with working(entry, feeds, command=fake_command) as worker, pytest.raises(ResourceError, match="memory ran out"):
        worker.load()


def test_a_changed_artifact_is_refused(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    entry = fake_entry("a")
    (entry.folder / "script.json").write_text("{}")
    with working(entry, feeds, command=fake_command) as worker, pytest.raises(BundleError, match=r"script\.json"):
        worker.load()


def test_running_before_loading_is_refused(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    with (
        working(fake_entry("a"), feeds, command=fake_command) as worker,
        pytest.raises(BackendError, match="loaded before"),
    ):
        worker.turn(slice_ns=1)


def test_a_stuck_worker_is_given_up(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    entry = fake_entry("a", hang_at_run=2)
    with working(entry, feeds, command=fake_command, patience_s=2.0) as worker:
        worker.load()
        with pytest.raises(BackendError, match="stuck"):
            worker.turn(slice_ns=1)
        pid = worker.pid
    assert gone(pid)


def interrupted(worker: WorkerProcess) -> None:
    with worker:
        worker.load()
        raise KeyboardInterrupt


def test_closing_leaves_no_process_and_no_zombie(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    with feeds_file(feeds) as path:
        worker = WorkerProcess(fake_entry("a"), path, command=fake_command)
        with pytest.raises(KeyboardInterrupt):
            interrupted(worker)
        worker.close()  # once more does no harm
    assert not psutil.pid_exists(worker.pid)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_workers_end_when_their_parent_is_killed_even_in_a_run(
    fake_entry: Make, fake_command: Sequence[str], tmp_path: Path
) -> None:
    entry = fake_entry("a", hang_at_run=2)
    feeds = tmp_path / "feeds.npz"
    write_feeds(feeds, [{"x": np.zeros(1, np.float32)}])
    program = (
        "import sys, pathlib, msgspec\n"
        "from edgewise.backends.protocol import ArtifactSpec\n"
        "from edgewise.measure.process import Entry, WorkerProcess\n"
        "spec = msgspec.json.decode(sys.argv[1], type=ArtifactSpec)\n"
        "worker = WorkerProcess(Entry('a', pathlib.Path(sys.argv[2]), spec), pathlib.Path(sys.argv[3]), "
        "command=sys.argv[4:])\n"
        "worker.load()\n"
        "print(worker.pid, flush=True)\n"
        "worker.turn(slice_ns=1)\n"
    )
    arguments = [msgspec.json.encode(entry.spec).decode(), str(entry.folder), str(feeds), *fake_command]
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        assert psutil.pid_exists(pid)
        parent.send_signal(signal.SIGKILL)
    assert gone(pid)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to one process on Windows")
def test_a_worker_leaves_ctrl_c_to_its_parent(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    with working(fake_entry("a"), feeds, command=fake_command) as worker:
        worker.load()
        os.kill(worker.pid, signal.SIGINT)
        assert worker.turn(slice_ns=1).runs == 1


def test_a_command_that_does_not_exist_is_a_backend_error(fake_entry: Make, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="process has to start"):
        WorkerProcess(fake_entry("a"), tmp_path, command=(str(tmp_path / "nothing"),))


def test_the_real_command_answers(fake_entry: Make, feeds: Samples) -> None:
    with (
        working(fake_entry("a"), feeds, command=WORKER_COMMAND) as worker,
        pytest.raises(RecipeError, match="`fake`"),
    ):  # the real registry does not know the fake
        worker.load()


def test_no_samples_are_refused() -> None:
    with pytest.raises(ContractError, match="at least one sample"), feeds_file([]):
        pass


def test_feeds_survive_the_file(tmp_path: Path) -> None:
    written: Samples = [
        {"a b": np.arange(6, dtype=np.int64).reshape(2, 3), "/c": np.array(True)},
        {"a b": np.zeros((0, 2), np.int64), "/c": np.array(False)},
    ]
    write_feeds(tmp_path / "f", written)
    read = read_feeds(tmp_path / "f")
    assert [list(feed) for feed in read] == [["a b", "/c"]] * 2
    for one, other in zip(written, read, strict=True):
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def test_peak_memory_grows_with_what_is_touched() -> None:
    before = peak_resident_bytes()
    block = np.ones(5 * before // 4 // 8)  # more than ever was: the peak grows whatever was given back since
    after = peak_resident_bytes()
    # All pages of the block were written while the rest stayed; the kernel may lag by some pages per thread.
    assert after >= block.nbytes
    assert after <= before + block.nbytes + 64 * 2**20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_the_runtime_leaves_behind_holds_nobody_up(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    with working(fake_entry("a", fork_for_s=60), feeds, command=fake_command) as worker:
        worker.load()
        (child,) = psutil.Process(worker.pid).children()
        begin = time.monotonic()
        worker.close()
        assert time.monotonic() - begin < 30
    child.kill()


def test_an_input_without_dimensions_keeps_none() -> None:
    with feeds_file([{"rate": np.array(16_000), "x": np.zeros((2, 3), np.float32).T}]) as path:
        (feeds,) = read_feeds(path)
    assert feeds["rate"].shape == ()
    assert feeds["x"].flags.c_contiguous
