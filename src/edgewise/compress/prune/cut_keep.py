"""Which positions of every value stay when units of groups are removed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.coupling import Coupling, Group
from edgewise.errors import ContractError, RecipeError

Mask: TypeAlias = npt.NDArray[np.bool_]


class Kept:
    """The positions that stay, by value and axis.

    Args:
        coupling: The groups.
        removed: Units to remove, by the name of their group.

    Raises:
        ContractError: If a group or a unit does not exist, or the axes of a value contradict each other.
        RecipeError: If nothing of a group or of a value would be left.
    """

    def __init__(self, coupling: Coupling, removed: Mapping[str, Collection[int]]) -> None:
        groups = {group.name: group for group in coupling.groups}
        self._masks: dict[str, dict[int, Mask]] = {}
        for name, units in removed.items():
            if name not in groups:
                raise ContractError(f"Units can be removed from groups of the model alone. Received `{name}`.")
            gone = _gone(groups[name], units)
            if not gone.any():
                continue
            for axis in groups[name].axes:
                belongs = axis.units >= 0
                mask = ~(belongs & gone[np.where(belongs, axis.units, 0)])
                self._join(name, axis.value, axis.axis, mask)

    def _join(self, group: str, value: str, axis: int, mask: Mask) -> None:
        axes = self._masks.setdefault(value, {})
        known = axes.get(axis)
        if known is not None and len(known) != len(mask):
            raise ContractError(
                f"All groups have to agree on the size of axis {axis} of `{value}`. Received {len(known)} and, in "
                f"group `{group}`, {len(mask)}."
            )
        joined = mask if known is None else known & mask
        if not joined.any():
            raise RecipeError(
                f"At least one position of every value has to stay. Nothing would be left of axis {axis} of `{value}`.",
                hint=f"Remove fewer units of the group `{group}`.",
            )
        axes[axis] = joined

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the values that become shorter."""
        return iter(self._masks)

    def axes(self, value: str) -> Mapping[int, Mask]:
        """Return what stays of the value, by axis; empty where it stays as it is."""
        return {axis: mask for axis, mask in self._masks.get(value, {}).items() if not mask.all()}

    def mask(self, value: ir.Value | None, axis: int) -> Mask | None:
        """Return what stays along an axis (a negative one counts from the end), or None where all of it does.

        Raises:
            ContractError: If the axis is negative and the rank is not known.
        """
        if value is None or value.name is None:
            return None
        axes = self.axes(value.name)
        if not axes:
            return None
        return axes.get(axis if axis >= 0 else axis + rank(value))

    def count(self, value: ir.Value | None, axis: int) -> int | None:
        """Return how many positions stay along an axis, or None where all of them do."""
        mask = self.mask(value, axis)
        return None if mask is None else int(mask.sum())

    def size(self, value: ir.Value | None, axis: int) -> int | None:
        """Return how long the axis is afterwards, or None where that is not known."""
        count = self.count(value, axis)
        return old_size(value, axis) if count is None else count

    def sliced(self, value: ir.Value | None, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what stays of an array that is the content of `value`."""
        axes = {} if value is None or value.name is None else self.axes(value.name)
        for axis, mask in axes.items():
            array = np.compress(mask, array, axis=axis)
        return array


def rank(value: ir.Value) -> int:
    """Return the number of dimensions.

    Raises:
        ContractError: If it is not known.
    """
    if value.shape is None:
        raise ContractError(
            f"The rank of every value that becomes shorter has to be known. That of `{value.name}` is not."
        )
    return len(value.shape)


def old_size(value: ir.Value | None, axis: int) -> int | None:
    """Return how long the axis is in the model as it was, or None where that is not known."""
    if value is None or value.shape is None:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _gone(group: Group, units: Collection[int]) -> Mask:
    """Return for each unit of the group whether it is removed."""
    indices = np.asarray(sorted({int(unit) for unit in units}), np.int64)
    if indices.size and (indices[0] < 0 or indices[-1] >= group.size):
        raise ContractError(
            f"Units of the group `{group.name}` have to be from 0 to {group.size - 1}. Received {indices[0]} to "
            f"{indices[-1]}."
        )
    if len(indices) >= group.size:
        raise RecipeError(
            f"At least one unit of every group has to stay. All {group.size} of `{group.name}` would be removed.",
            hint="Remove fewer; to remove a whole branch is what pruning layers does.",
        )
    gone = np.zeros(group.size, np.bool_)
    gone[indices] = True
    return gone
