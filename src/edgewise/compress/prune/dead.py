"""Units that can go without any loss, by the weights alone: what is always zero, and what nothing reads.

A unit is dead for a reader if it is zero in it whatever the input (see `dead_ranges`), or if all weights that multiply
it are zero; it can go if it is dead for each of its readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.coupling import Coupling, Group, Reader
from edgewise.analysis.values import label
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut_keep import Kept
from edgewise.compress.prune.dead_ranges import Ranges, input_axis
from edgewise.compress.unfold import unfolding
from edgewise.errors import RecipeError
from edgewise.passes.rewriting import all_nodes, input_at

_Flags = npt.NDArray[np.bool_]

_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})


def dead(model: ir.Model, coupling: Coupling) -> dict[str, tuple[int, ...]]:
    """Return the units that `cut` can remove without any change of what the model computes, by group.

    Not more than can go together: at least one unit of each group and one position of each value stay.

    Args:
        model: The model that `coupling` describes.
        coupling: The groups.

    Returns:
        Units in rising order, by the name of their group; groups without any are left out.
    """
    ranges = Ranges(model, coupling)
    nodes = {label(node): node for node in all_nodes(model)}
    found: dict[str, tuple[int, ...]] = {}
    for number, group in enumerate(coupling.groups):
        flags = np.ones(group.size, np.bool_)
        for reader in group.readers:
            node = nodes.get(reader.node)
            flags &= False if node is None else _unread(node, reader, group) | _zero(node, reader, ranges, number)
        units = _removable(coupling, found, group, flags)
        if units:
            found[group.name] = units
    return found


def _removable(
    coupling: Coupling, found: Mapping[str, tuple[int, ...]], group: Group, flags: _Flags
) -> tuple[int, ...]:
    """Return the units of a group that can go beside those of others: nothing may become empty."""
    units: list[int] = [int(unit) for unit in np.flatnonzero(flags)]
    while units:
        try:
            Kept(coupling, {**found, group.name: units})
        except RecipeError:
            units.pop()
        else:
            break
    return tuple(units)


def _zero(node: ir.Node, reader: Reader, ranges: Ranges, group: int) -> _Flags:
    """Return for each unit whether it is always zero in what the node reads, or multiplied by what always is."""
    if node.op_type in _RECURRENT and reader.weight == 2:
        return np.zeros(ranges.of(group, None).shape[1], np.bool_)
    slots = (0, 1) if reader.weight is None and node.op_type == "MatMul" else (reader.slot,)
    flags = [(ranges.of(group, input_at(node, slot)) == 0).all(axis=0) for slot in slots]
    return np.asarray(np.any(flags, axis=0))


def _unread(node: ir.Node, reader: Reader, group: Group) -> _Flags:
    """Return for each unit whether all weights that multiply it are zero."""
    columns = None if reader.weight is None else _zero_columns(node, reader)
    recurrent = node.op_type in _RECURRENT and reader.weight == 2
    value = input_at(node, 2 if recurrent else reader.slot)
    place = 2 if recurrent else reader.axis
    for one in group.axes:
        if value is None or columns is None or (one.value, one.axis) != (value.name, place):
            continue
        if len(columns) == len(one.units):
            return ~np.isin(np.arange(group.size), one.units[~columns])
    return np.zeros(group.size, np.bool_)


def _zero_columns(node: ir.Node, reader: Reader) -> _Flags | None:
    """Return for each position that is read whether its weights are all zero, or None where that is not known."""
    weight = constant(input_at(node, reader.weight if reader.weight is not None else -1))
    if weight is None:
        return None
    if node.op_type in _RECURRENT:
        return np.asarray(~weight.any(axis=(0, 1)))
    if reader.slot != 0 or node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return None
    layout = unfolding(node, weight)
    if isinstance(layout, str) or reader.axis != input_axis(node):
        return None
    matrix = layout.matrix(weight)
    blocks = matrix.reshape(layout.groups, layout.outputs, -1, layout.kernel)
    return np.asarray(~blocks.any(axis=(1, 3)).reshape(-1))
