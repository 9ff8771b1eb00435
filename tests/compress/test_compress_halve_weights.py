from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.compress.halve_weights import LEAST_VALUES, halve_weights, why_not
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, lstm_net, random_feeds


def product(weight: np.ndarray) -> ir.Model:
    b = GraphBuilder("product")
    b.input("x", [1, weight.shape[0]])
    b.output(b.node("MatMul", "x", b.constant(weight, "w"), name="product"), "y")
    return b.build()


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)


def test_weights_become_float16_and_a_cast_and_the_original_is_left_alone() -> None:
    model = product(normal(32, 16))
    halved, findings = halve_weights(model)
    assert [node.op_type for node in halved.graph] == ["Cast", "MatMul"]
    assert halved.graph.initializers["w_float16"].dtype == ir.DataType.FLOAT16
    assert "w" not in halved.graph.initializers
    assert [(change.node, change.what) for change in findings.changes] == [("product", "stored `w` as float16")]
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT
    assert [node.op_type for node in model.graph] == ["MatMul"]


def test_the_result_is_within_half_a_float16_step_of_every_weight(any_run: Callable[[ir.Model], Run]) -> None:
    weight = normal(32, 16)
    model = product(weight)
    feeds = random_feeds(model)
    halved = any_run(halve_weights(model)[0])(feeds)["y"]
    exact = feeds["x"].astype(np.float64) @ weight
    magnitude = np.abs(feeds["x"]).astype(np.float64) @ np.abs(weight)
    # Half a float16 step for each weight, and 32 float32 additions and products.
    assert (np.abs(halved - exact) <= magnitude * (2**-11 + 33 * 2**-24)).all()
    assert np.abs(halved - exact).max() > 0


def test_weights_that_two_nodes_read_are_stored_once(any_run: Callable[[ir.Model], Run]) -> None:
    b = GraphBuilder("shared")
    b.input("x", [1, 16])
    w = b.constant(normal(16, 16), "w")
    b.output(b.node("Add", b.node("MatMul", b.node("MatMul", "x", w), w), b.node("ReduceSum", w)), "y")
    halved, findings = halve_weights(b.build())
    assert [node.op_type for node in halved.graph].count("Cast") == 1
    assert len(findings.changes) == 1
    assert np.isfinite(any_run(halved)(random_feeds(halved))["y"]).all()


def test_an_initializer_that_is_an_output_keeps_its_name(ort_run: Callable[[ir.Model], Run]) -> None:
    model = product(normal(32, 16))
    model.graph.outputs.append(model.graph.initializers["w"])
    halved, _ = halve_weights(model)
    assert [value.name for value in halved.graph.outputs] == ["y", "w"]
    assert np.array_equal(ort_run(halved)(random_feeds(model))["w"], normal(32, 16).astype(np.float16).astype("f"))


def test_recurrent_weights_and_subgraphs(ort_run: Callable[[ir.Model], Run]) -> None:
    halved, findings = halve_weights(lstm_net(hidden=16))
    assert any("LSTM" in node.op_type for node in halved.graph)
    assert len(findings.changes) >= 2
    ort_run(halved)(random_feeds(halved))

    inner = GraphBuilder("then")
    inner.output(inner.node("MatMul", "x", inner.constant(normal(16, 16), "w_then")), "y_then", [1, 16])
    other = GraphBuilder("else")
    other.output(other.node("Identity", "x"), "y_else", [1, 16])
    b = GraphBuilder("branch")
    b.input("x", [1, 16])
    b.input("flag", [], "bool")
    b.output(b.node("If", "flag", then_branch=inner.graph(), else_branch=other.graph()), "y", [1, 16])
    halved, findings = halve_weights(b.build())
    assert [change.what for change in findings.changes] == ["stored `w_then` as float16"]
    ort_run(halved)({"x": normal(1, 16), "flag": np.array(True)})


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (normal(4, 4), "has 16 values: halving fewer than 256 saves nothing"),
        (np.where(np.eye(32) > 0, np.nan, 1).astype(np.float32), "holds NaN"),
        (normal(32, 32, scale=1e6), "float16 ends at 65504"),
        (normal(32, 32, scale=1e-7), "of its norm"),
    ],
)
def test_declines(weight: np.ndarray, reason: str) -> None:
    assert reason in (why_not(weight) or "")
    model = product(weight)
    halved, findings = halve_weights(model)
    assert halved.graph.initializers["w"].dtype == ir.DataType.FLOAT
    (decline,) = findings.declines
    assert (decline.stage, decline.node, decline.operator) == ("halve_weights", "product", "MatMul")
    assert decline.reason.startswith("`w` ")
    assert reason in decline.reason


def test_a_large_constant_that_is_no_weight_is_declined_and_a_small_one_is_not_mentioned() -> None:
    b = GraphBuilder("sum")
    b.input("x", [1, 512])
    scaled = b.node("Mul", "x", b.constant(np.float32(3), "small"))
    b.output(b.node("Add", scaled, b.constant(normal(512), "table"), name="sum"), "y")
    _, findings = halve_weights(b.build())
    assert [decline.reason for decline in findings.declines] == ["`table` is not read as weights but by Add"]


@given(st.floats(1e-9, 1e9), st.integers(0, 5))
def test_whatever_is_accepted_loses_at_most_half_a_step_of_its_norm(scale: float, seed: int) -> None:
    weight = (np.random.default_rng(seed).standard_normal(LEAST_VALUES) * scale).astype(np.float32)
    if why_not(weight) is not None:
        return
    lost = np.linalg.norm(weight.astype(np.float64) - weight.astype(np.float16).astype(np.float64))
    assert lost <= 2**-11 * np.linalg.norm(weight.astype(np.float64))
