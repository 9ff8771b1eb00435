"""Transposes in a row become one; one that moves only axes of size 1 becomes a Reshape.

Always legal; the second needs a static shape. Worth it because a transpose copies the whole activation in an order that
caches dislike, and a Reshape is free. Models converted from TensorFlow begin with such a pair.
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
    is_operator,
    label,
    rank,
    static_shape,
    why_not_private,
)


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """Return the permutation of a Transpose (reversal by default), or None where it is not known."""
    if "perm" in node.attributes:
        return tuple(node.attributes.get_ints("perm", ()))
    dimensions = rank(input_at(node, 0))
    return None if dimensions is None else tuple(reversed(range(dimensions)))


class MergeTransposes(SitePass):
    """Make one Transpose of several, or a Reshape of one that moves nothing."""

    name = "merge_transposes"
    operators = frozenset({"Transpose"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one Transpose with the one before it."""
        value, own = input_at(node, 0), permutation(node)
        if value is None or own is None:
            return None
        before = value.producer()
        if before is not None and is_operator(before, "Transpose") and before.inputs[0] is not None:
            inner = permutation(before)
            if inner is None:
                return Declined(f"the rank of `{label(before)}` is not known")
            if before.graph is not node.graph:
                return Declined(f"`{label(before)}` lies outside of this body")
            dead = [node, before] if why_not_private(value, node) is None else [node]
            new = edit.node("Transpose", before.inputs[:1], {"perm": [inner[axis] for axis in own]}, name=node.name)
            edit.swap(node, dead, new)
            return Done(f"merged with Transpose `{label(before)}`")
        return self._as_reshape(node, value, own, edit)

    def _as_reshape(self, node: ir.Node, value: ir.Value, perm: tuple[int, ...], edit: Edit) -> Outcome:
        shape = static_shape(value)
        if shape is None:
            return None
        moved = [axis for axis in perm if shape[axis] != 1]
        if moved != sorted(moved) or perm == tuple(sorted(perm)) or 0 in shape:
            return None
        target = edit.constant(node, f"{label(node)}_shape", np.array([shape[axis] for axis in perm], dtype=np.int64))
        edit.swap(node, [node], edit.node("Reshape", [value, target], name=node.name))
        return Done("replaced by a Reshape: only axes of size 1 move")
