"""Each reason to decline, and the structure that each rewrite makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.passes.apply import apply, with_shapes
from edgewise.passes.cancel_transposes import CancelTransposes
from edgewise.passes.fold_affine import FoldAffine
from edgewise.passes.fold_affine_into_next import FoldAffineIntoNext
from edgewise.passes.fold_batch_norm import FoldBatchNorm
from edgewise.passes.fold_batch_norm_into_next import FoldBatchNormIntoNext
from edgewise.passes.fold_constants import MOST_NEW_ELEMENTS, FoldConstants
from edgewise.passes.fuse_attention import FuseAttention
from edgewise.passes.fuse_clips import FuseClips
from edgewise.passes.fuse_gelu import FuseGelu
from edgewise.passes.fuse_hard_swish import FuseHardSwish
from edgewise.passes.fuse_layer_norm import FuseLayerNorm
from edgewise.passes.fuse_matmul_add import FuseMatMulAdd
from edgewise.passes.fuse_pad import FusePad
from edgewise.passes.merge_reshapes import MergeReshapes
from edgewise.passes.merge_slices import MergeSlices
from edgewise.passes.protocol import Findings, Pass
from edgewise.passes.remove_no_ops import RemoveNoOps
from edgewise.passes.replace_shortcuts import ReplaceShortcuts
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder
from edgewise.testing.pass_kit import assert_same_function

Build = Callable[[GraphBuilder, str], None]


def model(build: Build, *, shape: tuple[int | str, ...] = (1, 2, 6, 6), opset: int = 17) -> ir.Model:
    """Return the model that `build` draws behind its input `x`."""
    b = GraphBuilder("model", opset=opset)
    build(b, b.input("x", shape))
    return b.build()


def run(made: Pass, build: Build, **options: Any) -> tuple[list[str], Findings]:
    """Return the operators after a pass on a drawn model, whose function must not change, and the findings."""
    before = with_shapes(model(build, **options))
    after, findings = apply(before, made)
    if findings.changes and all(isinstance(dim, int) for dim in before.graph.inputs[0].shape or ()):
        assert_same_function(before, after)
    return [node.op_type for node in after.graph], findings


def numbers(*values: float, dtype: type = np.float32, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
    return np.array(values, dtype).reshape(shape if shape is not None else (len(values),))


def conv(b: GraphBuilder, value: str, **attributes: Any) -> str:
    return b.node("Conv", value, b.weight(2, 2, 3, 3), **attributes)


def pad(b: GraphBuilder, value: str, *amounts: int, fill: float | None = None, **attributes: Any) -> str:
    extra = [] if fill is None else [b.constant(np.float32(fill))]
    return b.node("Pad", value, b.constant(np.array(amounts, np.int64)), *extra, **attributes)


SPATIAL = (0, 0, 1, 1, 0, 0, 1, 1)


def _conv_norm_read_twice(b: GraphBuilder, x: str) -> None:
    value = conv(b, x)
    b.output(b.node("Add", b.batch_norm(value, 2), value), "y")


def _conv_norm_output(b: GraphBuilder, x: str) -> None:
    value = conv(b, x)
    b.output(b.batch_norm(value, 2), "y")
    b.output(value, "raw")


def _norm_of_relu(b: GraphBuilder, x: str) -> None:
    b.output(b.batch_norm(b.node("Relu", x), 2), "y")


def _norm_padded_conv(b: GraphBuilder, x: str) -> None:
    b.output(conv(b, b.batch_norm(x, 2), pads=[1, 1, 1, 1]), "y")


def _norm_two_convs(b: GraphBuilder, x: str) -> None:
    value = b.batch_norm(x, 2)
    b.output(b.node("Add", conv(b, value), conv(b, value)), "y")


def _map_added(b: GraphBuilder, x: str) -> None:
    b.output(b.node("Add", conv(b, x), b.weight(1, 2, 4, 4)), "y")


def _infinite_scale(b: GraphBuilder, x: str) -> None:
    value = b.node("Mul", conv(b, x), b.constant(np.float32(3e38)))
    b.output(b.node("Mul", value, b.constant(np.float32(3e38))), "y")


def _divided_by_zero(b: GraphBuilder, x: str) -> None:
    b.output(b.node("Div", conv(b, x), b.constant(np.float32(0))), "y")


def _matmul_bias_rank_3(b: GraphBuilder, x: str) -> None:
    b.output(b.node("Add", b.node("MatMul", x, b.weight(6, 4)), b.weight(4, fan_in=2)), "y")


def _reflected(b: GraphBuilder, x: str) -> None:
    b.output(conv(b, pad(b, x, *SPATIAL, mode="reflect")), "y")


def _filled(b: GraphBuilder, x: str) -> None:
    b.output(conv(b, pad(b, x, *SPATIAL, fill=1)), "y")


def _channels_padded(b: GraphBuilder, x: str) -> None:
    value = pad(b, x, 0, 1, 0, 0, 0, 0, 0, 0)
    b.output(b.node("Conv", value, b.weight(2, 3, 3, 3)), "y")


def _cropped(b: GraphBuilder, x: str) -> None:
    b.output(conv(b, pad(b, x, 0, 0, -1, 0, 0, 0, 0, 0)), "y")


def _same_padding(b: GraphBuilder, x: str) -> None:
    b.output(conv(b, pad(b, x, *SPATIAL), auto_pad="SAME_UPPER"), "y")


def _pool(operator: str, **options: Any) -> Build:
    def build(b: GraphBuilder, x: str) -> None:
        amounts = options.get("amounts", SPATIAL)
        attributes = {"kernel_shape": [2, 2], **options.get("attributes", {})}
        b.output(b.node(operator, pad(b, x, *amounts), **attributes), "y")

    return build


def _gelu(b: GraphBuilder, x: str) -> None:
    erf = b.node("Erf", b.node("Mul", x, b.constant(np.float32(np.sqrt(0.5)))))
    gate = b.node("Add", erf, b.constant(np.float32(1)))
    b.output(b.node("Mul", b.node("Mul", x, gate), b.constant(np.float32(0.5))), "y")


def _gelu_with_witness(b: GraphBuilder, x: str) -> None:
    erf = b.node("Erf", b.node("Mul", x, b.constant(np.float32(np.sqrt(0.5)))))
    gate = b.node("Add", erf, b.constant(np.float32(1)))
    b.output(b.node("Mul", b.node("Mul", x, gate), b.constant(np.float32(0.5))), "y")
    b.output(b.node("Neg", gate), "witness")


def _hard_swish(b: GraphBuilder, x: str) -> None:
    gate = b.node("Clip", b.node("Add", x, b.constant(np.float32(3))), *(b.constant(np.float32(c)) for c in (0, 6)))
    b.output(b.node("Mul", x, b.node("Mul", gate, b.constant(np.float32(1 / 6)))), "y")


def _two_transposes(operator: str) -> Build:
    def build(b: GraphBuilder, x: str) -> None:
        left = b.node("Transpose", x, perm=[0, 2, 3, 1])
        right = b.node(operator, b.node("Reshape", x, b.constant(np.array([1, 6, 6, 2], np.int64))))
        b.output(b.node("Transpose", b.node("Add", left, right), perm=[0, 3, 1, 2]), "y")

    return build


def _softmax_last(b: GraphBuilder, x: str) -> None:
    value = b.node("Softmax", b.node("Transpose", x, perm=[0, 2, 3, 1]), axis=3)
    b.output(b.node("Transpose", value, perm=[0, 3, 1, 2]), "y")


def _slices(*axes: int) -> Build:
    def build(b: GraphBuilder, value: str) -> None:
        for axis in axes:
            parts = ([0], [5], [axis], [2])
            value = b.node("Slice", value, *(b.constant(np.array(part, np.int64)) for part in parts))
        b.output(value, "y")

    return build


def _shortcut(extra: int, *, start: int = 0) -> Build:
    def build(b: GraphBuilder, value: str) -> None:
        parts = ([start, 0], [99, 99], [2, 3], [2, 2])
        value = b.node("Slice", value, *(b.constant(np.array(part, np.int64)) for part in parts))
        b.output(pad(b, value, 0, extra, 0, 0, 0, extra, 0, 0), "y")

    return build


def _summand_enlarges(b: GraphBuilder, x: str) -> None:
    b.output(b.node("Add", b.node("MatMul", x, b.weight(6, 4)), b.weight(5, 4)), "y")


def _clip_of_variable(b: GraphBuilder, x: str) -> None:
    b.output(b.node("Clip", b.node("Relu", x), b.node("ReduceMin", x, keepdims=0)), "y")


def _max_of_map(b: GraphBuilder, x: str) -> None:
    b.output(b.node("Max", x, b.weight(1, 2, 1, 1)), "y")


def _layer_norm(axes: list[int]) -> Build:
    def build(b: GraphBuilder, x: str) -> None:
        centred = b.node("Sub", x, b.node("ReduceMean", x, axes=axes))
        variance = b.node("ReduceMean", b.node("Mul", centred, centred), axes=axes)
        root = b.node("Sqrt", b.node("Add", variance, b.constant(np.float32(0.1))))
        b.output(b.node("Div", centred, root), "y")

    return build


def _dynamic_reshape(b: GraphBuilder, x: str) -> None:
    value = b.node("Reshape", x, b.constant(np.array([0, 0, 36], np.int64)))
    b.output(b.node("Unsqueeze", value, b.constant(np.array([0], np.int64))), "y")


def _input_is_output(b: GraphBuilder, x: str) -> None:
    b.output(b.node("Identity", x), "y")


DECLINES: list[tuple[Pass, Build, dict[str, Any], str]] = [
    (FoldBatchNorm(), _conv_norm_read_twice, {}, "has 2 readers"),
    (FoldBatchNorm(), _conv_norm_output, {}, "is also an output of the graph"),
    (FoldBatchNorm(), _norm_of_relu, {}, "is not computed by Conv"),
    (FoldBatchNormIntoNext(), _norm_padded_conv, {}, "pads with zeros"),
    (FoldBatchNormIntoNext(), _norm_two_convs, {}, "has 2 readers"),
    (FoldAffine(), _map_added, {}, "its constant has shape [1, 2, 4, 4], not one number a channel"),
    (FoldAffine(), _infinite_scale, {}, "would not be finite as float32"),
    (FoldAffine(), _divided_by_zero, {}, "it divides by zero"),
    (FoldAffine(), _matmul_bias_rank_3, {"shape": (1, 3, 6)}, "MatMul has no bias"),
    (FuseMatMulAdd(), _matmul_bias_rank_3, {"shape": (1, 3, 6)}, "has rank 3, and Gemm takes matrices"),
    (FuseMatMulAdd(), _summand_enlarges, {"shape": (1, 6)}, "would enlarge the product"),
    (FusePad(), _reflected, {}, "has the mode reflect"),
    (FusePad(), _filled, {}, "it pads with 0, the Pad before it with 1"),
    (FusePad(), _channels_padded, {}, "adds to the batch or the channels"),
    (FusePad(), _cropped, {}, "takes away instead of adding"),
    (FusePad(), _same_padding, {}, "chooses its padding itself"),
    (FusePad(), _pool("MaxPool"), {}, "pads with minus infinity, the Pad before it with 0"),
    (FusePad(), _pool("AveragePool", attributes={"ceil_mode": 1}), {}, "rounds its output size up"),
    (FusePad(), _pool("AveragePool", attributes={"pads": [1, 0, 0, 0]}), {}, "leaves its own padding out"),
    (FusePad(), _pool("AveragePool", amounts=(0, 0, 2, 0, 0, 0, 0, 0)), {}, "as wide as the window"),
    (FuseGelu(), _gelu, {"opset": 17}, "Gelu exists from opset 20 on and the model has 17"),
    (FuseGelu(), _gelu_with_witness, {"opset": 20}, "is also read by"),
    (FuseHardSwish(), _hard_swish, {"opset": 13}, "HardSwish exists from opset 14 on and the model has 13"),
    (FuseLayerNorm(), _layer_norm([-1]), {"opset": 13}, "LayerNormalization exists from opset 17 on"),
    (FuseLayerNorm(), _layer_norm([1]), {}, "it normalises the axes [1]"),
    (FuseLayerNorm(), _layer_norm([-1]), {"shape": (1, 2, 6, "n")}, "sizes of the normalised axes"),
    (CancelTransposes(), _two_transposes("Relu"), {}, "would need a Transpose of its own"),
    (CancelTransposes(), _softmax_last, {"opset": 11}, "works on all axes from its own on before opset 13"),
    (MergeSlices(), _slices(2, 2), {}, "both cut axis 2"),
    (ReplaceShortcuts(), _shortcut(1, start=1), {}, "cuts more than every n-th pixel of axis 2"),
    (ReplaceShortcuts(), _shortcut(100), {}, "beyond 128 copying is faster"),
    (FuseClips(), _clip_of_variable, {}, "a bound is not constant"),
    (FuseClips(), _max_of_map, {}, "its constant is not a single number"),
    (MergeReshapes(), _dynamic_reshape, {"shape": ("n", "c", 6, 6)}, "2 dimensions of `y` are dynamic"),
    (RemoveNoOps(), _input_is_output, {}, "`y` is an output of the graph and `x` is not computed in it"),
]


@pytest.mark.parametrize(("made", "build", "options", "reason"), DECLINES)
def test_declines_with_the_reason(made: Pass, build: Build, options: dict[str, Any], reason: str) -> None:
    _, findings = run(made, build, **options)
    assert any(reason in decline.reason for decline in findings.declines), findings.declines
    assert all(decline.node and decline.operator for decline in findings.declines)


def test_norm_behind_grouped_transposed_convolution_scales_the_right_channels() -> None:
    # ONNX's reference evaluator fails on several groups, so the merged weight is compared with the formula.
    b = GraphBuilder("grouped")
    value = b.node("ConvTranspose", b.input("x", (1, 4, 3, 3)), b.weight(4, 3, 2, 2, name="w"), group=2)
    b.output(b.node("Mul", value, b.constant(np.arange(1, 7, dtype=np.float32).reshape(6, 1, 1))), "y")
    before = b.build()
    after, findings = apply(with_shapes(before), FoldAffine())
    assert len(findings.changes) == 1
    old, new = (m.graph.initializers["w"].const_value for m in (before, after))
    assert old is not None
    assert new is not None
    expected = old.numpy() * np.array([[1, 2, 3], [1, 2, 3], [4, 5, 6], [4, 5, 6]], np.float32)[:, :, None, None]
    np.testing.assert_array_equal(new.numpy(), expected)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_norm_before_grouped_convolution(group: int) -> None:
    def build(b: GraphBuilder, x: str) -> None:
        b.output(b.node("Conv", b.batch_norm(x, 4), b.weight(8, 4 // group, 3, 3), group=group), "y")

    operators, findings = run(FoldBatchNormIntoNext(), build, shape=(1, 4, 6, 6))
    assert operators == ["Conv"]
    assert not findings.declines


@pytest.mark.parametrize("transposed", [0, 1])
def test_norms_around_gemm(transposed: int) -> None:
    def build(b: GraphBuilder, x: str) -> None:
        shape = (3, 5) if transposed else (5, 3)
        value = b.node("Gemm", b.batch_norm(x, 5), b.weight(*shape), transB=transposed, alpha=0.5)
        b.output(b.batch_norm(value, 3), "y")

    before = with_shapes(model(build, shape=(2, 5)))
    after, _ = apply(before, FoldBatchNorm())
    after, _ = apply(after, FoldBatchNormIntoNext())
    assert [node.op_type for node in after.graph] == ["Gemm"]
    assert_same_function(before, after)


def test_shared_weight_is_not_overwritten() -> None:
    def build(b: GraphBuilder, x: str) -> None:
        weight = b.weight(2, 2, 3, 3, name="shared")
        value = b.batch_norm(b.node("Conv", x, weight), 2)
        b.output(b.node("Add", value, b.node("Conv", x, weight)), "y")

    operators, _ = run(FoldBatchNorm(), build)
    assert sorted(operators) == ["Add", "Conv", "Conv"]


@pytest.mark.parametrize("count", [0, 1])
def test_padding_that_average_pooling_counts(count: int) -> None:
    operators, _ = run(FusePad(), _pool("AveragePool", attributes={"count_include_pad": count}))
    assert operators == ["AveragePool"]


def test_zero_padding_behind_relu_goes_into_max_pooling() -> None:
    def build(b: GraphBuilder, x: str) -> None:
        b.output(b.node("MaxPool", pad(b, b.node("Relu", x), *SPATIAL), kernel_shape=[2, 2]), "y")

    assert run(FusePad(), build)[0] == ["Relu", "MaxPool"]


def test_padding_above_zero_does_not_go_into_max_pooling() -> None:
    def build(b: GraphBuilder, x: str) -> None:
        b.output(b.node("MaxPool", pad(b, b.node("Relu", x), *SPATIAL, fill=1), kernel_shape=[2, 2]), "y")

    operators, findings = run(FusePad(), build)
    assert "Pad" in operators
    assert "the Pad before it with 1" in findings.declines[0].reason


def test_clamps_in_a_row() -> None:
    def build(b: GraphBuilder, x: str) -> None:
        value = b.node("Clip", x, b.constant(np.float32(-2)), b.constant(np.float32(0.5)))
        b.output(b.node("Max", b.node("Relu", value), b.constant(np.float32(0.25))), "y")

    assert run(FuseClips(), build)[0] == ["Clip"]


def test_disjoint_clamps_are_constant() -> None:
    def build(b: GraphBuilder, x: str) -> None:
        value = b.node("Clip", x, b.constant(np.float32(2)), b.constant(np.float32(3)))
        b.output(b.node("Clip", value, b.constant(np.float32(0)), b.constant(np.float32(1))), "y")

    assert run(FuseClips(), build)[0] == ["Clip"]


@pytest.mark.parametrize("standard", [False, True])
def test_layer_norm_and_gelu_of_a_transformer(standard: bool) -> None:
    block = with_shapes(graphs.transformer_block(standard=standard))
    if not standard:
        _, findings = apply(block, FuseLayerNorm())
        assert [decline.reason for decline in findings.declines] == [
            "LayerNormalization exists from opset 17 on and the model has 13"
        ] * 2
    else:
        assert not apply(block, FuseLayerNorm())[1].changes


def _tanh_gelu(cube: str) -> Build:
    def build(b: GraphBuilder, x: str) -> None:
        def number(value: float) -> str:
            return b.constant(np.float32(value))

        if cube == "pow":
            cubic = b.node("Add", x, b.node("Mul", b.node("Pow", x, number(3)), number(0.044715)))
        elif cube == "product":
            cubic = b.node("Add", x, b.node("Mul", b.node("Mul", b.node("Mul", x, x), x), number(0.044715)))
        else:
            inner = b.node("Add", number(1), b.node("Mul", number(0.044715), b.node("Mul", x, x)))
            cubic = b.node("Mul", x, inner)
        gate = b.node("Add", number(1), b.node("Tanh", b.node("Mul", number(np.sqrt(2 / np.pi)), cubic)))
        b.output(b.node("Mul", b.node("Mul", number(0.5), x), gate), "y")

    return build


@pytest.mark.parametrize("cube", ["pow", "product", "factored"])
def test_spellings_of_tanh_gelu(cube: str) -> None:
    operators, findings = run(FuseGelu(), _tanh_gelu(cube), opset=20)
    assert operators == ["Gelu"], findings


def _spelled_layer_norm(root: str, *, affine: bool) -> Build:
    def build(b: GraphBuilder, x: str) -> None:
        centred = b.node("Sub", x, b.node("ReduceMean", x, axes=[-1]))
        variance = b.node("ReduceMean", b.node("Pow", centred, b.constant(np.float32(2))), axes=[-1])
        shifted = b.node("Add", b.constant(np.float32(0.1)), variance)
        if root == "power":
            value = b.node("Mul", centred, b.node("Pow", shifted, b.constant(np.float32(-0.5))))
        elif root == "reciprocal":
            value = b.node("Mul", b.node("Reciprocal", b.node("Sqrt", shifted)), centred)
        elif root == "one over":
            value = b.node("Mul", b.node("Div", b.constant(np.float32(1)), b.node("Sqrt", shifted)), centred)
        else:
            value = b.node("Div", centred, b.node("Sqrt", shifted))
        if affine:
            value = b.node("Add", b.node("Mul", value, b.weight(6, fan_in=1)), b.weight(1, 6, fan_in=1))
        b.output(value, "y")

    return build


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("root", ["division", "power", "reciprocal", "one over"])
def test_spellings_of_layer_norm(root: str, affine: bool) -> None:
    operators, findings = run(FuseLayerNorm(), _spelled_layer_norm(root, affine=affine))
    assert operators == ["LayerNormalization"], findings


def test_attention_needs_four_axes_and_its_opset() -> None:
    def build(b: GraphBuilder, x: str) -> None:
        axes = [0, 1, 3, 2]
        scores = b.node("MatMul", x, b.node("Transpose", x, perm=axes))
        b.output(b.node("MatMul", b.node("Softmax", b.node("Mul", scores, b.constant(np.float32(0.5)))), x), "y")

    assert run(FuseAttention(), build, opset=23)[0] == ["Attention"]
    assert "opset 23" in run(FuseAttention(), build)[1].declines[0].reason


@pytest.mark.parametrize(("size", "folds"), [(MOST_NEW_ELEMENTS, True), (MOST_NEW_ELEMENTS + 2, False)])
def test_folding_does_not_blow_up_the_file(size: int, folds: bool) -> None:
    def build(b: GraphBuilder, x: str) -> None:
        grown = b.node("Tile", b.constant(np.ones(1, np.float32)), b.constant(np.array([size], np.int64)))
        b.output(b.node("Add", x, grown), "y")

    operators, _ = run(FoldConstants(), build, shape=(size,))
    assert ("Tile" not in operators) == folds


def test_affine_into_padded_convolution_takes_factors_but_no_summands() -> None:
    def build(b: GraphBuilder, x: str) -> None:
        scaled = b.node("Mul", x, b.constant(numbers(2, 3, shape=(2, 1, 1))))
        b.output(conv(b, scaled, pads=[1, 1, 1, 1]), "y")

    assert run(FoldAffineIntoNext(), build)[0] == ["Conv"]
