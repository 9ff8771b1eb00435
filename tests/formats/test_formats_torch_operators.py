"""Each operator in PyTorch against the reference evaluator of ONNX, over its attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import helper, shape_inference

from edgewise.records.tensors import Array, Feeds
from edgewise.testing.graphs import GraphBuilder

torch = pytest.importorskip("torch", reason="torch is an extra: pip install 'edgewise[torch]'")

from onnx.reference import ReferenceEvaluator  # noqa: E402 - only where torch is

from edgewise.formats.torch import declines, stacked, to_module  # noqa: E402 - only where torch is
from edgewise.formats.torch_operators import OPERATORS  # noqa: E402 - only where torch is

FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

UNIT = 2.0**-24


def build(
    operator: str,
    inputs: Mapping[str, Array],
    constants: Sequence[Array | None] = (),
    *,
    outputs: int = 1,
    opset: int = 20,
    **attributes: Any,
) -> ir.Model:
    """Return a model of one node: the inputs come first among its operands, then the constants (None leaves out)."""
    b = GraphBuilder("one", opset=opset)
    names = [b.input(name, array.shape, array.dtype.name) for name, array in inputs.items()]
    names += ["" if array is None else b.constant(array) for array in constants]
    for name in b.nodes(operator, *names, outputs=outputs, name="node", **attributes):
        b.output(name, f"{name}_y", None, "float32")
    graph = b.graph()
    for info in graph.output:
        info.ClearField("type")  # the standard's inference knows it
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    proto = shape_inference.infer_shapes(proto, data_prop=True)
    for info in proto.graph.output:
        if not info.type.HasField("tensor_type"):
            info.type.CopyFrom(proto.graph.input[0].type)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def check(model: ir.Model, feeds: Feeds, tolerance: float = 64 * UNIT) -> None:
    """Compare two samples that run together with the reference.

    Args:
        model: The model.
        feeds: The first sample; the second is its floating-point part reversed.
        tolerance: Relative to the largest value: the default leaves some tens of roundings to functions such as exp.
    """
    other = {n: x[..., ::-1].copy() if x.dtype.kind == "f" and x.ndim else x for n, x in feeds.items()}
    assert not declines(model)
    with torch.no_grad():
        found = to_module(model)(stacked([feeds, other]))
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    for k, sample in enumerate((feeds, other)):
        for name, expected in zip(found, evaluator.run(None, dict(sample)), strict=True):
            value = found[name][k].numpy()
            assert value.shape == expected.shape
            scale = max(1.0, float(np.abs(expected).max(initial=0)))
            np.testing.assert_allclose(
                value.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance * scale
            )


def check_runtime(model: ir.Model, x: dict[str, Array], tolerance: float) -> None:
    """Compare with ONNX Runtime, where the reference evaluator knows less or says otherwise than the standard."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        found = list(to_module(model)(stacked([x])).values())
    for one, expected in zip(found, session.run(None, x), strict=True):
        assert one[0].shape == expected.shape
        np.testing.assert_allclose(one[0].numpy(), expected, atol=tolerance)


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def f32(value: Any) -> Array:
    return np.asarray(value, np.float32)


def positive(*shape: int, seed: int = 0) -> Array:
    return np.abs(numbers(*shape, seed=seed)) + f32(0.5)


UNARY = (
    "Abs", "Atan", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "LogSoftmax", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softmax", "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu", "Transpose", "Flatten", "Shape", "Size",
    "GlobalAveragePool", "GlobalMaxPool", "ArgMax", "ArgMin", "Trilu",
)  # fmt: skip

