"""The labels of every value of a graph, and where units are made and read: what the rules of operators work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgewise.analysis.channel_labels import Dims, Joined, Labels
from edgewise.analysis.values import input_at, is_constant, label

Pattern: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes of axes before and behind a reshape."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A place that sums over units: see `coupling.Reader`."""

    node: ir.Node
    slot: int
    axis: int
    weight: int | None
    labels: Labels


@dataclass(frozen=True, eq=False)
class Making:
    """A node whose constant weights have units along their outputs."""

    node: ir.Node
    labels: Labels


@dataclass
class Flow:
    """What is known while the nodes are gone through in order.

    Attributes:
        joined: All labels.
        choices: For a reshape that splits an axis of units, on which of the new axes they lie, by its pattern: 0 for
            the first that is longer than 1.
        dims: The labels of every value that was met.
        readings: Where units are summed over.
        makings: Where units are made.
        splits: Patterns of reshapes that had a choice, with how many there were.
    """

    joined: Joined = field(default_factory=Joined)
    choices: Mapping[Pattern, int] = field(default_factory=dict)
    dims: dict[ir.Value, Dims] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    makings: list[Making] = field(default_factory=list)
    splits: dict[Pattern, int] = field(default_factory=dict)

    def of(self, value: ir.Value | None) -> Dims:
        """Return the labels of a value; constants of real numbers get new ones for each axis longer than 1."""
        if value is None:
            return ()
        if value not in self.dims:
            sizes = sizes_of(value)
            labelled = is_constant(value) and not value.is_graph_input() and _is_real(value)
            self.dims[value] = tuple(
                self.joined.fresh(size) if labelled and size is not None and size > 1 else None for size in sizes
            )
        return self.dims[value]

    def input(self, node: ir.Node, slot: int) -> Dims:
        """Return the labels of an input; nothing where it is left out."""
        return self.of(input_at(node, slot))

    def pin(self, dims: Dims, reason: str) -> None:
        """Let everything on these axes stay."""
        for one in dims:
            if one is not None:
                self.joined.pin(one, reason)

    def meet(self, one: Labels | None, other: Labels | None, reason: str) -> Labels | None:
        """Join two axes position by position; where one of them has no labels or another size, pin the other."""
        if one is not None and other is not None and len(one) == len(other):
            self.joined.join(one, other)
            return one
        for labels in (one, other):
            if labels is not None:
                self.joined.pin(labels, reason)
        return None if one is None else one

    def read(self, node: ir.Node, slot: int, axis: int, weight: int | None) -> None:
        """Note that a node sums over an axis of an input."""
        labels = self.input(node, slot)[axis]
        if labels is not None:
            self.readings.append(Reading(node, slot, axis, weight, labels))

    def make(self, node: ir.Node, labels: Labels | None) -> None:
        """Note that a node makes units by its weights."""
        if labels is not None:
            self.makings.append(Making(node, labels))


def sizes_of(value: ir.Value | None) -> tuple[int | None, ...]:
    """Return the sizes of a value, None where one is not known; nothing where the rank is not known."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def known_sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the sizes of a value if all are known and none is 0."""
    if value is None or value.shape is None:
        return None
    sizes = [size for size in value.shape if isinstance(size, int) and size > 0]
    return tuple(sizes) if len(sizes) == len(value.shape) else None


def numbers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the integers that a value always holds, or None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(int(number) for number in np.asarray(tensor.numpy()).reshape(-1))


def name_of(node: ir.Node) -> str:
    """Return a node's name as reasons give it."""
    return f"`{label(node)}`"


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
