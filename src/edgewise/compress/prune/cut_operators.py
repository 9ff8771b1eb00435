"""What states a size in each operator, and how it is mended when positions go."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.compress.nodes import constant, required
from edgewise.compress.prune.cut_keep import Kept, Mask, old_size, rank
from edgewise.compress.prune.cut_site import Site
from edgewise.compress.prune.cut_sizes import Term, carries, trace
from edgewise.errors import ContractError
from edgewise.passes.rewriting import Edit, all_nodes, is_operator
from edgewise.records.tensors import Array

_LAST: Final = 2**31 - 1
_BEFORE_FIRST: Final = -(2**31)
"""An end behind every position, and one before the first: they fit every type that indices have."""


def mend(model: ir.Model, copy: ir.Model, kept: Kept) -> None:
    """Mend what states a size in every node of `copy`, a clone of `model` whose constants are sliced already.

    Raises:
        ContractError: If a node cannot become shorter in the way that the coupling says.
    """
    edit, traced = Edit(copy), trace(model, kept)
    for old, new in list(zip(all_nodes(model), all_nodes(copy), strict=True)):
        site = Site(old, new, kept, traced, edit)
        standard = is_operator(old, old.op_type)
        if standard and old.op_type in MENDERS:
            MENDERS[old.op_type](site)
        elif not (standard and old.op_type in {"Shape", "Size"}) and not carries(old, traced):
            _keep_numbers(site)
    for value in model.graph.outputs:
        if value.name in traced and traced[value.name].changes:
            raise ContractError(f"Outputs have to keep what they say of shapes. `{value.name}` would change.")


def _keep_numbers(site: Site, *slots: int) -> None:
    """Let a node that computes with sizes get those of the model as it was: a scale by a width, say."""
    for slot in slots or range(len(site.old.inputs)):
        sizes = site.sizes(slot)
        if sizes is None or not sizes.changes:
            continue
        if sizes.old is None:
            raise site.failed(f"its input {slot} depends on sizes in a way that cannot be traced")
        site.state(slot, sizes.old.reshape(-1).tolist())


def _conv(site: Site) -> None:
    """Mend Conv: channels in = channels of a weight x groups."""
    _set_group(site, site.input(0))


def _conv_transpose(site: Site) -> None:
    """Mend ConvTranspose: channels out = channels of a weight x groups."""
    _set_group(site, site.old.outputs[0])


def _set_group(site: Site, channels: ir.Value | None) -> None:
    weight = required(site.input(1))
    total, per_group = site.kept.count(channels, 1), site.kept.count(weight, 1)
    if total is None and per_group is None:
        return
    group = site.old.attributes.get_int("group", 1)
    size = old_size(weight, 1)
    if size is None:
        raise site.failed("the shape of its weight is not known")
    total = group * size if total is None else total
    per_group = size if per_group is None else per_group
    if total % per_group:
        raise site.failed(f"{total} channels cannot be shared by groups of {per_group}")
    if total // per_group != group:
        site.set("group", total // per_group)


def _group_norm(site: Site) -> None:
    """Mend GroupNormalization: whole groups go."""
    mask = site.mask(0, 1)
    if mask is None:
        return
    groups = mask.reshape(site.old.attributes.get_int("num_groups", 1), -1)
    if (groups.any(axis=1) != groups.all(axis=1)).any():
        raise site.failed("it normalizes over channels of which some go and some stay")
    site.set("num_groups", int(groups.any(axis=1).sum()))


def _recurrent(site: Site) -> None:
    """Mend LSTM, GRU and RNN: the hidden size; gates follow the weights."""
    hidden = site.kept.count(site.input(2), 2)
    if hidden is not None:
        site.set("hidden_size", hidden)


def _attention(site: Site) -> None:
    """Mend Attention: heads are counted where they lie in the last axis; the scale stays that of the whole width."""
    query = required(site.input(0))
    flat = rank(query) == 3
    width = old_size(query, -1)
    heads = site.old.attributes.get_int("q_num_heads", 1) if flat else 1
    for slot, name in ((0, "q_num_heads"), (1, "kv_num_heads")) if flat else ():
        mask = site.mask(slot, 2)
        if mask is not None:
            rows = mask.reshape(site.old.attributes.get_int(name, 1), -1).any(axis=1)
            site.set(name, int(rows.sum()))
    if site.mask(0, rank(query) - 1) is not None and "scale" not in site.old.attributes:
        if width is None:
            raise site.failed("the width of its heads is not known")
        site.new.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(width // heads))


def _reshape(site: Site) -> None:
    """Mend Reshape: the target states sizes, 0 (as in the input) and -1 (what is left)."""
    data, output = required(site.input(0)), site.old.outputs[0]
    sizes = site.sizes(1)
    if not (site.kept.axes(output.name or "") or site.kept.axes(data.name or "") or (sizes and sizes.changes)):
        return
    copies = site.old.attributes.get_int("allowzero", 0) == 0
    if sizes is None or sizes.old is None:
        shape = [site.kept.size(output, axis) for axis in range(rank(output))]
        if any(size is None for size in shape):
            raise site.failed("its target is known only when the model runs")
        site.state(1, [size for size in shape if size is not None])
        return
    wanted: list[Term] = []
    for axis, term in enumerate(sizes.old.reshape(-1).tolist()):
        count = site.kept.count(output, axis)
        if term == 0 and copies:
            stays = old_size(output, axis) if count is None else count
            wanted.append(0 if stays is None or site.kept.size(data, axis) == stays else stays)
        else:
            wanted.append(term if count is None or term == -1 else count)
    unknown = [axis for axis, term in enumerate(wanted) if not isinstance(term, int)]
    if len(unknown) == 1 and -1 not in wanted and wanted != _new_terms(site, 1):
        wanted[unknown[0]] = -1
    site.state(1, wanted)


def _new_terms(site: Site, slot: int) -> list[Term] | None:
    sizes = site.sizes(slot)
    return None if sizes is None or sizes.new is None else sizes.new.reshape(-1).tolist()


def _shape_like(slot: int, *, ones: bool = False) -> Callable[[Site], None]:
    """Return how to mend an operator whose operand `slot` states its output's last sizes.

    Args:
        slot: Input index of the sizes.
        ones: Whether 1 stands for the size that the input has.
    """

    def mender(site: Site) -> None:
        output = site.old.outputs[0]
        sizes = site.sizes(slot)
        axes = site.kept.axes(output.name or "")
        if site.input(slot) is None or not (axes or (sizes and sizes.changes)):
            return
        if sizes is None or sizes.old is None:
            raise site.failed(f"its input {slot} depends on sizes in a way that cannot be traced")
        terms = sizes.old.reshape(-1).tolist()
        stated = site.old.attributes.get_ints("axes", ()) if site.old.op_type == "Resize" else ()
        places = [axis % rank(output) for axis in stated] or list(range(rank(output) - len(terms), rank(output)))
        counts = [site.kept.count(output, axis) for axis in places]
        site.state(
            slot,
            [
                term if count is None or (ones and term == 1) else count
                for term, count in zip(terms, counts, strict=True)
            ],
        )

    return mender


def _tile(site: Site) -> None:
    """Mend Tile: a unit may be a whole tile, or a position of each."""
    data, output = required(site.input(0)), site.old.outputs[0]
    if not site.kept.axes(output.name or ""):
        _keep_numbers(site, 1)
        return
    repeats: list[Term] = []
    for axis, repeat in enumerate(site.numbers(1)):
        count, size = site.kept.count(output, axis), site.kept.size(data, axis)
        if count is None:
            repeats.append(repeat)
        elif size is None or count % size:
            raise site.failed(f"{count} positions are no multiple of {size}")
        else:
            repeats.append(count // size)
    site.state(1, repeats)


def _split(site: Site) -> None:
    """Mend Split: the sizes of the parts, as an input, an attribute, or left out where they are the same."""
    axis = site.old.attributes.get_int("axis", 0)
    if site.mask(0, axis) is None:
        _keep_numbers(site, 1)
        return
    sizes = [site.kept.size(value, axis) for value in site.old.outputs]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise site.failed("the sizes of its parts are not known")
    if site.edit.opset < 13:
        site.new.attributes["split"] = ir.AttrInt64s("split", known)
        return
    if site.input(1) is None and len(set(known)) == 1:
        return
    site.new.attributes.pop("num_outputs", None)
    site.write(1, np.asarray(known, np.int64))


def _slice(site: Site) -> None:
    """Mend Slice: starts, ends and steps take what stays; where no step does, a Gather takes it before."""
    axes = _sliced_axes(site)
    if all(site.mask(0, axis) is None for axis in axes):
        _keep_numbers(site, 1, 2, 3, 4)
        return
    starts, ends = site.numbers(1), site.numbers(2)
    steps = [1] * len(starts) if site.input(4) is None else site.numbers(4)
    for place, axis in enumerate(axes):
        mask = site.mask(0, axis)
        if mask is None:
            continue
        taken = np.arange(len(mask))[starts[place] : ends[place] : steps[place]]
        ranks = _ranks(mask, taken[mask[taken]])
        if not len(ranks):
            raise site.failed("nothing would be left of what it takes")
        found = _progression(ranks, steps[place])
        if found is None:
            indices = site.edit.constant(site.new, f"{site.new.name or axis}/positions", ranks)
            site.insert(0, site.edit.node("Gather", [site.new.inputs[0], indices], {"axis": axis}))
            found = (0, _LAST, 1)
        starts[place], ends[place], steps[place] = found
    site.state(1, starts)
    site.state(2, ends)
    if site.input(4) is not None:
        site.state(4, steps)


def _sliced_axes(site: Site) -> list[int]:
    if site.input(3) is not None:
        return site.numbers(3)
    if site.kept.axes(required(site.input(0)).name or ""):
        return list(range(len(site.numbers(1))))
    return []


def _ranks(mask: Mask, positions: Array) -> Array:
    """Return where positions that stay are among all that stay."""
    return np.asarray((np.cumsum(mask) - 1)[positions], np.int64)


def _progression(ranks: Array, step: int) -> tuple[int, int, int] | None:
    """Return start, end and step that take these positions, or None where none do.

    Args:
        ranks: The positions, at least one.
        step: The step of before, which is kept where there is but one position.
    """
    if len(ranks) > 1:
        step = int(ranks[1] - ranks[0])
        if (np.diff(ranks) != step).any():
            return None
    end = int(ranks[-1]) + (1 if step > 0 else -1)
    return int(ranks[0]), end if end >= 0 else _BEFORE_FIRST, step


def _gather(site: Site) -> None:
    """Mend Gather: constant indices count what stays."""
    data = required(site.input(0))
    axis = site.old.attributes.get_int("axis", 0)
    axis = axis + rank(data) if axis < 0 else axis
    mask, indices = site.mask(0, axis), constant(site.input(1))
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
        kept = _ranks(mask, kept)
    if not np.array_equal(kept, indices):
        site.write(1, np.asarray(kept, indices.dtype))


def _pad(site: Site) -> None:
    """Mend Pad: some positions of a border of zeros may go, and cropped ones."""
    data, output = required(site.input(0)), site.old.outputs[0]
    if not (site.kept.axes(data.name or "") or site.kept.axes(output.name or "")):
        _keep_numbers(site, 1, 3)
        return
    pads = site.numbers(1)
    axes = list(range(rank(data))) if site.input(3) is None else [axis % rank(data) for axis in site.numbers(3)]
    mended: list[Term] = list(pads)
    for place, axis in enumerate(axes):
        inner, outer = site.mask(0, axis), site.out_mask(axis)
        begin, end = pads[place], pads[place + len(axes)]
        mended[place] = _border(inner, outer, begin)
        mended[place + len(axes)] = _border(_reversed(inner), _reversed(outer), end)
    site.state(1, mended)


def _reversed(mask: Mask | None) -> Mask | None:
    return None if mask is None else mask[::-1]


def _border(inner: Mask | None, outer: Mask | None, pad: int) -> int:
    """Return how much is padded before the first position (cropped where negative) when positions go."""
    if pad < 0:
        return pad if inner is None else -int(inner[:-pad].sum())
    return pad if outer is None else int(outer[:pad].sum())


def _squeeze(site: Site) -> None:
    """Mend Squeeze: where no axes are given, those of size 1 of before, as others may have become so."""
    data = required(site.input(0))
    if site.input(1) is not None or "axes" in site.old.attributes or not site.kept.axes(data.name or ""):
        return
    sizes = [old_size(data, axis) for axis in range(rank(data))]
    if any(size is None and axis not in site.kept.axes(data.name or "") for axis, size in enumerate(sizes)):
        raise site.failed("which axes it removes is known only when the model runs")
    axes = [axis for axis, size in enumerate(sizes) if size == 1]
    if site.edit.opset < 13:
        site.new.attributes["axes"] = ir.AttrInt64s("axes", axes)
    else:
        site.write(1, np.asarray(axes, np.int64))


def _resize(site: Site) -> None:
    """Mend Resize: sizes, where they are given; scales and regions along channels are those of the whole."""
    _shape_like(3)(site)
    _keep_numbers(site, 1, 2)


MENDERS: Final[dict[str, Callable[[Site], None]]] = {
    "Attention": _attention,
    "ConstantOfShape": _shape_like(0),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Expand": _shape_like(1, ones=True),
    "GRU": _recurrent,
    "Gather": _gather,
    "GroupNormalization": _group_norm,
    "LSTM": _recurrent,
    "Pad": _pad,
    "RNN": _recurrent,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
}
"""How to mend each operator that states sizes; the others follow their operands."""
