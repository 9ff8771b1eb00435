"""Every scheme written into graphs: legal, as small as it promises, with the numbers of numpy's own quantization."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgewise.analysis.target import Target
from edgewise.backends import registry
from edgewise.compress.quantize import affine
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.placement import KEPT, QUANTIZED_ALREADY
from edgewise.compress.quantize.plan import (
    Plan,
    integers_of,
    keep_float,
    observed_tensors,
    plan,
    scales_of,
    with_integers,
)
from edgewise.compress.quantize.recipe import Scheme
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.errors import BackendMissingError, ContractError
from edgewise.records.candidate import Quantize, RunOptions
from edgewise.records.codec import decode, encode
from edgewise.records.tensors import Array, Feeds, Run
from edgewise.testing.backend_kit import run
from edgewise.testing.graphs import GraphBuilder, branching_net, quantized_conv, random_feeds

MakeRun = Callable[[ir.Model], Run]


@pytest.fixture(params=["ort", "openvino"])
def any_run(request: pytest.FixtureRequest) -> MakeRun:
    """Open models with each backend: a runtime's own defaults round the activations of some products to 8 bits."""
    return _opened(request.param)


@pytest.fixture
def ort_run() -> MakeRun:
    return _opened("ort")


def _opened(name: str) -> MakeRun:
    backend = registry.get(name)
    try:
        backend.version()
    except BackendMissingError as error:
        pytest.skip(str(error))

    def open_model(model: ir.Model) -> Run:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        return backend.open(backend.compile(model, RunOptions())).run

    return open_model


NOTHING: Final = Statistics({}, 1)

WEIGHTS_ALONE: Final = ("w8", "w4", "w3", "w4g32", "w2g16")
INTEGER: Final = ("w8a8", "w6a8", "w4a8", "w2a8")
WIDE: Final = ("w8a16", "w4a16", "w2a16")

LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int | None, dict[str, Any]]] = {
    # name: operator, shape of x, shape of the weights, channels of the bias, attributes
    "conv": ("Conv", (1, 64, 6, 6), (32, 64, 3, 3), 32, {"pads": [1, 1, 1, 1]}),
    "conv in groups": ("Conv", (1, 128, 5, 5), (32, 64, 3, 3), 32, {"group": 2}),
    "depthwise": ("Conv", (1, 64, 7, 7), (64, 1, 5, 5), None, {"group": 64}),
    "pointwise": ("Conv", (1, 64, 4, 4), (33, 64, 1, 1), 33, {}),
    "one channel": ("Conv", (1, 64, 5, 5), (1, 64, 5, 5), 1, {}),
    "transposed": ("ConvTranspose", (1, 64, 3, 3), (64, 32, 2, 2), 32, {"strides": [2, 2]}),
    "transposed in groups": ("ConvTranspose", (1, 64, 3, 3), (64, 32, 2, 2), 64, {"group": 2}),
    "gemm": ("Gemm", (3, 64), (64, 48), 48, {"alpha": 0.5}),
    "gemm, weights transposed": ("Gemm", (3, 64), (48, 64), 48, {"transB": 1}),
    "matmul": ("MatMul", (2, 3, 64), (64, 48), None, {}),
    "stack of matrices": ("MatMul", (2, 3, 64), (2, 64, 48), None, {}),
    "matmul from the left": ("MatMul", (64, 3), (48, 64), None, {}),
    "gemm from the left": ("Gemm", (64, 3), (48, 64), None, {}),
    "embedding": ("Gather", (2, 3), (200, 64), None, {}),
}


