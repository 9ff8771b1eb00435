"""The labels of every value of a graph, and where units are made and read: what the rules of operators work on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from edgewise.analysis.channel_labels import Dims, Joined, Labels
from edgewise.analysis.values import input_at, is_constant, label

Pattern: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes of axes before and behind a reshape."""

Sizes: TypeAlias = tuple[int | None, ...]
"""Sizes of the axes of a value, None where one is not known."""

_PRIMES: Final = (10007, 10009, 10037, 10039)
"""Larger than dimensions that are split, and without a factor in common with any."""


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
        computed: Values that are computed from constants alone.
        of_sizes: Values that are computed from constants and sizes alone: they follow what is removed.
        looked_at: Values whose labels the rule of the present node has asked for.
    """

    joined: Joined = field(default_factory=Joined)
    choices: Mapping[Pattern, int] = field(default_factory=dict)
    dims: dict[ir.Value, Dims] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    makings: list[Making] = field(default_factory=list)
    splits: dict[Pattern, int] = field(default_factory=dict)
    computed: set[ir.Value] = field(default_factory=set)
    of_sizes: set[ir.Value] = field(default_factory=set)
    looked_at: set[ir.Value] = field(default_factory=set)

    def of(self, value: ir.Value | None) -> Dims:
        """Return the labels of a value; constants get new ones for each axis longer than 1."""
        if value is None:
            return ()
        self.looked_at.add(value)
        if value not in self.dims:
            constant = is_fixed(value)
            self.dims[value] = tuple(
                self.joined.fresh(size) if constant and size is not None and size > 1 else None
                for size in sizes_of(value)
            )
        return self.dims[value]

    def input(self, node: ir.Node, slot: int) -> Dims:
        """Return the labels of an input; nothing where it is left out."""
        return self.of(input_at(node, slot))

    def pin(self, dims: Iterable[Labels | None], reason: str) -> None:
        """Let everything on these axes stay."""
        for one in dims:
            if one is not None:
                self.joined.pin(one, reason)

    def meet(self, one: Labels | None, other: Labels | None, reason: str) -> Labels | None:
        """Join two axes position by position; where one of them has no labels or another size, pin the other."""
        if one is not None and other is not None and len(one) == len(other):
            self.joined.join(one, other)
            return one
        self.pin((one, other), reason)
        return one

    def broadcast(self, sizes: Sizes, operands: Sequence[tuple[Sizes, Dims]], reason: str) -> Dims:
        """Join the labels of operands that are combined position by position, broadcasting as numpy does.

        Args:
            sizes: Sizes of the result.
            operands: Sizes and labels of each operand, of at most as many axes.
            reason: Why labels have to stay that meet an axis without any, or one whose size is not known.

        Returns:
            The labels of the result.
        """
        result: list[Labels | None] = []
        for behind in range(len(sizes), 0, -1):
            meeting = [
                (one[-behind], dims[-behind]) for one, dims in operands if len(one) >= behind and one[-behind] != 1
            ]
            labelled = [labels for _, labels in meeting if labels is not None]
            for other in labelled[1:]:
                self.meet(labelled[0], other, reason)
            size = sizes[-behind]
            if any(labels is None or size is None or one != size for one, labels in meeting):
                self.pin(labelled, reason)
            result.append(labelled[0] if labelled and len(labelled[0]) == size else None)
        return tuple(result)

    def follows(self, node: ir.Node, slot: int) -> bool:
        """Return whether an input that states sizes is left out or can follow what is removed."""
        value = input_at(node, slot)
        return value is None or is_fixed(value) or value in self.of_sizes

    def remember(self, node: ir.Node) -> None:
        """Note whether the outputs of a node are computed from constants, or from those and sizes, alone."""
        given = [value for value in node.inputs if value is not None]
        if given and all(is_fixed(value) or value in self.computed for value in given):
            self.computed.update(node.outputs)
        sizes = bool(given) and all(is_fixed(value) or value in self.of_sizes for value in given)
        if sizes or node.op_type in {"Shape", "Size"}:
            self.of_sizes.update(node.outputs)

    def read(self, node: ir.Node, slot: int, axis: int, weight: int | None) -> None:
        """Note that a node sums over an axis of an input, and by which of its inputs it multiplies what it sums."""
        labels = self.input(node, slot)[axis]
        if labels is not None:
            constant = weight if weight is not None and is_fixed(input_at(node, weight)) else None
            self.readings.append(Reading(node, slot, axis, constant, labels))

    def make(self, node: ir.Node, slot: int, labels: Labels | None) -> None:
        """Note that a node makes units by its weights; those that are computed from constants hold what they make."""
        value = input_at(node, slot)
        if labels is None or value is None:
            return
        if value in self.computed:
            producer = value.producer()
            stored = producer is not None and producer.op_type == "DequantizeLinear"
            how = "stored as integers" if stored else "computed"
            self.joined.pin(labels, f"{name_of(node)} makes them of weights that are {how} (`{value.name}`)")
        if is_fixed(value) or value in self.computed:
            self.makings.append(Making(node, labels))


def is_fixed(value: ir.Value | None) -> bool:
    """Return whether a value is a constant that no caller can override."""
    return value is not None and is_constant(value) and not value.is_graph_input()


def sizes_of(value: ir.Value | None) -> Sizes:
    """Return the sizes of a value, None where one is not known; nothing where the rank is not known."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def matched_sizes(before: ir.Value | None, behind: ir.Value | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the sizes of a value before and behind a reshape, or None where they are not known.

    A dimension that is not known stands as a large prime number, the same for the same name, so that axes correspond
    (see `channel_labels.blocks`) only as they do for every number that it may be. If both sides have one, it is the
    same, whatever its names are, because the others agree.
    """
    if before is None or before.shape is None or behind is None or behind.shape is None:
        return None
    unknown = [[size.value for size in one.shape if not isinstance(size, int)] for one in (before, behind) if one.shape]
    names = dict.fromkeys(name for one in unknown for name in one)
    if [len(one) for one in unknown] == [1, 1]:
        primes: dict[str | None, int] = dict.fromkeys(names, _PRIMES[0])
    elif None in names or len(names) > len(_PRIMES):
        return None
    else:
        primes = dict(zip(names, _PRIMES, strict=False))
    sizes = [
        tuple(size if isinstance(size, int) else primes[size.value] for size in shape)
        for shape in (before.shape, behind.shape)
    ]
    products = [math.prod(one) for one in sizes]
    return (sizes[0], sizes[1]) if products[0] == products[1] != 0 else None


def numbers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the integers that a value always holds, or None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(int(number) for number in np.asarray(tensor.numpy()).reshape(-1))


def name_of(node: ir.Node) -> str:
    """Return a node's name as reasons give it."""
    return f"`{label(node)}`"


def opset_of(node: ir.Node) -> int:
    """Return the version of the standard operators that a node is of."""
    imports = {} if node.graph is None else node.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 13))
