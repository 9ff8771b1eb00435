"""Model files and bundles, ready to run."""

from __future__ import annotations

import numpy as np
import pytest
from tests.pipeline.conftest import Task

from edgewise.errors import BundleError, ModelError, RecipeError
from edgewise.pipeline.subjects import is_bundle, open_subject
from edgewise.records.candidate import RunOptions


def test_a_model_file(finished: Task) -> None:
    subject = open_subject(finished.model, shapes={}, options=RunOptions(threads=2))
    assert not is_bundle(finished.model)
    assert (subject.name, subject.preprocessing, dict(subject.state)) == ("model.onnx: ort", None, {})
    assert subject.artifact.spec.options.threads == 2
    session = subject.open()
    assert session.run({"x": np.zeros((1, 8), np.float32)})["probabilities"].shape == (1, 4)
    session.close()


def test_a_bundle_decides_for_itself(finished: Task) -> None:
    assert is_bundle(finished.out)
    subject = open_subject(finished.out, shapes={}, backend="ort")
    assert subject.name.startswith("out: openvino int8")
    assert subject.artifact.spec.backend == "openvino"
    assert subject.preprocessing is not None
    assert [port.name for port in subject.inputs] == ["x"]
    assert open_subject(finished.out, shapes={}, rung="ort untouched").name == "out: ort untouched"


def test_what_does_not_exist_is_refused(finished: Task, task: Task) -> None:
    with pytest.raises(RecipeError, match="A rung has to be one of"):
        open_subject(finished.out, shapes={}, rung="nothing")
    with pytest.raises(RecipeError, match="`--rung` is for bundles"):
        open_subject(finished.model, shapes={}, rung="ort untouched")
    with pytest.raises(ModelError):
        open_subject(task.folder / "none.onnx", shapes={})
    (task.out).mkdir()
    (task.out / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        open_subject(task.out, shapes={})
