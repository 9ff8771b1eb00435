"""Every operator that carries the scale of channels through: scaled by powers of two, results stay bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.compress.quantize.channel_groups import divide, find_groups
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, branching_net, quantized_conv, random_feeds

MakeRun = Callable[[ir.Model], Run]

Body = Callable[[GraphBuilder, str], str]


def constant(b: GraphBuilder, *shape: int) -> str:
    return b.weight(*shape, fan_in=1)


def ints(b: GraphBuilder, *values: int) -> str:
    return b.constant(np.array(values, np.int64))


def between_convs(body: Body, *, channels: int = 8, rest: int = 8, pads: int = 1) -> ir.Model:
    """Return Conv, what `body` makes of its output `[1, channels, 6, 6]`, and a Conv over `rest` channels."""
    b = GraphBuilder("between")
    x = b.input("x", (1, 3, 6, 6))
    value = b.node("Conv", x, b.weight(channels, 3, 3, 3), constant(b, channels), name="first", pads=[pads] * 4)
    value = body(b, value)
    b.output(b.node("Conv", value, b.weight(4, rest, 1, 1), name="last"), "y")
    return b.build()


def between_gemms(body: Body, *, rest: int = 8) -> ir.Model:
    """Return Gemm, what `body` makes of its output `[4, 8]`, and a Gemm over `rest` features."""
    b = GraphBuilder("between")
    value = b.node("Gemm", b.input("x", (4, 3)), b.weight(8, 3), constant(b, 8), name="first", transB=1)
    b.output(b.node("Gemm", body(b, value), b.weight(rest, 4, fan_in=rest), name="last"), "y")
    return b.build()


def one(operator: str, **attributes: Any) -> Body:
    return lambda b, v: b.node(operator, v, name="middle", **attributes)


def attention(b: GraphBuilder, v: str) -> str:
    heads = b.node("Transpose", b.node("Reshape", v, ints(b, 1, 4, 2, 4)), perm=[0, 2, 1, 3])
    weights = b.node("Softmax", constant(b, 1, 2, 4, 4))
    scores = b.node("Softmax", b.node("Add", weights, b.node("ReduceSum", "x")), axis=-1)
    mixed = b.node("Transpose", b.node("MatMul", scores, heads), perm=[0, 2, 1, 3])
    return b.node("Reshape", mixed, ints(b, 4, 8))


def shuffle(b: GraphBuilder, v: str) -> str:
    halves = b.node("Transpose", b.node("Reshape", v, ints(b, 4, 2, 36)), perm=[1, 0, 2])
    split = b.node("Reshape", halves, ints(b, 2, 1, 4, 6, 6))
    left = b.node("Gather", split, b.constant(np.int64(0)), axis=0)
    right = b.node("Gather", split, b.constant(np.int64(1)), axis=0)
    return b.node("Concat", left, b.node("Relu", right), axis=1)


def residual(b: GraphBuilder, v: str) -> str:
    branch = b.node("Conv", b.node("Relu", v), b.weight(8, 8, 3, 3), constant(b, 8), name="branch", pads=[1] * 4)
    return b.node("Relu", b.node("Add", branch, v))


CARRIED: dict[str, tuple[ir.Model, list[int]]] = {
    "nothing": (between_convs(lambda _, v: v), [8]),
    "Relu": (between_convs(one("Relu")), [8]),
    "LeakyRelu": (between_convs(one("LeakyRelu", alpha=0.3)), [8]),
    "PRelu": (between_convs(lambda b, v: b.node("PRelu", v, constant(b, 8, 1, 1))), [8]),
    "shared slope": (between_convs(lambda b, v: b.node("PRelu", v, constant(b, 1))), [8]),
    "MaxPool": (between_convs(one("MaxPool", kernel_shape=[2, 2], pads=[1, 1, 1, 1])), [8]),
    "AveragePool": (between_convs(one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])), [8]),
    "GlobalAveragePool": (between_convs(one("GlobalAveragePool")), [8]),
    "GlobalMaxPool": (between_convs(one("GlobalMaxPool")), [8]),
    "ReduceMean": (between_convs(one("ReduceMean", axes=[2, 3])), [8]),
    "ReduceMean, squeezed": (
        between_convs(lambda b, v: b.node("Unsqueeze", b.node("ReduceMax", v, axes=[2], keepdims=0), ints(b, 2))),
        [8],
    ),
    "zero Pad": (between_convs(lambda b, v: b.node("Pad", v, ints(b, 0, 0, 1, 1, 0, 0, 1, 1))), [8]),
    "reflecting Pad": (
        between_convs(lambda b, v: b.node("Pad", v, ints(b, 0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")),
        [8],
    ),
    "Resize": (
        between_convs(
            lambda b, v: b.node("Resize", v, "", b.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
        ),
        [8],
    ),
    "Slice": (between_convs(lambda b, v: b.node("Slice", v, ints(b, 1), ints(b, 5), ints(b, 2), ints(b, 1))), [8]),
    "Gather": (between_convs(lambda b, v: b.node("Gather", v, ints(b, 1, 5, 2), axis=1), rest=3), [8]),
    "Transpose": (
        between_convs(lambda b, v: b.node("Transpose", b.node("Transpose", v, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])),
        [8],
    ),
    "constant Add": (between_convs(lambda b, v: b.node("Add", v, constant(b, 8, 1, 1))), [8]),
    "scalar Add": (between_convs(lambda b, v: b.node("Add", b.constant(np.float32(3)), v)), [8]),
    "constant Sub": (between_convs(lambda b, v: b.node("Sub", constant(b, 1, 8, 6, 6), v)), [8]),
    "scalar Mul": (between_convs(lambda b, v: b.node("Mul", v, b.constant(np.float32(3)))), [8]),
    "Div by one number": (between_convs(lambda b, v: b.node("Div", v, b.constant(np.array([3], np.float32)))), [8]),
    "Concat with a constant": (
        between_convs(lambda b, v: b.node("Concat", constant(b, 1, 2, 6, 6), v, axis=1), rest=10),
        [10],
    ),
    "Concat of rows": (between_convs(lambda b, v: b.node("Concat", v, b.node("Relu", v), axis=2)), [8]),
    "Split": (
        between_convs(lambda b, v: b.node("Add", *b.nodes("Split", v, outputs=2, axis=1)), rest=4),
        [4],
    ),
    "residual": (between_convs(residual), [8]),
    "channel shuffle": (between_convs(shuffle), [8]),
    "depthwise": (
        between_convs(lambda b, v: b.node("Conv", b.node("Relu", v), constant(b, 8, 1, 3, 3), group=8)),
        [8, 8],
    ),
    "grouped": (between_convs(lambda b, v: b.node("Conv", v, constant(b, 4, 4, 1, 1), group=2), rest=4), [8, 4]),
    "ConvTranspose": (
        between_convs(lambda b, v: b.node("ConvTranspose", v, constant(b, 8, 3, 2, 2), constant(b, 3)), rest=3),
        [8, 3],
    ),
    "grouped ConvTranspose": (
        between_convs(lambda b, v: b.node("ConvTranspose", v, constant(b, 8, 3, 2, 2), group=2), rest=6),
        [8, 6],
    ),
    "Flatten": (
        between_convs(
            lambda b, v: b.node(
                "Reshape", b.node("MatMul", b.node("Flatten", v), constant(b, 288, 9)), ints(b, 1, 9, 1, 1)
            ),
            rest=9,
        ),
        [8, 9],
    ),
    "product with a vector": (between_gemms(lambda b, v: b.node("Mul", v, constant(b, 8))), [8]),
    "quotient by a vector": (between_gemms(lambda b, v: b.node("Div", v, constant(b, 8))), [8]),
    "MatMul and bias": (
        between_gemms(
            lambda b, v: b.node("Relu", b.node("Add", b.node("MatMul", v, constant(b, 8, 5)), constant(b, 5))), rest=5
        ),
        [8, 5],
    ),
    "LayerNormalization": (
        between_gemms(lambda b, v: b.node("LayerNormalization", v, constant(b, 8), constant(b, 8))),
        [8],
    ),
    "LayerNormalization without bias": (
        between_gemms(lambda b, v: b.node("LayerNormalization", v, constant(b, 8))),
        [8],
    ),
    "attention": (between_gemms(attention), [8]),
    "a product from the left": (
        between_gemms(lambda b, v: b.node("MatMul", b.node("Softmax", b.node("MatMul", "x", constant(b, 3, 4))), v)),
        [8],
    ),
}


@pytest.mark.parametrize("name", CARRIED)
def test_scaled_by_powers_of_two_every_bit_stays(name: str, ort_run: MakeRun) -> None:
    model, sizes = CARRIED[name]
    copy = model.clone()
    groups, _ = find_groups(copy)
    assert [group.size for group in groups] == sizes
    random = np.random.default_rng(0)
    before = {key: value.const_value for key, value in model.graph.initializers.items()}
    for group in groups:
        assert divide(copy, group, np.exp2(random.integers(-6, 7, group.size).astype(np.float64))) is None
    feeds = random_feeds(model)
    assert np.array_equal(ort_run(model)(feeds)["y"], ort_run(copy)(feeds)["y"])
    assert {key: value.const_value for key, value in model.graph.initializers.items()} == before
    changed = [key for key, value in copy.graph.initializers.items() if before.get(key) is not value.const_value]
    assert len(changed) >= 2


DECLINED: dict[str, tuple[ir.Model, str]] = {
    "Clip": (
        between_convs(
            lambda b, v: b.node("Clip", v, b.constant(np.float32(0)), b.constant(np.float32(6)), name="clip")
        ),
        "`clip` is Clip, which does not carry",
    ),
    "Sigmoid": (between_convs(one("Sigmoid")), "`middle` is Sigmoid"),
    "slope that is fed": (
        between_convs(lambda b, v: b.node("PRelu", v, b.input("slope", (1,)), name="p")),
        "slope of `p`",
    ),
    "padding with one": (
        between_convs(
            lambda b, v: b.node("Pad", v, ints(b, 0, 0, 1, 1, 0, 0, 1, 1), b.constant(np.float32(1)), name="pad")
        ),
        "`pad` pads with a value",
    ),
    "moved channels": (
        between_convs(lambda b, v: b.node("Pad", v, ints(b, 0, 1, 0, 0, 0, -1, 0, 0), name="pad")),
        "`pad` pads the channels",
    ),
    "reversed channels": (
        between_convs(lambda b, v: b.node("Slice", v, ints(b, 7), ints(b, -9), ints(b, 1), ints(b, -1), name="slice")),
        "`slice` may turn the channels around",
    ),
    "fewer channels": (
        between_convs(lambda b, v: b.node("Slice", v, ints(b, 0), ints(b, 4), ints(b, 1), name="slice"), rest=4),
        "`slice` changes the number",
    ),
    "mean over channels": (
        between_convs(lambda b, v: b.node("ReduceMean", v, axes=[1], name="mean"), rest=1),
        "`mean` reduces the channels",
    ),
    "cropping Resize": (
        between_convs(
            lambda b, v: b.node(
                "Resize",
                v,
                b.constant(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)),
                b.constant(np.array([1, 1, 2, 2], np.float32)),
                name="resize",
                coordinate_transformation_mode="tf_crop_and_resize",
            )
        ),
        "`resize` extrapolates",
    ),
    "product of activations": (
        between_convs(lambda b, v: b.node("Mul", v, b.node("ReduceMean", "x", axes=[1]), name="gate")),
        "`gate` does not multiply with a constant",
    ),
    "attention scores": (
        between_gemms(lambda b, v: b.node("MatMul", v, b.node("Transpose", v, perm=[1, 0]), name="scores"), rest=4),
        "`scores` sums over the channels",
    ),
    "product with itself": (
        between_gemms(lambda b, v: b.node("MatMul", b.node("Transpose", v, perm=[1, 0]), v, name="gram")),
        "is multiplied with a tensor that has its scale",
    ),
    "constant from the left": (
        between_gemms(lambda b, v: b.node("MatMul", constant(b, 4, 4), v, name="left")),
        "`left` multiplies a constant from the left",
    ),
    "norm behind": (
        between_gemms(lambda b, v: b.node("LayerNormalization", v, constant(b, 8), name="norm")),
        "`norm` normalizes over the channels",
    ),
    "channels added to one number": (
        between_convs(lambda b, v: b.node("Add", v, b.node("ReduceMean", "x", axes=[1]), name="sum")),
        "`sum` adds one number of",
    ),
    "sum with an input": (between_convs(lambda b, v: b.node("Add", v, b.input("z", (1, 8, 6, 6)))), "`z` is an input"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_not_exact_is_declined_with_the_reason(name: str) -> None:
    model, reason = DECLINED[name]
    groups, refusals = find_groups(model)
    (found,) = [one for one in refusals if one.node.name == "first"]
    assert reason in found.reason
    assert all(writer.node.name != "first" for group in groups for writer in group.writers)


def test_outputs_of_the_model_are_declined() -> None:
    b = GraphBuilder("two")
    hidden = b.node("Relu", b.node("Gemm", b.input("x", (1, 3)), b.weight(3, 8), name="first"))
    b.output(b.node("Gemm", hidden, b.weight(8, 2)), "y")
    b.output(hidden, "hidden")
    groups, refusals = find_groups(b.build())
    assert groups == []
    assert [one.reason for one in refusals] == ["`hidden` is an output of the model", "`y` is an output of the model"]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.full((8, 8), np.nan, np.float32), "hold NaN"),
        (np.full((8, 8), np.inf, np.float32), "hold NaN"),
        (np.ones((2, 8, 8), np.float32), "have rank 3"),
    ],
)
def test_weights_that_cannot_be_rescaled_are_declined(weight: np.ndarray, reason: str) -> None:
    b = GraphBuilder("odd")
    value = b.node("MatMul", b.input("x", (2, 4, 8)), b.weight(8, 8), name="first")
    b.output(b.node("Relu", b.node("MatMul", value, b.constant(weight))), "y")
    groups, refusals = find_groups(b.build())
    assert groups == []
    assert reason in refusals[0].reason


def test_weights_that_two_nodes_read_are_declined() -> None:
    b = GraphBuilder("shared")
    w = b.weight(8, 8)
    b.output(b.node("MatMul", b.node("Relu", b.node("MatMul", b.input("x", (1, 8)), w)), w), "y")
    groups, refusals = find_groups(b.build())
    assert groups == []
    assert all("are shared" in one.reason for one in refusals)
    assert len(refusals) == 2


@pytest.mark.parametrize("weights", ["float16", "fed"])
def test_weights_of_other_types_and_fed_ones_are_declined(weights: str) -> None:
    b = GraphBuilder("typed")
    dtype = "float16" if weights == "float16" else "float32"
    x = b.input("x", (1, 8), dtype)
    w = b.constant(np.ones((8, 8), dtype)) if weights == "float16" else b.input("w", (8, 8))
    b.output(b.node("Gemm", x, w), "y", dtype=dtype)
    _, refusals = find_groups(b.build())
    assert ("are float16" if weights == "float16" else "are not constant") in refusals[0].reason


def test_values_that_a_subgraph_reads_are_declined() -> None:
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = GraphBuilder(name)
        inner.output(inner.node("Relu", "hidden_out"), f"{name}_result", (1, 8))
        branches[name] = inner.graph()
    b = GraphBuilder("captured")
    hidden = b.node("Gemm", b.input("x", (1, 3)), b.weight(3, 8), name="hidden")
    flag = b.node("Greater", b.node("ReduceSum", "x", keepdims=0), b.constant(np.float32(0)))
    chosen = b.node("If", flag, **branches)
    b.output(b.node("Gemm", b.node("Add", chosen, hidden), b.weight(8, 2)), "y")
    groups, refusals = find_groups(b.build())
    assert groups == []
    assert "sub-graph" in refusals[0].reason


def test_quantized_models_and_bodies_are_left_alone() -> None:
    assert find_groups(quantized_conv())[0] == []
    assert "are not constant" in find_groups(quantized_conv())[1][0].reason
    assert find_groups(branching_net()) == ([], [])
