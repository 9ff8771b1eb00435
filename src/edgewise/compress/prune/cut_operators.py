"""What states a size in each operator, and how it is mended when positions go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.compress.nodes import constant, required
from edgewise.compress.prune.cut_keep import Kept, Mask, old_size, rank
from edgewise.errors import ContractError
from edgewise.passes.rewriting import Edit, input_at, integers, label
from edgewise.records.tensors import Array


@dataclass(frozen=True)
class Site:
    """One node of the model that is cut.

    Attributes:
        old: The node in the model as it was: its constants and shapes are read.
        new: The same node in the copy, which is mended.
        kept: What stays.
        edit: Changes the copy.
    """

    old: ir.Node
    new: ir.Node
    kept: Kept
    edit: Edit

    def input(self, slot: int) -> ir.Value | None:
        """Return an operand in the model as it was, or None where it is left out."""
        return input_at(self.old, slot)

    def mask(self, slot: int, axis: int) -> Mask | None:
        """Return what stays of an operand along an axis, or None where all of it does."""
        return self.kept.mask(self.input(slot), axis)

    def out_mask(self, axis: int, index: int = 0) -> Mask | None:
        """Return what stays of an output along an axis, or None where all of it does."""
        return self.kept.mask(self.old.outputs[index], axis)

    def write(self, slot: int, array: Array) -> None:
        """Let an operand of the copy be the constant `array`."""
        current = input_at(self.new, slot)
        if current is None or constant(current) is None:
            name = f"{label(self.new)}/input_{slot}" if current is None else f"{current.name}/kept"
            value = self.edit.constant(self.new, name, array)
        else:
            value = self.edit.update(self.new, current, array)
        while len(self.new.inputs) <= slot:
            self.new.resize_inputs(slot + 1)
        self.new.replace_input_with(slot, value)

    def set(self, name: str, number: int) -> None:
        """Set an attribute of the copy."""
        self.new.attributes[name] = ir.AttrInt64(name, number)

    def failed(self, reason: str) -> ContractError:
        """Return the error of a node that cannot be mended; `reason` follows "because"."""
        return ContractError(
            f"Every unit of a coupling has to be removable. `{label(self.old)}` ({self.old.op_type}) cannot become "
            f"shorter, because {reason}."
        )


def fixed(site: Site, slot: int) -> tuple[int, ...]:
    """Return the integers of a constant operand.

    Raises:
        ContractError: If it is not constant.
    """
    found = integers(site.input(slot))
    if found is None:
        raise site.failed(f"its input {slot} is not constant")
    return found


def conv(site: Site) -> None:
    """Conv: channels in = channels of a weight x groups."""
    count = site.kept.count(site.input(0), 1)
    _set_group(site, count, old=old_size(site.input(0), 1))


def conv_transpose(site: Site) -> None:
    """ConvTranspose: channels out = channels of a weight x groups."""
    _set_group(site, site.kept.count(site.old.outputs[0], 1), old=old_size(site.old.outputs[0], 1))


def _set_group(site: Site, count: int | None, old: int | None) -> None:
    weight = required(site.input(1))
    size, mask = old_size(weight, 1), site.mask(1, 1)
    if count is None and mask is None:
        return
    group = site.old.attributes.get_int("group", 1)
    per_group = size if mask is None else int(mask.sum())
    total = count if count is not None else old if old is not None or size is None else size * group
    if per_group is None or total is None or total % per_group:
        raise site.failed(f"{total} channels cannot be shared by groups of {per_group}")
    if total // per_group != group:
        site.set("group", total // per_group)


def reshape(site: Site) -> None:
    """Reshape: the target states sizes, 0 (as in the input) and -1 (what is left)."""
    output = site.old.outputs[0]
    if not site.kept.axes(output.name or "") and not site.kept.axes(required(site.input(0)).name or ""):
        return
    target = integers(site.input(1))
    if target is None:
        return
    mended = list(target)
    keeps_zero = site.old.attributes.get_int("allowzero", 0) == 1
    for axis, size in enumerate(target):
        count = site.kept.count(output, axis)
        if size > 0 and count is not None:
            mended[axis] = count
        elif size == 0 and not keeps_zero:
            wanted = old_size(output, axis) if count is None else count
            if wanted is not None and site.kept.size(site.input(0), axis) != wanted:
                mended[axis] = wanted
    if tuple(mended) != target:
        site.write(1, np.asarray(mended, np.int64))


def split(site: Site) -> None:
    """Split: the sizes of the parts, as an input, an attribute, or left out where they are the same."""
    axis = site.old.attributes.get_int("axis", 0)
    if site.mask(0, axis) is None:
        return
    sizes = [site.kept.size(value, axis) for value in site.old.outputs]
    if any(size is None for size in sizes):
        raise site.failed("the sizes of its parts are not known")
    array = np.asarray(sizes, np.int64)
    if site.edit.opset < 13:
        site.new.attributes["split"] = ir.AttrInt64s("split", [int(size) for size in array])
        return
    if site.input(1) is None and len(set(array.tolist())) == 1:
        return
    site.new.attributes.pop("num_outputs", None)
    site.write(1, array)


def slice_(site: Site) -> None:
    """Slice: starts and ends count what stays; other steps than 1 become a Gather where they have to."""
    value = required(site.input(0))
    if not site.kept.axes(value.name or ""):
        return
    starts, ends = list(fixed(site, 1)), list(fixed(site, 2))
    axes = list(range(len(starts))) if site.input(3) is None else list(fixed(site, 3))
    steps = [1] * len(starts) if site.input(4) is None else list(fixed(site, 4))
    gathered = []
    for place, axis in enumerate(axes):
        mask = site.mask(0, axis)
        if mask is None:
            continue
        taken = np.arange(len(mask))[starts[place] : ends[place] : steps[place]]
        ranks = (np.cumsum(mask) - 1)[taken[mask[taken]]]
        if not len(ranks):
            raise site.failed("it takes removed positions alone")
        found = _range(ranks)
        if found is None:
            gathered.append((axis, ranks))
            found = (0, np.iinfo(np.int64).max, 1)
        starts[place], ends[place], steps[place] = found
    for slot, numbers in ((1, starts), (2, ends)):
        if numbers != list(fixed(site, slot)):
            site.write(slot, np.asarray(numbers, np.int64))
    if site.input(4) is not None and steps != list(fixed(site, 4)):
        site.write(4, np.asarray(steps, np.int64))
    for axis, ranks in gathered:
        _gather_before(site, axis, ranks)


def _range(ranks: Array) -> tuple[int, int, int] | None:
    """Return start, end and step that take these positions, or None where no step does."""
    if len(ranks) == 1:
        return int(ranks[0]), int(ranks[0]) + 1, 1
    step = int(ranks[1] - ranks[0])
    if (np.diff(ranks) != step).any():
        return None
    end = int(ranks[-1]) + (1 if step > 0 else -1)
    return int(ranks[0]), end if end >= 0 else int(np.iinfo(np.int64).min), step


def _gather_before(site: Site, axis: int, ranks: Array) -> None:
    """Let a Gather take positions that no step reaches, and the Slice take all of what is left."""
    source = required(input_at(site.new, 0))
    indices = site.edit.constant(site.new, f"{label(site.new)}/positions", ranks.astype(np.int64))
    gather_node = site.edit.node("Gather", [source, indices], {"axis": axis}, name=f"{label(site.new)}/gather")
    gather_node.outputs[0].type = source.type
    graph = site.new.graph
    if graph is None:
        raise site.failed("it lies in no graph")
    graph.insert_before(site.new, gather_node)
    site.new.replace_input_with(0, gather_node.outputs[0])


def gather(site: Site) -> None:
    """Gather: constant indices count what stays."""
    data = required(site.input(0))
    axis = site.old.attributes.get_int("axis", 0)
    axis = axis + rank(data) if axis < 0 else axis
    mask = site.mask(0, axis)
    indices = constant(site.input(1))
    if indices is None:
        if mask is not None:
            raise site.failed("its indices are not constant")
        return
    kept = indices
    for place in range(indices.ndim):
        if (stays := site.out_mask(axis + place)) is not None:
            kept = np.compress(stays, kept, axis=place)
    if mask is not None:
        kept = np.where(kept < 0, kept + len(mask), kept)
        if not mask[kept].all():
            raise site.failed("it picks positions that are removed")
        kept = (np.cumsum(mask) - 1)[kept]
    if not np.array_equal(kept, indices):
        site.write(1, np.asarray(kept, indices.dtype))


MENDERS: Final[dict[str, Callable[[Site], None]]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gather": gather,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
}
"""How to mend each operator that states sizes; the others follow their operands."""
