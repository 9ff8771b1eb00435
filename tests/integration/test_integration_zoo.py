"""The main job on real models, with real measurements, to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import verify
from edgewise.measure.machine import describe
from edgewise.pipeline.optimize import finished_run, optimize
from edgewise.pipeline.request import DataRequest, Effort, Goal, Request

ZOO = Path(os.environ.get("EDGEWISE_ZOO", Path(__file__).parents[2] / ".." / "shared" / "zoo"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ZOO / "zoo.toml").exists(), reason=f"the model zoo is not at {ZOO}; set EDGEWISE_ZOO"),
]


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("model", "samples", "settings", "baseline"),
    [
        ("ecg/ecg_cnn.onnx", "ecg/mitbih_beats.npz", "sample_shape = [1, 300]", None),
        ("kws/ds_cnn.onnx", "kws/kws01_mfcc.npz", "", 0.913),
    ],
)
def test_the_main_job_runs_to_its_end(
    tmp_path: Path, model: str, samples: str, settings: str, baseline: float | None
) -> None:
    (tmp_path / "edgewise.toml").write_text(f"[preprocessing]\n{settings}\n")
    result = optimize(
        Request(
            model=ZOO / model,
            out=tmp_path / "out",
            data=DataRequest(samples=str(ZOO / samples), settings=str(tmp_path / "edgewise.toml")),
            goal=Goal(max_drop=0.03),
            effort=Effort(budget_s=40.0),
        )
    )
    run = result.run
    bundle = Bundle.load(result.folder)
    checked = verify(bundle, machine=describe())
    assert checked.passed, checked.rungs
    assert run.seconds < 240  # the budget, and what may not be left out on a busy machine
    chosen = run.ladder[run.chosen]
    assert chosen.certified
    assert chosen.certificate is None or chosen.certificate.upper <= 0.03
    # Never a regression: what was chosen is shown to be faster, or smaller at the same speed.
    assert run.chosen == 0 or chosen.speedup.low > 1 or chosen.size_bytes < run.ladder[0].size_bytes
    assert all(outcome.reason for outcome in run.outcomes)
    assert finished_run(result.folder) == run
    if baseline is not None:
        accuracy = next(o.accuracy for o in run.outcomes if o.accuracy is not None)
        assert abs(accuracy.value - baseline) < 0.1  # a quarter of the samples
    with np.load(ZOO / samples) as arrays:
        assert run.data.n == len(arrays["y"])


def test_the_command_writes_one_json_document_and_a_bundle(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgewise", "optimize", str(ZOO / "kws/ds_cnn.onnx")]
    options = ["--data", str(ZOO / "kws/kws01_mfcc.npz"), "--max-drop", "3%", "--budget", "5s", "--backends", "ort"]
    done = subprocess.run(
        [*command, *options, "--out", str(tmp_path / "out"), "--json"], capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert said["verdict"] == finished_run(tmp_path / "out").verdict
    assert verify(Bundle.load(tmp_path / "out"), machine=describe()).passed
