"""Options, places and bundles that cannot be used.

One sentence, a hint, exit code 2, nothing on standard output, nothing half-written.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Final

import numpy as np
import pytest
from tests.cli.conftest import Arguments, Case, Place, Said, check_refused, optimize, samples, saved

from edgewise.testing import graphs

CASES: Final[dict[str, tuple[Case, str]]] = {}
"""What is given, and a part of the sentence that has to come; filled by `case`."""


def case(fragment: str) -> Callable[[Case], Case]:
    """Add a case under the function's name."""

    def added(function: Case) -> Case:
        CASES[function.__name__] = (function, fragment)
        return function

    return added


# The options


@case("Missing option '--data'")
def no_data(at: Place) -> Arguments:
    return ["optimize", at.bench.model]


@case("There is no command `optimise`. Did you mean `optimize`?")
def unknown_command(at: Place) -> Arguments:
    return ["optimise", at.bench.model]


@case("--budget")
def unknown_option(at: Place) -> Arguments:
    return [*optimize(at), "--buget", "3s"]


@case("nonsense")
def unknown_metric(at: Place) -> Arguments:
    return optimize(at, "--metric", "nonsense")


@case("nonsense")
def unknown_metric_of_eval(at: Place) -> Arguments:
    return ["eval", at.bench.model, "--data", at.bench.samples, "--metric", "nonsense"]


@case("Received `gpu`")
def unknown_backend(at: Place) -> Arguments:
    return optimize(at, "--backends", "ort,gpu")


@case("Received `gpu`")
def unknown_backend_of_bench(at: Place) -> Arguments:
    return ["bench", at.bench.model, "--backends", "gpu"]


@case("`--threads` has to be 1 or more. Received 0.")
def no_threads(at: Place) -> Arguments:
    return optimize(at, "--threads", "0")


@case("`--threads` has to be a number")
def unreadable_threads(at: Place) -> Arguments:
    return optimize(at, "--threads", "many")


@case("`--budget` has to be a number")
def unreadable_budget(at: Place) -> Arguments:
    return optimize(at, "--budget", "soon")


@case("`--budget` has to be positive")
def no_budget(at: Place) -> Arguments:
    return optimize(at, "--budget", "0s")


@case("`--time` has to be")
def unreadable_time(at: Place) -> Arguments:
    return ["bench", at.bench.model, "--time", "1"]


@case("`--max-drop` has to be a number")
def unreadable_drop(at: Place) -> Arguments:
    return optimize(at, "--max-drop", "little")


@case("`--max-drop` has to be above 0 and below 100 %")
def drop_out_of_range(at: Place) -> Arguments:
    return optimize(at, "--max-drop", "1")


@case("`--max-drop` has to be above 0 and below 100 %")
def drop_that_is_no_number(at: Place) -> Arguments:
    return optimize(at, "--max-drop", "nan")


@case("`--max-drop` has to be above 0 and below 100 %")
def drop_of_eval_out_of_range(at: Place) -> Arguments:
    return ["eval", at.bench.model, at.bench.other, "--data", at.bench.samples, "--max-drop", "-1%"]


@case("`--max-latency` has to be")
def unreadable_latency(at: Place) -> Arguments:
    return optimize(at, "--max-latency", "5")


@case("`--max-size` has to be positive")
def no_size(at: Place) -> Arguments:
    return optimize(at, "--max-size", "0MB")


@case("`--select` and `--certify` have to be given together")
def select_alone(at: Place) -> Arguments:
    return optimize(at, "--select", at.bench.samples)


@case("`--state` has to be")
def unreadable_state(at: Place) -> Arguments:
    return optimize(at, "--state", "scores")


@case("nothing")
def state_of_no_output(at: Place) -> Arguments:
    model = saved(at.tmp / "cell.onnx", graphs.recurrent_cell())
    data = samples(at.tmp / "x.npz", x=np.zeros((40, 3, 4), np.float32))
    return optimize(at, "--state", "nothing=state", model=model, data=data)


@case("nowhere")
def state_of_no_input(at: Place) -> Arguments:
    return optimize(at, "--state", "scores=nowhere")


@case("it has to be a whole number of 1 or more")
def no_samples_to_compare(at: Place) -> Arguments:
    return ["diff", at.bench.model, at.bench.other, "--data", at.bench.samples, "--samples", "0"]


@case("share none")
def nothing_to_compare(at: Place) -> Arguments:
    model = saved(at.tmp / "mlp.onnx", graphs.mlp())
    return ["diff", at.bench.model, model, "--data", at.bench.samples]


