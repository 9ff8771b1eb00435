"""Reshape, Flatten, Squeeze and Unsqueeze in a row become one Reshape with a constant shape.

A Reshape whose shape is computed also gets a constant one where the shape of its output is known, which leaves the
Shape, Gather and Concat before it unread. Legal when at most one dimension of the output is unknown (it becomes -1)
and none is zero (Reshape reads 0 as "keep"). Worth it because views are free but computed shapes are not, and because a
view between two operators hides them from the rewrites that look for neighbours.
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
    constant,
    input_at,
    is_operator,
    label,
    why_not_private,
)

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class MergeReshapes(SitePass):
    """Make one Reshape of several views, with a constant shape."""

    name = "merge_reshapes"
    operators = frozenset(VIEWS)

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one view with the view before it."""
        value = input_at(node, 0)
        if value is None:
            return None
        before = value.producer()
        merges = before is not None and is_operator(before, *VIEWS)
        computed = node.op_type == "Reshape" and constant(input_at(node, 1)) is None
        if not merges and not computed:
            return None
        shape = _constant_shape(node.outputs[0])
        if isinstance(shape, str):
            return Declined(shape)
        source, dead = value, [node]
        if merges and before is not None and before.inputs[0] is not None:
            # Where others read the first view it stays; this one no longer waits for it.
            if before.graph is not node.graph:
                return Declined(f"`{label(before)}` lies outside of this body")
            source = before.inputs[0]
            dead += [before] if why_not_private(value, node) is None else []
        target = edit.constant(node, f"{label(node)}_shape", np.array(shape, dtype=np.int64))
        what = f"merged {node.op_type} with `{label(before)}`" if merges and before else "made its shape a constant"
        edit.swap(node, dead, edit.node("Reshape", [source, target], name=node.name))
        return Done(what)


def _constant_shape(value: ir.Value) -> list[int] | str:
    if value.shape is None:
        return f"the rank of `{value.name}` is not known"
    dims = [int(dim) if isinstance(dim, int) else -1 for dim in value.shape]
    if dims.count(-1) > 1:
        return f"{dims.count(-1)} dimensions of `{value.name}` are dynamic"
    if 0 in dims:
        return f"`{value.name}` is empty"
    return dims
