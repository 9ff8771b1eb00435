"""Random small networks of every operator that hands channels on.

They are of images or of sequences, made step by step, each from values that exist already.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from edgewise.testing.channel_drawing import ChannelDrawing
from edgewise.testing.channel_images import IMAGE_STEPS, to_sequence
from edgewise.testing.channel_sequences import SEQUENCE_STEPS, to_image


def random_channels(seed: int, *, steps: int = 8, only: Collection[str] | None = None) -> ir.Model:
    """Return a random network with an image `x` or a sequence `x` in, and a head on all that nothing else reads.

    Args:
        seed: The same seed gives the same network.
        steps: Number of steps after the first layer, >= 1.
        only: Names of the steps to draw from (keys of `IMAGE_STEPS` and `SEQUENCE_STEPS`), or None for all.
    """
    d = ChannelDrawing(seed)
    names = sorted(set(IMAGE_STEPS) | set(SEQUENCE_STEPS) if only is None else only)
    images = [IMAGE_STEPS[name] for name in names if name in IMAGE_STEPS]
    sequences = [SEQUENCE_STEPS[name] for name in names if name in SEQUENCE_STEPS]
    of_images = bool(images) and (not sequences or d.chance(0.6))
    if of_images:
        channels, out = 1 + d.below(4), 4 + d.below(5)
        source = d.builder.input("x", (d.batch, channels, 4, 4))
        d.images[d.conv(source, channels, out, kernel=3)] = (out, 4, 4)
    else:
        width, out = 2 + d.below(4), 4 + d.below(5)
        source = d.builder.input("x", (d.batch, 4, width))
        d.rows[d.linear(source, width, out)] = (4, out)
    for step in range(steps):
        if only is None and step == steps // 2:
            (to_sequence if of_images else to_image)(d)
        drawn = [*(images if d.images else []), *(sequences if d.rows else [])]
        drawn[d.below(len(drawn))](d)
    _heads_of(d)
    return d.builder.build()


def _heads_of(d: ChannelDrawing) -> None:
    """Read everything that nothing else reads: by convolutions, by products, or flat."""
    b, outputs = d.builder, 0
    read = {name for node in b.graph().node for name in node.input}
    for name, (channels, height, width) in d.images.items():
        if name in read:
            continue
        kind = d.below(3)
        if kind == 0:
            flat = b.node("Flatten", b.node("GlobalAveragePool", name))
            value = b.node("Gemm", flat, b.weight(3, channels), b.weight(3, fan_in=4), transB=1)
        elif kind == 1:
            flat = b.node("Flatten", b.node("Relu", name))
            value = b.node("Gemm", flat, b.weight(channels * height * width, 3, fan_in=channels * height * width))
        else:
            value = d.conv(name, channels, 3)
        b.output(value, f"y{outputs}", (d.batch, 3, height, width) if kind == 2 else (d.batch, 3))
        outputs += 1
    for name, (length, width) in d.rows.items():
        if name not in read:
            b.output(d.linear(name, width, 3), f"y{outputs}", (d.batch, length, 3))
            outputs += 1
