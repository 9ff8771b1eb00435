"""Costs: each operator by its formula, totals on real models, what is not known."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.cost import layer_costs, total_macs, unknown_costs
from edgewise.passes.apply import optimize
from edgewise.passes.contract import signature
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder

ZOO = Path(os.environ.get("EDGEWISE_ZOO", Path(__file__).parents[2] / ".." / "shared" / "zoo"))


def one(operator: str, shape: tuple[int, ...], *weights: tuple[int, ...], **attributes: Any) -> ir.Model:
    b = GraphBuilder("one", opset=attributes.pop("opset", 17))
    inputs = [b.input("x", shape), *(b.weight(*weight) for weight in weights)]
    outputs = b.nodes(operator, *inputs, outputs=1, **attributes)
    b.output(outputs[0], "y")
    return b.build()


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        # Output 1 x 8 x 5 x 5, each from 2 channels of its group, 3 x 3.
        (one("Conv", (1, 4, 5, 5), (8, 2, 3, 3), group=2, pads=[1, 1, 1, 1]), 8 * 25 * 2 * 9),
        # Each of 4 x 5 x 5 inputs goes through 3 filters of its group, 2 x 2.
        (one("ConvTranspose", (1, 4, 5, 5), (4, 3, 2, 2), group=2), 100 * 3 * 4),
        (one("Gemm", (2, 5), (5, 7)), 2 * 5 * 7),
        (one("Gemm", (5, 2), (7, 5), transA=1, transB=1), 2 * 5 * 7),
        (one("MatMul", (3, 2, 5), (5, 7)), 3 * 2 * 5 * 7),
        # Steps x batch x gates x hidden x (input + hidden).
        (one("LSTM", (6, 2, 5), (1, 28, 5), (1, 28, 7), hidden_size=7), 6 * 2 * 4 * 7 * 12),
        (one("GRU", (6, 2, 5), (1, 21, 5), (1, 21, 7), hidden_size=7), 6 * 2 * 3 * 7 * 12),
        (one("RNN", (6, 2, 5), (2, 7, 5), (2, 7, 7), hidden_size=7, direction="bidirectional"), 2 * 6 * 2 * 7 * 12),
        # Queries times keys, then weights times values: 2 heads, 3 x 6 scores, depths 4 and 5.
        (one("Attention", (1, 2, 3, 4), (1, 2, 6, 4), (1, 2, 6, 5), opset=23), 2 * 3 * 6 * (4 + 5)),
        (one("Einsum", (3, 4), (4, 5), equation="ij,jk->ik"), 3 * 4 * 5),
        (one("Relu", (3, 4)), 0),
    ],
)
def test_macs_of_one_operator(model: ir.Model, macs: int) -> None:
    assert total_macs(layer_costs(model)) == macs
    assert not unknown_costs(model)


def test_bytes_of_weights_and_activations() -> None:
    (cost,) = layer_costs(one("Conv", (1, 4, 5, 5), (8, 4, 1, 1)))
    assert cost.weight_bytes == 8 * 4 * 4
    assert cost.activation_bytes == (100 + 200) * 4
    assert cost.operator == "Conv"


def test_views_move_nothing() -> None:
    (cost,) = layer_costs(one("Flatten", (2, 3, 4)))
    assert cost.activation_bytes == 0


def test_the_batch_counts() -> None:
    assert total_macs(layer_costs(graphs.conv_net(batch=4))) == 4 * total_macs(layer_costs(graphs.conv_net()))


def test_what_is_dynamic_counts_as_one_and_is_listed() -> None:
    dynamic, fixed = graphs.mlp(batch="n"), graphs.mlp(batch=1)
    assert total_macs(layer_costs(dynamic)) == total_macs(layer_costs(fixed))
    unknown = unknown_costs(dynamic)
    assert len(unknown) == len(list(dynamic.graph))
    assert all("what is not known counts as 1" in decline.reason for decline in unknown)


def test_the_costlier_branch_counts() -> None:
    branches = {}
    for name, width in (("then_branch", 3), ("else_branch", 5)):
        inner = GraphBuilder(name)
        value = inner.node("MatMul", "x", inner.constant(np.zeros((4, width), np.float32), f"{name}_w"))
        inner.output(
            inner.node("MatMul", value, inner.constant(np.zeros((width, 2), np.float32), f"{name}_v")),
            f"{name}_y",
            (1, 2),
        )
        branches[name] = inner.graph()
    b = GraphBuilder("choice")
    b.input("x", (1, 4))
    b.output(b.node("If", b.input("flag", (), "bool"), **branches), "y", (1, 2))
    assert total_macs(layer_costs(b.build())) == 4 * 5 + 5 * 2


@pytest.mark.parametrize("trips", [7, None])
def test_a_loop_counts_as_often_as_it_runs(trips: int | None) -> None:
    body = GraphBuilder("body")
    body.input("i", (), "int64")
    body.input("on", (), "bool")
    body.input("h", (1, 4))
    body.output(body.node("Identity", "on"), "still", (), "bool")
    body.output(body.node("MatMul", "h", body.constant(np.zeros((4, 4), np.float32), "w")), "next", (1, 4))
    b = GraphBuilder("loop")
    count = b.constant(np.array(trips, np.int64)) if trips else b.input("n", (), "int64")
    b.output(b.node("Loop", count, b.constant(np.array(True)), b.input("x", (1, 4)), body=body.graph()), "y", (1, 4))
    model = b.build()
    assert total_macs(layer_costs(model)) == 16 * (trips or 1)
    reasons = [decline.reason for decline in unknown_costs(model)]
    assert reasons == ([] if trips else ["how often its body runs is decided while it runs; it is counted once"])


def test_the_model_stays_as_it_is() -> None:
    model = graphs.conv_net()
    before = signature(model)
    layer_costs(model)
    assert signature(model) == before


# tf2onnx's Loop has no trip count: its condition is computed. One of 50 steps counts, and the head.
LOOPS = {"cmapss_regression_loop": 4_000_000 // 50 + 50, "cmapss_binary_loop": 4_000_000 // 50 + 50}
INPUTS = {"ppocrv4_mobile_rec": (1, 3, 48, 320)}


def entries() -> list[dict[str, Any]]:
    if not (ZOO / "zoo.toml").exists():
        return []
    found: list[dict[str, Any]] = tomllib.loads((ZOO / "zoo.toml").read_text())["model"]
    return [entry for entry in found if entry["path"].endswith(".onnx") and "macs" in entry]


@pytest.mark.skipif(not entries(), reason=f"the model zoo is not at {ZOO}; set EDGEWISE_ZOO")
@pytest.mark.parametrize("entry", entries(), ids=lambda entry: str(entry["name"]))
def test_macs_of_real_models(entry: dict[str, Any]) -> None:
    model = ir.load(ZOO / entry["path"])
    for value in model.graph.inputs:
        dims = tuple(dim if isinstance(dim, int) else 1 for dim in value.shape or ())
        value.shape = ir.Shape(INPUTS.get(entry["name"], dims))
    if entry["name"] in INPUTS:
        # Its shapes are computed by Shape nodes, which type inference alone does not follow; folding does.
        assert total_macs(layer_costs(model)) < entry["macs"]
        assert unknown_costs(model)
        model, _ = optimize(model)
    assert total_macs(layer_costs(model)) == LOOPS.get(entry["name"], entry["macs"])
