"""Every default pass, and the optional ones, on the shipped kit."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgewise.passes.bind_defaults import BindDefaults
from edgewise.passes.cancel_transposes import CancelTransposes
from edgewise.passes.fold_affine import FoldAffine
from edgewise.passes.fold_affine_into_next import FoldAffineIntoNext
from edgewise.passes.fold_batch_norm import FoldBatchNorm
from edgewise.passes.fold_batch_norm_into_next import FoldBatchNormIntoNext
from edgewise.passes.fold_constants import FoldConstants
from edgewise.passes.fuse_attention import FuseAttention
from edgewise.passes.fuse_clips import FuseClips
from edgewise.passes.fuse_gelu import FuseGelu
from edgewise.passes.fuse_hard_swish import FuseHardSwish
from edgewise.passes.fuse_layer_norm import FuseLayerNorm
from edgewise.passes.fuse_matmul_add import FuseMatMulAdd
from edgewise.passes.fuse_pad import FusePad
from edgewise.passes.inline_functions import InlineFunctions
from edgewise.passes.lift_constants import LiftConstants
from edgewise.passes.merge_reshapes import MergeReshapes
from edgewise.passes.merge_slices import MergeSlices
from edgewise.passes.merge_transposes import MergeTransposes
from edgewise.passes.raise_opset import RaiseOpset
from edgewise.passes.remove_no_ops import RemoveNoOps
from edgewise.passes.remove_unused import RemoveUnused
from edgewise.passes.replace_shortcuts import ReplaceShortcuts
from edgewise.passes.share_subexpressions import ShareSubexpressions
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder
from edgewise.testing.pass_kit import PassKit


def image(*steps: Callable[[GraphBuilder, str], str], opset: int = 17, channels: int = 3) -> ir.Model:
    """Return a model of `steps` in a row on an image `[1, channels, 6, 6]`."""
    b = GraphBuilder("image", opset=opset)
    value = b.input("x", (1, channels, 6, 6))
    for step in steps:
        value = step(b, value)
    b.output(value, "y")
    return b.build()


def norm(b: GraphBuilder, value: str) -> str:
    return b.batch_norm(value, 3)


def conv(b: GraphBuilder, value: str) -> str:
    return b.node("Conv", value, b.weight(3, 3, 3, 3))


def relu(b: GraphBuilder, value: str) -> str:
    return b.node("Relu", value)


def scaled(b: GraphBuilder, value: str) -> str:
    return b.node("Mul", value, b.constant(np.array([[[2]], [[3]], [[4]]], np.float32)))


def padded(b: GraphBuilder, value: str) -> str:
    return b.node("Pad", value, b.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64)))


def transposed(*perm: int) -> Callable[[GraphBuilder, str], str]:
    return lambda b, value: b.node("Transpose", value, perm=list(perm))


def reshaped(*shape: int) -> Callable[[GraphBuilder, str], str]:
    return lambda b, value: b.node("Reshape", value, b.constant(np.array(shape, np.int64)))


def sliced(axis: int, step: int = 2) -> Callable[[GraphBuilder, str], str]:
    parts = ([0], [2**31], [axis], [step])
    return lambda b, value: b.node("Slice", value, *(b.constant(np.array(part, np.int64)) for part in parts))


def wider(b: GraphBuilder, value: str) -> str:
    return b.node("Pad", value, b.constant(np.array([0, 1, 0, 0, 0, 2, 0, 0], np.int64)))


def hard_swish(b: GraphBuilder, value: str) -> str:
    gate = b.node("Add", value, b.constant(np.float32(3)))
    gate = b.node("Clip", gate, b.constant(np.float32(0)), b.constant(np.float32(6)))
    return b.node("Div", b.node("Mul", value, gate), b.constant(np.float32(6)))


def erf_gelu(b: GraphBuilder, value: str) -> str:
    erf = b.node("Erf", b.node("Div", value, b.constant(np.float32(np.sqrt(2)))))
    gate = b.node("Add", erf, b.constant(np.float32(1)))
    return b.node("Mul", b.node("Mul", value, gate), b.constant(np.float32(0.5)))


def twice(b: GraphBuilder, value: str) -> str:
    return b.node("Add", b.node("Sigmoid", value), b.node("Sigmoid", value))


def attention(b: GraphBuilder, value: str) -> str:
    scores = b.node("MatMul", value, b.node("Transpose", value, perm=[0, 1, 3, 2]))
    weights = b.node("Softmax", b.node("Mul", scores, b.constant(np.float32(0.25))), axis=-1)
    return b.node("MatMul", weights, value)


def constant_node(b: GraphBuilder, value: str) -> str:
    return b.node("Add", value, b.node("Constant", value_floats=[1.5, 2.5, 3.5, 4.5, 5.5, 6.5]))


def computed(b: GraphBuilder, value: str) -> str:
    return b.node("Add", value, b.node("Sqrt", b.constant(np.array([4.0], np.float32))))


def unread(b: GraphBuilder, value: str) -> str:
    b.node("Exp", value)
    return b.node("Relu", value)


def with_default() -> ir.Model:
    model = image(conv)
    model.graph.inputs.append(next(iter(model.graph.initializers.values())))
    return model


def with_function() -> ir.Model:
    model = image(relu)
    x = ir.Value(name="a", type=ir.TensorType(ir.DataType.FLOAT))
    inner = ir.node("Neg", [x])
    body = ir.Graph([x], inner.outputs, nodes=[inner], opset_imports={"": 17}, name="body")
    function = ir.Function("mine", "Negate", "", graph=body, attributes=())
    model.functions[function.identifier()] = function
    model.graph.opset_imports["mine"] = 1
    node = model.graph[0]
    node.op_type, node.domain = "Negate", "mine"
    return model


def matmul_add() -> ir.Model:
    b = GraphBuilder("matmul_add")
    value = b.node("MatMul", b.input("x", (2, 5)), b.weight(5, 4))
    b.output(b.node("Add", b.weight(4, fan_in=4), value), "y", (2, 4))
    return b.build()


class TestBindDefaults(PassKit):
    pass_class = BindDefaults
    sites = (with_default,)


class TestCancelTransposes(PassKit):
    pass_class = CancelTransposes
    sites = (lambda: image(transposed(0, 2, 3, 1), relu, transposed(0, 3, 1, 2)),)


class TestFoldAffine(PassKit):
    pass_class = FoldAffine
    sites = (lambda: image(conv, scaled),)


class TestFoldAffineIntoNext(PassKit):
    pass_class = FoldAffineIntoNext
    sites = (lambda: image(scaled, conv),)


class TestFoldBatchNorm(PassKit):
    pass_class = FoldBatchNorm
    sites = (graphs.conv_net, graphs.depthwise_net, lambda: image(conv, norm))


class TestFoldBatchNormIntoNext(PassKit):
    pass_class = FoldBatchNormIntoNext
    sites = (lambda: image(norm, conv),)


class TestFoldConstants(PassKit):
    pass_class = FoldConstants
    sites = (lambda: image(computed),)


class TestFuseAttention(PassKit):
    pass_class = FuseAttention
    sites = (lambda: image(attention, opset=23),)


class TestFuseClips(PassKit):
    pass_class = FuseClips
    sites = (
        lambda: image(relu, lambda b, v: b.node("Min", v, b.constant(np.float32(6)))),
        lambda: image(lambda b, v: b.node("Max", v, b.constant(np.float32(0)))),
    )


class TestFuseGelu(PassKit):
    pass_class = FuseGelu
    sites = (lambda: image(erf_gelu, opset=20),)


class TestFuseHardSwish(PassKit):
    pass_class = FuseHardSwish
    sites = (lambda: image(hard_swish),)


class TestFuseLayerNorm(PassKit):
    pass_class = FuseLayerNorm
    seeds = range(8)


class TestFuseMatMulAdd(PassKit):
    pass_class = FuseMatMulAdd
    sites = (matmul_add,)


class TestFusePad(PassKit):
    pass_class = FusePad
    sites = (lambda: image(padded, conv),)


class TestInlineFunctions(PassKit):
    pass_class = InlineFunctions

    def test_inlines_a_call(self) -> None:
        model = with_function()
        findings = InlineFunctions().rewrite(model)
        assert [change.what for change in findings.changes] == ["inlined function Negate"]
        assert [node.op_type for node in model.graph] == ["Neg"]


class TestLiftConstants(PassKit):
    pass_class = LiftConstants
    sites = (lambda: image(constant_node),)


class TestMergeReshapes(PassKit):
    pass_class = MergeReshapes
    sites = (lambda: image(reshaped(1, 3, 36), reshaped(1, 108)),)


class TestMergeSlices(PassKit):
    pass_class = MergeSlices
    sites = (lambda: image(sliced(2), sliced(3)),)


class TestMergeTransposes(PassKit):
    pass_class = MergeTransposes
    sites = (
        lambda: image(transposed(0, 2, 3, 1), transposed(0, 2, 1, 3)),
        lambda: image(transposed(1, 0, 2, 3)),
        lambda: image(transposed(0, 2, 3, 1), channels=1),
    )


class TestRaiseOpset(PassKit):
    pass_class = functools.partial(RaiseOpset, 20)
    sites = (lambda: image(relu),)


class TestRemoveNoOps(PassKit):
    pass_class = RemoveNoOps
    sites = (lambda: image(relu, lambda b, v: b.node("Identity", v), relu),)


class TestRemoveUnused(PassKit):
    pass_class = RemoveUnused
    sites = (lambda: image(unread),)


class TestReplaceShortcuts(PassKit):
    pass_class = ReplaceShortcuts
    sites = (lambda: image(sliced(2), wider),)


class TestShareSubexpressions(PassKit):
    pass_class = ShareSubexpressions
    sites = (lambda: image(twice),)
