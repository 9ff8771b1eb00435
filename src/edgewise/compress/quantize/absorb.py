"""Absorbing biases: the offset of each channel moves from the layer that makes it into the layer that reads it.

`W2 (y - c) + (b2 + W2 c) = W2 y + b2`. Taking the middle of a channel's range as `c` leaves channels around zero, so
that one range for all of them is no wider than the widest. Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1.3, absorb through a Relu as well, with `c` three standard deviations
below the mean: `relu(y - c) = relu(y) - c` holds only where `y` never falls below `c`, which samples cannot prove.
Here it is done where it is exact for every input, and declined elsewhere: through views, residual sums and maximum
pooling, never through an activation, and never into a convolution that pads with zeros, whose border sees fewer
channels that were moved.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.quantize.channel_groups import constant_at
from edgewise.compress.quantize.channel_relations import Known, channel_axis, read_linear, relate
from edgewise.compress.quantize.weight_layout import LINEAR, Indices, WeightLayout, total
from edgewise.compress.statistics import Statistics
from edgewise.passes.protocol import Findings
from edgewise.passes.rewriting import Edit, constant, input_at, is_operator, label, rank
from edgewise.records.findings import Change, Decline
from edgewise.records.tensors import Array

STAGE: Final = "absorb"

_CARRIES: Final = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "MaxPool", "GlobalMaxPool"}
    | {"GlobalAveragePool", "Add"}
)
"""Operators `f` with `f(x - c) = f(x) - c`."""

_NOT_PROVEN: Final = frozenset({"Relu", "LeakyRelu", "PRelu", "Clip"})


@dataclass(frozen=True)
class _Reader:
    """A node whose bias takes the offset, and the channel of the writer that each of its input channels is."""

    node: ir.Node
    layout: WeightLayout
    channels: Indices


def absorb(model: ir.Model, statistics: Statistics) -> tuple[ir.Model, Findings]:
    """Return a copy of `model` in which biases are absorbed, and what was done and declined.

    Exact for every input up to rounding: the two biases, and sums in float32 around other values.

    Args:
        model: The model, with inferred shapes; not changed. Sub-graphs and quantized nodes stay as they are.
        statistics: Of `observed_tensors(model)`.
    """
    copy = model.clone()
    edit = Edit(copy)
    findings = Findings()
    for node in copy.graph:
        found = _readers(copy, node)
        if found is None:
            continue
        seen = statistics.tensors.get(node.outputs[0].name or "")
        if not isinstance(found, str) and (seen is None or len(seen.channel_low) == 0):
            found = "its channels were not observed"
        if isinstance(found, str) or seen is None:
            reason = found if isinstance(found, str) else ""
            findings.declines.append(Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=reason))
            continue
        offsets = middle(seen.channel_low, seen.channel_high)
        if not offsets.any():
            continue
        _shift(edit, node, -offsets)
        for reader in found:
            weight = constant_at(reader.node, 1)
            alpha = reader.node.attributes.get_float("alpha", 1.0)
            _shift(edit, reader.node, alpha * moved_bias(weight, reader.layout, offsets[reader.channels]))
        names = ", ".join(f"`{label(reader.node)}`" for reader in found)
        what = f"moved offsets of {offsets.min():.3g} to {offsets.max():.3g} into the bias of {names}"
        findings.changes.append(Change(stage=STAGE, node=label(node), what=what))
    return copy, findings


def observed_tensors(model: ir.Model) -> dict[str, int]:
    """Return the tensors whose channels have to be observed, by name, each with the axis of its channels."""
    return {
        node.outputs[0].name or "": channel_axis(node, rank(node.outputs[0]) or 0)
        for node in model.graph
        if isinstance(_readers(model, node), list)
    }


def middle(low: npt.NDArray[np.floating], high: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the middle of each channel's range, shape `[C]`, as numbers that float32 holds."""
    return ((low.astype(np.float64) + high) / 2).astype(np.float32).astype(np.float64)