def draw(shape: Sequence[int], seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layer(case: str, weight: Array, bias: Array | None) -> ir.Model:
    operator, shape, _, _, attributes = LAYERS[case]
    b = GraphBuilder("layer")
    weights = b.constant(weight, "w")
    if operator == "Gather":
        b.output(b.node(operator, weights, b.input("x", shape, "int64"), name="layer"), "y")
        return b.build()
    operands = [b.input("x", shape), weights]
    inputs = [*(reversed(operands) if "left" in case else operands), *([] if bias is None else [b.constant(bias, "b")])]
    b.output(b.node(operator, *inputs, name="layer", **attributes), "y")
    return b.build()


def feeds_for(case: str) -> dict[str, Array]:
    operator, shape, _, _, _ = LAYERS[case]
    if operator == "Gather":
        return {"x": np.arange(np.prod(shape), dtype=np.int64).reshape(shape)}
    return {"x": draw(shape, 3)}


def arrays_for(case: str) -> tuple[Array, Array | None]:
    _, _, weight_shape, channels, _ = LAYERS[case]
    return draw(weight_shape, 1), None if channels is None else draw([channels], 2)


def real_weight(made: Plan, weight: Array) -> npt.NDArray[np.float32]:
    """Return numpy's own reading of the only weight of a plan."""
    (record,) = made.weights
    axis = record.block_axis if record.block else record.axis
    return affine.dequantize_array(integers_of(record, weight), scales_of(record), 0, axis=axis, block=record.block)


def same(got: Mapping[str, Array], expected: Mapping[str, Array], terms: int) -> None:
    # Both sum `terms` products of order one in float32, in orders of their own.
    largest = float(np.abs(expected["y"]).max())
    np.testing.assert_allclose(got["y"], expected["y"], rtol=0, atol=terms * 2**-23 * max(1.0, largest))


def stored_types(model: ir.Model) -> set[ir.DataType | None]:
    return {value.dtype for value in model.graph.initializers.values() if (value.name or "").endswith("_quantized")}


@pytest.mark.parametrize("scheme", WEIGHTS_ALONE)
@pytest.mark.parametrize("case", LAYERS)
def test_weights_alone_give_the_numbers_of_numpy(
    case: str, scheme: str, gives_float: Target, any_run: MakeRun, ort_run: MakeRun
) -> None:
    weight, bias = arrays_for(case)
    model = layer(case, weight, bias)
    made = plan(model, NOTHING, gives_float, Quantize(scheme=scheme))
    (record,) = made.weights
    assert made.tensors == ()
    assert made.activation_type == "float32"
    assert np.abs(integers_of(record, weight)).max() <= 2 ** (record.bits - 1) - 1
    result = apply(model, made)
    assert decode(encode(made), Plan) == made
    assert result.graph.opset_imports[""] == (21 if record.stored_bits == 4 or record.block else 17)
    expected = ort_run(layer(case, real_weight(made, weight), bias))(feeds_for(case))
    same(any_run(result)(feeds_for(case)), expected, 64 * 25)


@pytest.mark.parametrize("case", ["conv", "matmul"])
def test_two_bits_are_stored_in_two_where_the_target_reads_them(
    case: str, gives_float: Target, ort_run: MakeRun
) -> None:
    weight, bias = arrays_for(case)
    model = layer(case, weight, bias)
    target = dataclasses.replace(gives_float, stored_weight_bits=frozenset({2, 4, 8}))
    made = plan(model, NOTHING, target, Quantize(scheme="w2g32"))
    result = apply(model, made)
    assert result.graph.opset_imports[""] == 25
    assert stored_types(result) == {ir.DataType.INT2}
    expected = ort_run(layer(case, real_weight(made, weight), bias))(feeds_for(case))
    same(ort_run(result)(feeds_for(case)), expected, 64 * 9)


def with_plain_runtime(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model as someone does who has ONNX Runtime and nothing of this package."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return {"y": session.run(["y"], dict(feeds))[0]}


@pytest.mark.parametrize("columns", [1, 6, 8, 10, 11])
@pytest.mark.parametrize("scheme", ["w2", "w2g32"])
def test_two_bits_give_the_right_numbers_with_any_number_of_columns(
    columns: int, scheme: str, gives_float: Target
) -> None:
    def product(matrix: Array) -> ir.Model:
        b = GraphBuilder("product")
        b.output(b.node("MatMul", b.input("x", (1, 512)), b.constant(matrix, "w"), name="layer"), "y")
        return b.build()

    random = np.random.default_rng(columns)
    weight = random.standard_normal((512, columns)).astype(np.float32)
    target = dataclasses.replace(gives_float, stored_weight_bits=frozenset({2, 4, 8}))
    made = plan(product(weight), NOTHING, target, Quantize(scheme=scheme))
    feeds = {"x": np.sign(random.standard_normal((1, 512))).astype(np.float32)}  # exact however they are rounded
    expected = with_plain_runtime(product(real_weight(made, weight)), feeds)
    same(with_plain_runtime(apply(product(weight), made), feeds), expected, 512)


@pytest.mark.parametrize(("scheme", "bits_a_weight"), [("w8", 8), ("w6", 8), ("w4", 4), ("w3", 4), ("w2", 2)])
def test_a_file_has_the_size_that_its_width_promises(scheme: str, bits_a_weight: int, gives_float: Target) -> None:
    b = GraphBuilder("large")
    value = b.node("Conv", b.input("x", (1, 256, 2, 2)), b.weight(256, 256, 3, 3), b.weight(256), pads=[1, 1, 1, 1])
    b.output(b.node("Conv", value, b.weight(256, 256, 1, 1), b.weight(256)), "y")
    model = b.build()
    target = dataclasses.replace(gives_float, stored_weight_bits=frozenset({2, 4, 8}))
    weights = 256 * 256 * 10
    for name, extra in ((scheme, 4 * 256 * 2), (f"{scheme}g32", 4 * 256 * 8 * 2)):
        result = apply(model, plan(model, NOTHING, target, Quantize(scheme=name)))
        size = len(ir.to_proto(result).SerializeToString())
        # Scales, two float biases, and the graph itself.
        assert size <= weights * bits_a_weight / 8 + extra + 4 * 512 + 3000


@pytest.mark.parametrize("scheme", [*INTEGER, *WIDE])
@pytest.mark.parametrize("case", ["conv", "pointwise", "gemm, weights transposed", "matmul", "one channel"])
@pytest.mark.parametrize("activation_type", ["uint8", "int8"])
def test_integer_activations_give_the_numbers_of_numpy(
    case: str, scheme: str, activation_type: Any, gives_float: Target, ort_run: MakeRun
) -> None:
    weight, bias = arrays_for(case)
    model, feeds = layer(case, weight, bias), feeds_for(case)
    target = dataclasses.replace(gives_float, activation_type=activation_type)
    names = observed_tensors(model, target)
    seen = collect(ort_run(observe(model, names)), [feeds], names)
    made = plan(model, seen, target, Quantize(scheme=scheme, ranges="min-max"))
    (activation,), (record,) = made.tensors, made.weights
    wide = scheme in WIDE
    assert made.activation_type == activation_type.replace("8", "16" if wide else "8")
    assert record.bits == Scheme.parse(scheme).weight_bits
    assert np.abs(integers_of(record, weight)).max() <= 2 ** (record.bits - 1) - 1
    result = apply(model, made)
    # 8-bit kernels take int8 whatever the width is, and so does everybody for 16-bit activations.
    assert stored_types(result) - {ir.DataType.INT32} == {ir.DataType.INT8}
    assert result.graph.opset_imports[""] == (21 if wide else 17)
    assert model.graph.opset_imports[""] == 17

    integers = affine.quantize_array(feeds["x"], activation.scale, activation.zero_point, made.activation_type)
    x = affine.dequantize_array(integers, activation.scale, activation.zero_point)
    step = np.float32(activation.scale) * scales_of(record)
    shifted = None
    if record.bias_slot is not None:
        real = (np.zeros(1) if bias is None else bias.astype(np.float64)) + np.array(record.bias_shift or [0.0])
        shifted = (np.rint(real / step) * step).astype(np.float32)
    expected = ort_run(layer(case, real_weight(made, weight), shifted))({"x": x})
    same(ort_run(result)(feeds), expected, 64 * 25)
    if wide:
        same(run(registry.get("reference"), result, feeds), expected, 64 * 25)


def test_sixteen_bits_lose_less_than_eight(gives_float: Target, ort_run: MakeRun) -> None:
    weight, _ = arrays_for("matmul")
    model, feeds = layer("matmul", weight, None), feeds_for("matmul")
    names = observed_tensors(model, gives_float)
    seen = collect(ort_run(observe(model, names)), [feeds], names)
    errors = []
    for scheme in ("w8a8", "w8a16"):
        made = plan(model, seen, gives_float, Quantize(scheme=scheme, ranges="min-max"))
        exact = ort_run(layer("matmul", real_weight(made, weight), None))(feeds)["y"]
        errors.append(np.linalg.norm(ort_run(apply(model, made))(feeds)["y"] - exact))
    assert errors[1] < errors[0] / 20


def test_sixteen_bits_hold_the_whole_range(gives_float: Target, ort_run: MakeRun) -> None:
    weight, _ = arrays_for("matmul")
    model = layer("matmul", weight, None)
    feeds: Feeds = {"x": np.concatenate([draw((2, 3, 63), 3), np.full((2, 3, 1), 100, np.float32)], axis=2)}
    names = observed_tensors(model, gives_float)
    seen = collect(ort_run(observe(model, names)), [feeds], names)
    steps = {
        scheme: plan(model, seen, gives_float, Quantize(scheme=scheme, ranges="mse")).tensors[0].scale
        for scheme in ("w8a8", "w8a16")
    }
    # Clipping is for few integers. The range is that of all values, within the rounding of the zero point.
    assert steps["w8a16"] * 65535 == pytest.approx(100 - float(feeds["x"].min()), rel=1e-4)
    assert steps["w8a8"] <= steps["w8a16"] * 257 * 1.001


def test_seven_bits_are_for_pairs_of_8_bit_products_alone(gives_float: Target, ort_run: MakeRun) -> None:
    weight, bias = arrays_for("conv")
    model, feeds = layer("conv", weight, bias), feeds_for("conv")
    target = dataclasses.replace(gives_float, exact_product_bits=7)
    names = observed_tensors(model, target)
    seen = collect(ort_run(observe(model, names)), [feeds], names)
    widths = {
        name: plan(model, seen, target, Quantize(scheme=name)).weights[0].bits for name in ("w8a8", "w8a16", "w8")
    }
    assert widths == {"w8a8": 7, "w8a16": 8, "w8": 8}


@pytest.mark.parametrize("scheme", ["w8", "w4", "w4g32", "w2"])
def test_weights_of_zeros_stay_zeros(scheme: str, gives_float: Target, any_run: MakeRun) -> None:
    _, bias = arrays_for("conv")
    model = layer("conv", np.zeros((32, 64, 3, 3), np.float32), bias)
    result = apply(model, plan(model, NOTHING, gives_float, Quantize(scheme=scheme)))
    got = any_run(result)(feeds_for("conv"))["y"]
    assert bias is not None
    np.testing.assert_array_equal(got, np.broadcast_to(bias[:, None, None], got.shape))


@pytest.mark.parametrize("scheme", ["w4", "w4g32"])
def test_weights_that_two_layers_share_are_stored_once(scheme: str, gives_float: Target, any_run: MakeRun) -> None:
    b = GraphBuilder("twice")
    weight = b.weight(64, 64, name="w")
    value = b.node("Gemm", b.input("x", (1, 64)), weight, name="one")
    b.output(b.node("Gemm", value, weight, name="two"), "y")
    model = b.build()
    made = plan(model, NOTHING, gives_float, Quantize(scheme=scheme))
    assert len(made.weights) == 2
    result = apply(model, made)
    assert [node.op_type for node in result.graph] == ["DequantizeLinear", "Gemm", "Gemm"]
    assert "w" not in result.graph.initializers
    exact, feeds = model.graph.initializers["w"].const_value, random_feeds(model)
    assert exact is not None
    record = made.weights[0]
    axis = record.block_axis if record.block else record.axis
    real = affine.dequantize_array(
        integers_of(record, exact.numpy()), scales_of(record), 0, axis=axis, block=record.block
    )
    np.testing.assert_allclose(any_run(result)(feeds)["y"], feeds["x"] @ real @ real, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scheme", ["w3", "w3g32"])
@pytest.mark.parametrize("case", ["conv in groups", "depthwise", "pointwise", "gemm, weights transposed"])
def test_the_means_that_rounding_takes_go_into_float_biases(
    case: str, scheme: str, gives_float: Target, any_run: MakeRun, ort_run: MakeRun
) -> None:
    weight, bias = arrays_for(case)
    model = layer(case, weight, bias)
    # Means far from zero, without which there is nothing to correct.
    feeds: Feeds = {"x": draw(LAYERS[case][1], 3) + 4}
    names = observed_tensors(model, gives_float)
    seen = collect(ort_run(observe(model, names)), [feeds], names)
    exact = ort_run(model)(feeds)["y"]
    errors = []
    for statistics in (NOTHING, seen):
        got = any_run(apply(model, plan(model, statistics, gives_float, Quantize(scheme=scheme))))(feeds)["y"]
        errors.append(np.abs((got - exact).mean(axis=tuple(k for k in range(got.ndim) if k != 1))).mean())
    assert errors[1] < 0.5 * errors[0]


def test_integers_that_were_chosen_elsewhere_are_written(gives_float: Target, ort_run: MakeRun) -> None:
    weight, _ = arrays_for("conv")
    bias = draw([32], 2)
    model, feeds = layer("conv", weight, bias), feeds_for("conv")
    for scheme in ("w4", "w4g32"):
        made = plan(model, NOTHING, gives_float, Quantize(scheme=scheme))
        (record,) = made.weights
        integers = -integers_of(record, weight)
        shift = np.arange(32, dtype=np.float64)
        changed = with_integers(record, integers, 2 * scales_of(record), shift)
        expected = ort_run(layer("conv", -2 * real_weight(made, weight), bias + shift.astype(np.float32)))
        got = ort_run(apply(model, msgspec.structs.replace(made, weights=(changed,))))(feeds)
        same(got, expected(feeds), 64 * 9)
        with pytest.raises(ContractError, match="at most 4 bits"):
            with_integers(record, integers + 8, scales_of(record))
        with pytest.raises(ContractError, match="scales the shape"):
            with_integers(record, integers, np.ones(3, np.float32))


def test_nodes_can_be_taken_back(gives_float: Target) -> None:
    weight, bias = arrays_for("conv")
    model = layer("conv", weight, bias)
    whole = plan(model, NOTHING, gives_float, Quantize(scheme="w4"))
    assert keep_float(model, whole, gives_float, []) == whole
    left = keep_float(model, whole, gives_float, ["layer"])
    assert (left.weights, left.nodes) == ((), ())
    assert [decline.reason for decline in left.declines] == [KEPT]
    assert left == plan(model, NOTHING, gives_float, Quantize(scheme="w4"), keep=["layer"])


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4"])
def test_quantized_models_and_subgraphs_are_left_as_they_are(
    scheme: str, gives_float: Target, ort_run: MakeRun
) -> None:
    made = plan(quantized_conv(), NOTHING, gives_float, Quantize(scheme=scheme))
    assert (made.weights, made.tensors, made.nodes) == ((), (), ())
    assert [decline.reason for decline in made.declines] == [QUANTIZED_ALREADY]
    model = branching_net()
    names = observed_tensors(model, gives_float)
    seen = collect(ort_run(observe(model, names)), [random_feeds(model)], names) if names else NOTHING
    made = plan(model, seen, gives_float, Quantize(scheme=scheme, ranges="min-max"))
    assert "it has subgraphs, which stay float" in {decline.reason for decline in made.declines}


def test_a_huge_embedding_is_affordable(gives_float: Target, ort_run: MakeRun) -> None:
    b = GraphBuilder("huge")
    table = b.constant(draw((100_000, 32), 0), "table")
    b.output(b.node("Gather", table, b.input("i", (4,), "int64"), name="lookup"), "y")
    model = b.build()
    start = time.process_time()
    result = apply(model, plan(model, NOTHING, gives_float, Quantize(scheme="w4")))
    # 3.2 million weights, 20 candidates for each of the scales: seconds, not minutes, on any machine.
    assert time.process_time() - start < 15
    assert len(ir.to_proto(result).SerializeToString()) < 0.26 * 100_000 * 32 * 4
    feeds: Feeds = {"i": np.array([0, 7, 99_999, 7])}
    got, exact = ort_run(result)(feeds)["y"], ort_run(model)(feeds)["y"]
    assert np.linalg.norm(got - exact) < 0.2 * np.linalg.norm(exact)


def test_a_plan_for_an_old_operator_set_is_legal(gives_float: Target) -> None:
    model = layer("conv", *arrays_for("conv"))
    model.graph.opset_imports[""] = 13
    result = apply(model, plan(model, NOTHING, gives_float, Quantize(scheme="w4g32")))
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    assert (model.graph.opset_imports[""], result.graph.opset_imports[""]) == (13, 21)
