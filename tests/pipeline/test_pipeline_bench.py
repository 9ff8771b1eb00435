"""Benching models and bundles; processes that measure are faked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.conftest import FakeMeasures, Task, latency

from edgewise.errors import BackendError, DataError, RecipeError
from edgewise.measure.latency import ratio
from edgewise.pipeline import bench as module
from edgewise.pipeline.bench import Bench, bench, random_feeds
from edgewise.pipeline.request import DataRequest
from edgewise.records.tensors import Port


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMeasures:
    made = FakeMeasures({"out:": 25.0})
    monkeypatch.setattr(module, "measure_group", made.measure_group)
    monkeypatch.setattr(module, "cold_start_and_memory", made.cold_start_and_memory)
    return made


def run(*paths: Path, data: DataRequest | None = None, backends: tuple[str, ...] = ("ort",)) -> Bench:
    return bench(list(paths), data=data, shapes={}, backends=backends, threads=1, budget_s=2.0)


def test_ratios_are_against_the_first(finished: Task, fake: FakeMeasures) -> None:
    result = run(finished.model, finished.out, data=DataRequest(samples=str(finished.samples)))
    assert [row.name.split(":")[0] for row in result.rows] == ["model.onnx", "out"]
    assert [row.speedup.value for row in result.rows] == [pytest.approx(1.0), pytest.approx(4.0)]
    assert result.rows[1].speedup == ratio(latency(100.0), latency(25.0))
    assert all(row.size_bytes > 100 for row in result.rows)
    assert fake.groups == [((result.rows[0].name, result.rows[1].name), 2.0)]


def test_files_run_on_every_backend_and_a_bundle_on_its_own(finished: Task, fake: FakeMeasures) -> None:
    result = run(finished.model, finished.out, backends=("ort", "openvino"))
    names = [row.name for row in result.rows]
    assert names[:2] == ["model.onnx: ort", "model.onnx: openvino"]
    assert len(names) == 3
    assert fake.footprints == names


def test_files_of_one_name_are_both_measured(finished: Task, tmp_path: Path, fake: FakeMeasures) -> None:
    shutil.copy(finished.model, tmp_path / "model.onnx")
    result = run(finished.model, tmp_path / "model.onnx")
    assert [row.name for row in result.rows] == [f"{finished.model}: ort", f"{tmp_path / 'model.onnx'}: ort"]
    assert fake.groups


def test_what_fails_is_raised(finished: Task, fake: FakeMeasures) -> None:
    fake.failing = {"model.onnx: ort"}
    with pytest.raises(BackendError, match="ended with status 3"):
        run(finished.model)


def test_the_time_is_positive(finished: Task) -> None:
    with pytest.raises(RecipeError, match="`--time` has to be positive"):
        bench([finished.model], data=None, shapes={}, backends=("ort",), threads=1, budget_s=0.0)


def test_random_feeds_are_real_numbers_or_zeros() -> None:
    ports = (Port(name="x", dtype="float32", shape=(1, 3)), Port(name="i", dtype="int64", shape=(2,)))
    feeds = random_feeds(ports, 0)
    assert feeds["x"].dtype == np.float32
    assert feeds["x"].std() > 0
    assert list(feeds["i"]) == [0, 0]
    assert not np.array_equal(random_feeds(ports, 1)["x"], feeds["x"])
    with pytest.raises(DataError, match="need a fixed shape") as caught:
        random_feeds((Port(name="x", dtype="float32", shape=(1, "n")),), 0)
    assert "--shape x=" in str(caught.value.hint)