def moved_bias(weight: Array, layout: WeightLayout, offsets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what a layer makes of constant inputs, `W c`, where no border sees less of them.

    Args:
        weight: The weights.
        layout: How they are laid out.
        offsets: One number for each input channel, `c`, shape `[C]`.

    Returns:
        One number for each output channel, shape `[M]`.
    """
    return total(weight.astype(np.float64) * offsets[layout.input_index], layout.output_index, layout.outputs)


def _readers(model: ir.Model, node: ir.Node) -> list[_Reader] | str | None:
    """Return what takes the offsets of `node`'s output, why nothing can, or None where the node has no bias."""
    if not is_operator(node, *(LINEAR - {"MatMul"})):
        return None
    layout = read_linear(node)
    if isinstance(layout, str):
        return layout
    if node.attributes.get_float("beta", 1.0) != 1.0:
        return "its `beta` is not 1"
    output = node.outputs[0]
    of = rank(output)
    if of is None:
        return f"the rank of `{output.name}` is not known"
    shape = [layout.outputs if axis == channel_axis(node, of) else 1 for axis in range(of)]
    return _follow(model, output, np.arange(layout.outputs, dtype=np.int64).reshape(shape))


def _follow(model: ir.Model, output: ir.Value, indices: Indices) -> list[_Reader] | str:
    """Follow the offsets of `output` to the layers that read it."""
    values = {output: indices}
    readers: list[_Reader] = []
    waiting = deque([output])
    while waiting:
        value = waiting.popleft()
        if value.is_graph_output():
            return f"`{value.name}` is an output of the model"
        for node, slot in value.uses():
            if node.graph is not model.graph:
                return f"`{value.name}` is read in a sub-graph, by `{label(node)}`"
            found = _next(node, slot, value, values[value])
            if isinstance(found, str):
                return found
            if isinstance(found, _Reader):
                readers.append(found)
                continue
            if node.outputs[0] in values:
                return f"the offset comes to `{label(node)}` on two ways"
            values[node.outputs[0]] = found
            waiting.append(node.outputs[0])
    return readers or f"nothing reads `{output.name}`"


def _next(node: ir.Node, slot: int, value: ir.Value, indices: Indices) -> _Reader | Indices | str:
    """Return the indices of what `node` makes, or the reader that it is, or why the offset ends here."""
    if is_operator(node, *_NOT_PROVEN):
        return f"`{label(node)}` is {node.op_type}: samples cannot prove that no input falls below the offset"
    if not is_operator(node, *_CARRIES, *LINEAR):
        return f"`{label(node)}` is {node.op_type}, which does not carry an offset of each channel through"
    relation = relate(Known(node, value, slot, indices, lambda shape: np.zeros(shape, np.int64)))
    if isinstance(relation, str):
        return relation
    if is_operator(node, *LINEAR):
        return _reader(node, indices)
    return dict(relation.values)[node.outputs[0]]


def _reader(node: ir.Node, indices: Indices) -> _Reader | str:
    layout = read_linear(node)
    if isinstance(layout, str):
        return layout
    if node.op_type == "MatMul":
        return f"`{label(node)}` is MatMul, which has no bias"
    if node.attributes.get_float("beta", 1.0) != 1.0:
        return f"the `beta` of `{label(node)}` is not 1"
    if node.op_type == "ConvTranspose":
        return f"the border of `{label(node)}`, a ConvTranspose, sees fewer inputs"
    padded = any(node.attributes.get_ints("pads", ())) or node.attributes.get_string("auto_pad", "NOTSET") in {
        "SAME_UPPER",
        "SAME_LOWER",
    }
    if padded and node.op_type == "Conv":
        return f"`{label(node)}` pads with zeros, to which no offset belongs"
    return _Reader(node, layout, np.broadcast_to(indices.reshape(-1), (layout.inputs,)))


def _shift(edit: Edit, node: ir.Node, shift: npt.NDArray[np.float64]) -> None:
    """Add `shift` to the bias of `node`, which gets one where it has none."""
    value = input_at(node, 2)
    bias = constant(value)
    if value is None or bias is None:
        weight = node.inputs[1]
        name = f"{'weight' if weight is None else weight.name}_bias"
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, edit.constant(node, name, shift.astype(np.float32)))
        return
    new = edit.update(node, value, (bias + shift.reshape(-1)).astype(np.float32))
    if new is not value:
        node.replace_input_with(2, new)
