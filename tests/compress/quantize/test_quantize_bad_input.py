"""Bad input: each kind gives a legal model with numbers near float's, or is refused in words that name the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgewise
from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.formats.onnx import to_bytes
from edgewise.records.tensors import Array, Feeds, Run
from edgewise.testing.graphs import GraphBuilder, branching_net, conv_net, quantized_conv, weight_only_net

MakeRun = Callable[[ir.Model], Run]
Floats = npt.NDArray[np.float32]
Samples: TypeAlias = Sequence[Array]

SCHEMES = ("w8a8", "w4a8", "w8a16", "w4a16", "w8", "w4", "w2", "w4g32")
KINDS = ("w8a8", "w4a16", "w4g32")
"""One scheme of each kind."""

BOUNDS = {8: 2e-3, 4: 0.1, 2: 0.9}
"""Largest ratio of noise to signal by weight bits. For a layer of normal weights it is `(r / q)^2 / 12` with the
largest weight at r = 3 standard deviations and q integers on a side: 5e-5, 0.015 and 0.75; 8e-5 for 8-bit activations.
Networks here have up to four such layers, and two bits are clipped besides."""


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """Whatever numpy warns of was not thought of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, np.float32)


def samples(*shape: int, count: int = 8, scale: float = 1.0) -> list[Floats]:
    return [draw(*shape, seed=seed, scale=scale) for seed in range(count)]


def perceptron(first: Floats, second: Floats) -> ir.Model:
    """Return Gemm, Relu, Gemm of `x` `[1, K]` with biases."""
    b = GraphBuilder("perceptron")
    x = b.input("x", (1, first.shape[1]))
    hidden = b.node("Gemm", x, b.constant(first), b.constant(draw(len(first), seed=7)), transB=1, name="first")
    hidden = b.node("Relu", hidden)
    scores = b.node("Gemm", hidden, b.constant(second), b.constant(draw(len(second), seed=8)), transB=1, name="second")
    b.output(scores, "y", (1, len(second)))
    return b.build()


def convolutions(first: Floats, second: Floats) -> ir.Model:
    """Return Conv, Relu, Conv of `x` `[1, C, 8, 8]`."""
    b = GraphBuilder("convolutions")
    value = b.node("Conv", b.input("x", (1, first.shape[1], 8, 8)), b.constant(first), b.constant(draw(len(first))))
    b.output(b.node("Conv", b.node("Relu", value), b.constant(second)), "y")
    return b.build()


def check(model: ir.Model, given: Samples, scheme: str, make_run: MakeRun) -> ir.Model:
    """Quantize, and check that the model is legal, that its interface is the same, and its numbers near float's."""
    before = to_bytes(model)
    quantized = edgewise.quantize(model, given, scheme, extra_time=0)
    assert to_bytes(model) == before
    for one, other in ((model.graph.inputs, quantized.graph.inputs), (model.graph.outputs, quantized.graph.outputs)):
        assert [(value.name, value.dtype) for value in one] == [(value.name, value.dtype) for value in other]
    run_float, run_quantized = make_run(model), make_run(quantized)  # checks that both are legal
    noise, signal = 0.0, 0.0
    for sample in given:
        feeds: Feeds = {"x": sample[None]}
        expected, found = run_float(feeds), run_quantized(feeds)
        for name, real in expected.items():
            assert np.isfinite(found[name]).all()
            noise += float(np.square(found[name].astype(np.float64) - real).sum())
            signal += float(np.square(real.astype(np.float64)).sum())
    assert noise <= BOUNDS[int(scheme[1])] * signal
    return quantized


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dead_channels(scheme: str, ort_run: MakeRun) -> None:
    """Channels that are never written, never read, and whose outputs a Relu always cuts off."""
    first, second = draw(32, 3, 3, 3, seed=1, scale=1 / 5), draw(16, 32, 3, 3, seed=2, scale=1 / 17)
    first[[2, 5]], second[:, 9], second[1] = 0, 0, 0
    check(convolutions(first, second), samples(3, 8, 8), scheme, ort_run)


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_all_zero_weights(scheme: str, layer: int, ort_run: MakeRun) -> None:
    weights = [draw(64, 32, seed=1, scale=1 / 6), draw(32, 64, seed=2, scale=1 / 8)]
    weights[layer][:] = 0
    check(perceptron(*weights), samples(32), scheme, ort_run)


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3e-3])
def test_constant_activations(scheme: str, value: float, ort_run: MakeRun) -> None:
    constant = [np.full(32, value, np.float32)] * 4
    check(perceptron(draw(64, 32, seed=1, scale=1 / 6), draw(32, 64, seed=2, scale=1 / 8)), constant, scheme, ort_run)


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("count", [1, 2])
def test_one_sample_and_two(scheme: str, count: int, ort_run: MakeRun) -> None:
    model = perceptron(draw(64, 32, seed=1, scale=1 / 6), draw(32, 64, seed=2, scale=1 / 8))
    check(model, samples(32, count=count), scheme, ort_run)


