"""A quantized model says itself what stayed float."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.backends import registry
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.placement import KEPT
from edgewise.compress.quantize.plan import observed_tensors, plan
from edgewise.compress.quantize.reasons import KEY, read_reasons, write_reasons
from edgewise.compress.statistics import collect, observe
from edgewise.formats.onnx import load, save
from edgewise.pipeline.judge import opened
from edgewise.records.candidate import Quantize
from edgewise.records.findings import Decline
from edgewise.testing.graphs import mlp, random_feeds

DECLINE = Decline(stage="quantize", node="a", operator="Gemm", reason="`b` is \u00e4")


def test_reasons_survive_the_file(tmp_path: Path) -> None:
    model = mlp()
    assert read_reasons(model) == ()
    write_reasons(model, [])
    assert KEY not in model.metadata_props
    write_reasons(model, [DECLINE])
    save(model, tmp_path / "m.onnx")
    assert read_reasons(load(tmp_path / "m.onnx")) == (DECLINE,)
    assert read_reasons(model.clone()) == (DECLINE,)


@pytest.mark.parametrize("damaged", ["", "{", "[1]", '[{"node": "a"}]'])
def test_what_is_not_as_we_write_it_says_nothing(damaged: str) -> None:
    model = mlp()
    model.metadata_props[KEY] = damaged
    assert read_reasons(model) == ()


def test_a_plan_says_what_was_kept_by_choice() -> None:
    model, target = mlp(), registry.get("ort").target()
    names = observed_tensors(model, target)
    with opened(observe(model, names)) as run:
        statistics = collect(run, [random_feeds(model)], names)
    first = next(node.name or "" for node in model.graph if node.op_type == "Gemm")
    whole, kept = (plan(model, statistics, target, Quantize(), keep=keep) for keep in ((), (first,)))
    assert read_reasons(apply(model, whole)) == ()
    (reason,) = read_reasons(apply(model, kept))
    assert (reason.node, reason.reason) == (first, KEPT)
