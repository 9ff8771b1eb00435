"""Pad goes into the Conv, AveragePool or MaxPool that reads it.

Legal when the padding is constant, not negative, only on spatial axes, and of the value that the reader pads with
itself: zero for Conv; zero for AveragePool if the padding is counted; minus infinity for MaxPool, or zero where
everything else in the window is at least zero. Worth it because Pad copies the whole activation; the reader's own
padding costs nothing. onnxscript has the rewrite for Conv only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgewise.passes.rewriting import (
    Declined,
    Done,
    Edit,
    Outcome,
    SitePass,
    attributes_of,
    constant,
    input_at,
    integers,
    is_operator,
    label,
    rank,
    scalar,
    why_not_private,
)

NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp")


@dataclass(frozen=True)
class Padding:
    """Constant padding of the spatial axes: what is added before each, then behind each."""

    before: tuple[int, ...]
    behind: tuple[int, ...]
    value: float


class FusePad(SitePass):
    """Merge Pad into the operator that reads it."""

    name = "fuse_pad"
    operators = frozenset({"Conv", "AveragePool", "MaxPool"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge the Pad in front of one operator."""
        value = input_at(node, 0)
        pad = None if value is None else value.producer()
        if value is None or pad is None or not is_operator(pad, "Pad"):
            return None
        padding = read_padding(pad, rank(input_at(pad, 0)) or rank(value) or _rank_of_reader(node))
        if isinstance(padding, str):
            return Declined(padding)
        if reason := why_not_private(value, node) or _why_not(node, pad, padding):
            return Declined(reason)
        own = node.attributes.get_ints("pads", (0,) * (2 * len(padding.before)))
        pads = [mine + theirs for mine, theirs in zip(own, padding.before + padding.behind, strict=True)]
        attributes = [*attributes_of(node, "pads", "auto_pad"), ir.AttrInt64s("pads", pads)]
        if node.op_type == "AveragePool":
            attributes = [a for a in attributes if a.name != "count_include_pad"]
            attributes.append(ir.AttrInt64("count_include_pad", 1))
        new = edit.node(node.op_type, [pad.inputs[0], *node.inputs[1:]], attributes, name=node.name)
        what = f"merged Pad `{label(pad)}` into it"
        edit.swap(node, [node, pad], new)
        return Done(what)


def read_padding(pad: ir.Node, of_rank: int | None) -> Padding | str:
    """Return what a Pad adds to the spatial axes, or why a reader's own padding cannot do it."""
    if (mode := pad.attributes.get_string("mode", "constant")) != "constant":
        return f"Pad `{label(pad)}` has the mode {mode}"
    pads, value = amounts(pad)
    if pads is None or value is None:
        return f"the amounts or the value of Pad `{label(pad)}` are not constant"
    axes = tuple(range(len(pads) // 2))
    if input_at(pad, 3) is not None:
        given = integers(input_at(pad, 3))
        if given is None or of_rank is None:
            return f"the axes of Pad `{label(pad)}` are not constant or its rank is unknown"
        axes = tuple(axis % of_rank for axis in given)
    dimensions = of_rank or len(axes)
    before, behind = [0] * dimensions, [0] * dimensions
    for index, axis in enumerate(axes):
        before[axis], behind[axis] = pads[index], pads[index + len(axes)]
    if any(before[:2] + behind[:2]):
        return f"Pad `{label(pad)}` adds to the batch or the channels"
    if min(before + behind) < 0:
        return f"Pad `{label(pad)}` takes away instead of adding"
    return Padding(tuple(before[2:]), tuple(behind[2:]), value)


def amounts(pad: ir.Node) -> tuple[tuple[int, ...] | None, float | None]:
    """Return the amounts and the value of a Pad, each None where it is not constant."""
    if "pads" in pad.attributes:  # opset 2 to 10
        return tuple(pad.attributes.get_ints("pads", ())), pad.attributes.get_float("value", 0.0)
    given = input_at(pad, 2)
    return integers(input_at(pad, 1)), 0.0 if given is None else scalar(given)


def _rank_of_reader(node: ir.Node) -> int | None:
    weight = constant(input_at(node, 1)) if node.op_type == "Conv" else None
    if weight is not None:
        return weight.ndim
    kernel = node.attributes.get_ints("kernel_shape", ())
    return len(kernel) + 2 if kernel else None


def _why_not(node: ir.Node, pad: ir.Node, padding: Padding) -> str | None:
    if node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return "it chooses its padding itself (`auto_pad`)"
    match node.op_type:
        case "Conv":
            return None if padding.value == 0 else f"it pads with 0, the Pad before it with {padding.value:g}"
        case "AveragePool":
            return _why_not_average(node, padding)
        case _:
            return _why_not_max(node, pad, padding)


def _why_not_average(node: ir.Node, padding: Padding) -> str | None:
    if padding.value != 0:
        return f"it pads with 0, the Pad before it with {padding.value:g}"
    if any(node.attributes.get_ints("pads", ())) and not node.attributes.get_int("count_include_pad", 0):
        return "it leaves its own padding out of the average but would have to count that of the Pad"
    if node.attributes.get_int("ceil_mode", 0):
        return "it rounds its output size up, so its last windows reach beyond the padding"
    kernel = node.attributes.get_ints("kernel_shape", ())
    return _why_not_small(kernel, padding)


def _why_not_max(node: ir.Node, pad: ir.Node, padding: Padding) -> str | None:
    if len(node.outputs) > 1:
        return "its indices count the padding"
    if any(size != 1 for size in node.attributes.get_ints("dilations", ())):
        return "it is dilated, so that a window could lie in the padding alone"
    if reason := _why_not_small(
        node.attributes.get_ints("kernel_shape", ()), padding, node.attributes.get_ints("pads", ())
    ):
        return reason
    if padding.value <= float(np.finfo(np.float32).min):
        return None
    source = pad.inputs[0]
    producer = None if source is None else source.producer()
    if padding.value == 0 and producer is not None and _is_not_negative(producer):
        return None
    return f"it pads with minus infinity, the Pad before it with {padding.value:g}"


def _why_not_small(kernel: Sequence[int], padding: Padding, own: Sequence[int] = ()) -> str | None:
    # Runtimes refuse a pooling whose padding is as wide as its window.
    amounts = np.array(padding.before + padding.behind)
    amounts += np.array(own) if own else 0
    if (amounts >= np.array([*kernel, *kernel])).any():
        return "the padding is as wide as the window"
    return None


def _is_not_negative(node: ir.Node) -> bool:
    if is_operator(node, "Clip"):
        low = node.attributes.get_float("min", -np.inf) if "min" in node.attributes else scalar(input_at(node, 1))
        return low is not None and low >= 0
    return is_operator(node, *NOT_NEGATIVE)
