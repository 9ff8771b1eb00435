"""Steps of random networks of images that hand channels on, one for each way that networks do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from edgewise.testing.channel_drawing import ChannelDrawing

_MOST_CHANNELS: Final = 24


def _conv(d: ChannelDrawing) -> None:
    source = d.image()
    channels, height, width = d.images[source]
    group = (1, 1, math.gcd(channels, 2), math.gcd(channels, 3), channels)[d.below(5)]
    out = group * (1 + d.below(max(2, 8 // group)))
    d.images[d.conv(source, channels, out, kernel=1 + 2 * d.below(2), group=group)] = (out, height, width)


def _conv_transpose(d: ChannelDrawing) -> None:
    source = d.image()
    channels, height, width = d.images[source]
    if height > 6:
        return
    group = (1, math.gcd(channels, 2), channels)[d.below(3)]
    each = 1 + d.below(max(2, 6 // group))
    inputs = [source, d.builder.weight(channels, each, 2, 2, fan_in=4 * channels // group)]
    if d.chance(0.5):
        inputs.append(d.builder.weight(each * group, fan_in=4))
    name = d.builder.node("ConvTranspose", *inputs, strides=[2, 2], group=group)
    d.images[name] = (each * group, 2 * height, 2 * width)


def _batch_norm(d: ChannelDrawing) -> None:
    source = d.image()
    d.images[d.builder.batch_norm(source, d.images[source][0])] = d.images[source]


def _instance_norm(d: ChannelDrawing) -> None:
    """Add an InstanceNormalization, sometimes over groups of channels, as GroupNormalization is exported."""
    source, b = d.image(), d.builder
    channels, height, width = d.images[source]
    if d.chance(0.5):
        name = b.node("InstanceNormalization", source, d.values(channels), d.values(channels), epsilon=0.1)
    else:
        groups = math.gcd(channels, (2, 3)[d.below(2)])
        value = b.node("Reshape", source, d.integers(0, groups, -1))
        ones, zeros = (b.constant(np.full(groups, number, np.float32)) for number in (1, 0))
        value = b.node("InstanceNormalization", value, ones, zeros, epsilon=0.1)
        value = b.node("Reshape", value, d.integers(d.batch, channels, height, width))
        name = b.node("Add", b.node("Mul", value, d.values(channels, 1, 1)), d.values(1, channels, 1, 1))
    d.images[name] = d.images[source]


def _affine(d: ChannelDrawing) -> None:
    source = d.image()
    size = d.images[source][0] if d.chance(0.8) else 1
    operands = [source, d.values(*((size, 1, 1) if d.chance(0.5) else (1, size, 1, 1)))]
    operator = ("Mul", "Add", "Sub", "Div", "PRelu")[d.below(5)]
    if operator in {"Mul", "Add", "Sub"} and d.chance(0.3):
        operands.reverse()
    d.images[d.builder.node(operator, *operands)] = d.images[source]


def _activation(d: ChannelDrawing) -> None:
    source = d.image()
    operator = ("Relu", "Sigmoid", "HardSwish", "Tanh", "LeakyRelu", "Softplus", "Identity")[d.below(7)]
    d.images[d.builder.node(operator, source)] = d.images[source]


def _join(d: ChannelDrawing) -> None:
    source = d.image()
    other = d.partner(source)
    if other is None:
        channels = d.images[source][0]
        other = d.conv(d.builder.node("Relu", source), channels, channels, kernel=3)
    operator = ("Add", "Add", "Mul", "Max", "Sub")[d.below(5)]
    d.images[d.builder.node(operator, source, other)] = d.images[source]


def _concat(d: ChannelDrawing) -> None:
    source = d.image()
    others = [name for name, sizes in d.images.items() if sizes[1:] == d.images[source][1:]]
    other = others[d.below(len(others))]
    channels = d.images[source][0] + d.images[other][0]
    if channels <= _MOST_CHANNELS:
        d.images[d.builder.node("Concat", source, other, axis=1 if d.chance(0.5) else -3)] = (
            channels,
            *d.images[source][1:],
        )


def _split(d: ChannelDrawing) -> None:
    source = d.image()
    channels, height, width = d.images[source]
    if channels < 2:
        return
    if channels % 2 == 0 and d.chance(0.5):
        first, inputs = channels // 2, [source]
    else:
        first = 1 + d.below(channels - 1)
        inputs = [source, d.integers(first, channels - first)]
    names = d.builder.nodes("Split", *inputs, outputs=2, axis=1)
    for name, size in zip(names, (first, channels - first), strict=True):
        d.images[name] = (size, height, width)


def _slice(d: ChannelDrawing) -> None:
    source = d.image()
    channels, height, width = d.images[source]
    start, step = d.below(channels), (1, 1, 2, -1)[d.below(4)]
    end = 2**31 if step > 0 else -(2**31)
    if step == 1 and d.chance(0.5):
        end = start + 1 + d.below(channels - start)
    taken = len(range(channels)[start:end:step])
    stated = start - channels if d.chance(0.5) and end > channels else start
    inputs = [source, *(d.integers(number) for number in (stated, end, 1, step))]
    if step == 1 and d.chance(0.5):
        inputs.pop()
    d.images[d.builder.node("Slice", *inputs)] = (taken, height, width)


def _gather(d: ChannelDrawing) -> None:
    source = d.image()
    channels, height, width = d.images[source]
    indices = d.random.permutation(channels)[: 1 + d.below(channels)]
    d.images[d.builder.node("Gather", source, d.integers(*indices.tolist()), axis=1)] = (len(indices), height, width)


def _shuffle(d: ChannelDrawing) -> None:
    """Add a channel shuffle (Zhang et al., 2018, "ShuffleNet")."""
    source, b = d.image(), d.builder
    channels, height, width = d.images[source]
    groups = math.gcd(channels, (2, 3, 4)[d.below(3)])
    value = b.node("Reshape", source, d.integers(d.batch, groups, channels // groups, height, width))
    value = b.node("Transpose", value, perm=[0, 2, 1, 3, 4])
    first = 0 if d.chance(0.5) else d.batch
    d.images[b.node("Reshape", value, d.integers(first, channels if d.chance(0.5) else -1, height, width))] = d.images[
        source
    ]


def _squeeze_excite(d: ChannelDrawing) -> None:
    """Add channel attention (Hu et al., 2018, "Squeeze-and-Excitation Networks")."""
    source, b = d.image(), d.builder
    channels = d.images[source][0]
    hidden = 2 + d.below(3)
    if d.chance(0.5):
        value = b.node("ReduceMean", source, axes=[2, 3], keepdims=1)
        value = d.conv(b.node("Relu", d.conv(value, channels, hidden)), hidden, channels)
    else:
        value = b.node("ReduceMean", source, axes=[-1, -2], keepdims=0)
        value = d.linear(b.node("Relu", d.linear(value, channels, hidden)), hidden, channels)
        value = b.node("Unsqueeze", b.node("Unsqueeze", value, d.integers(2)), d.integers(-1))
    gate = b.node(("Sigmoid", "HardSigmoid")[d.below(2)], value)
    d.images[b.node("Mul", *((source, gate) if d.chance(0.5) else (gate, source)))] = d.images[source]


def _pixel_shuffle(d: ChannelDrawing) -> None:
    source, b = d.image(), d.builder
    channels, height, width = d.images[source]
    if height % 2 == 0 and width % 2 == 0 and channels <= 4 and d.chance(0.5):
        d.images[b.node("SpaceToDepth", source, blocksize=2)] = (4 * channels, height // 2, width // 2)
    elif height <= 6:
        out = 1 + d.below(3)
        value = d.conv(source, channels, 4 * out)
        name = b.node("DepthToSpace", value, blocksize=2, mode=("DCR", "CRD")[d.below(2)])
        d.images[name] = (out, 2 * height, 2 * width)


def _resize(d: ChannelDrawing) -> None:
    source, b = d.image(), d.builder
    channels, height, width = d.images[source]
    if height > 6:
        return
    if d.chance(0.5):
        scales = b.constant(np.array([1, 1, 2, 2], np.float32))
        name = b.node("Resize", source, "", scales, mode="nearest")
    else:
        sizes = d.integers(d.batch, channels, 2 * height, 2 * width)
        name = b.node("Resize", source, "", "", sizes, mode="linear")
    d.images[name] = (channels, 2 * height, 2 * width)


def _pool(d: ChannelDrawing) -> None:
    source = d.image()
    channels, height, width = d.images[source]
    if min(height, width) >= 2:
        name = d.builder.node(("MaxPool", "AveragePool")[d.below(2)], source, kernel_shape=[2, 2], strides=[2, 2])
        d.images[name] = (channels, height // 2, width // 2)


def _pad(d: ChannelDrawing) -> None:
    """Add channels of zeros around those that are there, and often other channels to them: a shortcut of ResNets."""
    source, b = d.image(), d.builder
    channels, height, width = d.images[source]
    before, after = d.below(3), d.below(3)
    value = b.node("Pad", source, d.integers(0, before, 0, 0, 0, after, 0, 0))
    out = channels + before + after
    if d.chance(0.7):
        value = b.node("Add", value, d.conv(source, channels, out))
    d.images[value] = (out, height, width)


def _channels_last(d: ChannelDrawing) -> None:
    source, b = d.image(), d.builder
    channels = d.images[source][0]
    value = b.node("Transpose", source, perm=[0, 2, 3, 1])
    value = b.node("Add", value, d.values(channels)) if d.chance(0.5) else b.node("Relu", value)
    if d.chance(0.5):
        value = d.linear(value, channels, channels)
    kind = d.below(4)
    if kind == 0:
        value = b.node("Softmax", value, axis=-1)
    elif kind == 1:
        value = b.node("LayerNormalization", value, d.values(channels), axis=-1, epsilon=0.1)
    d.images[b.node("Transpose", value, perm=[0, 3, 1, 2])] = d.images[source]


def to_sequence(d: ChannelDrawing) -> None:
    """Add a sequence whose rows are the pixels of an image."""
    source, b = d.image(), d.builder
    channels, height, width = d.images[source]
    if height * width <= 36:
        value = b.node("Reshape", source, d.integers(0, channels if d.chance(0.5) else 0, -1))
        d.rows[b.node("Transpose", value, perm=[0, 2, 1])] = (height * width, channels)


IMAGE_STEPS: Final[dict[str, Callable[[ChannelDrawing], None]]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "affine": _affine,
    "activation": _activation,
    "join": _join,
    "concat": _concat,
    "split": _split,
    "slice": _slice,
    "gather": _gather,
    "shuffle": _shuffle,
    "squeeze_excite": _squeeze_excite,
    "pixel_shuffle": _pixel_shuffle,
    "resize": _resize,
    "pool": _pool,
    "pad": _pad,
    "channels_last": _channels_last,
}
"""Steps that make an image of images."""
