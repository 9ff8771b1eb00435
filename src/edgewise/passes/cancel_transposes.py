"""A Transpose that undoes an earlier one across element-wise operators goes, and so does the earlier one if it can.

`T(f(T'(x), T'(y), c))` with `T` the inverse of `T'` is `f(x, y, c')`, where the constant is transposed and an `axis` is
renamed. Legal when every operand comes from such a Transpose or is constant, and nothing else reads what lies between.
Models converted from channels-last frameworks are full of these. An operand of any other kind would need a Transpose of
its own, so the site is declined: the copy would only move.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgewise.passes.merge_transposes import permutation
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
from edgewise.records.tensors import Array

UNARY = frozenset(
    {
        "Abs",
        "Ceil",
        "Celu",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Tanh",
        "ThresholdedRelu",
        "Cast",
    }
)
BINARY = frozenset(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"])
WITH_AXIS = frozenset({"Softmax", "LogSoftmax", "Concat"})
FIRST_OPSET_WITH_ONE_AXIS = 13


@dataclass
class Region:
    """What lies between the Transposes.

    Attributes:
        nodes: The element-wise nodes, each after those that read it.
        leaves: The Transposes that feed them.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    leaves: list[ir.Node] = field(default_factory=list)


class CancelTransposes(SitePass):
    """Remove a Transpose and its inverse around element-wise operators."""

    name = "cancel_transposes"
    operators = frozenset({"Transpose"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Look for the inverse of one Transpose above it."""
        perm, value = permutation(node), input_at(node, 0)
        if perm is None or value is None:
            return None
        region = Region()
        reason = _collect(value, node, perm, region)
        if not region.nodes or not region.leaves:
            return None
        if reason := reason or _why_not_axis(region, edit.opset):
            return Declined(reason)
        for inner in region.nodes:
            _permute(inner, perm, edit)
        for leaf in region.leaves:
            _read_past(leaf, region)
        if reason := edit.bypass(node, value):
            # The region is private and computed in this graph, so that its value can always take the name.
            raise AssertionError(reason)
        return Done(f"cancelled with {len(region.leaves)} Transpose before {len(region.nodes)} element-wise operators")


def _collect(  # noqa: PLR0911 - one return a reason
    value: ir.Value, reader: ir.Node, perm: tuple[int, ...], region: Region
) -> str | None:
    """Gather the region above `value`; return why it cannot be rewritten, or None."""
    producer = value.producer()
    if producer is not None and is_operator(producer, "Transpose"):
        inner = permutation(producer)
        if inner is not None and tuple(inner[axis] for axis in perm) == tuple(range(len(perm))):
            if producer.graph is not reader.graph:
                return f"`{label(producer)}` lies outside of this body"
            if producer not in region.leaves:
                region.leaves.append(producer)
            return None
        return f"`{label(producer)}` is not its inverse"
    if producer is None or not is_operator(producer, *UNARY, *BINARY, *WITH_AXIS):
        return f"`{value.name}` would need a Transpose of its own"
    if reason := why_not_private(value, reader):
        return reason
    region.nodes.append(producer)
    operands = producer.inputs if producer.op_type in BINARY or producer.op_type == "Concat" else producer.inputs[:1]
    for operand in operands:
        if operand is None or constant(operand) is not None:
            continue
        if reason := _collect(operand, producer, perm, region):
            return reason
    return None


def _why_not_axis(region: Region, opset: int) -> str | None:
    for node in region.nodes:
        if node.op_type in {"Softmax", "LogSoftmax"} and opset < FIRST_OPSET_WITH_ONE_AXIS:
            return f"{node.op_type} `{label(node)}` works on all axes from its own on before opset 13"
    return None


def _permute(node: ir.Node, perm: tuple[int, ...], edit: Edit) -> None:
    """Make `node` work on operands whose axes are permuted by `perm`."""
    if node.op_type in WITH_AXIS:
        axis = node.attributes.get_int("axis", -1) % len(perm)
        node.attributes.add(ir.AttrInt64("axis", perm.index(axis)))
    if node.op_type in BINARY or node.op_type == "Concat":
        for index, operand in enumerate(node.inputs):
            array = constant(operand)
            if operand is not None and array is not None and array.ndim > 0:
                node.replace_input_with(index, edit.constant(node, operand.name or "constant", _moved(array, perm)))
    output = node.outputs[0]
    if output.shape is not None:
        output.shape = ir.Shape([output.shape[axis] for axis in perm])


def _moved(array: Array, perm: tuple[int, ...]) -> Array:
    full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return np.ascontiguousarray(full.transpose(perm))


def _read_past(leaf: ir.Node, region: Region) -> None:
    source = leaf.inputs[0]
    for use in list(leaf.outputs[0].uses()):
        if use.node in region.nodes:
            use.node.replace_input_with(use.idx, source)
    if not leaf.outputs[0].uses() and not leaf.outputs[0].is_graph_output() and leaf.graph is not None:
        leaf.graph.remove(leaf, safe=True)
