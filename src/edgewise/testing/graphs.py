"""Small ONNX models of every kind that edgewise has to handle, with seeded weights, for everyone's tests.

Each function returns a new, valid model with inferred shapes. `random_feeds` makes inputs for any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper, shape_inference

from edgewise.records.tensors import Array

OPSET = 17
"""Version of the standard operator set of these models unless a function takes another one."""

_IR_VERSION = 10  # the newest that every supported runtime reads
_TWO_BIT_OPSET, _TWO_BIT_IR_VERSION = 25, 13  # the first that have 2-bit integers

Dimension = int | str


class GraphBuilder:
    """Builds a model node by node; `build` checks it.

    Args:
        name: Name of the graph.
        opset: Version of the standard operator set.
        seed: Seed of the weights that `weight` draws.
    """

    def __init__(self, name: str, *, opset: int = OPSET, seed: int = 0) -> None:
        self._name = name
        self._opset = opset
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._count = 0

    def input(self, name: str, shape: Sequence[Dimension], dtype: str = "float32") -> str:
        """Declare an input; a string in `shape` is a dynamic dimension. Returns `name`."""
        self._inputs.append(helper.make_tensor_value_info(name, _element_type(dtype), list(shape)))
        return name

    def constant(self, value: npt.ArrayLike, name: str | None = None) -> str:
        """Add an initializer that holds `value` (an array keeps its type). Returns its name."""
        name = name or self._unique("constant")
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, fan_in: int | None = None, name: str | None = None) -> str:
        """Add a float32 initializer with normal values of variance `1 / fan_in`. Returns its name.

        Args:
            shape: Its dimensions.
            fan_in: Number of terms that each output sums; all dimensions but the first where it is None.
            name: Its name, or None for a made one.
        """
        fan_in = fan_in or max(1, math.prod(shape[1:]))
        values = self._random.standard_normal(shape) / math.sqrt(fan_in)
        return self.constant(values.astype(np.float32), name or self._unique("weight"))

    def node(self, operator: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output. Returns the output's name, which is the node's with `_out` behind it."""
        return self.nodes(operator, *inputs, outputs=1, name=name, domain=domain, **attributes)[0]

    def nodes(
        self, operator: str, *inputs: str, outputs: int, name: str | None = None, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs. Returns their names."""
        name = name or self._unique(operator.lower())
        names = tuple(f"{name}_out" if index == 0 else f"{name}_out{index}" for index in range(outputs))
        self._nodes.append(
            helper.make_node(operator, list(inputs), list(names), name=name, domain=domain, **attributes)
        )
        return names

    def output(self, value: str, name: str, shape: Sequence[Dimension] | None = None, dtype: str = "float32") -> None:
        """Declare `value` as the model's output `name`, through no extra node: the value is renamed."""
        for node in self._nodes:
            node.output[:] = [name if given == value else given for given in node.output]
            node.input[:] = [name if given == value else given for given in node.input]
        info = helper.make_tensor_value_info(name, _element_type(dtype), None if shape is None else list(shape))
        self._outputs.append(info)

    def batch_norm(self, value: str, channels: int, name: str | None = None) -> str:
        """Add a BatchNormalization with statistics away from the trivial ones. Returns its output's name."""
        draw = self._random
        parameters = (
            draw.uniform(0.5, 1.5, channels),
            draw.normal(0, 0.2, channels),
            draw.normal(0, 0.2, channels),
            draw.uniform(0.5, 1.5, channels),
        )
        names = [self.constant(values.astype(np.float32)) for values in parameters]
        return self.node("BatchNormalization", value, *names, name=name, epsilon=1e-5)

    def graph(self) -> onnx.GraphProto:
        """Return the graph as it is now, for use as a subgraph of `If` or `Loop`."""
        return helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, initializer=self._constants)

    def build(self) -> ir.Model:
        """Return the checked model with inferred shapes."""
        domains = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", self._opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
        version = _IR_VERSION if self._opset < _TWO_BIT_OPSET else _TWO_BIT_IR_VERSION
        model = helper.make_model(
            self.graph(), opset_imports=opsets, ir_version=version, producer_name="edgewise.testing"
        )
        model = shape_inference.infer_shapes(model, data_prop=True)  # first: outputs may come without a shape
        onnx.checker.check_model(model)
        return ir.from_proto(shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))

    def _unique(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def _element_type(dtype: str) -> int:
    return int(ir.DataType.from_numpy(np.dtype(dtype))) if dtype != "bfloat16" else int(ir.DataType.BFLOAT16)


def random_feeds(model: ir.Model, *, seed: int = 0, dynamic: int = 2) -> dict[str, Array]:
    """Return standard-normal inputs (integers: 0 to 9, booleans: fair) for `model`.

    Args:
        model: The model.
        seed: Seed.
        dynamic: Size of every dynamic dimension.
    """
    random = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        shape = tuple(size if isinstance(size, int) else dynamic for size in value.shape or ())
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if dtype == np.bool_:
            feeds[str(value.name)] = np.asarray(random.random(shape) < 0.5)
        elif np.issubdtype(dtype, np.integer):
            feeds[str(value.name)] = np.asarray(random.integers(0, 10, shape), dtype)
        else:
            feeds[str(value.name)] = np.asarray(random.standard_normal(shape)).astype(dtype)
    return feeds


def conv_net(*, batch: Dimension = 1, channels: int = 8, size: int = 16, classes: int = 10, seed: int = 0) -> ir.Model:
    """Return a small residual net: Conv+BN+Relu, one residual block, pooling, Gemm.

    Input `image` `[batch, 3, size, size]`, output `scores` `[batch, classes]`.
    """
    b = GraphBuilder("conv_net", seed=seed)
    stem = _conv_bn(b, b.input("image", (batch, 3, size, size)), 3, channels, "stem")
    stem = b.node("Relu", stem, name="stem_relu")
    branch = b.node("Relu", _conv_bn(b, stem, channels, channels, "block_a"), name="block_a_relu")
    branch = _conv_bn(b, branch, channels, channels, "block_b")
    joined = b.node("Relu", b.node("Add", branch, stem, name="block_add"), name="block_relu")
    pooled = b.node("Flatten", b.node("GlobalAveragePool", joined, name="pool"), name="flatten")
    scores = b.node("Gemm", pooled, b.weight(classes, channels), b.weight(classes, fan_in=4), name="head", transB=1)
    b.output(scores, "scores", (batch, classes))
    return b.build()


def _conv_bn(b: GraphBuilder, value: str, channels_in: int, channels_out: int, name: str) -> str:
    kernel = b.weight(channels_out, channels_in, 3, 3, name=f"{name}_weight")
    value = b.node("Conv", value, kernel, name=f"{name}_conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    return b.batch_norm(value, channels_out, f"{name}_bn")


def depthwise_net(*, batch: Dimension = 1, channels: int = 16, size: int = 16, seed: int = 0) -> ir.Model:
    """Return an inverted residual as mobile nets have it: 1x1, depthwise 3x3, 1x1 Conv, each BN, Relu6 by Clip.

    Input `image` `[batch, 3, size, size]`, output `scores` `[batch, 10]`.
    """
    b = GraphBuilder("depthwise_net", seed=seed)
    low, high = b.constant(np.float32(0)), b.constant(np.float32(6))
    value = b.node(
        "Clip", _conv_bn(b, b.input("image", (batch, 3, size, size)), 3, 8, "stem"), low, high, name="stem_clip"
    )
    skip = value
    value = b.node("Conv", value, b.weight(channels, 8, 1, 1), name="expand_conv")
    value = b.node("Clip", b.batch_norm(value, channels, "expand_bn"), low, high, name="expand_clip")
    value = b.node("Conv", value, b.weight(channels, 1, 3, 3), name="depthwise_conv", group=channels, pads=[1, 1, 1, 1])
    value = b.node("Clip", b.batch_norm(value, channels, "depthwise_bn"), low, high, name="depthwise_clip")
    value = b.node("Conv", value, b.weight(8, channels, 1, 1), name="project_conv")
    value = b.node("Add", b.batch_norm(value, 8, "project_bn"), skip, name="residual_add")
    value = b.node("Flatten", b.node("GlobalAveragePool", value, name="pool"), name="flatten")
    b.output(b.node("Gemm", value, b.weight(10, 8), name="head", transB=1), "scores", (batch, 10))
    return b.build()


def mlp(*, batch: Dimension = 1, features: int = 16, hidden: int = 32, seed: int = 0) -> ir.Model:
    """Return MatMul + Add, Relu, Gemm, Softmax. Input `x` `[batch, features]`, output `probabilities` `[batch, 4]`."""
    b = GraphBuilder("mlp", seed=seed)
    value = b.node("MatMul", b.input("x", (batch, features)), b.weight(features, hidden, fan_in=features), name="first")
    value = b.node("Relu", b.node("Add", value, b.weight(hidden, fan_in=4), name="first_bias"), name="relu")
    value = b.node("Gemm", value, b.weight(4, hidden), b.weight(4, fan_in=4), name="second", transB=1)
    b.output(b.node("Softmax", value, name="softmax", axis=-1), "probabilities", (batch, 4))
    return b.build()


def transformer_block(
    *, batch: Dimension = 1, length: int = 8, width: int = 16, heads: int = 2, standard: bool = False, seed: int = 0
) -> ir.Model:
    """Return a pre-norm transformer block. Input `tokens` and output `out`, both `[batch, length, width]`.

    Args:
        batch: Batch size.
        length: Number of tokens.
        width: Features of a token, a multiple of `heads`.
        heads: Attention heads.
        standard: LayerNormalization and Gelu as single standard operators (opset 20). Otherwise they are written
            out in primitive operators, as exporters before opset 17 did.
        seed: Seed of the weights.
    """
    b = GraphBuilder("transformer_block", opset=20 if standard else 13, seed=seed)
    tokens = b.input("tokens", (batch, length, width))
    normed = _layer_norm(b, tokens, width, "norm1", standard=standard)
    attended = b.node("Add", tokens, _attention(b, normed, (length, width, heads)), name="residual1")
    normed = _layer_norm(b, attended, width, "norm2", standard=standard)
    value = _linear(b, normed, width, 4 * width, "mlp1")
    value = _gelu(b, value, standard=standard)
    value = _linear(b, value, 4 * width, width, "mlp2")
    b.output(b.node("Add", attended, value, name="residual2"), "out", (batch, length, width))
    return b.build()


def _linear(b: GraphBuilder, value: str, features_in: int, features_out: int, name: str) -> str:
    value = b.node("MatMul", value, b.weight(features_in, features_out, fan_in=features_in), name=f"{name}_matmul")
    return b.node("Add", value, b.weight(features_out, fan_in=4), name=f"{name}_add")


def _layer_norm(b: GraphBuilder, value: str, width: int, name: str, *, standard: bool) -> str:
    scale, bias = b.constant(np.linspace(0.5, 1.5, width, dtype=np.float32)), b.weight(width, fan_in=16)
    if standard:
        return b.node("LayerNormalization", value, scale, bias, name=name, axis=-1, epsilon=1e-5)
    centred = b.node("Sub", value, b.node("ReduceMean", value, axes=[-1]), name=f"{name}_sub")
    squares = b.node("Pow", centred, b.constant(np.float32(2)))
    variance = b.node("Add", b.node("ReduceMean", squares, axes=[-1]), b.constant(np.float32(1e-5)))
    normed = b.node("Div", centred, b.node("Sqrt", variance), name=f"{name}_div")
    return b.node("Add", b.node("Mul", normed, scale), bias, name=f"{name}_add")


def _gelu(b: GraphBuilder, value: str, *, standard: bool) -> str:
    if standard:
        return b.node("Gelu", value, name="gelu")
    erf = b.node("Erf", b.node("Div", value, b.constant(np.float32(math.sqrt(2)))), name="gelu_erf")
    product = b.node("Mul", value, b.node("Add", erf, b.constant(np.float32(1))))
    return b.node("Mul", product, b.constant(np.float32(0.5)), name="gelu_half")


def _attention(b: GraphBuilder, value: str, sizes: tuple[int, int, int]) -> str:
    length, width, heads = sizes
    split = b.constant(np.array([0, length, heads, width // heads], np.int64))
    parts = []
    for name, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        part = b.node("Reshape", _linear(b, value, width, width, name), split, name=f"{name}_split")
        parts.append(b.node("Transpose", part, perm=list(order), name=f"{name}_heads"))
    query, key, content = parts
    scale = b.constant(np.float32(1 / math.sqrt(width // heads)))
    scores = b.node("Mul", b.node("MatMul", query, key, name="qk_matmul"), scale, name="qk_scale")
    mixed = b.node("MatMul", b.node("Softmax", scores, axis=-1, name="attention"), content, name="pv_matmul")
    merged = b.node("Transpose", mixed, perm=[0, 2, 1, 3], name="merge_heads")
    merged = b.node("Reshape", merged, b.constant(np.array([0, length, width], np.int64)), name="merge")
    return _linear(b, merged, width, width, "project")


def lstm_net(*, length: int = 6, features: int = 5, hidden: int = 7, seed: int = 0) -> ir.Model:
    """Return an LSTM layer with a Gemm on its last state. Input `x` `[length, 1, features]`, output `y` `[1, 1]`."""
    b = GraphBuilder("lstm_net", seed=seed)
    x = b.input("x", (length, 1, features))
    w = b.weight(1, 4 * hidden, features, fan_in=features)
    r = b.weight(1, 4 * hidden, hidden, fan_in=hidden)
    outputs = b.nodes("LSTM", x, w, r, b.weight(1, 8 * hidden, fan_in=4), outputs=2, name="lstm", hidden_size=hidden)
    last = b.node("Squeeze", outputs[1], b.constant(np.array([0], np.int64)), name="squeeze")
    b.output(b.node("Gemm", last, b.weight(1, hidden), name="head", transB=1), "y", (1, 1))
    return b.build()


def branching_net(*, seed: int = 0) -> ir.Model:
    """Return a model with an If: output `y` is `2 x` where the mean of `x` `[1, 8]` is positive, else `x - 1`."""
    branches = {}
    for name, operator, value in (("then_branch", "Mul", 2.0), ("else_branch", "Sub", 1.0)):
        inner = GraphBuilder(name, seed=seed)
        result = inner.node(operator, "x", inner.constant(np.float32(value), f"{name}_value"), name=f"{name}_node")
        inner.output(result, f"{name}_result", (1, 8))
        branches[name] = inner.graph()
    b = GraphBuilder("branching_net", seed=seed)
    mean = b.node("ReduceMean", b.input("x", (1, 8)), keepdims=0, name="mean")
    positive = b.node("Greater", mean, b.constant(np.float32(0)), name="positive")
    b.output(b.node("If", positive, name="if", **branches), "y", (1, 8))
    return b.build()


def recurrent_cell(*, features: int = 4, hidden: int = 8, seed: int = 0) -> ir.Model:
    """Return one step of a recurrent net: inputs `x` `[1, features]`, `state` `[1, hidden]`; outputs `y`, `new_state`.

    `new_state = tanh(x W + state U)`, `y = new_state V`, shape `[1, 2]`.
    """
    b = GraphBuilder("recurrent_cell", seed=seed)
    x, state = b.input("x", (1, features)), b.input("state", (1, hidden))
    from_x = b.node("MatMul", x, b.weight(features, hidden, fan_in=features), name="from_x")
    from_state = b.node("MatMul", state, b.weight(hidden, hidden), name="from_state")
    new = b.node("Tanh", b.node("Add", from_x, from_state, name="sum"), name="tanh")
    b.output(b.node("MatMul", new, b.weight(hidden, 2, fan_in=hidden), name="readout"), "y", (1, 2))
    b.output(new, "new_state", (1, hidden))
    return b.build()


def two_input_net(*, batch: Dimension = 1, seed: int = 0) -> ir.Model:
    """Return a model of `left` `[batch, 6]` and `right` `[batch, 3]`: concatenated, then Gemm to `y` `[batch, 5]`."""
    b = GraphBuilder("two_input_net", seed=seed)
    joined = b.node("Concat", b.input("left", (batch, 6)), b.input("right", (batch, 3)), axis=1, name="concat")
    b.output(b.node("Gemm", joined, b.weight(5, 9), name="gemm", transB=1), "y", (batch, 5))
    return b.build()


def constant_output_net() -> ir.Model:
    """Return a model whose output `y` is all zeros whatever the input `x` `[1, 4]` is (finite)."""
    b = GraphBuilder("constant_output_net")
    b.output(b.node("Mul", b.input("x", (1, 4)), b.constant(np.zeros((1, 4), np.float32)), name="mul"), "y", (1, 4))
    return b.build()


def custom_operator_net() -> ir.Model:
    """Return a model with an operator that no runtime has: `example.com::Frobnicate` between two Relus."""
    b = GraphBuilder("custom_operator_net")
    value = b.node("Relu", b.input("x", (1, 4)), name="relu_in")
    value = b.node("Frobnicate", value, name="frobnicate", domain="example.com")
    b.output(b.node("Relu", value, name="relu_out"), "y", (1, 4))
    return b.build()


def half_weights_net(*, seed: int = 0) -> ir.Model:
    """Return a Gemm whose weight is stored as float16 and cast to float32. `x` and `y` are `[1, 64]`."""
    b = GraphBuilder("half_weights_net", seed=seed)
    stored = b.constant(
        np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float16) / np.float16(8), "half"
    )
    weight = b.node("Cast", stored, to=onnx.TensorProto.FLOAT, name="widen")
    b.output(b.node("Gemm", b.input("x", (1, 64)), weight, name="gemm", transB=1), "y", (1, 64))
    return b.build()


def quantized_conv(
    *,
    batch: Dimension = 1,
    channels: int = 8,
    size: int = 8,
    activation: str = "uint8",
    opset: int = OPSET,
    seed: int = 0,
) -> ir.Model:
    """Return one int8 Conv as standard QDQ: per-channel weight, int32 bias, per-tensor activations.

    Input `image` `[batch, channels, size, size]` is quantized with scale 1/32, the output `y` with 1/16, so that
    results are multiples of 1/16. Weights stay within 7 bits: kernels without a dot-product instruction are exact.
    """
    b = GraphBuilder("quantized_conv", opset=opset, seed=seed)
    random = np.random.default_rng(seed)
    weight = random.integers(-63, 64, (channels, channels, 3, 3)).astype(np.int8)
    scales = (random.uniform(0.5, 1.0, channels) / (64 * math.sqrt(channels * 9))).astype(np.float32)
    value = _quantize(b, b.input("image", (batch, channels, size, size)), 1 / 32, activation, "in")
    kernel = b.node("DequantizeLinear", b.constant(weight), b.constant(scales), name="weight_dq", axis=0)
    bias_scale = b.constant((scales * np.float32(1 / 32)).astype(np.float32))
    bias_values = random.integers(-2000, 2000, channels).astype(np.int32)
    zero = b.constant(np.zeros(channels, np.int32))
    bias = b.node("DequantizeLinear", b.constant(bias_values), bias_scale, zero, name="bias_dq", axis=0)
    value = b.node("Conv", value, kernel, bias, name="conv", pads=[1, 1, 1, 1])
    b.output(_quantize(b, value, 1 / 16, activation, "out"), "y", (batch, channels, size, size))
    return b.build()


def quantized_gemm(
    *,
    batch: Dimension = 1,
    features: int = 16,
    outputs: int = 8,
    activation: str = "uint8",
    opset: int = OPSET,
    seed: int = 0,
) -> ir.Model:
    """Return one int8 MatMul as standard QDQ with a per-column weight.

    Input `x` `[batch, features]` is quantized with scale 1/32, the output `y` `[batch, outputs]` with 1/16.
    """
    b = GraphBuilder("quantized_gemm", opset=opset, seed=seed)
    random = np.random.default_rng(seed)
    weight = random.integers(-63, 64, (features, outputs)).astype(np.int8)
    scales = (random.uniform(0.5, 1.0, outputs) / (64 * math.sqrt(features))).astype(np.float32)
    value = _quantize(b, b.input("x", (batch, features)), 1 / 32, activation, "in")
    matrix = b.node("DequantizeLinear", b.constant(weight), b.constant(scales), name="weight_dq", axis=1)
    value = b.node("MatMul", value, matrix, name="matmul")
    b.output(_quantize(b, value, 1 / 16, activation, "out"), "y", (batch, outputs))
    return b.build()


def weight_only_matmul(
    *, inner: int = 64, outputs: int = 16, bits: int = 8, block: int = 32, rows: int = 4, seed: int = 0
) -> ir.Model:
    """Return a float MatMul whose weight is stored in integers with one scale a block of rows.

    Runtimes fuse it and may round the activations to 8 bits on the way, which nobody asked for.
    Input `x` `[rows, inner]`, output `y` `[rows, outputs]`. With 2 bits it has opset 25, else 21.
    """
    b = GraphBuilder("weight_only_matmul", opset=_opset_of(bits), seed=seed)
    matrix = _stored_weight(b, (inner, outputs), bits=bits, fan_in=inner, axis=1, block=block)
    b.output(b.node("MatMul", b.input("x", (rows, inner)), matrix, name="matmul"), "y", (rows, outputs))
    return b.build()


def weight_only_net(*, channels: int = 32, size: int = 8, bits: int = 8, block: int = 0, seed: int = 0) -> ir.Model:
    """Return a small network with float activations whose weights are stored in integers.

    Conv with a kernel, depthwise Conv, pointwise Conv, ConvTranspose, mean, Gemm; `block` input channels share a scale,
    or all of an output channel where it is 0. Input `image` `[1, 3, size, size]`, output `scores` `[1, 10]`. With 2
    bits it has opset 25, else 21.
    """
    b = GraphBuilder("weight_only_net", opset=_opset_of(bits), seed=seed)
    value = b.node("Conv", b.input("image", (1, 3, size, size)), b.weight(channels, 3, 3, 3), name="stem")
    kernel = _stored_weight(b, (channels, channels, 3, 3), bits=bits, fan_in=9 * channels, axis=0, block=block)
    value = b.node("Relu", b.node("Conv", value, kernel, b.weight(channels, fan_in=4), name="wide"), name="rectify")
    kernel = _stored_weight(b, (channels, 1, 3, 3), bits=bits, fan_in=9, axis=0, block=0)
    value = b.node("Conv", value, kernel, name="deep", group=channels, pads=[1, 1, 1, 1])
    kernel = _stored_weight(b, (channels, channels, 1, 1), bits=bits, fan_in=channels, axis=0, block=block)
    value = b.node("Conv", value, kernel, name="point")
    kernel = _stored_weight(b, (channels, channels, 2, 2), bits=bits, fan_in=4 * channels, axis=1, block=block)
    value = b.node("ConvTranspose", value, kernel, name="up", strides=[2, 2])
    value = b.node("Flatten", b.node("GlobalAveragePool", value, name="mean"), name="flat")
    matrix = _stored_weight(b, (10, channels), bits=bits, fan_in=channels, axis=0, block=block)
    b.output(b.node("Gemm", value, matrix, b.weight(10, fan_in=4), name="head", transB=1), "scores", (1, 10))
    return b.build()


def _opset_of(bits: int) -> int:
    return _TWO_BIT_OPSET if bits == 2 else 21


def _stored_weight(b: GraphBuilder, shape: tuple[int, ...], *, bits: int, fan_in: int, axis: int, block: int) -> str:
    """Return integers, dequantized along the axis of the outputs, or in blocks along that of the inputs."""
    random = np.random.default_rng(len(b.graph().node))
    largest = 2 ** (bits - 1) - 1
    dtype = {8: ir.DataType.INT8, 4: ir.DataType.INT4, 2: ir.DataType.INT2}[bits]
    stored = random.integers(-largest, largest + 1, shape).astype(dtype.numpy())
    size: tuple[int, ...] = (shape[axis],)
    attributes: dict[str, Any] = {"axis": axis}
    if block:
        inputs = 1 - axis
        size = tuple(count // block if k == inputs else count for k, count in enumerate(shape))
        attributes = {"axis": inputs, "block_size": block}
    scales = random.uniform(0.5, 1.0, size) / (largest * math.sqrt(fan_in))
    return b.node("DequantizeLinear", b.constant(stored), b.constant(scales.astype(np.float32)), **attributes)


def _quantize(b: GraphBuilder, value: str, scale: float, activation: str, name: str) -> str:
    step = b.constant(np.float32(scale))
    zero = b.constant(np.array(128 if activation == "uint8" else 0, activation))
    value = b.node("QuantizeLinear", value, step, zero, name=f"{name}_q")
    return b.node("DequantizeLinear", value, step, zero, name=f"{name}_dq")