@pytest.mark.parametrize("scheme", KINDS)
def test_a_singular_gram_matrix(scheme: str, ort_run: MakeRun) -> None:
    """Inputs that are copies of each other, and fewer samples than inputs."""
    b = GraphBuilder("copies")
    x = b.input("x", (1, 8))
    value = b.node("MatMul", b.node("Concat", x, x, x, x, axis=1), b.weight(32, 64, fan_in=32))
    b.output(b.node("MatMul", value, b.weight(64, 16, fan_in=64)), "y", (1, 16))
    check(b.build(), samples(8, count=3), scheme, ort_run)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_with_nan_or_infinities(value: float) -> None:
    given = samples(32)
    given[3][5] = value
    with pytest.raises(DataError, match="Sample 3"):
        edgewise.quantize(perceptron(draw(64, 32), draw(32, 64)), given)


@pytest.mark.parametrize(("operator", "value", "what"), [("Log", -1.0, "NaN"), ("Exp", 1e3, "an infinity")])
def test_nan_producing_samples(operator: str, value: float, what: str) -> None:
    b = GraphBuilder("producing")
    inner = b.node(operator, b.input("x", (1, 32)), name="inner")
    b.output(b.node("MatMul", inner, b.weight(32, 16)), "y", (1, 16))
    given = [np.abs(sample) for sample in samples(32)]
    given[2][0] = value
    with pytest.raises(DataError, match=f"sample 2 makes {what} in `inner_out`"):
        edgewise.quantize(b.build(), given, extra_time=0)


def test_nan_behind_the_last_layer_is_refused_and_infinities_there_are_not() -> None:
    def ending(operator: str) -> ir.Model:
        b = GraphBuilder("ending")
        value = b.node(operator, b.node("MatMul", b.input("x", (1, 32)), b.weight(32, 16)))
        b.output(b.node("Log", value), "y", (1, 16))
        return b.build()

    with pytest.raises(DataError, match="sample 0 makes NaN in `y`"):
        edgewise.quantize(ending("Identity"), samples(32), extra_time=0)
    assert "QuantizeLinear" in {node.op_type for node in edgewise.quantize(ending("Relu"), samples(32)).graph}


@pytest.mark.parametrize("scheme", ["w8a8", "w4"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_with_nan_or_infinities(scheme: str, value: float) -> None:
    weight = draw(64, 32)
    weight[0, 0] = value
    with pytest.raises(ModelError, match=r"weights have to be numbers.*has 1 of 2,048 values"):
        edgewise.quantize(perceptron(weight, draw(32, 64)), samples(32), scheme)


@pytest.mark.parametrize("scheme", ["w8a8", "w4", "w4g32"])
def test_an_embedding_100_000_wide(scheme: str, ort_run: MakeRun) -> None:
    b = GraphBuilder("embedding")
    table = b.constant(draw(100_000, 32))
    rows = b.node("Gather", table, b.input("x", (1, 5), "int64"))
    b.output(b.node("MatMul", rows, b.weight(32, 64, fan_in=32)), "y", (1, 5, 64))
    ids = [np.random.default_rng(seed).integers(0, 100_000, 5) for seed in range(8)]
    model = b.build()
    quantized = check(model, ids, scheme, ort_run)
    if scheme != "w8a8":
        assert len(to_bytes(quantized)) < 0.2 * len(to_bytes(model))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_a_layer_with_100_000_inputs(scheme: str, ort_run: MakeRun) -> None:
    """Its Gram matrix would not fit into memory."""
    b = GraphBuilder("wide")
    value = b.node("MatMul", b.input("x", (1, 100_000)), b.weight(100_000, 4, fan_in=100_000))
    b.output(value, "y", (1, 4))
    check(b.build(), samples(100_000, count=3), scheme, ort_run)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "w4", "w4g32"])
