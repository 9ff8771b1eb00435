"""Small tasks for the main job, and a stand-in for the worker processes whose times a test decides."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.quantize_nets import Times

from edgewise.backends import registry
from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import verify
from edgewise.errors import BackendError, EdgewiseError
from edgewise.formats.onnx import save
from edgewise.measure.machine import describe
from edgewise.measure.metrics import METRICS
from edgewise.measure.process import Entry
from edgewise.pipeline import finish, quantize, screen
from edgewise.pipeline.build import Workshop
from edgewise.pipeline.inputs import load_model, open_data
from edgewise.pipeline.job import Deadline, Job
from edgewise.pipeline.optimize import Result, finished_run, optimize
from edgewise.pipeline.progress import Quiet
from edgewise.pipeline.request import DataRequest, Effort, Goal, Request
from edgewise.pipeline.workspace import open_workspace
from edgewise.records.candidate import Candidate, Fuse, Quantize, RunOptions
from edgewise.records.measurements import ColdStart, Energy, Latency, PeakMemory
from edgewise.records.tensors import Array, Feeds
from edgewise.testing.graphs import mlp

ROUNDS = 12
MakeTask = Callable[..., "Task"]

FUSED = Candidate(steps=(Fuse(),), backend="ort", options=RunOptions())
INT8 = Candidate(steps=(Fuse(), Quantize(ranges="mse")), backend="ort", options=RunOptions())


def latency(median_us: float, *, spread: float = 0.002, threads: int = 1) -> Latency:
    """Return a latency whose rounds lie evenly within `spread` of the median."""
    rounds = tuple(median_us * (1 + spread * (2 * i / (ROUNDS - 1) - 1)) for i in range(ROUNDS))
    return Latency(
        median_us=median_us,
        p90_us=1.1 * median_us,
        p99_us=1.2 * median_us,
        max_us=1.3 * median_us,
        runs=1000,
        rounds_us=rounds,
        quantiles_us=tuple(float(value) for value in np.linspace(0.9 * median_us, 1.3 * median_us, 101)),
        threads=threads,
        pinned=False,
    )


@dataclass
class FakeMeasures:
    """Takes the place of all worker processes of the main job.

    Attributes:
        median_us: The median of a candidate by a word in its name, else of the untouched model.
        failing: Candidates whose process dies, by name.
        groups: The names in each group that was timed, and its budget.
        footprints: Names of the candidates whose cold start and memory were measured.
    """

    median_us: dict[str, float] = field(default_factory=lambda: {"int8": 50.0, "fp16": 98.0, "fused": 90.0})
    untouched_us: float = 100.0
    failing: set[str] = field(default_factory=set)
    groups: list[tuple[tuple[str, ...], float]] = field(default_factory=list)
    footprints: list[str] = field(default_factory=list)

    def of(self, entry: Entry) -> Latency | EdgewiseError:
        """Return what was decided for a candidate."""
        if entry.name in self.failing:
            return BackendError(f"`{entry.name}` has to run to its end, but its process ended with status 3.")
        median = next((value for word, value in self.median_us.items() if word in entry.name), self.untouched_us)
        return latency(median, threads=entry.spec.options.threads)

    def measure_group(
        self, entries: Sequence[Entry], feeds: Sequence[Feeds], *, budget_s: float, seed: int = 0
    ) -> list[Latency | EdgewiseError]:
        """Stand for `measure.latency.measure_group`."""
        assert feeds
        assert seed >= 0
        self.groups.append((tuple(entry.name for entry in entries), budget_s))
        return [self.of(entry) for entry in entries]

    def cold_start_and_memory(self, entry: Entry, feeds: Sequence[Feeds]) -> tuple[ColdStart, PeakMemory]:
        """Stand for `measure.memory.cold_start_and_memory`."""
        assert feeds
        self.footprints.append(entry.name)
        cold_start = ColdStart(import_ms=1.0, load_ms=2.0, first_run_ms=3.0)
        return cold_start, PeakMemory(peak_bytes=2 << 20, before_bytes=1 << 20)


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> FakeMeasures:
    """Decide what candidates take; nothing starts a process."""
    fake = FakeMeasures()
    for module in (screen, finish):
        monkeypatch.setattr(module, "measure_group", fake.measure_group)
    monkeypatch.setattr(finish, "cold_start_and_memory", fake.cold_start_and_memory)
    monkeypatch.setattr(finish, "energy", lambda _entry, _feeds: Energy(joules=None, source="not in a test"))
    return fake


def answers(model: ir.Model, inputs: dict[str, Array]) -> Array:
    """Return the class that a model decides for each sample; its batch is 1."""
    backend = registry.get("ort")
    session = backend.open(backend.compile(model, RunOptions()))
    count = len(next(iter(inputs.values())))
    try:
        outputs = [session.run({name: array[i : i + 1] for name, array in inputs.items()}) for i in range(count)]
    finally:
        session.close()
    return np.array([int(np.argmax(next(iter(output.values())))) for output in outputs], np.int64)


def records_of(folder: Path) -> list[tuple[str, str]]:
    """Return stage and key of every record of a run, in the order in which they were made."""
    with closing(sqlite3.connect(folder / "run.sqlite")) as connection:
        found: list[tuple[str, str]] = connection.execute("SELECT stage, key FROM records ORDER BY id").fetchall()
    return found


@dataclass
class Task:
    """A model and samples on disk, and the main job on them."""

    folder: Path

    @property
    def model(self) -> Path:
        """The model's file."""
        return self.folder / "model.onnx"

    @property
    def samples(self) -> Path:
        """The samples' file."""
        return self.folder / "samples.npz"

    @property
    def out(self) -> Path:
        """The directory of the result."""
        return self.folder / "out"

    def request(
        self, *, data: dict[str, Any] | None = None, effort: dict[str, Any] | None = None, **options: Any
    ) -> Request:
        """Return a request for ONNX Runtime alone; `data` and `effort` are fields of those, the rest of `Goal`."""
        own = {key: options.pop(key) for key in ("out", "overwrite") if key in options}
        return Request(
            model=self.model,
            out=own.get("out", self.out),
            overwrite=own.get("overwrite", False),
            data=DataRequest(**{"samples": str(self.samples), **(data or {})}),
            goal=Goal(**{"max_drop": 0.1, **options}),
            effort=Effort(**{"backends": ("ort",), **(effort or {})}),
        )

    def run(self, **options: Any) -> Result:
        """Run the main job; arguments as for `request`."""
        return optimize(self.request(**options))

    def records(self) -> list[tuple[str, str]]:
        """Return stage and key of every record, in the order in which they were made."""
        return records_of(self.out)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Return a net of two layers with 240 samples, each labelled as the net decides it."""
    made = Task(tmp_path)
    model = mlp(features=8, hidden=48)
    save(model, made.model)
    x = np.random.default_rng(0).standard_normal((240, 8)).astype(np.float32)
    np.savez(made.samples, x=x, y=answers(model, {"x": x}))
    return made


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Task]:
    """Return a function that writes any model and samples: `make_task(model, x=..., y=...)`."""

    def make(model: ir.Model, **arrays: Array) -> Task:
        made = Task(tmp_path)
        save(model, made.model)
        np.savez(made.samples, allow_pickle=False, **arrays)
        return made

    return make


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Times]:
    """Return a function that decides what keeping nodes in float takes; 1 % each by default."""

    def decided(cost: Callable[[str], float] = lambda _name: 0.01, **options: Any) -> Times:
        made = Times(cost, **options)
        monkeypatch.setattr(quantize, "extra_times", made)
        return made

    return decided


class Clock:
    """Time that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def job_of(task: Task, *, clock: Clock | None = None, **options: Any) -> Iterator[Job]:
    """Open a job as `optimize` does, without running it."""
    request = task.request(**options)
    model = load_model(request.model, {})
    data = open_data(request.data, model.facts.inputs)
    with open_workspace(request.out, "key", overwrite=False) as workspace:
        yield Job(
            request=request,
            model=model,
            data=data,
            metric=METRICS[request.goal.metric or "top1"],
            machine=SimpleNamespace(fingerprint="here"),  # type: ignore[arg-type]
            backends=("ort",),
            workspace=workspace,
            workshop=Workshop(model, data.calibrate, workspace, Quiet(), lambda: math.inf),
            progress=Quiet(),
            deadline=Deadline.after(request.effort.budget_s, clock or Clock()),
            run_id="run",
        )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Return a task whose job has finished: its default runs in OpenVINO. Not to be changed."""
    made = Task(tmp_path_factory.mktemp("finished"))
    model = mlp(features=8, hidden=48)
    save(model, made.model)
    x = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    np.savez(made.samples, x=x, y=answers(model, {"x": x}))
    fake = FakeMeasures({"openvino int8": 40.0, "ort fused": 90.0}, untouched_us=100.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for module in (screen, finish):
            patch.setattr(module, "measure_group", fake.measure_group)
        patch.setattr(finish, "cold_start_and_memory", fake.cold_start_and_memory)
        patch.setattr(finish, "energy", lambda _entry, _feeds: Energy(joules=None, source="not in a test"))
        result = made.run(max_drop=0.2, effort={"backends": ("ort", "openvino")})
    assert result.run.ladder[result.run.chosen].candidate.backend == "openvino"
    return made


def check(result: Result) -> Bundle:
    """Check that a run ended with a bundle that is whole, and a report."""
    bundle = Bundle.load(result.folder)
    assert verify(bundle, machine=describe()).passed
    assert bundle.manifest.default == result.run.chosen
    assert (result.folder / "report.html").is_file()
    assert finished_run(result.folder) == result.run
    return bundle


def random(*shape: int) -> Array:
    """Return normal numbers."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