VARIANTS = [
    ("Celu", {"alpha": 0.5}), ("Elu", {"alpha": 0.3}), ("Gelu", {"approximate": "tanh"}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("LeakyRelu", {"alpha": 0.3}), ("LogSoftmax", {"axis": 1}),
    ("Selu", {"alpha": 1.1, "gamma": 1.3}), ("Softmax", {"axis": 1}), ("ThresholdedRelu", {"alpha": 0.1}),
    ("Transpose", {"perm": [0, 2, 3, 1]}), ("Flatten", {"axis": 2}), ("Flatten", {"axis": -1}),
    ("Shape", {"start": 1, "end": -1}), ("ArgMax", {"axis": 2, "keepdims": 0}), ("Trilu", {"upper": 0}),
    ("DepthToSpace", {"blocksize": 2}), ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", {"blocksize": 2}), ("Cast", {"to": 6}), ("Einsum", {"equation": "nchw->nwc"}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "attributes"), [*((name, {}) for name in UNARY), *VARIANTS])
def test_functions_of_one_operand(operator: str, attributes: dict[str, Any]) -> None:
    x = {"x": 2 * numbers(1, 8, 4, 6)}
    check(build(operator, x, **attributes), x)


@pytest.mark.parametrize("operator", ["Acos", "Asin", "Log", "Reciprocal", "Sqrt"])
def test_functions_of_some_numbers(operator: str) -> None:
    x = {"x": positive(1, 3, 4)}
    x["x"] /= x["x"].max()
    check(build(operator, x), x, tolerance=1024 * UNIT)  # acos is ill-conditioned near 1: sqrt of the unit there


@pytest.mark.parametrize("operator", ["Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum", "PRelu"])
@pytest.mark.parametrize("shape", [(), (4,), (3, 1), (1, 3, 4)])
def test_two_operands_are_broadcast(operator: str, shape: tuple[int, ...]) -> None:
    x = {"x": numbers(1, 3, 4)}
    check(build(operator, x, [positive(*shape, seed=1)]), x)


@pytest.mark.parametrize("operator", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons(operator: str) -> None:
    x = {"x": np.round(numbers(1, 30))}
    check(build(operator, x, [np.round(numbers(1, 30, seed=1))]), x)


@pytest.mark.parametrize("operator", ["And", "Or", "Xor"])
def test_logic(operator: str) -> None:
    x = {"x": np.array([[True, True, False, False]])}
    check(build(operator, x, [np.array([True, False, True, False])]), x)
    check(build("Not", x), x)


def test_whole_numbers_are_divided_towards_zero_and_powers_keep_their_type() -> None:
    x = {"x": np.array([[-7, 7, 5]])}
    check(build("Div", x, [np.array([2])]), x)
    check(build("Mod", x, [np.array([3])]), x)
    check(build("Pow", x, [np.array([2])]), x)
    numerator = {"x": numbers(1, 5)}
    check(build("Mod", numerator, [f32([0.3])], fmod=1), numerator)
    check(build("Pow", {"x": positive(1, 5)}, [f32(1.5)]), {"x": positive(1, 5)})


@pytest.mark.parametrize("bounds", [(None, 0.3), (-0.2, None), (-0.2, 0.3)])
def test_clip(bounds: tuple[float | None, float | None]) -> None:
    x = {"x": numbers(1, 20)}
    check(build("Clip", x, [None if one is None else f32(one) for one in bounds]), x)


@FEW
@given(
    rank=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 3), dilation=st.integers(1, 2),
    group=st.sampled_from([1, 2, 4]), pads=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    automatic=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]), bias=st.booleans(),
)  # fmt: skip
def test_conv(
    *, rank: int, kernel: int, stride: int, dilation: int, group: int, pads: list[int], automatic: str, bias: bool
) -> None:
    if automatic.startswith("SAME"):
        dilation = 1  # the reference does not know the two together
    x = {"x": numbers(1, 4, *range(6, 6 + rank))}
    attributes: dict[str, Any] = {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group}
    attributes["auto_pad"] = automatic
    if automatic == "NOTSET":
        attributes["pads"] = pads[: 2 * rank]
    weights = numbers(8, 4 // group, *[kernel] * rank, seed=1)
    operands = [weights, numbers(8, seed=2)] if bias else [weights]
    check(build("Conv", x, operands, **attributes), x, tolerance=2 * 4 * 27 * UNIT)


@FEW
@given(
    rank=st.integers(1, 2), kernel=st.integers(1, 3), stride=st.integers(1, 3),
    pads=st.lists(st.integers(0, 1), min_size=4, max_size=4), more=st.integers(0, 1), group=st.sampled_from([1, 2]),
    bias=st.booleans(),
)  # fmt: skip
def test_conv_transpose(
    *, rank: int, kernel: int, stride: int, pads: list[int], more: int, group: int, bias: bool
) -> None:
    x = {"x": numbers(1, 4, *range(4, 4 + rank))}
    more = min(more, stride - 1)
    weights = numbers(4, 6 // group, *[kernel] * rank, seed=1)
    operands = [weights, numbers(6, seed=2)] if bias else [weights]
    attributes: dict[str, Any] = {"strides": [stride] * rank, "pads": pads[: 2 * rank], "group": group}
    attributes["output_padding"] = [more] * rank
    model = build("ConvTranspose", x, operands, **attributes)
    if all(isinstance(n, int) and n > 0 for n in model.graph.outputs[0].shape or ()):
        check_runtime(model, x, tolerance=2 * 4 * 9 * UNIT * 4)


@pytest.mark.parametrize("asked", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_shape": [9, 12]}])
def test_conv_transpose_to_a_size(asked: dict[str, Any]) -> None:
    x = {"x": numbers(1, 4, 5, 6)}
    model = build("ConvTranspose", x, [numbers(4, 3, 3, 3, seed=1)], strides=[2, 2], **asked)
    check_runtime(model, x, tolerance=2 * 4 * 9 * UNIT * 4)


POOLS = {
    "kernel": st.integers(1, 3),
    "stride": st.integers(1, 3),
    "size": st.integers(5, 8),
    "pads": st.lists(st.integers(0, 1), min_size=4, max_size=4),
    "ceil": st.booleans(),
    "rank": st.integers(1, 2),
}


@FEW
@given(**POOLS, dilation=st.integers(1, 2))
def test_max_pool(
    *, kernel: int, stride: int, size: int, pads: list[int], ceil: bool, rank: int, dilation: int
) -> None:
    pads = [min(p, kernel - 1) for p in pads[: 2 * rank]]
    x = {"x": numbers(1, 2, *[size] * rank)}
    attributes: dict[str, Any] = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank, "pads": pads}
    attributes.update(ceil_mode=int(ceil), dilations=[dilation] * rank)
    check_runtime(build("MaxPool", x, **attributes), x, tolerance=0)


@FEW
@given(**POOLS, counted=st.booleans())
@example(kernel=2, stride=2, size=5, pads=[1, 0, 0, 1], ceil=True, rank=2, counted=True)
@example(kernel=2, stride=3, size=5, pads=[0, 0, 1, 1], ceil=True, rank=2, counted=False)
@example(kernel=3, stride=2, size=6, pads=[0, 0, 1, 1], ceil=True, rank=2, counted=False)
def test_average_pool(
    *, kernel: int, stride: int, size: int, pads: list[int], ceil: bool, rank: int, counted: bool
) -> None:
    pads = [min(p, kernel - 1) for p in pads[: 2 * rank]]
    x = {"x": numbers(1, 2, *[size] * rank)}
    attributes: dict[str, Any] = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank, "pads": pads}
    attributes.update(ceil_mode=int(ceil), count_include_pad=int(counted))
    check_runtime(build("AveragePool", x, **attributes), x, tolerance=2 * 9 * UNIT * 4)


@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pools_that_pad_by_themselves(operator: str, automatic: str) -> None:
    x = {"x": numbers(1, 2, 7, 6)}
    model = build(operator, x, kernel_shape=[3, 2], strides=[2, 2], auto_pad=automatic)
    check_runtime(model, x, tolerance=2 * 9 * UNIT * 4)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 4, 5, 6), (2, 4)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    x = {"x": numbers(*shape)}
    parameters = [positive(4, seed=1), numbers(4, seed=2), numbers(4, seed=3), positive(4, seed=4)]
    check(build("BatchNormalization", x, parameters, epsilon=1e-3), x)


