"""What this machine is, which of its cores to measure on, and how much others took of it meanwhile."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from edgewise.backends import registry
from edgewise.backends.saturation import MEASURED
from edgewise.errors import EdgewiseError
from edgewise.records.machine import Machine

PACKAGES: Final = ("edgewise", "numpy", "msgspec", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "openvino", "scipy")
"""Packages whose version can change a result."""

ISA_FLAGS: Final = frozenset(
    {
        # x86, as /proc/cpuinfo names them
        *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx_vnni_int16"),
        *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vbmi2", "avx512ifma"),
        *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "avx10_2"),
        # ARM
        *("neon", "vfpv4", "asimd", "fphp", "asimdhp", "asimddp", "asimdfhm", "i8mm", "bf16", "sve", "sve2"),
        *("svei8mm", "svebf16", "sve2p1", "sme", "sme2", "smei8i32"),
        # RISC-V
        *("v", "zvfh", "zvfbfwma"),
    }
)
"""Instruction-set extensions that decide which inference kernels run and what their 8-bit sums give."""

_NUMPY_NAMES: Final = {
    "sse41": "sse4_1",
    "sse42": "sse4_2",
    "fma3": "fma",
    "avx512vnni": "avx512_vnni",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "neon_vfpv4": "vfpv4",
    "rvv": "v",
}


def describe(*, backends: Iterable[str] = (), proc: Path = Path("/proc"), sysfs: Path = Path("/sys")) -> Machine:
    """Return this machine. What an operating system does not tell is left out, never guessed.

    Args:
        backends: Those whose kernels are measured for exact 8-bit sums; that takes tenths of a second, once a process.
        proc: Where the process file system is mounted; absent on macOS and Windows.
        sysfs: Where the system's device tree is mounted.
    """
    cpuinfo = _read(proc / "cpuinfo") or ""
    return Machine(
        cpu=_cpu_name(cpuinfo, proc),
        architecture=platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64"),
        isa=tuple(sorted(_flags(cpuinfo) or _flags_from_numpy())),
        cores=len(usable_cores()),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        governor=_read(sysfs / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load=_load(),
        python=platform.python_version(),
        packages=_versions(),
        exact_product_bits=_exact_product_bits(backends),
    )


def usable_cores() -> tuple[int, ...]:
    """Return the numbers of the logical processors that this process may use, in ascending order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(psutil.cpu_count() or 1))


def choose_cores(threads: int, *, sysfs: Path = Path("/sys")) -> tuple[int, ...]:
    """Return the cores on which to measure with `threads` threads; all of them where there are not enough.

    The fastest first where cores differ in capacity; one of each physical core before its hyper-threads; and high
    numbers first, because interrupts and the parent process tend to be on core 0.
    """
    cores = usable_cores()
    seen: dict[str, int] = {}
    keys: dict[int, tuple[int, int, int]] = {}
    for core in reversed(cores):
        folder = sysfs / f"devices/system/cpu/cpu{core}"
        capacity = _number(folder / "cpu_capacity") or _number(folder / "cpufreq/cpuinfo_max_freq") or 0
        siblings = _read(folder / "topology/thread_siblings_list") or str(core)
        seen[siblings] = seen.get(siblings, 0) + 1
        keys[core] = (seen[siblings], -capacity, -core)
    return tuple(sorted(sorted(cores, key=keys.__getitem__)[:threads]))


@dataclass(frozen=True)
class CpuTimes:
    """Jiffies of all processors since boot.

    Attributes:
        busy: Time in which they did something.
        stolen: Time in which the hypervisor ran something else.
        total: All time, idle included.
    """

    busy: int
    stolen: int
    total: int


def cpu_times(*, proc: Path = Path("/proc")) -> CpuTimes | None:
    """Return the processors' times (proc(5), `/proc/stat`), or None where the system does not tell them."""
    words = (_read(proc / "stat") or "").split("\n", maxsplit=1)[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return None
    user, nice, system, idle, waiting, interrupts, soft_interrupts, stolen = map(int, words[1:9])
    busy = user + nice + system + interrupts + soft_interrupts
    return CpuTimes(busy=busy, stolen=stolen, total=busy + idle + waiting + stolen)


@dataclass(frozen=True)
class Interference:
    """What the processors did between two readings, as shares in [0, 1] of all of them.

    Attributes:
        busy: Share in which they did something, the measured work included.
        stolen: Share that the hypervisor gave to others: from 1 % on, the slow tail of a latency is not the model's.
    """

    busy: float
    stolen: float


def interference(before: CpuTimes | None, after: CpuTimes | None) -> Interference | None:
    """Return what happened between two readings, or None where there are none or no time passed."""
    if before is None or after is None or after.total <= before.total:
        return None
    total = after.total - before.total
    # Some hypervisors let the stolen time step back (proc(5) warns of it for idle and iowait, too).
    return Interference(
        busy=min(1.0, max(0, after.busy - before.busy) / total),
        stolen=min(1.0, max(0, after.stolen - before.stolen) / total),
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n\t ")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.isdigit() else None


def _fields(cpuinfo: str, *names: str) -> list[str]:
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() in names]


def _cpu_name(cpuinfo: str, proc: Path) -> str:
    if names := _fields(cpuinfo, "model name", "Model", "Hardware", "uarch"):
        return names[0]
    if board := _read(proc / "device-tree/model"):
        return board
    if parts := _fields(cpuinfo, "CPU part"):
        return f"ARM implementer {(_fields(cpuinfo, 'CPU implementer') or ['?'])[0]} part {parts[0]}"
    if platform.system() == "Darwin":
        try:
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass  # `platform` knows at least the family
    return platform.processor() or platform.machine() or "unknown"


def _flags(cpuinfo: str) -> frozenset[str]:
    """Return the relevant extensions that every core has: a thread may run on any of them."""
    cores = [set(line.split()) for line in _fields(cpuinfo, "flags", "Features")]
    for isa in _fields(cpuinfo, "isa"):
        base, *extensions = isa.lower().split("_")
        cores.append({*base.removeprefix("rv64").removeprefix("rv32"), *extensions})
    return frozenset.intersection(ISA_FLAGS, *cores) if cores else frozenset()


def _flags_from_numpy() -> frozenset[str]:
    """Return the extensions as numpy found them, where there is no `/proc/cpuinfo` (macOS, Windows)."""
    try:
        # What `numpy.show_runtime` prints; numpy has no public name for it.
        features = vars(importlib.import_module("numpy._core._multiarray_umath"))["__cpu_features__"]
    except (ImportError, KeyError):
        return frozenset()
    names = (name.lower() for name, present in features.items() if present)
    return frozenset(_NUMPY_NAMES.get(name, name) for name in names) & ISA_FLAGS


def _exact_product_bits(backends: Iterable[str]) -> dict[str, int]:
    """Return what was measured of each backend; one that is missing or cannot be measured is left out."""
    found = {}
    for name in sorted(set(backends)):
        try:
            target = registry.get(name).target()
        except (EdgewiseError, ImportError, OSError):
            continue  # whoever runs it meets the error
        if target.exact_product_source == MEASURED:
            found[name] = target.exact_product_bits
    return found


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
