"""The main job on strange models, and with little or much effort; processes that measure are faked."""

from __future__ import annotations

import numpy as np
import pytest
from tests.pipeline.conftest import FakeMeasures, MakeTask, Task, check, random

from edgewise.backends import registry
from edgewise.errors import BackendError, ModelError
from edgewise.pipeline import build
from edgewise.records.candidate import Quantize
from edgewise.testing.graphs import (
    GraphBuilder,
    constant_output_net,
    custom_operator_net,
)


def test_a_model_without_weights_is_not_quantized(make_task: MakeTask, measures: FakeMeasures) -> None:
    b = GraphBuilder("no_weights")
    b.output(b.node("Relu", b.node("Sin", b.input("x", (1, 4)))), "y", (1, 4))
    result = make_task(b.build(), x=random(40, 4)).run(max_drop=0.3)
    reasons = {o.candidate.name: o.reason for o in result.run.outcomes}
    assert reasons["ort int8-mse"] == "it could not be built: No node of this model can be quantized."
    assert reasons["ort fp16-weights"] == "it could not be built: No weight can be stored as float16."
    check(result)
    assert measures.groups


def test_a_model_with_a_runtimes_own_operator_runs_there(make_task: MakeTask, measures: FakeMeasures) -> None:
    b = GraphBuilder("distances")
    value = b.node("MatMul", b.input("x", (1, 16)), b.weight(16, 16, fan_in=16), name="first")
    centres = b.weight(4, 16)
    b.output(b.node("CDist", value, centres, domain="com.microsoft", metric="euclidean", name="cdist"), "y", (1, 4))
    model = b.build()
    task = make_task(model, x=random(60, 16))
    result = task.run(max_drop=0.3, effort={"backends": ("ort", "openvino")})
    reasons = {o.candidate.name: o.reason for o in result.run.outcomes}
    assert "CDist" in reasons["openvino untouched"]
    assert any(d.operator == "com.microsoft::CDist" for d in result.run.declines)
    assert result.run.ladder[result.run.chosen].candidate.backend == "ort"
    check(result)
    assert measures.groups


def test_a_model_that_nothing_can_be_made_of_still_gives_a_bundle(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_arguments: object, **_options: object) -> None:
        raise ModelError("A model has to be legal ONNX before it can be optimized.")

    monkeypatch.setattr(build, "fuse", refuses)
    result = task.run()
    assert result.run.chosen == 0
    assert all("could not be built: A model has to be legal" in o.reason for o in result.run.outcomes[1:])
    assert result.run.declines[0].reason == "A model has to be legal ONNX before it can be optimized."
    assert measures.groups[0][0] == ("ort untouched",)
    check(result)


def test_an_operator_that_no_runtime_has_is_refused(make_task: MakeTask, measures: FakeMeasures) -> None:
    task = make_task(custom_operator_net(), x=random(40, 4))
    with pytest.raises(ModelError, match="Frobnicate"):
        task.run()
    assert not task.out.exists()
    assert not measures.groups


@pytest.mark.parametrize("metric", [None, "agreement"])
def test_a_model_that_onnx_runtime_refuses_is_the_users(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch, metric: str | None
) -> None:
    def refuses(*_arguments: object) -> None:
        raise BackendError("ONNX Runtime has no kernel for this.")

    monkeypatch.setattr(type(registry.get("ort")), "compile", refuses)
    with pytest.raises(ModelError, match="has to run in ONNX Runtime, but: ONNX Runtime has no kernel") as caught:
        task.run(metric=metric)
    assert caught.value.exit_code == 2
    assert "inspect" in str(caught.value.hint)
    assert not measures.groups


def test_a_constant_model_is_refused(make_task: MakeTask, measures: FakeMeasures) -> None:
    task = make_task(constant_output_net(), x=random(40, 4))
    with pytest.raises(ModelError, match="the same for all"):
        task.run()
    assert not measures.groups


def test_a_model_that_decides_the_same_for_all_is_refused_where_decisions_count(
    make_task: MakeTask, measures: FakeMeasures
) -> None:
    b = GraphBuilder("one_class")
    value = b.node("MatMul", b.input("x", (1, 4)), b.weight(4, 2, fan_in=4))
    b.output(b.node("Add", value, b.constant(np.array([100, 0], np.float32))), "y", (1, 2))
    task = make_task(b.build(), x=random(80, 4), y=np.arange(80) % 2)
    with pytest.raises(ModelError, match="decides the same for all 20 samples"):
        task.run()
    assert not measures.groups


def test_several_numbers_of_threads_are_tried(task: Task, measures: FakeMeasures) -> None:
    measures.median_us = {"2-threads": 60.0, "int8": 50.0, "fp16": 98.0, "fused": 90.0}
    result = task.run(effort={"threads": (1, 2)})
    assert {o.candidate.options.threads for o in result.run.outcomes} == {1, 2}
    # What the rest is compared with in the end is the untouched model at its best.
    assert result.run.ladder[0].candidate.name == "ort untouched 2-threads"
    check(result)


def test_openvino_alone(task: Task, measures: FakeMeasures) -> None:
    result = task.run(effort={"backends": ("openvino",)})
    assert {o.candidate.backend for o in result.run.outcomes[1:]} == {"openvino"}
    assert result.run.outcomes[0].candidate.name == "ort untouched"
    chosen = result.run.ladder[result.run.chosen].candidate
    assert chosen.backend == "openvino"
    assert any(isinstance(step, Quantize) for step in chosen.steps)
    check(result)
    assert {path.suffix for path in (result.folder / "sources").iterdir()} == {".onnx"}
    assert measures.groups


def test_a_budget_that_is_spent_at_once_still_gives_a_result(task: Task, measures: FakeMeasures) -> None:
    result = task.run(effort={"budget_s": 1e-6})
    assert [budget_s for _, budget_s in measures.groups] == [0.5, 3.0]
    assert "The time budget ended before every candidate was scored" in result.run.notes[0]
    assert any(o.reason == "the time budget ended before it was its turn" for o in result.run.outcomes)
    assert result.run.chosen > 0  # the fastest was scored all the same
    check(result)