@pytest.mark.parametrize("axis", [-1, 1, -2])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(axis: int, bias: bool) -> None:
    x = {"x": numbers(1, 3, 5)}
    shape = x["x"].shape[axis:]
    parameters = [positive(*shape, seed=1), *([numbers(*shape, seed=2)] if bias else [])]
    check(build("LayerNormalization", x, parameters, axis=axis, epsilon=1e-3), x)


def test_other_norms() -> None:
    x = {"x": numbers(1, 4, 5, 6)}
    check(build("RMSNormalization", x, [positive(6, seed=1)], opset=23), x)
    check(build("InstanceNormalization", x, [positive(4, seed=1), numbers(4, seed=2)], epsilon=1e-3), x)
    check(build("GroupNormalization", x, [positive(4, seed=1), numbers(4, seed=2)], num_groups=2, opset=21), x)


@FEW
@given(
    trans_a=st.booleans(), trans_b=st.booleans(), alpha=st.sampled_from([1.0, 0.5]), beta=st.sampled_from([1.0, 2.0]),
    bias=st.sampled_from([None, (), (5,), (3, 1), (3, 5)]),
)  # fmt: skip
def test_gemm(trans_a: bool, trans_b: bool, alpha: float, beta: float, bias: tuple[int, ...] | None) -> None:
    x = {"x": numbers(*((4, 3) if trans_a else (3, 4)))}
    operands = [numbers(*((5, 4) if trans_b else (4, 5)), seed=1)]
    operands += [] if bias is None else [numbers(*bias, seed=2)]
    check(build("Gemm", x, operands, transA=int(trans_a), transB=int(trans_b), alpha=alpha, beta=beta), x)


