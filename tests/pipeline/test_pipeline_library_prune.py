"""`edgewise.prune`: one kind of pruning from Python, and every input that it cannot use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.test_pipeline_prune import blocks, feeds, macs

import edgewise
from edgewise.compress.quantize.reasons import read_reasons
from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.formats.onnx import save, to_bytes
from edgewise.passes.contract import is_legal
from edgewise.pipeline import pruning_costs
from edgewise.records.tensors import Feeds
from edgewise.testing.graphs import GraphBuilder, mlp


@pytest.fixture(autouse=True)
def _arithmetic_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def extra_times(_backend: str, base: ir.Model, variants: Sequence[ir.Model], *_: Any) -> list[float]:
        return [macs(variant) / macs(base) - 1 for variant in variants]

    monkeypatch.setattr(pruning_costs, "extra_times", extra_times)


def samples(count: int = 48) -> list[Any]:
    return [feed["x"][0] for feed in feeds(count)]


def rows(count: int, width: int = 16) -> list[Any]:
    draw = np.random.default_rng(4)
    return list(draw.standard_normal((count, width)).astype(np.float32))


def size(model: ir.Model) -> int:
    """Return how many numbers the weights of a model have."""
    return sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None)


def test_each_goal_gives_a_legal_model_and_leaves_the_given_one() -> None:
    model = blocks()
    before = to_bytes(model)
    goals: list[dict[str, Any]] = [{"neurons": 0.25}, {"layers": 1}, {"weights": 0.5}, {"latency": 0.7}]
    for goal in goals:
        pruned = edgewise.prune(model, samples(), **goal, quantized=False)
        assert is_legal(pruned)
        assert {node.domain for node in pruned.graph} == {""}
        faster: bool = macs(pruned) < macs(model)
        assert faster == ("weights" not in goal)
        assert to_bytes(model) == before


def test_a_pattern_of_zeros() -> None:
    pruned = edgewise.prune(blocks(), samples(), weights=0.5, pattern="2:4", quantized=False)
    kernels = [value.const_value.numpy() for value in pruned.graph.initializers.values()
               if value.const_value is not None and value.const_value.size > 1000]  # fmt: skip
    assert kernels
    assert all((kernel == 0).mean() == pytest.approx(0.5) for kernel in kernels)


def test_what_was_fitted_to_too_few_samples_is_named_with_the_number_needed() -> None:
    model = mlp(hidden=64)
    few = edgewise.prune(model, rows(6), neurons=0.5, quantized=False)
    assert size(few) < size(model)
    assert any("samples: a larger ridge" in decline.reason for decline in read_reasons(few))
    assert not read_reasons(edgewise.prune(model, rows(800), neurons=0.5, quantized=False))


@pytest.mark.parametrize(
    ("goal", "fragment"),
    [
        ({}, "One of `neurons`, `layers`, `weights` and `latency` has to be given. Received 0."),
        ({"neurons": 0.5, "weights": 0.5}, "has to be given. Received 2."),
        ({"neurons": 1.5}, "between 0 and 1, both excluded. Received 1.5"),
        ({"layers": 0}, "1 or more. Received 0"),
        ({"layers": 9}, "Of this model 3 layers can go, but 9 were asked for"),
        ({"weights": 0.99}, "at most 0.95 of all weights can go"),
        ({"weights": 0.5, "pattern": "3:7"}, "has to be one of unstructured, 1x4, 2:4"),
        ({"weights": 0.8, "pattern": "2:4"}, "half of the weights to zero: ask for 0.5. Received 0.8"),
        ({"neurons": 0.5, "pattern": "2:4"}, "no `weights` are set to zero"),
        ({"neurons": 0.5, "recover_s": -1.0}, "at least 0. Received -1"),
        ({"neurons": 0.5, "backend": "none"}, "none"),
    ],
)
def test_what_cannot_be_meant_is_refused(goal: dict[str, Any], fragment: str) -> None:
    with pytest.raises(RecipeError) as raised:
        edgewise.prune(blocks(), samples(8), **goal)
    assert fragment in raised.value.message


@pytest.mark.parametrize(
    ("given", "fragment"),
    [
        (None, "Pruning makes up for what it takes on real samples, but there is none"),
        ([], "there is none"),
        ("samples.npz", "Samples have to be a list"),
        ([np.zeros((4, 4), np.float32)], "Sample 0"),
        ([["a"]], "arrays of numbers"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(given: Any, fragment: str) -> None:
    with pytest.raises(DataError) as raised:
        edgewise.prune(blocks(), given, neurons=0.5)
    assert fragment in raised.value.message


def test_a_path_is_no_model() -> None:
    with pytest.raises(ModelError, match=r"as `edgewise.load` returns it. Received str"):
        edgewise.prune("model.onnx", samples(), neurons=0.5)  # type: ignore[arg-type]


def test_a_quantized_model_is_refused() -> None:
    quantized = edgewise.quantize(blocks(), samples(8), extra_time=0)
    with pytest.raises(RecipeError, match="has to be pruned before it is quantized, but this one is quantized already"):
        edgewise.prune(quantized, samples(8), neurons=0.5)


def test_dynamic_shapes_are_fixed_by_load(tmp_path: Path) -> None:
    save(mlp(batch="n"), tmp_path / "m.onnx")
    model = edgewise.load(tmp_path / "m.onnx")
    assert size(edgewise.prune(model, rows(40), neurons=0.5)) < size(model)


# Graphs with peculiarities: each a perceptron with 16 inputs, and units between two layers.


def custom_operator() -> ir.Model:
    b = GraphBuilder("custom", seed=1)
    hidden = b.node("Relu", b.node("MatMul", b.input("x", (1, 16)), b.weight(16, 12), name="first"))
    middle = b.node("MatMul", hidden, b.weight(12, 8), name="second")
    scores = b.node("Gelu", middle, domain="com.microsoft", name="custom")
    b.output(b.node("MatMul", scores, b.weight(8, 3), name="third"), "y", (1, 3))
    model = b.build()
    for node in model.graph:  # nothing can infer it
        if node.domain:
            node.outputs[0].shape = ir.Shape([1, 8])
    return model


def shared_weights() -> ir.Model:
    b = GraphBuilder("shared", seed=1)
    x, weight = b.input("x", (1, 16)), b.weight(16, 16)
    value = b.node("Relu", b.node("MatMul", x, weight, name="first"))
    value = b.node("Relu", b.node("MatMul", value, weight, name="second"))
    b.output(b.node("MatMul", value, b.weight(16, 3), name="third"), "y", (1, 3))
    return b.build()


def groups_of_one() -> ir.Model:
    b = GraphBuilder("one", seed=1)
    hidden = b.node("Relu", b.node("MatMul", b.input("x", (1, 16)), b.weight(16, 1), name="first"))
    b.output(b.node("MatMul", hidden, b.weight(1, 3), name="second"), "y", (1, 3))
    return b.build()


def constant_units() -> ir.Model:
    b = GraphBuilder("constant", seed=1)
    weight = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)
    weight[:, :6] = 0
    made = b.node("MatMul", b.input("x", (1, 16)), b.constant(weight), name="first")
    hidden = b.node("Relu", b.node("Add", made, b.constant(np.linspace(0.5, 1, 12, dtype=np.float32))))
    b.output(b.node("MatMul", hidden, b.weight(12, 3), name="second"), "y", (1, 3))
    return b.build()


def answer(model: ir.Model, given: Sequence[Any]) -> np.ndarray[Any, Any]:
    from edgewise.pipeline.judge import opened  # noqa: PLC0415  beside its only use

    with opened(model) as run:
        found: list[Feeds] = [dict(run({"x": row[None]})) for row in given]
    return np.concatenate([next(iter(one.values())) for one in found])


def test_units_of_no_variance_go_free_of_loss() -> None:
    model = constant_units()
    # Of six constant units one is left: the layer behind them has no bias.
    pruned = edgewise.prune(model, rows(80), neurons=5 / 12)
    assert size(pruned) < size(model)
    np.testing.assert_allclose(answer(pruned, rows(5)), answer(model, rows(5)), atol=1e-3)


@pytest.mark.parametrize("make", [custom_operator, constant_units])
def test_peculiar_graphs_are_pruned_where_they_can_be(make: Callable[[], ir.Model]) -> None:
    model = make()
    pruned = edgewise.prune(model, rows(60), neurons=0.25)
    assert is_legal(pruned)
    assert size(pruned) < size(model)
    assert answer(pruned, rows(3)).shape == answer(model, rows(3)).shape


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (groups_of_one, "`second`: the model's output `y` has them"),
        (shared_weights, "`first` sums over them together with numbers that cannot go"),
    ],
    ids=["groups of one", "shared weights"],
)
def test_where_nothing_can_go_the_reason_is_said(make: Callable[[], ir.Model], reason: str) -> None:
    with pytest.raises(RecipeError, match="Nothing of this model can be pruned") as raised:
        edgewise.prune(make(), rows(8), neurons=0.5)
    assert reason in raised.value.message
