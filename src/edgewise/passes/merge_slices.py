"""Slices of different axes in a row become one.

Legal when starts, ends, axes and steps are constant and no axis is cut twice. Worth it because each Slice copies
what is left: the sub-sampling shortcuts of residual networks take every second row, then every second column.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgewise.passes.rewriting import (
    Declined,
    Done,
    Edit,
    Outcome,
    SitePass,
    input_at,
    integers,
    is_operator,
    label,
    rank,
    why_not_private,
)

Cut = dict[int, tuple[int, int, int]]


class MergeSlices(SitePass):
    """Make one Slice of two."""

    name = "merge_slices"
    operators = frozenset({"Slice"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one Slice with the one before it."""
        value = input_at(node, 0)
        before = None if value is None else value.producer()
        if value is None or before is None or not is_operator(before, "Slice"):
            return None
        outer, inner = read_cut(node), read_cut(before)
        if isinstance(outer, str) or isinstance(inner, str):
            return Declined(outer if isinstance(outer, str) else str(inner))
        if both := sorted(outer.keys() & inner.keys()):
            return Declined(f"it and `{label(before)}` both cut axis {both[0]}")
        if reason := why_not_private(value, node):
            return Declined(reason)
        axes = sorted({**inner, **outer}.items())
        columns = [[cut[part] for _, cut in axes] for part in range(3)]
        arrays = {"starts": columns[0], "ends": columns[1], "axes": [axis for axis, _ in axes], "steps": columns[2]}
        inputs = [
            edit.constant(node, f"{label(node)}_{part}", np.array(numbers, dtype=np.int64))
            for part, numbers in arrays.items()
        ]
        edit.swap(node, [node, before], edit.node("Slice", [before.inputs[0], *inputs], name=node.name))
        return Done(f"merged with Slice `{label(before)}`")


def read_cut(node: ir.Node) -> Cut | str:
    """Return start, end and step by axis, or why they are not known."""
    if "starts" in node.attributes:
        return "its starts and ends are attributes (before opset 10)"
    starts, ends = integers(input_at(node, 1)), integers(input_at(node, 2))
    if starts is None or ends is None:
        return "its starts or ends are not constant"
    axes = tuple(range(len(starts))) if input_at(node, 3) is None else integers(input_at(node, 3))
    steps = (1,) * len(starts) if input_at(node, 4) is None else integers(input_at(node, 4))
    if axes is None or steps is None:
        return "its axes or steps are not constant"
    dimensions = rank(input_at(node, 0))
    if min(axes) < 0 and dimensions is None:
        return "it counts axes from the end and the rank is not known"
    positive = [axis % dimensions if dimensions else axis for axis in axes]
    return dict(zip(positive, zip(starts, ends, steps, strict=True), strict=True))
