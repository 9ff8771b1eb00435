"""What this machine is, from the files of many machines."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from edgewise.analysis.target import Target
from edgewise.backends import registry
from edgewise.measure import machine
from edgewise.measure.machine import CpuTimes, choose_cores, cpu_times, describe, interference
from edgewise.records.codec import decode, encode
from edgewise.records.machine import Machine

X86 = """processor\t: 0
model name\t: AMD EPYC 9354
flags\t\t: fpu sse4_2 avx2 fma avx512f avx512_vnni
processor\t: 1
model name\t: AMD EPYC 9354
flags\t\t: fpu sse4_2 avx2 fma avx512f
"""
ARM = """processor\t: 0
Features\t: fp asimd evtstrm aes asimddp fphp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 5 Model B
"""
ARM_SERVER = """processor\t: 0
Features\t: fp asimd i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
RISCV = """processor\t: 0
isa\t\t: rv64imafdcv_zicbom_zvfh
uarch\t\t: spacemit,x60
"""


def described(tmp_path: Path, cpuinfo: str | None) -> Machine:
    proc = tmp_path / "proc"
    proc.mkdir()
    if cpuinfo is not None:
        (proc / "cpuinfo").write_text(cpuinfo)
    return describe(proc=proc, sysfs=tmp_path / "sys")


def test_this_machine_can_be_described_and_stored() -> None:
    here = describe()
    assert here.cpu
    assert here.cores >= 1
    assert here.memory_bytes == psutil.virtual_memory().total
    assert here.python == platform.python_version()
    assert here.packages["edgewise"]
    assert here.packages["numpy"]
    assert here.isa == tuple(sorted(here.isa))
    assert decode(encode(here), Machine) == here
    assert describe().fingerprint == here.fingerprint


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "isa"),
    [
        (X86, "AMD EPYC 9354", ("avx2", "avx512f", "fma", "sse4_2")),  # what both cores have
        (ARM, "BCM2835", ("asimd", "asimddp", "fphp")),
        (ARM_SERVER, "ARM implementer 0x41 part 0xd40", ("asimd", "i8mm")),
        (RISCV, "spacemit,x60", ("v", "zvfh")),
    ],
)
def test_cpu_and_extensions_are_read(tmp_path: Path, cpuinfo: str, cpu: str, isa: tuple[str, ...]) -> None:
    here = described(tmp_path, cpuinfo)
    assert here.cpu == cpu
    assert here.isa == isa


def test_a_device_tree_names_the_board(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    assert describe(proc=tmp_path / "proc", sysfs=tmp_path).cpu == "NVIDIA Jetson Orin Nano"


def test_without_proc_numpy_tells_the_extensions(tmp_path: Path) -> None:
    elsewhere = described(tmp_path, None)
    assert elsewhere.cpu
    assert elsewhere.governor is None
    if sys.platform == "linux" and platform.machine() == "x86_64":
        # numpy looks for fewer, but what it finds has the names that the kernel gives.
        assert set(elsewhere.isa) <= set(describe().isa)
        assert "sse4_2" in elsewhere.isa


def test_the_governor_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text("powersave\n")
    assert described(tmp_path, X86).governor == "powersave"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin processes")
def test_usable_cores_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 2})
    assert machine.usable_cores() == (2, 5)


def core(sysfs: Path, number: int, *, siblings: str | None = None, capacity: int | None = None) -> None:
    folder = sysfs / f"devices/system/cpu/cpu{number}"
    (folder / "topology").mkdir(parents=True)
    if siblings is not None:
        (folder / "topology/thread_siblings_list").write_text(f"{siblings}\n")
    if capacity is not None:
        (folder / "cpu_capacity").write_text(f"{capacity}\n")


def test_the_last_cores_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: (0, 1, 2, 3))
    assert choose_cores(1, sysfs=tmp_path) == (3,)
    assert choose_cores(2, sysfs=tmp_path) == (2, 3)
    assert choose_cores(9, sysfs=tmp_path) == (0, 1, 2, 3)


def test_one_thread_of_each_physical_core_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: (0, 1, 2, 3))
    for number in range(4):
        core(tmp_path, number, siblings="0-1" if number < 2 else "2-3")
    assert choose_cores(2, sysfs=tmp_path) == (1, 3)
    assert choose_cores(3, sysfs=tmp_path) == (1, 2, 3)


def test_fast_cores_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: (0, 1, 2, 3))
    for number in range(4):
        core(tmp_path, number, capacity=1024 if number in (0, 1) else 400)
    assert choose_cores(1, sysfs=tmp_path) == (1,)
    assert choose_cores(3, sysfs=tmp_path) == (0, 1, 3)


def test_interference_is_a_share_of_all_time(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  10 1 5 100 3 1 1 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    before = cpu_times(proc=tmp_path)
    assert before == CpuTimes(busy=18, stolen=7, total=128)
    (tmp_path / "stat").write_text("cpu  60 1 5 120 3 1 1 37 0 0\n")
    between = interference(before, cpu_times(proc=tmp_path))
    assert between is not None
    assert (between.busy, between.stolen) == (0.5, 0.3)


def test_a_counter_that_steps_back_is_no_negative_share() -> None:
    between = interference(CpuTimes(busy=10, stolen=5, total=100), CpuTimes(busy=9, stolen=4, total=110))
    assert between is not None
    assert (between.busy, between.stolen) == (0.0, 0.0)


def test_no_readings_are_no_interference(tmp_path: Path) -> None:
    assert cpu_times(proc=tmp_path) is None
    times = CpuTimes(busy=1, stolen=0, total=2)
    assert interference(None, times) is None
    assert interference(times, None) is None
    assert interference(times, times) is None


def test_exact_sums_are_measured_of_the_backends_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe().exact_product_bits == {}
    found = describe(backends=("ort", "reference", "no such backend"))
    assert found.exact_product_bits == {"ort": registry.get("ort").target().exact_product_bits}
    assert found.fingerprint != describe().fingerprint
    narrow = msgspec.structs.replace(found, exact_product_bits={"ort": 7})
    assert (narrow.fingerprint != found.fingerprint) == (found.exact_product_bits != {"ort": 7})

    def by_flags(_backend: object) -> Target:
        return dataclasses.replace(registry.get("reference").target(), exact_product_source="by the flags")

    monkeypatch.setattr(type(registry.get("ort")), "target", by_flags)
    assert describe(backends=("ort",)).exact_product_bits == {}
