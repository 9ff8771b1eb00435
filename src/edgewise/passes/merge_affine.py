"""The two merges that the folding passes share: an affine map into the linear operator before or behind it."""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.linear import Affine, Linear, read_linear
from edgewise.passes.rewriting import Declined, Done, Edit, Outcome, input_at, label, rank, sole_reader, why_not_private


def into_previous(node: ir.Node, affine: Affine, linear: Linear, edit: Edit) -> Outcome:
    """Merge the map at `node` into the linear operator that computes its source."""
    if reason := why_not_private(affine.source, node):
        # Merging would have to keep the unscaled operator as well: more work, not less.
        return Declined(reason)
    weight = linear.scaled_output(affine.scale)
    new = linear.rebuilt(edit, weight, linear.bias * affine.scale + affine.shift)
    if isinstance(new, str):
        return Declined(new)
    what = f"merged {node.op_type} into the weights of {linear.node.op_type} `{label(linear.node)}`"
    edit.swap(node, [node, linear.node], new)
    return Done(what)


def next_linear(node: ir.Node) -> Linear | str | None:
    """Return the linear operator that reads `node`'s output as its data, if it alone does.

    Returns:
        The operator, why it cannot take the map, or None where the reader is something else.
    """
    output = node.outputs[0]
    reader = sole_reader(output)
    if reader is None:
        readers = [use.node for use in output.uses()]
        if readers and all(isinstance(read_linear(one), Linear) and one.inputs[0] is output for one in readers):
            return why_not_private(output, readers[0])
        return None
    if reader.inputs[0] is not output or reader.op_type == "ConvTranspose":
        return None
    linear = read_linear(reader)
    if isinstance(linear, Linear) and reader.graph is not node.graph:
        return "the operator that reads it lies in another body"
    return linear


def into_next(node: ir.Node, affine: Affine, linear: Linear, edit: Edit) -> Outcome:
    """Merge the map at `node` into the linear operator that reads it."""
    reader = linear.node
    if reader.op_type == "Gemm" and reader.attributes.get_int("transA", 0) == 1:
        return Declined(f"`{label(reader)}` reads it transposed")
    if affine.shift.any() and _pads(reader):
        return Declined(f"`{label(reader)}` pads with zeros, which the shift would have to reach as well")
    if reader.op_type == "MatMul" and affine.shift.any():
        return Declined(f"`{label(reader)}` is a MatMul, which has no bias to take the shift")
    weight, bias = linear.taken_input(affine.scale, affine.shift)
    new = linear.rebuilt(edit, weight, bias)
    if isinstance(new, str):
        return Declined(new)
    new.replace_input_with(0, affine.source)
    what = f"merged {node.op_type} into the weights of {reader.op_type} `{label(reader)}`, which reads it"
    edit.swap(reader, [reader, node], new)
    return Done(what)


def input_channels(linear: Linear) -> int:
    """Return the number of channels of the operator's data."""
    if linear.node.op_type == "Conv":
        return int(linear.weight.shape[1]) * linear.group
    transposed = linear.node.op_type == "Gemm" and linear.node.attributes.get_int("transB", 0) == 1
    return int(linear.weight.shape[1 if transposed else 0])


def input_axis(linear: Linear) -> int:
    """Return the channel axis of the operator's data, counted from the end."""
    return linear.channel_axis


def batch_norm_axis_fits(node: ir.Node, linear: Linear) -> bool:
    """Return whether axis 1, which BatchNormalization scales, is the channel axis of the operator."""
    if linear.node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
        return True
    return rank(input_at(node, 0)) == 2


def _pads(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    if node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return True
    return any(node.attributes.get_ints("pads", ()))
