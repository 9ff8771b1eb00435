"""What the first answer costs, and how much memory a process needs: each measured in fresh processes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from edgewise.measure.machine import choose_cores
from edgewise.measure.messages import Loaded
from edgewise.measure.process import WORKER_COMMAND, Entry, WorkerProcess, feeds_file
from edgewise.records.measurements import ColdStart, PeakMemory
from edgewise.records.tensors import Feeds


def cold_start_and_memory(
    entry: Entry,
    feeds: Sequence[Feeds],
    *,
    processes: int = 5,
    command: Sequence[str] = WORKER_COMMAND,
) -> tuple[ColdStart, PeakMemory]:
    """Return cold start and peak memory as medians over several fresh processes, one after the other.

    One more process comes first and does not count: it brings the files into the page cache. What is measured is the
    first answer of a process, not the first after the machine was switched on.

    Args:
        entry: The candidate.
        feeds: Samples; the first one is used.
        processes: Fresh processes that count, >= 1.
        command: How a worker is started.

    Raises:
        EdgewiseError: What the backend raised; `BackendError` if a process died.
    """
    cores = choose_cores(entry.spec.options.threads)
    seen: list[tuple[Loaded, int]] = []
    with feeds_file(feeds[:1]) as path:
        for _ in range(processes + 1):
            with WorkerProcess(entry, path, cores=cores, command=command) as worker:
                loaded = worker.load()
                # Some runtimes grow their arena in the second run; nobody runs a model once.
                seen.append((loaded, worker.turn(slice_ns=0, untimed_ns=1).peak_bytes))
    counted = seen[1:]

    def median_ms(pick: Callable[[Loaded], int]) -> float:
        return statistics.median(pick(loaded) for loaded, _ in counted) / 1e6

    return (
        ColdStart(
            import_ms=median_ms(lambda loaded: loaded.import_ns),
            load_ms=median_ms(lambda loaded: loaded.load_ns),
            first_run_ms=median_ms(lambda loaded: loaded.first_run_ns),
        ),
        PeakMemory(
            peak_bytes=int(statistics.median(peak for _, peak in counted)),
            before_bytes=int(statistics.median(loaded.before_bytes for loaded, _ in counted)),
        ),
    )
