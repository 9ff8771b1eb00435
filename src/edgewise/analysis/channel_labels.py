"""Labels on the positions of axes, joined where positions have to go together and pinned where they have to stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Labels: TypeAlias = npt.NDArray[np.int64]
"""One label for each position of an axis, shape `[dim]`."""

Dims: TypeAlias = tuple[Labels | None, ...]
"""The labels of each axis of a value; None where positions are places, samples or other data that nothing removes."""


class Joined:
    """Labels as a union-find (Tarjan 1975) on arrays: what was joined has one root, its oldest label."""

    def __init__(self) -> None:
        self._parent: Labels = np.zeros(0, np.int64)
        self._count = 0
        self._pins: list[tuple[Labels, str]] = []
        self._held: dict[int, str] | None = None

    def fresh(self, count: int) -> Labels:
        """Return new labels, shape `[count]`."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grown = np.arange(2 * self._count, dtype=np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        return np.arange(start, self._count, dtype=np.int64)

    def root(self, label: int) -> int:
        """Return the label that stands for all that were joined with this one."""
        return int(self.roots(np.array([label]))[0])

    def roots(self, labels: Labels) -> Labels:
        """Return the root of each label."""
        found = self._parent[labels]
        while not np.array_equal(found, above := self._parent[found]):
            found = above
        self._parent[labels] = found
        return found

    def join(self, ones: Labels, others: Labels) -> None:
        """Join labels pair by pair; the two have one shape."""
        self._held = None
        while True:
            first, second = self.roots(ones), self.roots(others)
            apart = first != second
            if not apart.any():
                return
            older = np.minimum(first[apart], second[apart])
            # A root with several partners gets the oldest of them; the next round joins the rest.
            np.minimum.at(self._parent, np.maximum(first[apart], second[apart]), older)

    def join_all(self, labels: Labels) -> None:
        """Join all of some labels."""
        self.join_rows(labels[None])

    def join_rows(self, rows: Labels) -> None:
        """Join all labels of each row, shape `[rows, any]`."""
        if rows.shape[1] > 1:
            self.join(np.broadcast_to(rows[:, :1], rows[:, 1:].shape), rows[:, 1:])

    def pin(self, labels: Labels, reason: str) -> None:
        """Let labels stay, for a reason; of several reasons the first holds."""
        self._held = None
        self._pins.append((labels, reason))

    def why_pinned(self, root: int) -> str | None:
        """Return why a root has to stay, or None where it may go."""
        if self._held is None:
            self._held = {}
            for labels, reason in self._pins:
                for one in np.unique(self.roots(labels)).tolist():
                    self._held.setdefault(one, reason)
        return self._held.get(root)


def blocks(before: Sequence[int], behind: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return how the axes of two shapes of one size correspond: the finest runs of axes with equal products.

    Args:
        before: The sizes before a reshape, each >= 1.
        behind: The sizes behind it, with the same product.

    Returns:
        Pairs of axes before and axes behind. Axes of size 1 belong to the run in which they stand.
    """
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(behind):
        ins, outs = [], []
        left, right = 1, 1
        if i < len(before):
            ins, left, i = [i], before[i], i + 1
        if j < len(behind) and (left != 1 or behind[j] == 1 or not ins):
            outs, right, j = [j], behind[j], j + 1
        while left != right:
            if left < right and i < len(before):
                left, ins, i = left * before[i], [*ins, i], i + 1
            elif j < len(behind):
                right, outs, j = right * behind[j], [*outs, j], j + 1
            else:
                left, ins, i = left * before[i], [*ins, i], i + 1
        result.append((ins, outs))
    return result


def flattened(labels: Labels, sizes: Sequence[int], axis: int) -> Labels:
    """Return the label of each element of an array of shape `sizes` whose labels lie along `axis`, in C order."""
    shape = [1] * len(sizes)
    shape[axis] = len(labels)
    return np.ascontiguousarray(np.broadcast_to(labels.reshape(shape), sizes)).reshape(-1)


def along(elements: Labels, sizes: Sequence[int], axis: int) -> Labels:
    """Return for each index of `axis` the labels of all elements there, shape `[sizes[axis], others]`."""
    return np.moveaxis(elements.reshape(sizes), axis, 0).reshape(sizes[axis], math.prod(sizes) // sizes[axis])