@pytest.mark.parametrize(
    ("first", "second"), [((2, 3, 4), (4, 5)), ((1, 4), (2, 4, 3)), ((3, 4), (4,)), ((4,), (4, 2))]
)
def test_matrix_products(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    x = {"x": numbers(*first)}
    check(build("MatMul", x, [numbers(*second, seed=1)]), x)


REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axes", [[0], [1, 2], [-1], None])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(name: str, axes: list[int] | None, keep: int) -> None:
    x = {"x": positive(2, 3, 4)}
    check(build(f"Reduce{name}", x, [] if axes is None else [np.array(axes)], keepdims=keep), x)
    older: dict[str, Any] = {} if axes is None else {"axes": axes}
    if name != "Sum":  # before opset 18 the axes were an attribute, but for sums
        check(build(f"Reduce{name}", x, opset=13, keepdims=keep, **older), x)


def test_a_reduction_without_axes_may_do_nothing() -> None:
    x = {"x": numbers(2, 3)}
    check(build("ReduceSum", x, [np.array([], np.int64)], noop_with_empty_axes=1), x)


@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_sums_up_to_a_place(attributes: dict[str, int]) -> None:
    x = {"x": numbers(2, 5)}
    check(build("CumSum", x, [np.array(1)], **attributes), x)


@FEW
@given(
    starts=st.lists(st.integers(-7, 7), min_size=2, max_size=2),
    ends=st.lists(st.sampled_from([-(2**31), -3, 0, 2, 5, 2**31 - 1]), min_size=2, max_size=2),
    steps=st.lists(st.sampled_from([-2, -1, 1, 2, 3]), min_size=2, max_size=2),
    axes=st.sampled_from([[0, 1], [1, 2], [-1, 0]]),
)  # fmt: skip
def test_slice(starts: list[int], ends: list[int], steps: list[int], axes: list[int]) -> None:
    x = {"x": numbers(4, 5, 6)}
    check(build("Slice", x, [np.array(one) for one in (starts, ends, axes, steps)]), x)


def test_shapes_and_places() -> None:
    x = {"x": numbers(2, 1, 6)}
    check(build("Slice", x, [np.array([1]), np.array([2])]), x)
    check(build("Reshape", x, [np.array([0, -1, 3])]), x)
    check(build("Reshape", {"x": numbers(0, 3)}, [np.array([3, 0])], allowzero=1), {"x": numbers(0, 3)})
    check(build("Squeeze", x), x)
    check(build("Squeeze", x, [np.array([-2])]), x)
    check(build("Unsqueeze", x, [np.array([-1, 0])]), x)
    check(build("Expand", x, [np.array([4, 1])]), x)
    check(build("Tile", x, [np.array([1, 3, 2])]), x)
    check(build("Concat", x, [numbers(2, 1, 2)], axis=-1), x)
    check(build("Split", x, [np.array([1, 5])], axis=2, outputs=2), x)
    check(build("Split", x, axis=2, outputs=4, num_outputs=4), x)
    check(build("Gather", x, [np.array([[0, -1], [3, 2]])], axis=2), x)
    check(build("Gather", x, [np.array(-2)], axis=-1), x)
    check(build("GatherElements", x, [np.array([[[0, -1]], [[3, 2]]])], axis=2), x)
    check(build("Where", {"c": x["x"] > 0, **x}, [f32([2])]), {"c": x["x"] > 0, **x})
    check(build("Dropout", x), x)
    check(
        build("Resize", {"x": numbers(1, 2, 5)}, [None, f32([2.0])], axes=[2], mode="linear"), {"x": numbers(1, 2, 5)}
    )
    check(build("CastLike", x, [np.array([1], np.int32)]), x)


def test_constants_that_are_computed() -> None:
    x = {"x": np.array([2, 3])}
    check(build("ConstantOfShape", x), x)
    check(build("ConstantOfShape", x, value=ir.to_proto(ir.tensor(np.array([7])))), x)
    start = {"x": np.array(2)}
    check(build("Range", start, [np.array(9), np.array(3)]), start)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [[0, 1, 2, 0, 2, 1], [0, 0, 3, 0, 1, 0]])
