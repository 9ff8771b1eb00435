"""Scoring one or two models on all samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.conftest import Task

from edgewise.errors import RecipeError
from edgewise.formats.onnx import save
from edgewise.pipeline.evaluate import evaluate
from edgewise.pipeline.request import DataRequest
from edgewise.testing.graphs import mlp


def test_one_model_has_its_metric_with_an_interval(finished: Task) -> None:
    data = DataRequest(samples=str(finished.samples))
    found = evaluate(finished.model, None, data=data, metric=None, max_drop=0.01)
    (accuracy,) = found.accuracies
    assert (accuracy.metric, accuracy.value, accuracy.n) == ("top1", 1.0, 200)
    assert found.comparison is None
    assert found.names == ("model.onnx: ort",)


def test_two_are_compared_in_pairs(finished: Task, tmp_path: Path) -> None:
    data = DataRequest(samples=str(finished.samples))
    save(mlp(features=8, hidden=48, seed=5), tmp_path / "other.onnx")
    found = evaluate(finished.model, tmp_path / "other.onnx", data=data, metric="top1", max_drop=0.01)
    assert found.comparison is not None
    assert not found.comparison.passed
    drop = found.accuracies[0].value - found.accuracies[1].value
    assert found.comparison.drop == pytest.approx(drop)
    bundle = evaluate(finished.model, finished.out, data=data, metric=None, max_drop=0.2).comparison
    assert bundle is not None
    assert bundle.passed


def test_without_labels_two_models_are_compared_with_each_other(finished: Task, tmp_path: Path) -> None:
    with np.load(finished.samples) as arrays:
        np.savez(tmp_path / "x.npz", x=arrays["x"])
    data = DataRequest(samples=str(tmp_path / "x.npz"))
    found = evaluate(finished.model, finished.out, data=data, metric=None, max_drop=0.2)
    assert found.comparison is not None
    assert found.comparison.claim == "flip-rate"
    with pytest.raises(RecipeError, match="compares two models, but one was given") as caught:
        evaluate(finished.model, None, data=data, metric=None, max_drop=0.2)
    assert "second model" in str(caught.value.hint)
