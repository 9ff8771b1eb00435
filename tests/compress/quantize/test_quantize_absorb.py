"""Absorbed biases: the same function, channels around zero, and the reasons where it would not be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.compress.quantize.absorb import absorb, middle, moved_bias, observed_tensors
from edgewise.compress.quantize.weight_layout import WeightLayout
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.passes.contract import check, signature
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, quantized_conv, random_feeds
from edgewise.testing.tolerance import gamma

MakeRun = Callable[[ir.Model], Run]

Body = Callable[[GraphBuilder, str], str]

OFFSET = 64.0


def linear(body: Body = lambda _, v: v, *, biases: bool = True, groups: int = 1, **last: Any) -> ir.Model:
    """Return Conv with offsets of up to `OFFSET`, what `body` makes of its output `[1, 8, 6, 6]`, and a Conv."""
    b = GraphBuilder("linear")
    offsets = b.constant(np.linspace(-OFFSET, OFFSET, 8, dtype=np.float32))
    value = b.node("Conv", b.input("x", (1, 3, 6, 6)), b.weight(8, 3, 1, 1), offsets, name="first")
    bias = [b.weight(4, fan_in=1)] if biases else []
    kernel = b.weight(4, 8 // groups, 1, 1)
    b.output(b.node("Conv", body(b, value), kernel, *bias, name="last", group=groups, **last), "y")
    return b.build()


def seen(model: ir.Model, make_run: MakeRun) -> Statistics:
    names = observed_tensors(model)
    feeds = [random_feeds(model, seed=seed) for seed in range(4)]
    return collect(make_run(observe(model, names)), feeds, names)


def residual(b: GraphBuilder, v: str) -> str:
    branch = b.node("Relu", b.node("Conv", v, b.weight(8, 8, 1, 1), name="inner"))
    branch = b.node("Conv", branch, b.weight(8, 8, 1, 1), b.constant(np.full(8, 9, np.float32)), name="back")
    return b.node("Add", branch, v)


def flat(b: GraphBuilder, v: str) -> str:
    value = b.node("Gemm", b.node("Flatten", v), b.weight(288, 8, fan_in=288), name="flat")
    return b.node("Reshape", value, b.constant(np.array([1, 8, 1, 1], np.int64)))


EXACT: dict[str, tuple[ir.Model, list[str]]] = {
    "a pair": (linear(), ["first"]),
    "no bias to take it": (linear(biases=False), ["first"]),
    "groups": (linear(groups=2), ["first"]),
    "MaxPool": (linear(lambda b, v: b.node("MaxPool", v, kernel_shape=[3, 3], pads=[1] * 4)), ["first"]),
    "GlobalAveragePool": (linear(lambda b, v: b.node("GlobalAveragePool", v)), ["first"]),
    "residual": (linear(residual), ["first", "back"]),
    "Flatten and Gemm": (linear(flat), ["first", "flat"]),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_function_stays_and_channels_lie_around_zero(name: str, any_run: MakeRun, ort_run: MakeRun) -> None:
    model, nodes = EXACT[name]
    before = signature(model)
    statistics = seen(model, ort_run)
    result, findings = absorb(model, statistics)
    check("absorb", model, result)
    assert signature(model) == before
    assert [change.node for change in findings.changes] == nodes
    feeds = random_feeds(model, seed=9)
    expected, got = any_run(model)(feeds)["y"], any_run(result)(feeds)["y"]
    assert not np.array_equal(expected, got)
    # At most four layers of at most 288 products each, twice; no partial sum exceeds the offsets by more than 100.
    assert np.abs(expected - got).max() <= 2 * gamma(4 * 290, 2.0**-24) * (OFFSET + 100)
    for node, tensor in statistics.tensors.items():
        shifted = seen(result, ort_run).tensors[node]
        assert np.abs(middle(shifted.channel_low, shifted.channel_high)).max() <= 1e-3 * max(tensor.high, 1)
    assert seen(result, ort_run).tensors["first_out"].high < 16


def test_another_input_than_those_observed_gives_the_same(ort_run: MakeRun) -> None:
    model, _ = EXACT["residual"]
    result, _ = absorb(model, seen(model, ort_run))
    feeds = {"x": random_feeds(model)["x"] * 1000}
    expected, got = ort_run(model)(feeds)["y"], ort_run(result)(feeds)["y"]
    assert np.abs(expected - got).max() <= 2 * gamma(4 * 12, 2.0**-24) * 1000 * (OFFSET + 100)


DECLINED: dict[str, tuple[ir.Model, str]] = {
    "Relu": (linear(lambda b, v: b.node("Relu", v, name="r")), "`r` is Relu: samples cannot prove"),
    "Clip": (linear(lambda b, v: b.node("Clip", v, name="c")), "`c` is Clip: samples cannot prove"),
    "zero padding": (linear(pads=[1] * 4), "`last` pads with zeros"),
    "automatic padding": (linear(auto_pad="SAME_UPPER"), "`last` pads with zeros"),
    "Sigmoid": (linear(lambda b, v: b.node("Sigmoid", v, name="s")), "`s` is Sigmoid"),
    "two ways": (linear(lambda b, v: b.node("Add", v, b.node("Identity", v), name="a")), "`a` on two ways"),
    "ConvTranspose": (
        linear(lambda b, v: b.node("ConvTranspose", v, b.weight(8, 8, 2, 2), name="t")),
        "the border of `t`",
    ),
    "a Gemm with another beta": (
        linear(
            lambda b, v: b.node(
                "Reshape",
                b.node("Gemm", b.node("Flatten", v), b.weight(288, 8), name="g", beta=2.0),
                b.constant(np.array([1, 8, 1, 1], np.int64)),
            )
        ),
        "the `beta` of `g`",
    ),
    "MatMul": (
        linear(
            lambda b, v: b.node(
                "Reshape",
                b.node("MatMul", b.node("Flatten", v), b.weight(288, 8), name="m"),
                b.constant(np.array([1, 8, 1, 1], np.int64)),
            )
        ),
        "`m` is MatMul, which has no bias",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_not_exact_is_declined_with_the_reason(name: str, ort_run: MakeRun) -> None:
    model, reason = DECLINED[name]
    names = observed_tensors(model)
    assert "first_out" not in names
    statistics = seen(model, ort_run) if names else Statistics({}, 1)
    result, findings = absorb(model, statistics)
    (decline,) = [one for one in findings.declines if one.node == "first"]
    assert reason in decline.reason
    assert result.graph.initializers["constant_1"].const_value is model.graph.initializers["constant_1"].const_value


def test_outputs_of_the_model_and_missing_statistics_are_declined() -> None:
    model = linear()
    result, findings = absorb(model, Statistics({}, 1))
    reasons = {one.node: one.reason for one in findings.declines}
    assert reasons == {"first": "its channels were not observed", "last": "`y` is an output of the model"}
    assert signature(result) == signature(model)


def test_quantized_models_are_left_alone() -> None:
    model = quantized_conv()
    result, findings = absorb(model, Statistics({}, 1))
    assert findings.changes == []
    assert signature(result) == signature(model)


def test_a_bias_that_two_layers_share_is_moved_for_each_alone(ort_run: MakeRun) -> None:
    b = GraphBuilder("shared")
    bias = b.constant(np.arange(8, dtype=np.float32) * 8)
    hidden = b.node("Gemm", b.input("x", (1, 8)), b.weight(8, 8), bias, name="first")
    b.output(b.node("Gemm", hidden, b.weight(8, 8), bias, name="last"), "y")
    model = b.build()
    result, findings = absorb(model, seen(model, ort_run))
    assert len(findings.changes) == 1
    feeds = random_feeds(model, seed=9)
    expected, got = ort_run(model)(feeds)["y"], ort_run(result)(feeds)["y"]
    assert np.abs(expected - got).max() <= 2 * gamma(2 * 10, 2.0**-24) * 8 * OFFSET


@given(
    hnp.arrays(np.float32, (4, 3, 2), elements=st.integers(-9, 9)),
    hnp.arrays(np.float64, 6, elements=st.integers(-9, 9)),
)
def test_the_moved_bias_is_what_the_layer_makes_of_constants(
    weight: npt.NDArray[np.float32], offsets: npt.NDArray[np.float64]
) -> None:
    found = moved_bias(weight, WeightLayout("Conv", weight.shape, 2), offsets)
    expected = [sum(weight[m, c].sum() * offsets[3 * (m // 2) + c] for c in range(3)) for m in range(4)]
    assert found.tolist() == expected


def test_the_middle_of_a_range_of_opposite_ends_does_not_overflow() -> None:
    largest = np.float32(np.finfo(np.float32).max)
    assert middle(np.array([largest]), np.array([largest])).tolist() == [float(largest)]
    assert middle(np.array([-1.0]), np.array([3.0])).tolist() == [1.0]
