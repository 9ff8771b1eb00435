"""Plans written into graphs, checked by ONNX and run in every runtime that is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgewise.analysis.target import Target
from edgewise.compress import nodes
from edgewise.compress.quantize import affine
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.plan import Plan, QuantizedTensor, observed_tensors, plan
from edgewise.compress.quantize.restore import quantized_nodes
from edgewise.compress.statistics import collect, observe
from edgewise.errors import ContractError, ModelError
from edgewise.records.candidate import Quantize
from edgewise.records.codec import decode, encode
from edgewise.records.tensors import Array, Feeds, Run
from edgewise.testing.graphs import GraphBuilder, conv_net, depthwise_net, mlp, random_feeds, transformer_block

MakeRun = Callable[[ir.Model], Run]


def planned(model: ir.Model, target: Target, make_run: MakeRun, feeds: Sequence[Feeds]) -> Plan:
    names = observed_tensors(model, target)
    statistics = collect(make_run(observe(model, names)), feeds, names)
    return plan(model, statistics, target, Quantize(ranges="min-max"))


def quantized(model: ir.Model, target: Target, make_run: MakeRun, feeds: Sequence[Feeds]) -> ir.Model:
    return apply(model, planned(model, target, make_run, feeds))


def layer(
    operator: str, shape: Sequence[int], weight: Array, bias: Array | None, attributes: dict[str, Any]
) -> ir.Model:
    b = GraphBuilder("layer")
    b.input("x", shape)
    inputs = ["x", b.constant(weight, "w")]
    if bias is not None:
        inputs.append(b.constant(bias, "b"))
    b.output(b.node(operator, *inputs, name="layer", **attributes), "y")
    return b.build()


LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int | None, dict[str, Any]]] = {
    # name: operator, shape of x, shape of the weights, channels of the bias, attributes
    "conv": ("Conv", (1, 3, 9, 9), (5, 3, 3, 3), 5, {"pads": [1, 1, 1, 1]}),
    "conv without bias": ("Conv", (1, 3, 9, 9), (5, 3, 3, 3), None, {"strides": [2, 2]}),
    "conv in groups": ("Conv", (1, 4, 9, 9), (6, 2, 3, 3), 6, {"group": 2}),
    "depthwise": ("Conv", (1, 8, 9, 9), (8, 1, 3, 3), 8, {"group": 8}),
    "pointwise": ("Conv", (2, 16, 4, 4), (17, 16, 1, 1), 17, {}),
    "conv in one dimension": ("Conv", (1, 3, 20), (5, 3, 5), 5, {"dilations": [2]}),
    "conv in three dimensions": ("Conv", (1, 2, 6, 6, 6), (4, 2, 3, 3, 3), 4, {}),
    "transposed": ("ConvTranspose", (1, 4, 5, 5), (4, 6, 3, 3), 6, {"strides": [2, 2]}),
    "transposed in groups": ("ConvTranspose", (1, 4, 5, 5), (4, 3, 3, 3), 6, {"group": 2}),
    "gemm": ("Gemm", (3, 16), (16, 5), 5, {}),
    "gemm, weights transposed": ("Gemm", (3, 16), (5, 16), 5, {"transB": 1}),
    "gemm, activation transposed": ("Gemm", (16, 3), (16, 5), 5, {"transA": 1}),
    "gemm without bias": ("Gemm", (3, 16), (16, 5), None, {}),
    "matmul": ("MatMul", (2, 3, 16), (16, 5), None, {}),
    "stack of matrices": ("MatMul", (2, 3, 16), (2, 16, 5), None, {}),
}


def draw(shape: Sequence[int], seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("activation_type", ["uint8", "int8"])
@pytest.mark.parametrize("case", LAYERS)
def test_the_error_of_a_layer_is_what_rounding_makes(
    case: str, activation_type: Any, gives_float: Target, any_run: MakeRun, ort_run: MakeRun
) -> None:
    operator, shape, weight_shape, channels, attributes = LAYERS[case]
    weight, bias = draw(weight_shape, 1), None if channels is None else draw([channels], 2)
    target = dataclasses.replace(gives_float, activation_type=activation_type)
    model = layer(operator, shape, weight, bias, attributes)
    feeds = {"x": draw(shape, 3)}
    made = planned(model, target, ort_run, [feeds])
    assert made.declines == ()
    got = any_run(apply(model, made))(feeds)["y"]
    exact = ort_run(model)(feeds)["y"]

    # |sum (x + e)(w + d) - x w| <= sum |x| |d| + |e| (|w| + |d|), with half a step for e, the weights' own rounding d.
    (record,), (activation,) = made.weights, made.tensors
    scales = np.array(record.scales if record.axis is not None else record.scales[0], np.float32)
    integers = np.clip(affine.quantize_array(weight, scales, 0, np.int8, axis=record.axis), -127, 127)
    lost = np.abs(weight - affine.dequantize_array(integers, scales, 0, axis=record.axis))

    def bound(x: Array, w: Array) -> Array:
        # No padding may cut the sum short of its terms: zeros, which it adds, are exact.
        return ort_run(layer(operator, shape, w, None, attributes))({"x": x})["y"]

    step = np.full(shape, activation.scale / 2, np.float32)
    # A range end that the rounded zero point moved by half a step clips by as much: a whole step for every term.
    limit = bound(np.abs(feeds["x"]), lost) + 2 * bound(step, np.abs(weight) + lost)
    shift = np.abs(np.array(record.bias_shift or [0.0])).max()
    largest = np.abs(exact).max()
    room = activation.scale * scales.max() + shift + 2**-20 * largest
    assert (np.abs(got - exact) <= limit + room).all()
    # And it is quantized at all: the error is not that of float32.
    assert np.abs(got - exact).max() > 2**-18 * largest


@pytest.mark.parametrize("target_name", ["needs_output_pairs", "gives_float"])
@pytest.mark.parametrize(
    "make",
    [
        conv_net,
        depthwise_net,
        mlp,
        transformer_block,
    ],
    ids=["conv", "depthwise", "mlp", "transformer"],
)
def test_whole_networks_keep_their_answers(
    make: Callable[[], ir.Model], target_name: str, request: pytest.FixtureRequest, any_run: MakeRun, ort_run: MakeRun
) -> None:
    model = make()
    feeds = [random_feeds(model, seed=seed) for seed in range(8)]
    result = quantized(model, request.getfixturevalue(target_name), ort_run, feeds)
    assert any(node.op_type == "QuantizeLinear" for node in result.graph)
    assert [value.name for value in result.graph.outputs] == [value.name for value in model.graph.outputs]
    exact, run = ort_run(model), any_run(result)
    for feed in feeds:
        for name, expected in exact(feed).items():
            # Empirical: 8 bits give 30 to 45 dB on networks this shallow; a wrong scale or axis gives less than 10.
            noise = np.linalg.norm(run(feed)[name] - expected) / np.linalg.norm(expected - expected.mean() + 1e-6)
            assert noise < 0.1


def test_the_structure_of_one_layer(gives_float: Target, ort_run: MakeRun) -> None:
    model = layer("Conv", (1, 3, 9, 9), draw((5, 3, 3, 3), 1), draw([5], 2), {})
    before = ir.to_proto(model).SerializeToString()
    result = quantized(model, gives_float, ort_run, [{"x": draw((1, 3, 9, 9), 3)}])
    assert sorted(node.op_type for node in result.graph) == [
        "Conv",
        "DequantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "QuantizeLinear",
    ]
    constants = result.graph.initializers
    assert {"w", "b"}.isdisjoint(constants)
    assert constants["w_quantized"].dtype == ir.DataType.INT8
    assert constants["w_scale"].shape == ir.Shape([5])
    assert constants["b_quantized"].dtype == ir.DataType.INT32
    scales = {name: nodes.constant(constants[name]) for name in ("x_scale", "w_scale", "b_scale")}
    assert scales["x_scale"] is not None
    assert scales["w_scale"] is not None
    assert scales["b_scale"] is not None
    assert np.array_equal(scales["b_scale"], scales["x_scale"] * scales["w_scale"])
    assert ir.to_proto(model).SerializeToString() == before


def test_applying_a_stored_plan_gives_the_same_bytes(gives_float: Target, ort_run: MakeRun) -> None:
    model = conv_net()
    made = planned(model, gives_float, ort_run, [random_feeds(model)])
    again = decode(encode(made), Plan)
    assert again == made
    results = [ir.to_proto(apply(model, one)).SerializeToString(deterministic=True) for one in (made, again)]
    assert results[0] == results[1]


def test_weights_that_two_nodes_read_are_stored_once(gives_float: Target, any_run: MakeRun, ort_run: MakeRun) -> None:
    b = GraphBuilder("shared")
    b.input("x", [2, 8])
    w, c = b.weight(8, 8, name="w"), b.weight(8, name="c")
    first = b.node("Relu", b.node("Gemm", "x", w, c))
    second = b.node("Gemm", first, w, c)
    b.output(b.node("Gemm", second, w, c, transB=1), "y")
    model = b.build()
    feeds = random_feeds(model)
    result = quantized(model, gives_float, ort_run, [feeds])
    stored = [value for value in result.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    matrices = [value for value in stored if value.shape is not None and value.shape.rank() == 2]
    assert len(matrices) == 2  # one scale for each column, and one for each row
    assert len([value for value in result.graph.initializers.values() if value.dtype == ir.DataType.INT32]) >= 3
    assert np.isfinite(any_run(result)(feeds)["y"]).all()


def test_weights_that_a_float_node_reads_as_well_stay(gives_float: Target, ort_run: MakeRun) -> None:
    b = GraphBuilder("both")
    b.input("x", [2, 8])
    w = b.weight(8, 8, name="w")
    b.output(b.node("Add", b.node("MatMul", "x", w), b.node("ReduceSum", w)), "y")
    model = b.build()
    result = quantized(model, gives_float, ort_run, [random_feeds(model)])
    assert {"w", "w_quantized"} <= set(result.graph.initializers)
    ort_run(result)


def test_weights_in_constant_nodes_are_removed_with_their_node(gives_float: Target, ort_run: MakeRun) -> None:
    b = GraphBuilder("nodes")
    b.input("x", [2, 8])
    constant = b.node("Constant", value=onnx.numpy_helper.from_array(draw((8, 8), 1)))
    b.output(b.node("MatMul", "x", constant), "y")
    model = b.build()
    result = quantized(model, gives_float, ort_run, [random_feeds(model)])
    assert "Constant" not in {node.op_type for node in result.graph}
    ort_run(result)


def test_an_output_in_the_middle_keeps_its_name_and_place(
    needs_output_pairs: Target, any_run: MakeRun, ort_run: MakeRun
) -> None:
    b = GraphBuilder("outputs")
    b.input("x", [1, 4, 8, 8])
    b.output(b.node("Conv", "x", b.weight(4, 4, 3, 3)), "middle")
    b.output(b.node("Conv", "middle", b.weight(4, 4, 3, 3)), "y")
    model = b.build()
    for node in model.graph:
        node.name = ""  # then it is called by its output
    feeds = random_feeds(model)
    result = quantized(model, needs_output_pairs, ort_run, [feeds])
    assert quantized_nodes(result) == ("middle", "y")
    assert [value.name for value in result.graph.outputs] == ["middle", "y"]
    makers = [value.producer() for value in result.graph.outputs]
    assert [maker.op_type for maker in makers if maker is not None] == ["DequantizeLinear"] * 2
    got, exact = any_run(result)(feeds), ort_run(model)(feeds)
    for name in ("middle", "y"):
        assert np.linalg.norm(got[name] - exact[name]) < 0.05 * np.linalg.norm(exact[name])


def test_a_split_feeds_8_bit_operators_from_each_of_its_outputs(
    needs_output_pairs: Target, any_run: MakeRun, ort_run: MakeRun
) -> None:
    b = GraphBuilder("split")
    b.input("x", [1, 4, 8, 8])
    parts = b.nodes("Split", b.node("Conv", "x", b.weight(4, 4, 1, 1)), outputs=2, axis=1)
    made = [b.node("Conv", part, b.weight(4, 2, 3, 3)) for part in parts]
    b.output(b.node("Tanh", b.node("Concat", *made, axis=1)), "y")
    model = b.build()
    feeds = random_feeds(model)
    result = quantized(model, needs_output_pairs, ort_run, [feeds])
    exact = ort_run(model)(feeds)["y"]
    assert np.linalg.norm(any_run(result)(feeds)["y"] - exact) < 0.05 * np.linalg.norm(exact)


def test_a_tensor_that_a_subgraph_reads_as_well(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    inner, other = GraphBuilder("then"), GraphBuilder("else")
    inner.output(inner.node("Exp", "conv_out"), "y_then", [1, 4, 8, 8])
    other.output(other.node("Identity", "conv_out"), "y_else", [1, 4, 8, 8])
    b = GraphBuilder("branch")
    b.input("x", [1, 4, 8, 8])
    b.input("flag", [], "bool")
    b.node("Conv", "x", b.weight(4, 4, 1, 1), name="conv")
    b.output(b.node("If", "flag", name="if", then_branch=inner.graph(), else_branch=other.graph()), "y", [1, 4, 8, 8])
    model = b.build()
    feeds = {"x": draw((1, 4, 8, 8), 0), "flag": np.array(False)}
    result = quantized(model, needs_output_pairs, ort_run, [feeds])
    exact, got = ort_run(model)(feeds)["y"], ort_run(result)(feeds)["y"]
    assert 0 < np.linalg.norm(got - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("values", [np.zeros((1, 4)), np.full((1, 4), 3.0), np.full((1, 4), 1e-30)])
def test_inputs_that_never_change(values: Array, gives_float: Target, any_run: MakeRun, ort_run: MakeRun) -> None:
    model = layer("Gemm", (1, 4), draw((4, 3), 1), draw([3], 2), {})
    feeds = {"x": values.astype(np.float32)}
    result = quantized(model, gives_float, ort_run, [feeds])
    exact = ort_run(model)(feeds)["y"]
    # A constant is an end of its own range: only the weights' rounding and the bias's are left, 1/127 of each at most.
    assert np.abs(any_run(result)(feeds)["y"] - exact).max() <= (np.abs(values).sum() * 3 + 3) / 127


def test_a_bias_far_above_its_weights_widens_their_scale(
    gives_float: Target, any_run: MakeRun, ort_run: MakeRun
) -> None:
    weight, bias = draw((4, 3), 1) * np.array([1, 1e-12, 1], np.float32), np.array([1, 1000, 1], np.float32)
    model = layer("Gemm", (1, 4), weight, bias, {})
    feeds = {"x": draw((1, 4), 3)}
    made = planned(model, gives_float, ort_run, [feeds])
    assert made.weights[0].scales[1] * made.tensors[0].scale * 2**30 >= 999
    got = any_run(apply(model, made))(feeds)["y"]
    assert got[0, 1] == pytest.approx(1000, rel=1e-4)


def test_seven_bit_weights(gives_float: Target, any_run: MakeRun, ort_run: MakeRun) -> None:
    target = dataclasses.replace(gives_float, exact_product_bits=7)
    model = layer("Conv", (1, 3, 9, 9), draw((5, 3, 3, 3), 1), None, {})
    feeds = {"x": draw((1, 3, 9, 9), 3)}
    result = quantized(model, target, ort_run, [feeds])
    integers = result.graph.initializers["w_quantized"].const_value
    assert integers is not None
    assert np.abs(integers.numpy().astype(int)).max() == 63
    exact = ort_run(model)(feeds)["y"]
    assert np.linalg.norm(any_run(result)(feeds)["y"] - exact) < 0.05 * np.linalg.norm(exact)


def test_a_plan_without_anything_gives_the_model_back(gives_float: Target, ort_run: MakeRun) -> None:
    b = GraphBuilder("nothing")
    b.input("x", [1, 4])
    b.output(b.node("Exp", "x"), "y")
    model = b.build()
    made = planned(model, gives_float, ort_run, [random_feeds(model)])
    assert (made.tensors, made.weights, made.nodes) == ((), (), ())
    assert ir.to_proto(apply(model, made)) == ir.to_proto(model)


def test_an_old_opset_is_an_error(gives_float: Target, ort_run: MakeRun) -> None:
    model = mlp()
    made = planned(model, gives_float, ort_run, [random_feeds(model)])
    model.graph.opset_imports[""] = 12
    with pytest.raises(ModelError, match="opset 12"):
        apply(model, made)


def test_a_plan_for_another_model_is_an_error(gives_float: Target, ort_run: MakeRun) -> None:
    model = mlp()
    made = planned(model, gives_float, ort_run, [random_feeds(model)])
    with pytest.raises(ContractError, match="has no"):
        apply(conv_net(), made)
    stray = QuantizedTensor(name="stray", scale=1.0, zero_point=0, readers=None)
    with pytest.raises(ContractError, match="`stray`"):
        apply(model, msgspec.structs.replace(made, tensors=(stray,)))


def test_names_that_are_taken_are_avoided(gives_float: Target, ort_run: MakeRun) -> None:
    b = GraphBuilder("taken")
    b.input("x", [1, 4])
    b.output(b.node("Add", b.node("MatMul", "x", b.weight(4, 4, name="w")), b.weight(4, name="w_scale")), "y")
    b.output(b.node("Exp", "x", name="x_quantized"), "x_dequantized")
    model = b.build()
    result = quantized(model, gives_float, ort_run, [random_feeds(model)])
    assert [value.name for value in result.graph.outputs] == ["y", "x_dequantized"]
    ort_run(result)


def summand_net(*, rank: int = 3, shared: bool = False) -> ir.Model:
    """Return a product of that rank with a vector added to it, which another node may read as well."""
    b = GraphBuilder("summand")
    shape = (1,) * (rank - 2) + (4, 16)
    vector = b.constant(draw([5], 2), "b")
    b.output(
        b.node("Add", vector, b.node("MatMul", b.input("x", shape), b.constant(draw([16, 5], 1), "w"), name="layer")),
        "y",
    )
    if shared:
        b.output(b.node("Mul", vector, b.input("scale", (5,))), "z")
    return b.build()


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_summand_gets_the_axes_of_its_product(
    rank: int, gives_float: Target, any_run: MakeRun, ort_run: MakeRun
) -> None:
    model = summand_net(rank=rank)
    feeds = {"x": draw((1,) * (rank - 2) + (4, 16), 3)}
    result = quantized(model, gives_float, ort_run, [feeds])
    add = next(node for node in result.graph if node.op_type == "Add")
    summand = add.inputs[0]
    assert summand is not None
    assert list(summand.shape or ()) == ([5] if rank == 2 else [1] * (rank - 1) + [5])
    assert ("b" in result.graph.initializers) == (rank == 2)
    noise = any_run(result)(feeds)["y"] - ort_run(model)(feeds)["y"]
    assert 0 < np.sqrt(np.mean(noise**2)) < 0.02 * np.sqrt(16)  # standard normal terms with steps of 1/40 or less


def test_a_summand_that_others_read_keeps_its_axes_there(gives_float: Target, ort_run: MakeRun) -> None:
    model = summand_net(shared=True)
    feeds = {"x": draw((1, 4, 16), 3), "scale": draw((5,), 4)}
    result = quantized(model, gives_float, ort_run, [feeds])
    assert list(result.graph.initializers["b"].shape or ()) == [5]
    np.testing.assert_array_equal(ort_run(result)(feeds)["z"], ort_run(model)(feeds)["z"])


def test_onnx_runtime_multiplies_in_8_bits_where_a_vector_is_added(
    gives_float: Target, ort_run: MakeRun, tmp_path: Path
) -> None:
    model = summand_net()
    result = quantized(model, gives_float, ort_run, [{"x": draw((1, 4, 16), 3)}])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    onnxruntime.InferenceSession(ir.to_proto(result).SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators_seen = {node.op_type for node in onnx.load(tmp_path / "seen.onnx").graph.node}
    assert "MatMulIntegerToFloat" in operators_seen
    assert not {"DequantizeLinear", "Gemm"} & operators_seen