# The output


@case("has to be writable")
def file_in_the_way(at: Place) -> Arguments:
    (at.tmp / "file").write_text("mine")
    return [*optimize(at), "--out", at.tmp / "file"]


@case("has to be writable")
def unwritable_output(at: Place) -> Arguments:
    return [*optimize(at), "--out", "/proc/edgewise"]


@case("it holds `thesis.tex`")
def foreign_output(at: Place) -> Arguments:
    (at.tmp / "out").mkdir()
    (at.tmp / "out" / "thesis.tex").write_text("mine")
    return optimize(at)


@case("it holds `thesis.tex`")
def foreign_output_to_overwrite(at: Place) -> Arguments:
    return [*foreign_output(at), "--overwrite"]


@case("model_optimized.onnx` exists")
def existing_export(at: Place) -> Arguments:
    (at.tmp / "model_optimized.onnx").write_text("mine")
    return ["export", at.bench.bundle, "--to", "onnx", "--out", at.tmp / "model_optimized.onnx"]


@case("has to be writable")
def unwritable_export(at: Place) -> Arguments:
    return ["export", at.bench.bundle, "--to", "onnx", "--out", "/proc/edgewise.onnx"]


@case("`--to` has to be one of `onnx`, `openvino`")
def unknown_export(at: Place) -> Arguments:
    return ["export", at.bench.bundle, "--to", "tflite"]


# Runs and bundles


@case("holds no `run.sqlite`")
def report_of_nothing(at: Place) -> Arguments:
    return ["report", at.tmp]


@case("run.sqlite")
def report_of_damaged_records(at: Place) -> Arguments:
    (at.tmp / "run.sqlite").write_bytes(b"no database" * 100)
    return ["report", at.tmp]


@case("manifest.json")
def no_bundle(at: Place) -> Arguments:
    return ["run", at.tmp]


@case("manifest.json")
def model_as_bundle(at: Place) -> Arguments:
    return ["run", at.bench.model]


@case("manifest.json")
def missing_bundle(at: Place) -> Arguments:
    return ["bundle", "verify", at.tmp / "none"]


@case("nonsense")
def unknown_rung(at: Place) -> Arguments:
    return ["run", at.bench.bundle, "--rung", "nonsense", "--input", at.bench.samples]


@case("manifest.json")
def damaged_manifest(at: Place) -> Arguments:
    copy = shutil.copytree(at.bench.bundle, at.tmp / "copy")
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text()[:-50])
    return ["run", copy, "--input", at.bench.samples]


@case("model.onnx")
def tampered_model(at: Place) -> Arguments:
    copy = shutil.copytree(at.bench.bundle, at.tmp / "copy")
    for model in copy.rglob("*.onnx"):
        data = bytearray(model.read_bytes())
        data[-20] ^= 1
        model.write_bytes(data)
    return ["bundle", "verify", copy]


@case("model.onnx")
def tampered_model_to_run(at: Place) -> Arguments:
    return ["run", tampered_model(at)[2], "--input", at.bench.samples]


@case("vectors")
def truncated_vectors(at: Place) -> Arguments:
    copy = shutil.copytree(at.bench.bundle, at.tmp / "copy")
    (vectors,) = copy.rglob("vectors*.npz")
    os.truncate(vectors, 300)
    return ["bundle", "verify", copy]


@case("The samples have to exist")
def second_input_missing(at: Place) -> Arguments:
    return ["run", at.bench.bundle, "--input", at.bench.samples, "--input", at.tmp / "none.npy"]


@case("has to have the shape [1, 3, 16, 16]")
def input_of_another_shape(at: Place) -> Arguments:
    np.save(at.tmp / "x.npy", np.zeros((2, 5), np.float32))
    return ["run", at.bench.bundle, "--input", at.tmp / "x.npy"]


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, place: Place, edgewise: Callable[..., Said]) -> None:
    check_refused(*CASES[name], place, edgewise)


def test_a_package_that_is_missing_is_named(edgewise: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "edgewise.cli.doctor", raising=False)
    monkeypatch.delitem(sys.modules, "edgewise.pipeline.doctor", raising=False)
    monkeypatch.delitem(sys.modules, "edgewise.measure.machine", raising=False)
    monkeypatch.delitem(sys.modules, "edgewise.measure.energy", raising=False)
    said = edgewise("doctor")
    assert (said.code, said.out) == (2, "")
    assert "needs the package `psutil`" in said.err
    assert "pip install edgewise" in said.err
