"""A strided Slice followed by zero-padding of the channels becomes a 1x1 convolution with an identity for a weight.

This is the parameter-free shortcut of residual networks (He et al., 2016, "option A"): every second pixel, new
channels all zero. Legal when the Slice takes every n-th pixel of whole spatial axes from the first one on and the
Pad adds zeros to channels only. Every product is with 1 or 0, so that finite values are kept exactly. Worth it
although it multiplies: runtimes keep convolutions in a blocked layout, which Slice and Pad force them to leave and
enter again, and sum the shortcut into the convolution beside it. Measured on one AVX-512 core with ONNX Runtime 1.32
and OpenVINO 2026.4, the convolution wins in both up to 128 output channels and loses in ONNX Runtime from 256 on
(736 against 690 us for 128 to 256 channels of 28 x 28).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgewise.passes.fuse_pad import amounts
from edgewise.passes.merge_slices import read_cut
from edgewise.passes.rewriting import (
    Declined,
    Done,
    Edit,
    Outcome,
    SitePass,
    input_at,
    is_operator,
    label,
    static_shape,
    why_not_private,
)

MOST_CHANNELS = 128


class ReplaceShortcuts(SitePass):
    """Make a convolution of a sub-sampling shortcut."""

    name = "replace_shortcuts"
    operators = frozenset({"Pad"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Replace one Pad and the Slice before it."""
        value = input_at(node, 0)
        cut = None if value is None else value.producer()
        if value is None or cut is None or not is_operator(cut, "Slice") or cut.inputs[0] is None:
            return None
        source = cut.inputs[0]
        shape, kept = static_shape(source), static_shape(value)
        if shape is None or kept is None or len(shape) < 3:
            return Declined(f"the shape of `{source.name}` is not known or not that of an image")
        strides = _strides(cut, shape, kept)
        if isinstance(strides, str):
            return Declined(strides)
        channels = _channels(node, shape)
        if isinstance(channels, str):
            return Declined(channels)
        if reason := why_not_private(value, node):
            return Declined(reason)
        before, total = channels
        weight = np.zeros((total, shape[1]) + (1,) * len(strides), dtype=np.float32)
        weight[before : before + shape[1], :].reshape(shape[1], shape[1])[:] = np.eye(shape[1])
        inputs = [source, edit.constant(node, f"{label(node)}_weight", weight)]
        attributes = {"kernel_shape": [1] * len(strides), "strides": strides}
        edit.swap(node, [node, cut], edit.node("Conv", inputs, attributes, name=node.name))
        return Done(f"replaced with Slice `{label(cut)}` by a 1x1 Conv")


def _strides(cut: ir.Node, shape: tuple[int, ...], kept: tuple[int, ...]) -> list[int] | str:
    axes = read_cut(cut)
    if isinstance(axes, str):
        return axes
    strides = [1] * (len(shape) - 2)
    for axis, (start, end, step) in axes.items():
        if axis < 2 or start != 0 or end < shape[axis] or step < 1:
            return f"Slice `{label(cut)}` cuts more than every n-th pixel of axis {axis}"
        if kept[axis] != -(-shape[axis] // step):
            return f"Slice `{label(cut)}` does not have the shape that it should have"
        strides[axis - 2] = step
    return strides


def _channels(pad: ir.Node, shape: tuple[int, ...]) -> tuple[int, int] | str:
    """Return how many channels of zeros come first and how many there are in all, or why it is no such Pad."""
    pads, value = amounts(pad)
    if pad.outputs[0].dtype not in {ir.DataType.FLOAT, None}:
        return "it is not in float32"
    if pads is None or input_at(pad, 3) is not None or len(pads) != 2 * len(shape):
        return f"the amounts of Pad `{label(pad)}` are not constant for every axis"
    if value != 0 or pad.attributes.get_string("mode", "constant") != "constant":
        return f"Pad `{label(pad)}` does not add zeros"
    first, last = pads[1], pads[1 + len(shape)]
    if any(amount for index, amount in enumerate(pads) if index % len(shape) != 1) or min(first, last) < 0:
        return f"Pad `{label(pad)}` changes more than the number of channels"
    total = first + shape[1] + last
    if total > MOST_CHANNELS:
        return f"it has {total} channels, and beyond {MOST_CHANNELS} copying is faster than multiplying"
    return first, total
