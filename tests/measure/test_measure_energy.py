"""Energy counters: reading, wrapping around, and each reason why there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.measure import energy as energy_module
from edgewise.measure.energy import PAIRS, Counter, counters, energy
from edgewise.measure.messages import Loaded, Times, Warmed
from edgewise.measure.process import Entry
from edgewise.records.measurements import Energy
from edgewise.records.tensors import Array

Make = Callable[..., Entry]
Samples = list[dict[str, Array]]
RANGE_UJ = 262_143_328_850


def domain(root: Path, folder: str, name: str, energy_uj: int = 0) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path


class FakeMachine:
    """A machine with power counters, a worker and a clock, all driven by one simulated time."""

    def __init__(self, folder: Path, *, start_uj: int, idle_w: float, busy_w: float, run_s: float = 0.01) -> None:
        self.folder, self.uj, self.now = folder, float(start_uj), 0.0
        self.idle_w, self.busy_w, self.run_s = idle_w, busy_w, run_s
        self.write()

    def write(self) -> None:
        (self.folder / "energy_uj").write_text(str(int(self.uj) % RANGE_UJ))

    def spend(self, seconds: float, watts: float) -> None:
        self.now += seconds
        self.uj += seconds * watts * 1e6
        self.write()

    def sleep(self, seconds: float) -> None:
        self.spend(seconds, self.idle_w)

    def worker(self, *_: object, **__: object) -> FakeMachine:
        return self

    def __enter__(self) -> FakeMachine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def load(self) -> Loaded:
        return Loaded(import_ns=0, load_ns=0, first_run_ns=0, before_bytes=0, peak_bytes=0, pinned=True)

    def warm(self, *, limit_ns: int) -> Warmed:
        self.spend(limit_ns / 1e9, self.busy_w)
        return Warmed(median_ns=0, runs=0, stable=True)

    def turn(self, *, slice_ns: int) -> Times:
        self.spend(slice_ns / 1e9, self.busy_w)
        runs = round(slice_ns / 1e9 / self.run_s)
        return Times(durations_ns=(1,) * runs, runs=runs, peak_bytes=0, waited_ns=0, waiting_used_ns=0)


def measured(machine: FakeMachine, root: Path, entry: Entry, feeds: Samples, monkeypatch: pytest.MonkeyPatch) -> Energy:
    monkeypatch.setattr(energy_module, "WorkerProcess", machine.worker)
    return energy(entry, feeds, root=root, clock=lambda: machine.now, sleep=machine.sleep)


@pytest.mark.parametrize("start_uj", [0, RANGE_UJ - 20_000_000])
def test_energy_is_what_is_above_idle_even_when_the_counter_wraps(
    start_uj: int, fake_entry: Make, feeds: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = domain(tmp_path / "cap", "intel-rapl:0", "package-0")
    machine = FakeMachine(folder, start_uj=start_uj, idle_w=5, busy_w=15)
    result = measured(machine, tmp_path / "cap", fake_entry("a"), feeds, monkeypatch)
    assert result.joules is not None
    # 10 W above idle for 10 ms a run; the counter is cut to whole microjoules, twice, over 100 runs.
    assert result.joules == pytest.approx(0.1, abs=4e-8 + 1e-12)
    assert "intel-rapl:0" in result.source


def test_a_noisy_machine_gives_no_number(
    fake_entry: Make, feeds: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = domain(tmp_path / "cap", "intel-rapl:0", "package-0")
    machine = FakeMachine(folder, start_uj=0, idle_w=15, busy_w=15)
    result = measured(machine, tmp_path / "cap", fake_entry("a"), feeds, monkeypatch)
    assert result.joules is None
    assert "something else was running" in result.source


def test_only_packages_are_counted(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 7)
    domain(tmp_path, "intel-rapl:0:0", "core")
    domain(tmp_path, "intel-rapl:0:1", "package-impostor")
    domain(tmp_path, "intel-rapl:1", "package-1", 9)
    domain(tmp_path, "intel-rapl:2", "psys")
    domain(tmp_path, "dtpm", "package")
    found = counters(tmp_path)
    assert not isinstance(found, str)
    assert [counter.folder.name for counter in found] == ["intel-rapl:0", "intel-rapl:1"]
    assert [counter.read_uj() for counter in found] == [7, 9]


def test_no_folder_is_the_reason(fake_entry: Make, fake_command: Sequence[str], tmp_path: Path) -> None:
    root = tmp_path / "powercap"
    result = energy(fake_entry("a"), [], root=root, command=fake_command)
    assert result.joules is None
    assert result.source.startswith(f"There is no `{root}`")


def test_an_empty_folder_is_the_reason(tmp_path: Path) -> None:
    assert "no `intel-rapl` package counter" in str(counters(tmp_path))


def test_missing_permission_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = domain(tmp_path, "intel-rapl:0", "package-0") / "energy_uj"
    read_text = Path.read_text

    def refuse(self: Path, *arguments: str) -> str:  # root may read everything, so a mode would not do
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *arguments)

    monkeypatch.setattr(Path, "read_text", refuse)
    reason = counters(tmp_path)
    assert isinstance(reason, str)
    assert f"sudo chmod a+r {path}" in reason


@pytest.mark.parametrize("damage", ["garbage", None])
def test_an_unreadable_counter_is_the_reason(tmp_path: Path, damage: str | None) -> None:
    path = domain(tmp_path, "intel-rapl:0", "package-0") / "energy_uj"
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
    assert "cannot be read" in str(counters(tmp_path))


@given(before=st.integers(0, RANGE_UJ - 1), spent=st.integers(0, RANGE_UJ - 1))
def test_one_wrap_around_is_undone(before: int, spent: int) -> None:
    counter = Counter(Path(), RANGE_UJ)
    assert counter.between_uj(before, (before + spent) % RANGE_UJ) == spent


def test_a_sign_of_all_pairs_is_evidence() -> None:
    assert 2 * 0.5**PAIRS <= 0.05