def test_pad(mode: str, pads: list[int]) -> None:
    x = {"x": numbers(1, 3, 4)}
    check(build("Pad", x, [np.array(pads)], mode=mode), x)


def test_pad_with_a_value_on_some_axes() -> None:
    x = {"x": numbers(1, 3, 4)}
    check(build("Pad", x, [np.array([1, 2]), f32(7), np.array([-1])]), x)

    with torch.no_grad():  # the reference evaluator cannot cut
        cut = next(iter(to_module(build("Pad", x, [np.array([0, 0, -1, 0, 1, -1])]))(stacked([x])).values()))[0]
    np.testing.assert_array_equal(cut.numpy(), np.pad(x["x"], ((0, 0), (0, 1), (0, 0)))[:, :, 1:-1])


@FEW
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    place=st.sampled_from(["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"]),
    rounding=st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
    scales=st.lists(st.sampled_from([0.5, 0.6, 1.0, 1.5, 2.0, 2.3]), min_size=2, max_size=2), sizes=st.booleans(),
    outside=st.booleans(),
)  # fmt: skip
def test_resize(*, mode: str, place: str, rounding: str, scales: list[float], sizes: bool, outside: bool) -> None:
    x = {"x": numbers(1, 2, 5, 6)}
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": place}
    attributes.update(nearest_mode=rounding, exclude_outside=int(outside and mode == "cubic"))
    wanted = [max(1, int(n * s)) for n, s in zip((5, 6), scales, strict=True)]
    sizes = sizes or place == "align_corners"  # with scales, the reference evaluator takes a broken size there
    operands: list[Array | None] = [None, None, np.array([1, 2, *wanted])]
    operands = operands if sizes else [None, f32([1, 1, *scales])]
    check(build("Resize", x, operands, **attributes), x, tolerance=256 * UNIT)


GATES = {"LSTM": (4, 3), "GRU": (3, 2)}


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("more", [{}, {"initial": True}, {"linear_before_reset": 1}])
def test_recurrent_layers(operator: str, bias: bool, more: dict[str, Any]) -> None:
    gates, functions = GATES[operator]
    x = {"x": numbers(5, 1, 3)}
    operands: list[Array | None] = [numbers(1, gates * 4, 3, seed=1), numbers(1, gates * 4, 4, seed=2)]
    operands.append(numbers(1, 2 * gates * 4, seed=3) if bias else None)
    attributes: dict[str, Any] = {"hidden_size": 4}
    if more.get("initial"):
        operands += [None, *[numbers(1, 1, 4, seed=4)] * (functions - 1)]
    if more.get("linear_before_reset") and operator == "GRU":
        attributes["linear_before_reset"] = 1
    check(build(operator, x, operands, outputs=functions, **attributes), x)


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers_in_both_directions(operator: str, direction: str) -> None:
    gates, functions = GATES[operator]
    d = 2 if direction == "bidirectional" else 1
    x = {"x": numbers(5, 2, 3)}
    operands = [numbers(d, gates * 4, 3, seed=1), numbers(d, gates * 4, 4, seed=2), numbers(d, 2 * gates * 4, seed=3)]
    names = ["HardSigmoid", *["Tanh"] * (functions - 1)] * d
    model = build(
        operator, x, operands, outputs=functions, hidden_size=4, direction=direction, activations=names,
        activation_alpha=[0.3] * d, activation_beta=[0.4] * d,
    )  # fmt: skip
    check_runtime(model, x, tolerance=64 * UNIT)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
