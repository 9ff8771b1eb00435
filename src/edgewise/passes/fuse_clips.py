"""Relu, Clip, and Max and Min with a constant become one Relu or Clip.

Each of them is `min(max(x, low), high)`; one behind another is again that, with the bounds of the inner one clipped to
those of the outer one. A single Max or Min with a constant becomes Clip too: both runtimes merge Relu and Clip into
the convolution before them, but not Max and Min. Legal for floating-point values and scalar constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgewise.passes.rewriting import (
    Declined,
    Done,
    Edit,
    Outcome,
    SitePass,
    constant,
    input_at,
    is_operator,
    label,
    rank,
    same_type,
    scalar,
    why_not_private,
)

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
CLAMPS = ("Relu", "Clip", "Max", "Min")


@dataclass(frozen=True)
class Clamp:
    """`min(max(source, low), high)` with `low <= high`; an infinite bound is none."""

    source: ir.Value
    low: float
    high: float

    def within(self, outer: Clamp) -> Clamp:
        """Return this clamp followed by `outer` as one."""
        low = min(max(self.low, outer.low), outer.high)
        return Clamp(self.source, low, min(max(self.high, outer.low), outer.high))


class FuseClips(SitePass):
    """Make one Relu or Clip of several, and of Max and Min with a constant."""

    name = "fuse_clips"
    operators = frozenset(CLAMPS)

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one node into the clamp before it, or spell it as Relu or Clip."""
        outer = read_clamp(node)
        if outer is None or isinstance(outer, str):
            return None if outer is None else Declined(outer)
        before = outer.source.producer()
        inner = read_clamp(before) if before is not None else None
        if before is not None and isinstance(inner, Clamp):
            if reason := why_not_private(outer.source, node):
                return Declined(reason)
            what = f"merged {node.op_type} and {before.op_type} `{label(before)}`"
            return _spell(node, [node, before], inner.within(outer), edit, what)
        if node.op_type in {"Max", "Min"}:
            return _spell(node, [node], outer, edit, f"replaced {node.op_type}")
        return None


def read_clamp(node: ir.Node) -> Clamp | str | None:  # noqa: PLR0911 - one return a reason
    """Return the node as a clamp, why it is none, or None where it is no site."""
    if not is_operator(node, *CLAMPS):
        return None
    first = input_at(node, 0)
    if first is None or node.outputs[0].dtype not in {*FLOATS, None}:
        return None
    if node.op_type == "Relu":
        return Clamp(first, 0.0, math.inf)
    if node.op_type == "Clip":
        return _read_clip(node, first)
    variable = [value for value in node.inputs if constant(value) is None]
    if len(node.inputs) != 2 or len(variable) != 1 or variable[0] is None:
        return None
    source = variable[0]
    other = node.inputs[1] if source is node.inputs[0] else node.inputs[0]
    bound, array = scalar(other), constant(other)
    if bound is None or array is None:
        return "its constant is not a single number"
    if array.ndim > (0 if rank(source) is None else rank(source) or 0):
        return "its constant has more dimensions than its other operand"
    return Clamp(source, bound, math.inf) if node.op_type == "Max" else Clamp(source, -math.inf, bound)


def _read_clip(node: ir.Node, source: ir.Value) -> Clamp | str:
    low: float | None = -math.inf
    high: float | None = math.inf
    if "min" in node.attributes or "max" in node.attributes:  # opset 1 to 10
        low, high = node.attributes.get_float("min", -math.inf), node.attributes.get_float("max", math.inf)
    else:
        low = low if input_at(node, 1) is None else scalar(input_at(node, 1))
        high = high if input_at(node, 2) is None else scalar(input_at(node, 2))
    if low is None or high is None:
        return "a bound is not constant"
    if math.isnan(low) or math.isnan(high) or low > high:
        return f"its bounds {low:g} and {high:g} are not in order"
    return Clamp(source, low, high)


def _spell(node: ir.Node, dead: list[ir.Node], clamp: Clamp, edit: Edit, what: str) -> Outcome:
    low, high = clamp.low, clamp.high
    if low == 0 and math.isinf(high):
        new = edit.node("Relu", [clamp.source], name=node.name)
    elif edit.opset < 11:
        bounds = {name: value for name, value in (("min", low), ("max", high)) if not math.isinf(value)}
        new = edit.node("Clip", [clamp.source], bounds, name=node.name)
    else:
        inputs: list[ir.Value | None] = [clamp.source]
        for name, value in (("min", low), ("max", high)):
            missing = math.isinf(value)
            array = same_type(node.outputs[0], np.array(value))
            inputs.append(None if missing else edit.constant(node, f"{label(node)}_{name}", array))
        while inputs[-1] is None:
            inputs.pop()
        new = edit.node("Clip", inputs, name=node.name)
    edit.swap(node, dead, new)
    return Done(f"{what}: {new.op_type}")
