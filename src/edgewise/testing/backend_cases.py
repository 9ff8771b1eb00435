"""What the backend kit runs: each operator class at the sizes where tiled kernels go wrong, with its tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from edgewise.records.tensors import Array
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder

EDGES: Final = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33)
"""Powers of two and their neighbours: vector widths and tile sizes, one less, one more."""


@dataclass(frozen=True)
class Case:
    """One model for one comparison.

    Attributes:
        name: Its name in the test's.
        model: Makes it.
        terms: Products in one sum, for operators that sum products; 0 for those that only move, compare or
            add a few numbers; -1 for those that approximate a function.
    """

    name: str
    model: Callable[[], ir.Model] = field(repr=False)
    terms: int = 0


def _convolution(
    channels_in: int, channels_out: int, *, kernel: int = 3, size: int = 8, operator: str = "Conv", **attributes: Any
) -> ir.Model:
    b = GraphBuilder("convolution")
    x = b.input("x", (1, channels_in, size, size))
    group = attributes.get("group", 1)
    first, second = (channels_out, channels_in // group) if operator == "Conv" else (channels_in, channels_out // group)
    weight = b.weight(first, second, kernel, kernel)
    y = b.node(operator, x, weight, b.weight(channels_out, fan_in=4), name="op", **attributes)
    b.output(y, "y", None)
    return b.build()


def matrix(rows: int, inner: int, columns: int) -> ir.Model:
    """Return `x` `[rows, inner]` times a weight: `y` `[rows, columns]`."""
    b = GraphBuilder("matrix")
    product = b.node("MatMul", b.input("x", (rows, inner)), b.weight(inner, columns, fan_in=inner), name="op")
    b.output(product, "y", (rows, columns))
    return b.build()


def _batched(size: int) -> ir.Model:
    b = GraphBuilder("batched")
    product = b.node("MatMul", b.input("x", (2, 3, size, 5)), b.input("z", (2, 3, 5, size)), name="op")
    b.output(product, "y", (2, 3, size, size))
    return b.build()


def elementwise(operator: str, size: int = 33, *, opset: int = graphs.OPSET, **attributes: Any) -> ir.Model:
    """Return a model of one operator with one input `x` `[3, size]` and one output `y`."""
    b = GraphBuilder(operator.lower(), opset=opset)
    b.output(b.node(operator, b.input("x", (3, size)), name="op", **attributes), "y", None)
    return b.build()


def _with_constants(operator: str, shape: tuple[int, ...], *constants: Array, **attributes: Any) -> ir.Model:
    b = GraphBuilder(operator.lower())
    names = [b.constant(constant) for constant in constants]
    b.output(b.node(operator, b.input("x", shape), *names, name="op", **attributes), "y", None)
    return b.build()


def _concat(first: int) -> ir.Model:
    b = GraphBuilder("concat")
    b.output(b.node("Concat", b.input("x", (1, first, 3)), b.input("z", (1, 2, 3)), axis=1, name="op"), "y", None)
    return b.build()


def _resize() -> ir.Model:
    b = GraphBuilder("resize")
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    b.output(b.node("Resize", b.input("x", (1, 3, 5, 7)), "", scales, name="op", **attributes), "y", None)
    return b.build()


def _layer_norm(width: int) -> ir.Model:
    b = GraphBuilder("layer_norm")
    scale, bias = b.weight(width, fan_in=1), b.weight(width, fan_in=1)
    b.output(b.node("LayerNormalization", b.input("x", (2, 3, width)), scale, bias, name="op"), "y", None)
    return b.build()


def _early_batch_norm() -> ir.Model:
    b = GraphBuilder("early_batch_norm", opset=9)
    b.output(b.batch_norm(b.input("x", (1, 5, 3, 3)), 5), "y", None)
    return b.build()


def _cases() -> Iterator[Case]:
    yield from _products()
    yield from _functions()
    yield from _moves()


def _products() -> Iterator[Case]:
    """Yield the operators that sum products."""
    for size in EDGES:
        yield Case(f"conv3x3-{size}-channels", partial(_convolution, size, size, pads=[1] * 4), 9 * size)
        yield Case(f"conv1x1-{size}-pixels", partial(_convolution, 5, 6, kernel=1, size=size), 5)
        yield Case(f"depthwise-{size}", partial(_convolution, size, size, group=size, pads=[1] * 4), 9)
        yield Case(f"matmul-{size}-rows", partial(matrix, size, 24, 10), 24)
        yield Case(f"matmul-{size}-inner", partial(matrix, 3, size, 10), size)
        yield Case(f"matmul-{size}-columns", partial(matrix, 3, 24, size), 24)
    yield Case("matmul-1023-inner", partial(matrix, 2, 1023, 65), 1023)
    yield Case("matmul-batched-7", partial(_batched, 7), 5)
    yield Case("conv-strided", partial(_convolution, 3, 16, strides=[2, 2], pads=[0, 0, 1, 1], size=9), 27)
    yield Case("conv-dilated", partial(_convolution, 4, 8, dilations=[2, 2]), 36)
    yield Case("conv-grouped", partial(_convolution, 8, 12, group=4), 18)
    yield Case("conv-7x7-of-one-pixel", partial(_convolution, 3, 4, kernel=7, size=1, pads=[3] * 4), 147)
    yield Case("conv-transpose", partial(_convolution, 6, 4, operator="ConvTranspose", strides=[2, 2]), 54)
    yield Case("reduce-mean", partial(elementwise, "ReduceMean", axes=[-1]), 33)
    for size in (2, 7, 8, 9):
        shape = (1, 5, size, size)
        yield Case(f"average-pool-{size}", partial(_with_constants, "AveragePool", shape, kernel_shape=[2, 2]), 4)
        yield Case(f"global-pool-{size}", partial(_with_constants, "GlobalAveragePool", shape), size * size)


def _functions() -> Iterator[Case]:
    """Yield the operators that kernels approximate."""
    for operator in ("Sigmoid", "Tanh", "Erf", "Exp", "Softplus", "HardSigmoid", "HardSwish", "Softmax", "Elu"):
        yield Case(operator.lower(), partial(elementwise, operator), -1)
    yield Case("gelu", partial(elementwise, "Gelu", opset=20), -1)
    yield Case("softmax-one-class", partial(elementwise, "Softmax", 1), -1)
    for width in (1, 15, 16, 17):
        yield Case(f"layer-norm-{width}", partial(_layer_norm, width), -1)
    yield Case("early-batch-norm", _early_batch_norm, -1)


def _moves() -> Iterator[Case]:
    """Yield the operators that move, compare or round once."""
    for operator in ("Relu", "Abs", "Neg", "Identity", "Floor", "Sign", "LeakyRelu"):
        yield Case(operator.lower(), partial(elementwise, operator))
    made = _with_constants
    low, high = np.array(-0.5, np.float32), np.array(0.5, np.float32)
    ramp = np.arange(5, dtype=np.float32).reshape(5, 1)
    yield Case("clip", partial(made, "Clip", (3, 17), low, high))
    yield Case("add-broadcast", partial(made, "Add", (2, 5, 7), np.arange(7, dtype=np.float32)))
    yield Case("mul-broadcast", partial(made, "Mul", (2, 5, 7), ramp))
    yield Case("reshape", partial(made, "Reshape", (2, 6), np.array([3, -1])))
    yield Case("gather", partial(made, "Gather", (5, 3), np.array([4, 0, 4]), axis=0))
    backwards = (np.array([-1]), np.array([-9]), np.array([0]), np.array([-3]))
    yield Case("slice", partial(made, "Slice", (9, 3), *backwards))
    yield Case("transpose", partial(made, "Transpose", (2, 3, 5), perm=[2, 0, 1]))
    for size in (2, 7, 8, 9):
        pooling = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
        yield Case(f"max-pool-{size}", partial(made, "MaxPool", (1, 5, size, size), **pooling))
    yield Case("concat", partial(_concat, 7))
    yield Case("resize", _resize)


OPERATORS: Final = tuple(_cases())
"""One operator each."""

MODELS: Final[dict[str, Callable[[], ir.Model]]] = {
    "conv": graphs.conv_net,
    "depthwise": graphs.depthwise_net,
    "mlp": graphs.mlp,
    "transformer": graphs.transformer_block,
    "transformer-standard": lambda: graphs.transformer_block(standard=True),
    "lstm": graphs.lstm_net,
    "if": graphs.branching_net,
    "recurrent": graphs.recurrent_cell,
    "two-inputs": graphs.two_input_net,
    "constant": graphs.constant_output_net,
    "half": graphs.half_weights_net,
    "weights-8-bit": graphs.weight_only_net,
    "weights-4-bit": partial(graphs.weight_only_net, bits=4),
    "weights-8-bit-in-blocks": partial(graphs.weight_only_net, block=16),
    "weights-4-bit-in-blocks": partial(graphs.weight_only_net, bits=4, block=32),
}
"""Whole graphs: at most 20 layers in a row, sums of at most 128 terms, values of order one."""


def absolute(model: ir.Model) -> ir.Model:
    """Return `model` with the absolute values of its float constants: on absolute inputs, sums of absolute products."""
    copy = ir.from_proto(ir.to_proto(model))
    for value in copy.graph.initializers.values():
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(np.abs(value.const_value.numpy()), name=value.name)
    return copy
