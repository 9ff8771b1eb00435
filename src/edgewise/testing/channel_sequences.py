"""Steps of random networks of sequences that hand channels, heads and hidden units on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from edgewise.testing.channel_drawing import ChannelDrawing


def to_image(d: ChannelDrawing) -> None:
    """Add an image, one pixel wide, whose pixels are the rows of a sequence."""
    source, b = d.sequence(), d.builder
    length, width = d.rows[source]
    value = b.node("Transpose", source, perm=[0, 2, 1])
    d.images[b.node("Unsqueeze", value, d.integers(3))] = (width, length, 1)


def _linear(d: ChannelDrawing) -> None:
    source = d.sequence()
    length, width = d.rows[source]
    out = 2 + d.below(6)
    d.rows[d.linear(source, width, out)] = (length, out)


def _mlp(d: ChannelDrawing) -> None:
    """Add a residual MLP behind a LayerNormalization, or one with gates (Shazeer, 2020, "GLU Variants")."""
    source, b = d.sequence(), d.builder
    length, width = d.rows[source]
    hidden = 2 + d.below(6)
    value = source
    if d.chance(0.5):
        value = b.node("LayerNormalization", value, d.values(width), d.values(width), axis=-1, epsilon=0.1)
    if d.chance(0.5):
        first, second = b.nodes("Split", d.linear(value, width, 2 * hidden), outputs=2, axis=-1)
        value = b.node("Mul", first, b.node("Sigmoid", second))
    else:
        value = b.node("Relu", d.linear(value, width, hidden))
    d.rows[b.node("Add", source, d.linear(value, hidden, width))] = (length, width)


def _gemm(d: ChannelDrawing) -> None:
    """Add a Gemm over flat rows."""
    source, b = d.sequence(), d.builder
    length, width = d.rows[source]
    out = 2 + d.below(6)
    flat = b.node("Reshape", source, d.integers(-1, width))
    transposed = d.below(2)
    weight = b.weight(*((out, width) if transposed else (width, out)), fan_in=width)
    flat = b.node("Gemm", flat, weight, b.weight(out, fan_in=4), transB=transposed, alpha=0.5)
    d.rows[b.node("Reshape", flat, d.integers(d.batch, length, out))] = (length, out)


def _heads(d: ChannelDrawing, value: str, length: int, heads: int, depth: int) -> str:
    first = 0 if d.chance(0.5) else d.batch
    value = d.builder.node("Reshape", value, d.integers(first, length, heads, -1 if d.chance(0.5) else depth))
    return d.builder.node("Transpose", value, perm=[0, 2, 1, 3])


def _attention(d: ChannelDrawing) -> None:
    """Add attention of several heads, of which some may share their keys and values (Ainslie et al., 2023, "GQA")."""
    source, b = d.sequence(), d.builder
    length, width = d.rows[source]
    shared, heads = ((1, 1), (1, 2), (1, 3), (2, 2), (3, 1))[d.below(5)]
    depth, content = 2 + d.below(2), 2 + d.below(2)
    query = _heads(d, d.linear(source, width, heads * shared * depth), length, heads * shared, depth)
    key = _heads(d, d.linear(source, width, heads * depth), length, heads, depth)
    value = _heads(d, d.linear(source, width, heads * content), length, heads, content)
    if shared > 1:
        key, value = (
            _repeated(d, key, (heads, shared, length, depth)),
            _repeated(d, value, (heads, shared, length, content)),
        )
    scores = b.node("MatMul", query, b.node("Transpose", key, perm=[0, 1, 3, 2]))
    scores = b.node("Mul", scores, b.constant(np.float32(1 / math.sqrt(depth))))
    mixed = b.node("MatMul", b.node("Softmax", scores, axis=-1), value)
    merged = b.node("Transpose", mixed, perm=[0, 2, 1, 3])
    merged = b.node("Reshape", merged, d.integers(d.batch, length, heads * shared * content))
    d.rows[b.node("Add", source, d.linear(merged, heads * shared * content, width))] = (length, width)


def _repeated(d: ChannelDrawing, value: str, sizes: tuple[int, int, int, int]) -> str:
    """Repeat each head for those that share it."""
    heads, shared, length, depth = sizes
    value = d.builder.node("Unsqueeze", value, d.integers(2))
    value = d.builder.node("Expand", value, d.integers(d.batch, heads, shared, length, depth))
    return d.builder.node("Reshape", value, d.integers(d.batch, heads * shared, length, depth))


def _recurrent(d: ChannelDrawing) -> None:
    source, b = d.sequence(), d.builder
    length, width = d.rows[source]
    operator = ("LSTM", "GRU", "RNN")[d.below(3)]
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    both, hidden = 1 + d.below(2), 2 + d.below(3)
    inputs = [
        b.node("Transpose", source, perm=[1, 0, 2]),
        b.weight(both, gates * hidden, width, fan_in=width),
        b.weight(both, gates * hidden, hidden, fan_in=hidden),
    ]
    if d.chance(0.6):
        inputs.append(b.weight(both, 2 * gates * hidden, fan_in=4))
    attributes: dict[str, Any] = {"direction": ("forward", "bidirectional")[both - 1], "hidden_size": hidden}
    if operator == "GRU":
        attributes["linear_before_reset"] = d.below(2)
    value = b.node(operator, *inputs, **attributes)
    if both == 1:
        value = b.node("Squeeze", value, d.integers(1))
    else:
        value = b.node("Transpose", value, perm=[0, 2, 1, 3])
        value = b.node("Reshape", value, d.integers(0, 0, -1))
    d.rows[b.node("Transpose", value, perm=[1, 0, 2])] = (length, both * hidden)


SEQUENCE_STEPS: Final[dict[str, Callable[[ChannelDrawing], None]]] = {
    "linear": _linear,
    "mlp": _mlp,
    "gemm": _gemm,
    "attention": _attention,
    "recurrent": _recurrent,
}
"""Steps that make a sequence of sequences."""
