"""Random small networks, drawn from the patterns that passes look for, with everything that can be in their way.

Each step takes a value that exists already, so that values have several readers; outputs are drawn from the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from edgewise.testing.graphs import GraphBuilder


class _Drawing:
    """A network in the making: images `[1, C, H, W]` by name, with their shapes."""

    def __init__(self, seed: int, opset: int) -> None:
        self.random = np.random.default_rng(seed)
        self.builder = GraphBuilder("random", opset=opset, seed=seed)
        self.opset = opset
        self.shapes: dict[str, tuple[int, int, int]] = {}

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def below(self, bound: int) -> int:
        return int(self.random.integers(bound))

    def pick(self) -> str:
        """Return an image: mostly the newest, so that chains get long, else any, which gives it another reader."""
        names = list(self.shapes)
        return names[-1] if self.chance(0.7) else names[self.below(len(names))]

    def per_channel(self, channels: int) -> str:
        size = channels if self.chance(0.7) else 1
        values = self.random.uniform(0.5, 1.5, (size, 1, 1) if self.chance(0.5) else (1, size, 1, 1))
        return self.builder.constant(values.astype(np.float32))


def _conv(d: _Drawing) -> None:
    source = d.pick()
    channels, height, width = d.shapes[source]
    group = math.gcd(channels, 2) if d.chance(0.3) else 1
    group = channels if d.chance(0.2) else group
    out = group * (1 + d.below(3))
    kernel = 1 if d.chance(0.4) or min(height, width) < 3 else 3
    pads = [d.below(2) for _ in range(4)] if d.chance(0.5) else [0] * 4
    stride = 1 + d.below(2)
    inputs = [source, d.builder.weight(out, channels // group, kernel, kernel)]
    if d.chance(0.5):
        inputs.append(d.builder.weight(out, fan_in=4))
    name = d.builder.node("Conv", *inputs, pads=pads, strides=[stride, stride], group=group)
    sizes = [(size + pads[i] + pads[i + 2] - kernel) // stride + 1 for i, size in enumerate((height, width))]
    d.shapes[name] = (out, sizes[0], sizes[1])


def _conv_transpose(d: _Drawing) -> None:
    source = d.pick()
    channels, height, width = d.shapes[source]
    # In one group: ONNX's reference evaluator (1.23) fails on several.
    out = 1 + d.below(3)
    weight = d.builder.weight(channels, out, 2, 2, fan_in=4 * channels)
    d.shapes[d.builder.node("ConvTranspose", source, weight, strides=[2, 2])] = (out, 2 * height, 2 * width)


def _batch_norm(d: _Drawing) -> None:
    source = d.pick()
    d.shapes[d.builder.batch_norm(source, d.shapes[source][0])] = d.shapes[source]


def _affine(d: _Drawing) -> None:
    source = d.pick()
    operator = ("Mul", "Add", "Sub", "Div")[d.below(4)]
    operands = [source, d.per_channel(d.shapes[source][0])]
    name = d.builder.node(operator, *(operands if d.chance(0.7) or operator == "Div" else operands[::-1]))
    d.shapes[name] = d.shapes[source]


def _activation(d: _Drawing) -> None:
    source, b = d.pick(), d.builder
    kind = d.below(6)
    if kind == 0:
        name = b.node("Relu", source)
    elif kind == 1:
        name = b.node("Clip", source, b.constant(np.float32(-1 + d.below(2))), b.constant(np.float32(6)))
    elif kind == 2:
        name = b.node(("Max", "Min")[d.below(2)], source, b.constant(np.float32(d.below(3))))
    elif kind == 3:
        inner = b.node("Clip", b.node("Add", source, b.constant(np.float32(3))), *_bounds(b, 0, 6))
        name = b.node("Div", b.node("Mul", source, inner), b.constant(np.float32(6)))
    elif kind == 4:
        erf = b.node("Erf", b.node("Mul", source, b.constant(np.float32(math.sqrt(0.5)))))
        half = b.node("Mul", source, b.constant(np.float32(0.5)))
        name = b.node("Mul", half, b.node("Add", b.constant(np.float32(1)), erf))
    else:
        name = b.node("Sigmoid", source)
    d.shapes[name] = d.shapes[source]


def _bounds(b: GraphBuilder, low: float, high: float) -> tuple[str, str]:
    return b.constant(np.float32(low)), b.constant(np.float32(high))


def _join(d: _Drawing) -> None:
    source = d.pick()
    partners = [name for name, shape in d.shapes.items() if shape[1:] == d.shapes[source][1:]]
    other = partners[d.below(len(partners))]
    if d.shapes[other] == d.shapes[source] and d.chance(0.6):
        d.shapes[d.builder.node("Add", source, other)] = d.shapes[source]
        return
    channels = d.shapes[source][0] + d.shapes[other][0]
    if channels <= 24:
        d.shapes[d.builder.node("Concat", source, other, axis=1)] = (channels, *d.shapes[source][1:])


def _pad(d: _Drawing) -> None:
    source, b = d.pick(), d.builder
    channels, height, width = d.shapes[source]
    pads = [0, 0, *(d.below(2) for _ in range(2)), 0, 0, *(d.below(2) for _ in range(2))]
    inputs = [source, b.constant(np.array(pads, np.int64))]
    if d.chance(0.6):
        inputs.append(b.constant(np.float32(0 if d.chance(0.7) else 1)))
    name = b.node("Pad", *inputs, mode="constant")
    d.shapes[name] = (channels, height + pads[2] + pads[6], width + pads[3] + pads[7])


def _pool(d: _Drawing) -> None:
    source = d.pick()
    channels, height, width = d.shapes[source]
    if min(height, width) < 2:
        return
    operator = ("MaxPool", "AveragePool")[d.below(2)]
    options: dict[str, Any] = {"count_include_pad": d.below(2)} if operator == "AveragePool" else {}
    pads = [d.below(2) for _ in range(4)] if d.chance(0.3) else [0] * 4
    if operator == "MaxPool":
        # onnx.reference (1.23) gives wrong shapes and values for pads that are not all the same.
        pads = pads[:1] * 4
    name = d.builder.node(operator, source, kernel_shape=[2, 2], pads=pads, **options)
    d.shapes[name] = (channels, height + pads[0] + pads[2] - 1, width + pads[1] + pads[3] - 1)


def _shortcut(d: _Drawing) -> None:
    source, b = d.pick(), d.builder
    channels, height, width = d.shapes[source]
    ends = b.constant(np.array([2**40], np.int64))
    value = source
    for axis in (2, 3):
        start, step = b.constant(np.array([0], np.int64)), b.constant(np.array([2], np.int64))
        value = b.node("Slice", value, start, ends, b.constant(np.array([axis], np.int64)), step)
    extra = d.below(3)
    name = b.node("Pad", value, b.constant(np.array([0, extra, 0, 0, 0, extra, 0, 0], np.int64)))
    d.shapes[name] = (channels + 2 * extra, -(-height // 2), -(-width // 2))


def _channels_last(d: _Drawing) -> None:
    source, b = d.pick(), d.builder
    channels = d.shapes[source][0]
    value = b.node("Transpose", source, perm=[0, 2, 3, 1])
    if d.chance(0.5):
        value = b.node("Add", value, b.constant(d.random.normal(size=channels).astype(np.float32)))
    value = b.node("Softmax", value, axis=-1) if d.chance(0.4) else b.node("Relu", value)
    if d.chance(0.3):
        value = _layer_norm(d, value, channels)
    d.shapes[b.node("Transpose", value, perm=[0, 3, 1, 2])] = d.shapes[source]


def _layer_norm(d: _Drawing, value: str, width: int) -> str:
    b = d.builder
    axes: dict[str, Any] = {"axes": [-1]} if d.opset < 18 else {}
    extra = [] if d.opset < 18 else [b.constant(np.array([-1], np.int64))]
    mean = b.node("ReduceMean", value, *extra, **axes)
    centred = b.node("Sub", value, mean)
    variance = b.node("ReduceMean", b.node("Mul", centred, centred), *extra, **axes)
    root = b.node("Sqrt", b.node("Add", variance, b.constant(np.float32(0.1))))
    gamma = b.constant(d.random.uniform(0.5, 1.5, width).astype(np.float32))
    beta = b.constant(d.random.normal(size=width).astype(np.float32))
    if d.chance(0.5):
        return b.node("Add", b.node("Mul", b.node("Div", centred, root), gamma), beta)
    factor = b.node("Mul", b.node("Reciprocal", root), gamma)
    offset = b.node("Sub", beta, b.node("Mul", mean, factor))
    return b.node("Add", b.node("Mul", value, factor), offset)


def _views(d: _Drawing) -> None:
    source, b = d.pick(), d.builder
    channels, height, width = d.shapes[source]
    value = b.node("Reshape", source, b.constant(np.array([1, channels, -1], np.int64)))
    value = b.node("Unsqueeze", value, b.constant(np.array([0], np.int64)))
    value = b.node("Identity", value)
    shape = b.constant(np.array([1, channels, height, width], np.int64))
    d.shapes[b.node("Reshape", value, shape)] = d.shapes[source]


_STEPS: Final[tuple[Callable[[_Drawing], None], ...]] = (
    *(_conv, _conv, _conv, _batch_norm, _batch_norm, _affine, _activation, _activation),
    *(_join, _pad, _pool, _shortcut, _channels_last, _views, _conv_transpose),
)


def random_network(seed: int, *, steps: int = 12, opset: int = 17) -> ir.Model:
    """Return a random network with one image in, and a vector and possibly images from the middle out.

    Args:
        seed: The same seed gives the same network.
        steps: Number of patterns in a row, >= 1.
        opset: Version of the standard operators, 13 to 23.
    """
    d = _Drawing(seed, opset)
    shape = (1 + d.below(4), 5 + d.below(5), 5 + d.below(5))
    d.shapes[d.builder.input("x", (1, *shape))] = shape
    for _ in range(steps):
        _STEPS[d.below(len(_STEPS))](d)
    _head(d)
    for number, name in enumerate([name for name in list(d.shapes)[1:] if d.chance(0.1)]):
        d.builder.output(name, f"middle_{number}", (1, *d.shapes[name]))
    return d.builder.build()


def _head(d: _Drawing) -> None:
    b, source = d.builder, list(d.shapes)[-1]
    channels = d.shapes[source][0]
    value = b.node("Flatten", b.node("GlobalAveragePool", source))
    hidden = 1 + d.below(5)
    if d.chance(0.5):
        value = b.node("MatMul", value, b.weight(channels, hidden, fan_in=channels))
        value = b.node("Add", value, b.weight(hidden, fan_in=4))
    else:
        value = b.node("Gemm", value, b.weight(hidden, channels), transB=1)
    value = b.batch_norm(value, hidden) if d.chance(0.5) else value
    value = b.node("Gemm", value, b.weight(hidden, 3), b.weight(3, fan_in=4), alpha=0.5, beta=2.0)
    b.output(value, "y", (1, 3))
