"""Model and samples, opened and fitted to each other."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.formats.onnx import save
from edgewise.pipeline.inputs import load_model, open_data, percent, preprocessing_of
from edgewise.pipeline.request import DataRequest
from edgewise.records.tensors import Port
from edgewise.testing.graphs import mlp

PORTS = (Port(name="x", dtype="float32", shape=(1, 4)),)


def samples(path: Path, count: int = 100, seed: int = 0, *, labels: bool = True) -> str:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((count, 4)).astype(np.float32)
    if labels:
        np.savez(path, x=x, y=draw.integers(0, 2, count))
    else:
        np.savez(path, x=x)
    return str(path)


def test_a_model_has_its_batch_fixed_and_its_hash_follows_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(mlp(batch="n", features=4), path)
    loaded = load_model(path, {})
    assert loaded.facts.inputs == PORTS
    assert loaded.facts.name == "m.onnx"
    assert loaded.declines == ()
    assert load_model(path, {}).sha256 == loaded.sha256
    save(mlp(batch="n", features=4, seed=1), path)
    assert load_model(path, {}).sha256 != loaded.sha256


def test_the_hash_covers_weights_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ir.save(mlp(features=4, hidden=64), path, external_data="m.data")
    first = load_model(path, {}).sha256
    weights = bytearray((tmp_path / "m.data").read_bytes())
    weights[5] ^= 1
    (tmp_path / "m.data").write_bytes(bytes(weights))
    assert load_model(path, {}).sha256 != first


def test_a_missing_model_and_an_open_dimension_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        load_model(tmp_path / "nowhere.onnx", {})
    b = mlp(batch=1, features=4)
    b.graph.inputs[0].shape = ir.Shape([1, "features"])
    save(b, tmp_path / "m.onnx")
    with pytest.raises(RecipeError, match="--shape"):
        load_model(tmp_path / "m.onnx", {})


def test_one_set_is_split_in_three(tmp_path: Path) -> None:
    request = DataRequest(samples=samples(tmp_path / "a.npz"))
    data = open_data(request, PORTS)
    assert [len(data.calibrate), len(data.select), len(data.certify)] == [15, 25, 60]
    everything = np.concatenate([data.calibrate.indices, data.select.indices, data.certify.indices])
    assert sorted(everything) == list(range(100))
    assert data.labelled
    again = open_data(request, PORTS)
    assert (again.sha256, again.certify_sha256) == (data.sha256, data.certify_sha256)
    other = open_data(DataRequest(samples=request.samples, seed=1), PORTS)
    assert other.sha256 != data.sha256
    # Most of its certify samples are the same.
    assert other.certify_sha256 == data.certify_sha256


def test_calibration_alone_may_be_given(tmp_path: Path) -> None:
    calibration = samples(tmp_path / "c.npz", 40, 1, labels=False)
    data = open_data(DataRequest(samples=samples(tmp_path / "a.npz"), calibration=calibration), PORTS)
    assert [len(data.calibrate), len(data.select), len(data.certify)] == [40, 25, 60]
    assert data.labelled


def test_sets_given_separately_are_used_whole(tmp_path: Path) -> None:
    one, two, three = (samples(tmp_path / f"{seed}.npz", 20 + seed, seed) for seed in range(3))
    data = open_data(DataRequest(samples=one, select=two, certify=three), PORTS)
    assert [len(data.calibrate), len(data.select), len(data.certify)] == [20, 21, 22]


@pytest.mark.parametrize("shared", ["samples", "select", "calibration"])
def test_certify_samples_that_serve_another_purpose_are_refused(tmp_path: Path, shared: str) -> None:
    given = {name: samples(tmp_path / f"{name}.npz", 30, seed) for seed, name in enumerate(("samples", "select"))}
    given["certify"] = samples(tmp_path / "certify.npz", 30, 9)
    given[shared] = given["certify"]
    with pytest.raises(DataError, match="must share no sample with the"):
        open_data(DataRequest(**given), PORTS)  # type: ignore[arg-type]


def test_calibrating_on_the_set_that_is_split_is_refused(tmp_path: Path) -> None:
    main = samples(tmp_path / "a.npz")
    with pytest.raises(DataError, match="must share no sample with the calibrate set"):
        open_data(DataRequest(samples=main, calibration=main), PORTS)


@pytest.mark.parametrize("missing", ["select", "certify"])
def test_both_sets_need_labels_to_be_labelled(tmp_path: Path, missing: str) -> None:
    given = {
        name: samples(tmp_path / f"{name}.npz", 30, seed, labels=name != missing)
        for seed, name in enumerate(("samples", "select", "certify"))
    }
    assert not open_data(DataRequest(**given), PORTS).labelled  # type: ignore[arg-type]


def test_too_few_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 3 samples"):
        open_data(DataRequest(samples=samples(tmp_path / "a.npz", 2)), PORTS)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    given = {name: samples(tmp_path / f"{name}.npz", 9, seed) for seed, name in enumerate(("samples", "select"))}
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 4), np.float32), y=np.zeros(0, np.int64))
    with pytest.raises(DataError, match="at least one sample"):
        open_data(DataRequest(**given, certify=str(tmp_path / "none.npz")), PORTS)  # type: ignore[arg-type]


def test_settings_lie_beside_the_samples_or_are_named(tmp_path: Path) -> None:
    spec = samples(tmp_path / "a.npz")
    assert preprocessing_of(DataRequest(samples=spec)).scale == 1.0
    (tmp_path / "edgewise.toml").write_text("[preprocessing]\nscale = 0.5\n")
    (tmp_path / "other.toml").write_text("[preprocessing]\nscale = 0.25\n")
    assert preprocessing_of(DataRequest(samples=spec)).scale == 0.5
    assert preprocessing_of(DataRequest(samples=str(tmp_path))).scale == 0.5
    assert preprocessing_of(DataRequest(samples=spec, settings=str(tmp_path / "other.toml"))).scale == 0.25
    with pytest.raises(RecipeError, match="settings have to be readable"):
        preprocessing_of(DataRequest(samples=spec, settings=str(tmp_path / "none.toml")))


def test_a_function_gives_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_samples_for_inputs.py").write_text(
        "import numpy as np\ndef make():\n    for i in range(30):\n        yield np.full(4, i, np.float32), i % 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert len(open_data(DataRequest(samples="my_samples_for_inputs:make"), PORTS).certify) > 10


@pytest.mark.parametrize(("value", "words"), [(0.0123, "1.23 %"), (0.5, "50 %"), (0.00012345, "0.0123 %")])
def test_percent(value: float, words: str) -> None:
    assert percent(value) == words