def test_weights_shared_by_two_layers(scheme: str, ort_run: MakeRun) -> None:
    b = GraphBuilder("shared")
    weight, bias = b.weight(64, 64), b.weight(64)
    value = b.node("Relu", b.node("Gemm", b.input("x", (1, 64)), weight, bias, transB=1))
    value = b.node("Relu", b.node("Gemm", value, weight, bias, transB=1))
    if scheme != "w4g32":
        value = b.node("Relu", b.node("Gemm", value, weight, bias, name="turned"))  # the other way round
    b.output(b.node("Gemm", value, b.weight(64, 64)), "y", (1, 64))
    check(b.build(), samples(64), scheme, ort_run)


def test_an_if_stays_float_with_the_weights_that_it_reads(ort_run: MakeRun) -> None:
    """Its bodies read a weight and an activation of the graph around it, and give names of their own."""
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = GraphBuilder(name)
        value = inner.node("MatMul" if name == "then_branch" else "Gemm", "hidden", "weight", name=f"{name}_product")
        inner.output(value, f"{name}_result", (1, 32))
        branches[name] = inner.graph()
    b = GraphBuilder("outer")
    x = b.input("x", (1, 32))
    b.output(b.node("MatMul", x, b.weight(32, 32, name="weight")), "hidden", (1, 32))
    above = b.node("Greater", b.node("ReduceSum", x, keepdims=0), b.constant(np.float32(0)))
    value = b.node("If", above, name="if", **branches)
    b.output(b.node("MatMul", value, b.weight(32, 16, fan_in=32)), "y", (1, 16))
    quantized = check(b.build(), samples(32), "w8a8", ort_run)
    assert [node.op_type for node in quantized.graph].count("QuantizeLinear") == 2
    assert "weight" in quantized.graph.initializers
    with pytest.raises(RecipeError, match="`if`: it has subgraphs, which stay float"):
        edgewise.quantize(branching_net(), samples(8))


@pytest.mark.parametrize("scheme", ["w8a8", "w4"])
def test_a_loop_stays_float_and_what_follows_it_has_an_unknown_rank(scheme: str, ort_run: MakeRun) -> None:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "inner"], ["product"]),
            helper.make_node("Tanh", ["product"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1, 32]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1, 32]),
        ],
        initializer=[numpy_helper.from_array(draw(32, 32, seed=5, scale=1 / 6), "inner")],
    )
    b = GraphBuilder("loop")
    first = b.node("MatMul", b.input("x", (1, 32)), b.weight(32, 32), name="first")
    carried = b.node("Loop", b.constant(np.int64(3)), b.constant(np.array(True)), first, name="loop", body=body)
    b.output(b.node("MatMul", carried, b.weight(32, 16, fan_in=32), name="last"), "y", (1, 16))
    quantized = check(b.build(), samples(32), scheme, ort_run)
    operators = [node.op_type for node in quantized.graph]
    assert operators.count("QuantizeLinear") == (1 if scheme == "w8a8" else 0)
    assert operators.count("DequantizeLinear") == 2  # the last layer's weights can be stored all the same


def test_a_scan_stays_float(ort_run: MakeRun) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "row"], ["sum"]),
            helper.make_node("MatMul", ["sum", "inner"], ["given"]),
        ],
        "body",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32]) for name in ("state", "row")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32]) for name in ("sum", "given")],
        initializer=[numpy_helper.from_array(draw(32, 32, seed=5, scale=1 / 6), "inner")],
    )
    b = GraphBuilder("scan")
    start = b.constant(np.zeros((1, 32), np.float32))
    state, rows = b.nodes("Scan", start, b.input("x", (4, 1, 32)), outputs=2, name="scan", body=body, num_scan_inputs=1)
    b.output(b.node("MatMul", state, b.weight(32, 16, fan_in=32)), "y", (1, 16))
    b.output(rows, "rows", (4, 1, 32))
    model = b.build()
    quantized = edgewise.quantize(model, samples(4, 1, 32), extra_time=0)
    feeds = {"x": draw(4, 1, 32, seed=40)}
    assert np.array_equal(ort_run(model)(feeds)["rows"], ort_run(quantized)(feeds)["rows"])
    assert [node.op_type for node in quantized.graph].count("QuantizeLinear") == 1


