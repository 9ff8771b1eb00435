"""Nodes that return their input go: Identity, Dropout, Cast to the same type, times one, plus zero, empty Pad.

Legal when the result has the type and the shape of the operand (a constant of ones may still broadcast it). A node
that hands an input of the model to an output stays, because an output needs a node. Worth it because each of them
copies a tensor in one runtime or another, and because they hide neighbours from other rewrites. `x + 0` turns -0
into 0; nothing in ONNX but division can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.passes.merge_transposes import permutation
from edgewise.passes.rewriting import Declined, Done, Edit, Outcome, SitePass, constant, input_at, integers

NEUTRAL: Final = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0, "Pow": 1}
COMMUTATIVE: Final = frozenset({"Mul", "Add"})
OF_ONE: Final = frozenset({"Concat", "Sum", "Max", "Min", "Mean"})
RESHAPING: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Slice"})


class RemoveNoOps(SitePass):
    """Remove nodes that return their input."""

    name = "remove_no_ops"
    operators = frozenset({"Identity", "Dropout", "Cast", "Pad", "Transpose", "Clip", *NEUTRAL, *OF_ONE, *RESHAPING})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Remove one node that returns its input."""
        value = returned(node)
        if value is None:
            return None
        if any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
            return Declined(f"`{node.outputs[1].name}` is read as well")
        operator = node.op_type
        if reason := edit.bypass(node, value):
            return Declined(reason)
        return Done(f"removed {operator}, which returns its input")


def returned(node: ir.Node) -> ir.Value | None:
    """Return the input that `node` returns unchanged, or None where it changes it."""
    if node.op_type in NEUTRAL:
        return _neutral(node)
    value = input_at(node, 0)
    if value is None:
        return None
    if node.op_type in OF_ONE:
        return value if len(node.inputs) == 1 else None
    check = _CHECKS.get(node.op_type, _keeps_shape)
    return value if check(node) else None


def _neutral(node: ir.Node) -> ir.Value | None:
    sides = ((0, 1), (1, 0)) if node.op_type in COMMUTATIVE else ((0, 1),)
    for kept, other in sides:
        value, array = input_at(node, kept), constant(input_at(node, other))
        if value is None or array is None or not bool((array == NEUTRAL[node.op_type]).all()):
            continue
        if array.ndim == 0 or _same_shape(value, node.outputs[0]):
            return value
    return None


def _same_shape(value: ir.Value, output: ir.Value) -> bool:
    """Return whether both shapes are known to be equal; dynamic dimensions are equal when they bear one name."""
    if value.shape is None or output.shape is None or len(value.shape) != len(output.shape):
        return False
    for one, other in zip(value.shape, output.shape, strict=True):
        if isinstance(one, ir.SymbolicDim) and (one.value is None or one != other):
            return False
        if one != other:
            return False
    return True


def _keeps_shape(node: ir.Node) -> bool:
    value = input_at(node, 0)
    if value is None or not _same_shape(value, node.outputs[0]):
        return False
    if node.op_type != "Slice":
        return True
    # Only a negative step keeps the shape and changes the values.
    steps = integers(input_at(node, 4)) if input_at(node, 4) is not None else (1,)
    return steps is not None and min(steps) > 0


def _is_identity(_: ir.Node) -> bool:
    return True


def _is_idle_dropout(node: ir.Node) -> bool:
    if "is_test" in node.attributes:  # opset 1 to 6
        return node.attributes.get_int("is_test", 0) == 1
    training = input_at(node, 2)
    if training is None:
        return True
    array = constant(training)
    return array is not None and not bool(array.any())


def _is_same_cast(node: ir.Node) -> bool:
    value = input_at(node, 0)
    return value is not None and value.dtype is not None and int(value.dtype) == node.attributes.get_int("to", -1)


def _is_empty_pad(node: ir.Node) -> bool:
    pads = node.attributes.get_ints("pads", ()) if "pads" in node.attributes else integers(input_at(node, 1))
    return bool(pads) and not any(pads or ())


def _is_still(node: ir.Node) -> bool:
    perm = permutation(node)
    return perm is not None and perm == tuple(range(len(perm)))


def _is_boundless(node: ir.Node) -> bool:
    if node.attributes:
        return False
    bounds = [constant(value) for value in node.inputs[1:] if value is not None]
    return all(array is not None and array.size == 1 and np.isinf(array).all() for array in bounds) and (
        len(bounds) == 0 or _infinite_in_order(node)
    )


def _infinite_in_order(node: ir.Node) -> bool:
    low, high = constant(input_at(node, 1)), constant(input_at(node, 2))
    return (low is None or bool((low < 0).all())) and (high is None or bool((high > 0).all()))


_CHECKS: Final[dict[str, Callable[[ir.Node], bool]]] = {
    "Identity": _is_identity,
    "Dropout": _is_idle_dropout,
    "Cast": _is_same_cast,
    "Pad": _is_empty_pad,
    "Transpose": _is_still,
    "Clip": _is_boundless,
}
