"""What a worker does in its turns: opens the artifact, warms up, runs for a slice of time, comes to rest."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, Session
from edgewise.errors import BackendError, EdgewiseError, ResourceError
from edgewise.measure.messages import Failed, Load, Loaded, Reply, Request, Times, Turn, Warm, Warmed
from edgewise.records import arrays
from edgewise.records.codec import encode
from edgewise.records.tensors import Array

WINDOW_NS: Final = 20_000_000
"""Warming up compares windows of this length: long against a scheduler tick, short against a clock ramp."""

STABLE: Final = 0.05
"""Warm is when two windows in a row change by less than this share. Empirical: the spread of medians at rest."""

POLLING_SHARE: Final = 0.2
"""A process that only polls whether its threads sleep uses less than this share of a core: about 0.05."""

_POLL_S: Final = 0.002
_POLLS: Final = 100


class Turns:
    """Answers requests, one at a time.

    Args:
        pinned: Whether the process stays on the cores it was given.
        imported_ns: Time that importing this module took.
    """

    def __init__(self, *, pinned: bool, imported_ns: int) -> None:
        self._pinned = pinned
        self._import_ns = imported_ns
        self._session: Session | None = None
        self._feeds: list[dict[str, Array]] = []
        self._next = 0
        self._is_warm = False
        self._began = 0, 0
        self._restless = 0, 0
        self._waited_ns = 0
        self._waiting_used_ns = 0
        self._decoder = msgspec.json.Decoder(Request)

    def begin_to_wait(self) -> None:
        """Note the time and the processor time at which waiting for a request begins."""
        self._began = time.perf_counter_ns(), time.process_time_ns()

    def end_waiting(self) -> None:
        """Note what the process used while it was not its turn.

        Over the whole time, not in one short window: where processors are scarce, a thread that spins gets none of
        many short windows and its share of a long one.
        """
        if self._is_warm:
            self._waited_ns = self._restless[0] + time.perf_counter_ns() - self._began[0]
            self._waiting_used_ns = self._restless[1] + time.process_time_ns() - self._began[1]

    def answer(self, line: bytes) -> bytes:
        """Return the reply to one request, both as JSON. Errors of edgewise become replies; others end the process."""
        try:
            return encode(self._handle(self._decoder.decode(line)))
        except EdgewiseError as error:
            return encode(Failed(kind=type(error).__name__, message=error.message, hint=error.hint))
        except MemoryError:
            message = "The model has to fit into memory, but memory ran out."
            return encode(Failed(kind=ResourceError.__name__, message=message, hint=None))

    def _handle(self, request: Request) -> Reply:
        match request:
            case Load():
                return self._load(request)
            case Warm():
                return self._warm(request)
            case Turn():
                return self._turn(request)

    def _load(self, request: Load) -> Loaded:
        self._feeds = read_feeds(Path(request.feeds))
        started = time.perf_counter_ns()
        backend = registry.get(request.spec.backend)
        _import_runtime(request.spec.backend)
        imported = time.perf_counter_ns()
        before_bytes = peak_resident_bytes()
        opening = time.perf_counter_ns()
        self._session = backend.open(Artifact.read(Path(request.folder), request.spec))
        opened = time.perf_counter_ns()
        self._session.run(self._feeds[0])
        ran = time.perf_counter_ns()
        gc.collect()
        gc.disable()  # a collection inside a timed run would be ours, not the model's
        gc.freeze()  # what is loaded by now stays, and need not be searched after every turn
        return Loaded(
            import_ns=self._import_ns + imported - started,
            load_ns=opened - opening,
            first_run_ns=ran - opened,
            before_bytes=before_bytes,
            peak_bytes=peak_resident_bytes(),
            pinned=self._pinned,
        )

    def _warm(self, request: Warm) -> Warmed:
        started = time.perf_counter_ns()
        medians: list[float] = []
        runs = 0
        stable = False
        while not stable and (len(medians) < 2 or time.perf_counter_ns() - started < request.limit_ns):
            durations = self._run_for(WINDOW_NS)
            runs += len(durations)
            medians.append(statistics.median(durations))
            stable = len(medians) >= 3 and max(medians[-3:]) <= (1 + STABLE) * min(medians[-3:])
        come_to_rest()
        self._is_warm = True
        return Warmed(median_ns=medians[-1], runs=runs, stable=stable)

    def _turn(self, request: Turn) -> Times:
        untimed = len(self._run_for(request.untimed_ns)) if request.untimed_ns > 0 else 0
        durations = self._run_for(request.slice_ns)
        gc.collect()
        self._restless = come_to_rest()
        return Times(
            durations_ns=tuple(durations),
            runs=untimed + len(durations),
            peak_bytes=peak_resident_bytes(),
            waited_ns=self._waited_ns,
            waiting_used_ns=self._waiting_used_ns,
        )

    def _run_for(self, slice_ns: int) -> list[int]:
        """Run until `slice_ns` have passed, at least once, and return the duration of each run."""
        if self._session is None:
            raise BackendError("An artifact has to be loaded before it can run.")
        run, feeds, clock = self._session.run, self._feeds, time.perf_counter_ns
        position = self._next
        durations = []
        begin = clock()
        deadline = begin + slice_ns
        while True:
            sample = feeds[position]
            position = position + 1 if position + 1 < len(feeds) else 0
            begin = clock()
            run(sample)
            end = clock()
            durations.append(end - begin)
            if end >= deadline:
                break
        self._next = position
        return durations


def _import_runtime(backend: str) -> None:
    """Import the runtime itself, which its adapter leaves for later: its price is part of importing, not of loading."""
    adapter = f"{registry.BACKENDS[backend].module}.session"
    if importlib.util.find_spec(adapter) is not None:
        importlib.import_module(adapter).runtime()


def come_to_rest() -> tuple[int, int]:
    """Wait until the runtime's threads sleep, for at most a fifth of a second.

    Thread pools spin for a while after a run. In somebody else's turn that would slow down whoever has it.

    Returns:
        Where they sleep, (0, 0); else the time that passed and the processor time that was used, in nanoseconds.
    """
    begin = time.perf_counter_ns(), time.process_time_ns()
    for _ in range(_POLLS):
        wall, used = time.perf_counter_ns(), time.process_time_ns()
        time.sleep(_POLL_S)
        if time.process_time_ns() - used < POLLING_SHARE * (time.perf_counter_ns() - wall):
            return 0, 0
    return time.perf_counter_ns() - begin[0], time.process_time_ns() - begin[1]


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process.

    Not `getrusage` on Linux: there a new process starts with the peak of the one that forked it.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil  # noqa: PLC0415 - its memory would count where it is not needed

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # noqa: PLC0415 - not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def write_feeds(path: Path, feeds: list[dict[str, Array]]) -> None:
    """Write a few feeds for workers to `path`."""
    path.write_bytes(
        arrays.pack({f"{i} {name}": array for i, feed in enumerate(feeds) for name, array in feed.items()})
    )


def read_feeds(path: Path) -> list[dict[str, Array]]:
    """Return what `write_feeds` wrote."""
    feeds: list[dict[str, Array]] = []
    for key, array in arrays.unpack(path.read_bytes()).items():
        position, _, name = key.partition(" ")
        if int(position) == len(feeds):
            feeds.append({})
        feeds[-1][name] = array
    return feeds
