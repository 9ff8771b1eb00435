"""Energy of one inference from the processor's own counters, where they can be read; else the reason why not.

Linux offers the RAPL counters of Intel and AMD processors as `/sys/class/powercap/intel-rapl:N`
(Documentation/power/powercap/powercap.rst in the kernel): `energy_uj` counts microjoules up to
`max_energy_range_uj` and starts again at zero.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewise.measure.machine import choose_cores
from edgewise.measure.process import WORKER_COMMAND, Entry, WorkerProcess, feeds_file
from edgewise.records.measurements import Energy
from edgewise.records.tensors import Feeds

POWERCAP: Final = Path("/sys/class/powercap")

PAIRS: Final = 7
"""Idle and busy stretches in turns; with fewer than 6 no 95 % statement about the sign of a median can be made."""


@dataclass(frozen=True)
class Counter:
    """The energy counter of one processor package.

    Attributes:
        folder: Its folder in sysfs.
        range_uj: The value at which it starts again at zero, in microjoules.
    """

    folder: Path
    range_uj: int

    def read_uj(self) -> int:
        """Return the counter in microjoules.

        Raises:
            OSError: If it cannot be read.
        """
        return int((self.folder / "energy_uj").read_text())

    def between_uj(self, before: int, after: int) -> int:
        """Return the microjoules between two readings, of which the counter wrapped around at most once."""
        return after - before if after >= before else after + self.range_uj - before


def counters(root: Path = POWERCAP) -> tuple[Counter, ...] | str:
    """Return the counters of all processor packages, or the reason why there are none, as a full sentence.

    Args:
        root: The powercap folder of sysfs.
    """
    if not root.is_dir():
        return f"There is no `{root}`: {platform.system()} on this machine offers no energy counters."
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            # Sub-domains (core, dram) are named `intel-rapl:0:0`; `psys` is the whole board where it exists.
            if folder.name.count(":") != 1 or not (folder / "name").read_text().startswith("package"):
                continue
            counter = Counter(folder, int((folder / "max_energy_range_uj").read_text()))
            counter.read_uj()
        except PermissionError:
            path = folder / "energy_uj"
            return f"`{path}` is readable by root alone; `sudo chmod a+r {path}` makes it readable until the next boot."
        except (OSError, ValueError) as error:
            return f"The energy counter `{folder}` cannot be read: {error}."
        found.append(counter)
    if not found:
        return f"`{root}` has no `intel-rapl` package counter: the processor or the hypervisor offers none."
    return tuple(found)


def energy(
    entry: Entry,
    feeds: Sequence[Feeds],
    *,
    stretch_s: float = 1.0,
    root: Path = POWERCAP,
    command: Sequence[str] = WORKER_COMMAND,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Return the energy of one inference above the idle machine's.

    The worker rests and runs in turns; each pair gives `(busy power - idle power) x busy time / inferences`, and their
    median is the result. If not all pairs are above zero, the machine was not quiet enough to tell.

    Args:
        entry: The candidate.
        feeds: Samples that it runs on in rotation.
        stretch_s: Seconds of each of the 14 stretches; counters step about once a millisecond.
        root: The powercap folder of sysfs.
        command: How a worker is started.
        clock: Seconds.
        sleep: Waits for some seconds.

    Raises:
        EdgewiseError: What the backend raised; `BackendError` if the worker died.
    """
    packages = counters(root)
    if isinstance(packages, str):
        return Energy(joules=None, source=packages)

    def read() -> tuple[float, list[int]]:
        return clock(), [package.read_uj() for package in packages]

    def spent(before: tuple[float, list[int]], after: tuple[float, list[int]]) -> tuple[float, float]:
        pairs = zip(packages, before[1], after[1], strict=True)
        return after[0] - before[0], sum(package.between_uj(old, new) for package, old, new in pairs) / 1e6

    per_run = []
    cores = choose_cores(entry.spec.options.threads)
    with feeds_file(feeds) as path, WorkerProcess(entry, path, cores=cores, command=command) as worker:
        worker.load()
        worker.warm(limit_ns=int(stretch_s * 1e9))
        for _ in range(PAIRS):
            start = read()
            sleep(stretch_s)
            rested = read()
            runs = worker.turn(slice_ns=int(stretch_s * 1e9)).runs
            ran = read()
            idle_s, idle_j = spent(start, rested)
            busy_s, busy_j = spent(rested, ran)
            per_run.append((busy_j - idle_j / idle_s * busy_s) / runs)
    names = ", ".join(package.folder.name for package in packages)
    if min(per_run) <= 0:
        return Energy(
            joules=None,
            source=f"The counters {names} do not rise reliably above the idle machine's: something else was running.",
        )
    return Energy(joules=statistics.median(per_run), source=f"RAPL {names}, above idle, median of {PAIRS} pairs")