@pytest.mark.parametrize("axis", [None, 1])
def test_quantization_rounds_as_the_standard_says(dtype: str, axis: int | None) -> None:
    x = {"x": 100 * numbers(2, 3, 4)}
    shape = () if axis is None else (3,)
    zero = np.full(shape, 3, dtype)
    more = {} if axis is None else {"axis": axis}
    check(build("QuantizeLinear", x, [positive(*shape, seed=1), zero], opset=21, **more), x, tolerance=0)
    whole = {"x": np.random.default_rng(0).integers(0, 100, (2, 3, 4)).astype(dtype)}
    check(build("DequantizeLinear", whole, [positive(*shape, seed=1), zero], opset=21, **more), whole)


def test_blocks_share_a_scale() -> None:
    whole = {"x": np.random.default_rng(0).integers(-9, 9, (3, 4)).astype(np.int8)}
    check(build("DequantizeLinear", whole, [positive(3, 2, seed=1)], opset=21, axis=1, block_size=2), whole)


SIZES = [None, None, np.array([1, 1, 2, 2])]
GRU = [numbers(1, 12, 3), numbers(1, 12, 4)]
LSTM = [numbers(1, 16, 3), numbers(1, 16, 4)]
REFUSED: list[tuple[str, tuple[int, ...], list[Any], dict[str, Any], str]] = [
    ("MaxPool", (1, 2, 4), [], {"kernel_shape": [2], "outputs": 2}, "first output"),
    ("AveragePool", (1, 2, 9), [], {"kernel_shape": [2], "dilations": [2]}, "dilated"),
    ("BatchNormalization", (1, 2, 4), [positive(2)] * 4, {"training_mode": 1, "outputs": 3}, "training"),
    ("Resize", (1, 1, 4, 4), SIZES, {"antialias": 1, "mode": "linear"}, "antialias"),
    ("Resize", (1, 1, 4, 4), SIZES, {"keep_aspect_ratio_policy": "not_larger"}, "aspect"),
    ("Resize", (1, 1, 4, 4), [numbers(8), *SIZES[1:]],
     {"coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop"),
    ("ArgMax", (1, 4), [], {"select_last_index": 1}, "last of equal"),
    ("GRU", (5, 1, 3), GRU, {"hidden_size": 4, "clip": 1.0}, "clips"),
    ("GRU", (5, 1, 3), GRU, {"hidden_size": 4, "activations": ["Affine", "Tanh"]}, "`Affine`"),
    ("GRU", (5, 1, 3), [*GRU, None, np.array([5], np.int32)], {"hidden_size": 4}, "lengths"),
    ("LSTM", (5, 1, 3), LSTM, {"hidden_size": 4, "input_forget": 1}, "input_forget"),
    ("LSTM", (5, 1, 3), [*LSTM, *[None] * 4, numbers(1, 12)], {"hidden_size": 4}, "peepholes"),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "shape", "constants", "attributes", "reason"), REFUSED)
def test_forms_that_are_not_supported_are_refused(
    operator: str, shape: tuple[int, ...], constants: list[Any], attributes: dict[str, Any], reason: str
) -> None:
    (found,) = declines(build(operator, {"x": numbers(*shape)}, constants, **attributes))

    assert found.operator == operator
    assert reason in found.reason


def test_every_operator_of_the_table_has_a_test() -> None:
    text = Path(__file__).read_text()
    reductions = {f"Reduce{name}" for name in REDUCTIONS}
    assert [name for name in OPERATORS if f'"{name}"' not in text and name not in reductions] == []
