"""Operators that move data without computing: they act on labels exactly as on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.channel_flow import Flow, matched_sizes, name_of, numbers, sizes_of
from edgewise.analysis.channel_labels import Dims, Labels, along, blocks, flattened
from edgewise.analysis.values import input_at

_MOST_ELEMENTS: Final = 10_000_000
"""Elements of the axes that a reshape splits or merges, of which each is followed."""


def _reshape(flow: Flow, node: ir.Node) -> list[Dims]:
    dims, sizes = flow.input(node, 0), matched_sizes(input_at(node, 0), node.outputs[0])
    if node.op_type == "Reshape" and not flow.follows(node, 1):
        return stay(flow, node, dims, "takes a shape that is decided while it runs")
    if sizes is None:
        return stay(flow, node, dims, "has a shape that is not known in full")
    return [reshaped(flow, node, dims, *sizes)]


def reshaped(flow: Flow, node: ir.Node, dims: Dims, before: Sequence[int], behind: Sequence[int]) -> Dims:
    """Return the labels behind a reshape: merged axes repeat the labels of one, and of split ones one has them.

    Where an axis of units splits in several, positions that share an index of the one with the labels are joined. If
    the labels already differ along one of the new axes alone, that is the one, and nothing is joined; else
    `Flow.choices` says which.

    Args:
        flow: What is known so far.
        node: The node, for reasons.
        dims: The labels of its input.
        before: The sizes of its input, each >= 1.
        behind: The sizes of its output.
    """
    result: list[Labels | None] = [None] * len(behind)
    for ins, outs in blocks(before, behind):
        labelled = [(index, labels) for index, axis in enumerate(ins) if (labels := dims[axis]) is not None]
        sizes = [behind[axis] for axis in outs]
        long = [index for index, size in enumerate(sizes) if size > 1]
        if len(labelled) > 1 or math.prod(sizes) > _MOST_ELEMENTS:
            why = "merges two axes of units" if len(labelled) > 1 else "moves them in a way that is not followed"
            flow.pin([labels for _, labels in labelled], f"{name_of(node)} ({node.op_type}) {why}")
        elif labelled and long:
            at, labels = labelled[0]
            elements = flattened(labels, [before[axis] for axis in ins], at)
            chosen = _axis_of_units(flow, elements, sizes, long, (tuple(before), tuple(behind)))
            rows = along(elements, sizes, chosen)
            flow.joined.join_rows(rows)
            result[outs[chosen]] = rows[:, 0].copy()
    return tuple(result)


def _axis_of_units(
    flow: Flow,
    elements: Labels,
    sizes: Sequence[int],
    long: Sequence[int],
    pattern: tuple[tuple[int, ...], tuple[int, ...]],
) -> int:
    """Return on which of the new axes the labels lie."""
    if len(long) == 1:
        return long[0]
    roots = flow.joined.roots(elements)
    for axis in long:
        rows = along(roots, sizes, axis)
        if (rows == rows[:, :1]).all():
            return axis
    flow.splits[pattern] = len(long)
    return long[min(flow.choices.get(pattern, 0), len(long) - 1)]


def _transpose(flow: Flow, node: ir.Node) -> list[Dims]:
    dims = flow.input(node, 0)
    order = node.attributes.get_ints("perm") if "perm" in node.attributes else range(len(dims))[::-1]
    return [tuple(dims[axis] for axis in order)]


def _concat(flow: Flow, node: ir.Node) -> list[Dims]:
    sizes, parts = sizes_of(node.outputs[0]), [(flow.of(value), sizes_of(value)) for value in node.inputs]
    if not sizes or any(len(dims) != len(sizes) for dims, _ in parts):
        return all_stay(flow, node, "has a shape that is not known in full")
    at = node.attributes.get_int("axis", 0) % len(sizes)
    beside = f"{name_of(node)} puts them beside numbers that cannot go"
    result: list[Labels | None] = []
    for axis in range(len(sizes)):
        labels = [dims[axis] for dims, _ in parts]
        if all(one is None for one in labels):
            result.append(None)
        elif axis != at:
            first = next(one for one in labels if one is not None)
            for one in labels:
                flow.meet(first, one, beside)
            result.append(first)
        elif any(part[axis] is None for _, part in parts):
            flow.pin(labels, beside)
            result.append(None)
        else:
            result.append(np.concatenate([_labels(flow, node, dims[axis], part[axis]) for dims, part in parts]))
    return [tuple(result)]


def _labels(flow: Flow, node: ir.Node, labels: Labels | None, size: int | None) -> Labels:
    """Return the labels of an axis; positions without any get new ones that stay."""
    if labels is not None:
        return labels
    labels = flow.joined.fresh(size or 0)
    flow.joined.pin(labels, f"{name_of(node)} takes them from a value that has no units there")
    return labels


def _split(flow: Flow, node: ir.Node) -> list[Dims]:
    dims = flow.input(node, 0)
    axis = node.attributes.get_int("axis", 0) % max(len(dims), 1)
    if not flow.follows(node, 1):
        return stay(flow, node, dims, "takes parts that are decided while it runs")
    counts = [sizes_of(value)[axis : axis + 1] for value in node.outputs]
    if dims[axis] is not None and any(count in {(), (None,)} for count in counts):
        return all_stay(flow, node, "has a shape that is not known in full")
    result, start = [], 0
    for count in counts:
        end = start + sum(size or 0 for size in count)
        result.append(tuple(_taken(dim, slice(start, end)) if at == axis else dim for at, dim in enumerate(dims)))
        start = end
    return result


def _taken(labels: Labels | None, where: slice | Labels) -> Labels | None:
    """Return some of the labels of an axis, if it has any."""
    return None if labels is None else labels[where]


def _slice(flow: Flow, node: ir.Node) -> list[Dims]:
    dims = flow.input(node, 0)
    if "starts" in node.attributes:
        attributes = node.attributes
        starts, ends = tuple(attributes.get_ints("starts", ())), tuple(attributes.get_ints("ends", ()))
        axes: tuple[int, ...] | None = tuple(attributes.get_ints("axes", range(len(starts))))
        steps: tuple[int, ...] | None = (1,) * len(starts)
    else:
        found_starts, found_ends = numbers(input_at(node, 1)), numbers(input_at(node, 2))
        if found_starts is None or found_ends is None:
            return stay(flow, node, dims, "takes a part that is decided while it runs")
        starts, ends = found_starts, found_ends
        axes = tuple(range(len(starts))) if input_at(node, 3) is None else numbers(input_at(node, 3))
        steps = (1,) * len(starts) if input_at(node, 4) is None else numbers(input_at(node, 4))
    if axes is None or steps is None:
        return stay(flow, node, dims, "takes a part that is decided while it runs")
    result = list(dims)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        labels = result[axis % len(dims)]
        if labels is not None:
            result[axis % len(dims)] = labels[_as_slice(start, end, step, len(labels))]
    return [tuple(result)]


def _as_slice(start: int, end: int, step: int, size: int) -> Labels:
    """Return the positions that ONNX takes: ends beyond the axis are its ends, negative ones count from behind."""
    first, last = (number + size if number < 0 else number for number in (start, end))
    if step > 0:
        return np.arange(min(max(first, 0), size), min(max(last, 0), size), step, dtype=np.int64)
    return np.arange(min(max(first, -1), size - 1), max(min(last, size - 1), -1), step, dtype=np.int64)


def _gather(flow: Flow, node: ir.Node) -> list[Dims]:
    dims, indices = flow.input(node, 0), input_at(node, 1)
    found, shape = numbers(indices), sizes_of(indices)
    axis = node.attributes.get_int("axis", 0) % max(len(dims), 1)
    inner: list[Labels | None] = [None] * len(shape)
    labels = dims[axis]
    if labels is not None:
        if found is None:
            flow.joined.pin(labels, f"{name_of(node)} takes some of them by numbers that are computed")
        elif len(shape) == 1:
            inner = [labels[np.array(found, np.int64) % len(labels)]]
        else:
            flow.joined.pin(labels[np.array(found, np.int64) % len(labels)], f"{name_of(node)} takes them by number")
    if found is None:
        for other in (*dims[:axis], *dims[axis + 1 :]):  # an embedding: a table makes the units of its other axes
            flow.make(node, 0, other)
    return [(*dims[:axis], *inner, *dims[axis + 1 :])]


def _expand(flow: Flow, node: ir.Node) -> list[Dims]:
    dims, before, behind = flow.input(node, 0), sizes_of(input_at(node, 0)), sizes_of(node.outputs[0])
    if not flow.follows(node, 1):
        return stay(flow, node, dims, "takes a shape that is decided while it runs")
    padded = (*[None] * (len(behind) - len(dims)), *dims)
    sizes = (*[1] * (len(behind) - len(before)), *before)
    return [tuple(dim if one == other else None for dim, one, other in zip(padded, sizes, behind, strict=True))]


def _tile(flow: Flow, node: ir.Node) -> list[Dims]:
    dims, repeats = flow.input(node, 0), numbers(input_at(node, 1))
    if repeats is None:
        return stay(flow, node, dims, "repeats them as often as is decided while it runs")
    return [tuple(None if dim is None else np.tile(dim, count) for dim, count in zip(dims, repeats, strict=True))]


def _pad(flow: Flow, node: ir.Node) -> list[Dims]:
    dims = flow.input(node, 0)
    given = tuple(node.attributes.get_ints("pads")) if "pads" in node.attributes else numbers(input_at(node, 1))
    axes = tuple(range(len(dims))) if input_at(node, 3) is None else numbers(input_at(node, 3))
    if given is None or axes is None:
        return stay(flow, node, dims, "puts as many others beside them as is decided while it runs")
    constant = node.attributes.get_string("mode", "constant") == "constant"
    result = list(dims)
    for at, axis in enumerate(axes):
        labels, ends = dims[axis % len(dims)], (given[at], given[at + len(axes)])
        if labels is None or ends == (0, 0):
            continue
        if min(ends) < 0 or not constant:
            flow.joined.pin(labels, f"{name_of(node)} puts others beside them")
            result[axis % len(dims)] = None
        else:
            new = [flow.joined.fresh(count) for count in ends]
            flow.pin(new, f"{name_of(node)} adds them")
            result[axis % len(dims)] = np.concatenate([new[0], labels, new[1]])
    return [tuple(result)]


def _depth_to_space(flow: Flow, node: ir.Node) -> list[Dims]:
    dims, size = flow.input(node, 0), node.attributes.get_int("blocksize", 1)
    channels = dims[1]
    flow.pin(dims[2:], f"{name_of(node)} mixes neighbours along that axis")
    if channels is None:
        return [(dims[0], None, None, None)]
    inner = node.attributes.get_string("mode", "DCR") == "CRD"
    rows = channels.reshape(-1, size * size) if inner else channels.reshape(size * size, -1).T
    flow.joined.join_rows(rows)
    return [(dims[0], rows[:, 0].copy() if len(rows) > 1 else None, None, None)]


def _space_to_depth(flow: Flow, node: ir.Node) -> list[Dims]:
    dims, size = flow.input(node, 0), node.attributes.get_int("blocksize", 1)
    flow.pin(dims[2:], f"{name_of(node)} mixes neighbours along that axis")
    return [(dims[0], None if dims[1] is None else np.tile(dims[1], size * size), None, None)]


def _shape_only(flow: Flow, node: ir.Node) -> list[Dims]:
    """Sizes alone are read: they follow."""
    flow.input(node, 0)
    return [(None,) * len(sizes_of(value)) for value in node.outputs]


def stay(flow: Flow, node: ir.Node, dims: Dims, why: str) -> list[Dims]:
    """Let labels stay, and return outputs without any."""
    flow.pin(dims, f"{name_of(node)} ({node.op_type}) {why}")
    return [(None,) * len(sizes_of(value)) for value in node.outputs]


def all_stay(flow: Flow, node: ir.Node, why: str) -> list[Dims]:
    """Let the labels of all inputs stay, and return outputs without any."""
    return stay(flow, node, tuple(one for value in node.inputs for one in flow.of(value)), why)


VIEWS: Final[dict[str, Callable[[Flow, ir.Node], Sequence[Dims]]]] = {
    "Concat": _concat,
    "ConstantOfShape": _shape_only,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape_only,
    "Size": _shape_only,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