@pytest.mark.parametrize("scheme", ["w8a8", "w4", "w4g32"])
@pytest.mark.parametrize(
    "model", [quantized_conv(), weight_only_net(bits=4), weight_only_net(bits=2)], ids=["w8a8", "w4", "w2"]
)
def test_a_model_that_is_quantized_already_is_left_as_it_is(scheme: str, model: ir.Model) -> None:
    never = map(pytest.fail, ["no sample has to be read to see it"])
    with pytest.raises(RecipeError, match="is quantized already, and is left as it is"):
        edgewise.quantize(model, never, scheme)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_a_model_of_another_float_type_is_refused_before_it_runs(dtype: str) -> None:
    b = GraphBuilder("typed")
    weight = b.constant(draw(32, 16).astype(ir.DataType.BFLOAT16.numpy() if dtype == "bfloat16" else dtype))
    b.output(b.node("MatMul", b.input("x", (1, 32), dtype), weight), "y", (1, 16), dtype)
    with pytest.raises(RecipeError, match=f"its weights are {dtype}, and only float32 can be quantized"):
        edgewise.quantize(b.build(), samples(32))


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("scale", [1e30, 3e37, 1e-30, 1e-40])
def test_activations_of_extreme_size(scheme: str, scale: float, ort_run: MakeRun) -> None:
    """Squares of the large ones are no float32, nor is a sum over positions; the least ones are denormal."""
    b = GraphBuilder("extreme")
    value = b.node("Conv", b.input("x", (1, 3, 8, 8)), b.constant(draw(32, 3, 3, 3, seed=1, scale=1 / 30)))
    b.output(b.node("Conv", b.node("Relu", value), b.constant(draw(16, 32, 3, 3, seed=2, scale=1 / 300))), "y")
    if scale > 1e-38:
        check(b.build(), samples(3, 8, 8, scale=scale), scheme, ort_run)
    else:
        quantized = edgewise.quantize(b.build(), samples(3, 8, 8, scale=scale), scheme, extra_time=0)
        assert np.isfinite(ort_run(quantized)({"x": draw(1, 3, 8, 8, scale=scale)})["y"]).all()


@pytest.mark.parametrize("scheme", KINDS)
def test_weights_of_extreme_size(scheme: str, ort_run: MakeRun) -> None:
    model = perceptron(draw(64, 32, seed=1, scale=1e25), draw(32, 64, seed=2, scale=1e-30))
    check(model, samples(32), scheme, ort_run)


def test_whole_numbers_and_booleans_beside_real_outputs_stay_what_they_are(ort_run: MakeRun) -> None:
    b = GraphBuilder("kinds")
    scores = b.node("MatMul", b.input("x", (1, 32)), b.weight(32, 8, fan_in=32))
    best, positive = b.node("ArgMax", scores, axis=1), b.node("Greater", scores, b.constant(np.float32(0)))
    b.output(b.node("Softmax", scores, axis=-1), "probabilities", (1, 8))
    b.output(best, "best", (1, 1), "int64")
    b.output(positive, "positive", (1, 8), "bool")
    b.output(scores, "scores", (1, 8))
    quantized = edgewise.quantize(b.build(), samples(32), extra_time=0)
    found = ort_run(quantized)({"x": draw(1, 32, seed=40)})
    assert found["best"].item() == found["scores"].argmax() == found["probabilities"].argmax()
    assert np.array_equal(found["positive"], found["scores"] > 0)


def test_zero_size_outputs_and_weights_stay_float(ort_run: MakeRun) -> None:
    b = GraphBuilder("empty")
    value = b.node("MatMul", b.input("x", (1, 32)), b.weight(32, 32))
    bounds = [b.constant(np.array([end])) for end in (0, 0, 1)]
    nothing = b.node("Slice", value, *bounds)
    added = b.node("MatMul", nothing, b.constant(np.zeros((0, 32), np.float32)), name="empty")
    b.output(b.node("Add", value, added), "y", (1, 32))
    b.output(nothing, "nothing", (1, 0))
    model = b.build()
    quantized = edgewise.quantize(model, samples(32), extra_time=0)
    found = ort_run(quantized)({"x": draw(1, 32, seed=40)})
    assert found["nothing"].shape == (1, 0)
    assert [node.op_type for node in quantized.graph].count("QuantizeLinear") == 1


def test_one_sample_of_a_network_with_layers_kept_in_float(ort_run: MakeRun) -> None:
    model = conv_net()
    quantized = edgewise.quantize(model, samples(3, 16, 16, count=1), extra_time=0.15)
    feeds = {"image": draw(1, 3, 16, 16)}
    expected, found = ort_run(model)(feeds)["scores"], ort_run(quantized)(feeds)["scores"]
    assert np.square(found - expected).sum() <= BOUNDS[8] * np.square(expected).sum()
