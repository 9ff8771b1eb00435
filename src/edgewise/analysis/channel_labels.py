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
    """Labels as a union-find (Tarjan 1975): what was joined has one root, and a pin holds all of its set."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}

    def fresh(self, count: int) -> Labels:
        """Return new labels, shape `[count]`."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, label: int) -> int:
        """Return the label that stands for all that were joined with this one."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: Labels) -> Labels:
        """Return the root of each label."""
        return np.array([self.root(int(label)) for label in labels], np.int64)

    def join(self, ones: Labels, others: Labels) -> None:
        """Join labels pair by pair."""
        for one, other in zip(ones, others, strict=True):
            first, second = self.root(int(one)), self.root(int(other))
            if first == second:
                continue
            # The older label stays root, and its reason with it.
            first, second = min(first, second), max(first, second)
            self._parent[second] = first
            reason = self._reason.pop(second, None)
            if reason is not None:
                self._reason.setdefault(first, reason)

    def join_all(self, labels: Labels) -> None:
        """Join all of some labels."""
        if len(labels):
            self.join(np.full(len(labels) - 1, labels[0]), labels[1:])

    def pin(self, labels: Labels, reason: str) -> None:
        """Let labels stay, for a reason; of several reasons the first holds."""
        for root in dict.fromkeys(map(int, self.roots(labels))):
            self._reason.setdefault(root, reason)

    def why_pinned(self, root: int) -> str | None:
        """Return why a root has to stay, or None where it may go."""
        return self._reason.get(root)


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
