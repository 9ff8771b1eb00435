"""Sets of tensors whose channels can be scaled together without a change of the function, and doing so.

From the output of a node with weights, of a LayerNormalization or of a product with a constant vector, a set grows
over every node that carries a positive factor of each channel through, forwards and backwards, residual sums and
concatenations included. It ends at constants that take the factor. Where it meets anything else, it is declined.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.quantize.channel_relations import (
    Absorber,
    Known,
    channel_axis,
    narrowed,
    read_linear,
    relate,
)
from edgewise.compress.quantize.weight_layout import LINEAR, Indices, WeightLayout, largest
from edgewise.compress.statistics import Statistics
from edgewise.errors import ContractError
from edgewise.passes.rewriting import Edit, constant, input_at, is_operator, label, rank
from edgewise.records.tensors import Array

_SEEDS: Final = LINEAR | {"LayerNormalization", "Mul", "Div"}


@dataclass(frozen=True)
class Group:
    """Tensors whose channels can be divided by one vector `s` of positive numbers.

    Attributes:
        size: Length of `s`.
        values: The tensors, each with the index into `s` of its numbers, an array of the tensor's rank that broadcasts
            against it.
        absorbers: The constants that take `s`, in graph order.
    """

    size: int
    values: Mapping[ir.Value, Indices]
    absorbers: tuple[Absorber, ...]

    @property
    def is_normalized(self) -> bool:
        """Whether a factor or a layer normalization takes the scale, and not weights alone."""
        return any(one.node.op_type in {"LayerNormalization", "Mul", "Div"} for one in self.absorbers)

    @property
    def writers(self) -> tuple[Absorber, ...]:
        """The weights whose rows are divided."""
        return tuple(one for one in self.absorbers if one.kind == "output")

    @property
    def readers(self) -> tuple[Absorber, ...]:
        """The weights whose columns are multiplied."""
        return tuple(one for one in self.absorbers if one.kind == "input")

    def observed(self) -> dict[str, int]:
        """Return the tensors that the readers read, each with the axis of its channels."""
        values = [(one.node, one.node.inputs[0]) for one in self.readers]
        return {value.name: channel_axis(node, rank(value) or 0) for node, value in values if value and value.name}


@dataclass(frozen=True)
class Refusal:
    """A set that cannot be scaled.

    Attributes:
        node: The node at which the search began.
        reason: Why not.
    """

    node: ir.Node
    reason: str


def find_groups(model: ir.Model) -> tuple[list[Group], list[Refusal]]:
    """Return the sets of `model` that end in weights on the reading side, and those that cannot be scaled.

    Sub-graphs are left alone: a set that one of them reads is refused.

    Args:
        model: The model, with inferred shapes; not changed.
    """
    groups: list[Group] = []
    refusals: list[Refusal] = []
    done: set[ir.Value] = set()
    for node in model.graph:
        seed = _seed(node)
        if seed is None or node.outputs[0] in done:
            continue
        if isinstance(seed, str):
            refusals.append(Refusal(node, seed))
            continue
        found = _Search(model, node, seed).run()
        if isinstance(found, str):
            refusals.append(Refusal(node, found))
            continue
        done.update(found.values)
        if found.readers and found.size > 1:
            groups.append(found)
    return groups, refusals


def _seed(node: ir.Node) -> tuple[int, ...] | str | None:
    """Return the shape of the indices of the node's output, why there are none, or None where it begins no set."""
    if not is_operator(node, *_SEEDS):
        return None
    output = rank(node.outputs[0])
    if node.op_type in LINEAR:
        if node.op_type == "MatMul" and constant(input_at(node, 1)) is None:
            return None
        layout = read_linear(node)
        if isinstance(layout, str):
            return layout
        size, axis = layout.outputs, channel_axis(node, output or 0)
    else:
        factors = [constant(value) for value in node.inputs[:2]]
        sizes = [one.shape[-1] for one in factors if one is not None and one.ndim and one.size > 1]
        if len(sizes) != 1 or sizes[0] == 1:
            return None
        size, axis = sizes[0], (output or 0) - 1
    if output is None:
        return f"the rank of `{node.outputs[0].name}` is not known"
    return tuple(size if index == axis else 1 for index in range(output))


class _Variables:
    """Indices of which some turn out to be the same (a disjoint-set forest)."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def fresh(self, shape: tuple[int, ...]) -> Indices:
        """Return indices that are all different and new."""
        first = len(self._parent)
        count = int(np.prod(shape, dtype=np.int64))
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64).reshape(shape)

    def unite(self, one: Indices, other: Indices) -> None:
        """Make the indices at the same place the same."""
        for left, right in np.unique(np.stack(np.broadcast_arrays(one, other)).reshape(2, -1), axis=1).T:
            self._parent[self._root(int(left))] = self._root(int(right))

    def roots(self, indices: Indices) -> Indices:
        """Return one index for each set of those that are the same."""
        names, inverse = np.unique(indices, return_inverse=True)
        roots = np.array([self._root(int(name)) for name in names], np.int64)
        return np.asarray(roots[inverse].reshape(indices.shape))

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index


class _Search:
    """The state of the search for one set."""

    def __init__(self, model: ir.Model, node: ir.Node, shape: tuple[int, ...]) -> None:
        self._graph = model.graph
        self._order = {node: index for index, node in enumerate(model.graph)}
        self._variables = _Variables()
        self._values = {node.outputs[0]: self._variables.fresh(shape)}
        self._absorbers: dict[tuple[ir.Node, int, str], Absorber] = {}
        self._unscaled: set[ir.Value] = set()

    def run(self) -> Group | str:
        """Return the set, or why it cannot be scaled."""
        waiting = deque(self._values)
        while waiting:
            value = waiting.popleft()
            reason = self._why_not(value)
            if reason is not None:
                return reason
            for node, slot in self._neighbours(value):
                found = self._relate(node, slot, value)
                if isinstance(found, str):
                    return found
                waiting.extend(found)
        both = sorted(value.name or "" for value in self._unscaled if value in self._values)
        return f"`{both[0]}` is multiplied with a tensor that has its scale" if both else self._group()

    def _why_not(self, value: ir.Value) -> str | None:
        if value.is_graph_input():
            return f"`{value.name}` is an input of the model"
        if value.is_graph_output():
            return f"`{value.name}` is an output of the model"
        if value.dtype not in {None, ir.DataType.FLOAT}:
            return f"`{value.name}` is no float32"
        if value.producer() is None:
            return f"`{value.name}` is no result of a node"
        inside = [node for node, _ in value.uses() if node.graph is not self._graph]
        return f"`{value.name}` is read in a sub-graph, by `{label(inside[0])}`" if inside else None

    @staticmethod
    def _neighbours(value: ir.Value) -> Iterator[tuple[ir.Node, int | None]]:
        producer = value.producer()
        if producer is not None:
            yield producer, None
        yield from value.uses()

    def _relate(self, node: ir.Node, slot: int | None, value: ir.Value) -> list[ir.Value] | str:
        """Take over what follows at `node`; return the tensors that are new, or why it is not exact."""
        found = relate(Known(node, value, slot, self._values[value], self._variables.fresh))
        if isinstance(found, str):
            return found
        self._unscaled.update(found.unscaled)
        for absorber in found.absorbers:
            key = (absorber.node, absorber.slot, absorber.kind)
            known = self._absorbers.setdefault(key, absorber)
            self._variables.unite(known.indices, absorber.indices)
        new = []
        for other, indices in found.values:
            if other in self._values:
                self._variables.unite(self._values[other], indices)
            else:
                self._values[other] = indices
                new.append(other)
        return new

    def _group(self) -> Group:
        everything = [*self._values.values(), *(one.indices for one in self._absorbers.values())]
        roots = np.unique(np.concatenate([self._variables.roots(one).reshape(-1) for one in everything]))

        def final(indices: Indices) -> Indices:
            return np.searchsorted(roots, self._variables.roots(indices)).astype(np.int64)

        absorbers = sorted(self._absorbers.values(), key=lambda one: (self._order[one.node], one.slot, one.kind))
        return Group(
            size=len(roots),
            values={value: narrowed(final(indices)) for value, indices in self._values.items()},
            absorbers=tuple(Absorber(one.node, one.slot, one.kind, final(one.indices)) for one in absorbers),
        )


def layout_of(absorber: Absorber) -> WeightLayout:
    """Return the layout of the weights of a writer or reader.

    Raises:
        ContractError: If the node's weights cannot be rescaled: it is in no group.
    """
    layout = read_linear(absorber.node)
    if isinstance(layout, str):
        raise ContractError(f"Every weight of a group has to be one that can be rescaled, but {layout}.")
    return layout


def constant_at(node: ir.Node, slot: int) -> Array:
    """Return the constant that `node` reads at `slot`.

    Raises:
        ContractError: If there is none.
    """
    array = constant(input_at(node, slot))
    if array is None:
        raise ContractError(f"Input {slot} of `{label(node)}` has to be constant: it is in a group.")
    return array


def largest_weights(absorbers: Iterable[Absorber], size: int) -> npt.NDArray[np.float64]:
    """Return the largest magnitude among the weights of each index, shape `[size]`."""
    found = np.zeros(size)
    for absorber in absorbers:
        found = np.maximum(found, largest(constant_at(absorber.node, 1), weight_index(absorber), size))
    return found


def weight_index(absorber: Absorber) -> Indices:
    """Return the index into `s` of each weight of a writer or reader; broadcasts to the weights."""
    layout = layout_of(absorber)
    return np.asarray(absorber.indices[layout.output_index if absorber.kind == "output" else layout.input_index])


def magnitudes(group: Group, statistics: Statistics) -> npt.NDArray[np.float64] | None:
    """Return the largest magnitude that was observed for each index, shape `[size]`.

    Args:
        group: The set.
        statistics: With the extremes of the channels of what its readers read (`observed_tensors`).

    Returns:
        The magnitudes, or None where nothing was observed of one of the readers.
    """
    found = np.zeros(group.size)
    for reader in group.readers:
        value = reader.node.inputs[0]
        seen = None if value is None or value.name is None else statistics.tensors.get(value.name)
        if seen is None or len(seen.channel_low) != len(reader.indices):
            return None
        np.maximum.at(found, reader.indices, np.maximum(np.abs(seen.channel_low), np.abs(seen.channel_high)))
    return found


def observed_tensors(model: ir.Model) -> dict[str, int]:
    """Return the tensors whose channels have to be observed to scale the sets of `model` by what flows through them.

    Returns:
        The axis of the channels, by name.
    """
    names: dict[str, int] = {}
    for group in find_groups(model)[0]:
        names.update(group.observed())
    return names


def divide(model: ir.Model, group: Group, factors: npt.NDArray[np.float64]) -> str | None:
    """Divide the channels of a set by `factors`, in place; the constants around it take them.

    With powers of two every result is the same bit by bit, since scaling by them commutes with rounding. With others
    each constant is rounded once more, by at most 2 ** -24 of itself.

    Args:
        model: The model that `group` was found in; its constants are replaced, not written to.
        group: The set.
        factors: Positive numbers, shape `[size]`.

    Returns:
        None when it was done, or why it cannot be: a constant would leave the normal range of float32.
    """
    if np.all(factors == 1.0):
        return None
    scales: dict[tuple[ir.Node, int], Array] = {}
    for absorber in group.absorbers:
        for slot, scale in _scales(absorber, factors):
            # The weights of one node may be rows and columns of the same set.
            scales[absorber.node, slot] = np.asarray(scales.get((absorber.node, slot), 1.0) * scale)
    new: dict[tuple[ir.Node, int], Array] = {}
    for (node, slot), scale in scales.items():
        array = constant_at(node, slot)
        with np.errstate(over="ignore", under="ignore"):
            changed = (array.astype(np.float64) * scale).astype(np.float32)
        smallest = np.finfo(np.float32).tiny
        lost = (np.abs(changed) < smallest) & (np.abs(array) >= smallest)
        if not np.isfinite(changed).all() or lost.any():
            return f"input {slot} of `{label(node)}` would leave the range of float32"
        new[node, slot] = changed
    edit = Edit(model)
    for (node, slot), changed in new.items():
        _replace(edit, node, slot, changed)
    return None


def _replace(edit: Edit, node: ir.Node, slot: int, array: Array) -> None:
    old = node.inputs[slot]
    if old is None:
        raise ContractError(f"Input {slot} of `{label(node)}` has to be there: it is in a group.")
    new = edit.update(node, old, array)
    if new is old:
        return
    node.replace_input_with(slot, new)
    producer = old.producer()
    if producer is not None and producer.graph is not None and not old.uses() and not old.is_graph_output():
        producer.graph.remove(producer, safe=True)


def _scales(absorber: Absorber, factors: npt.NDArray[np.float64]) -> Iterator[tuple[int, Array]]:
    """Yield the slot of each constant of a node that changes, and what it is multiplied with."""
    if absorber.kind not in {"output", "input"}:
        scale = factors[absorber.indices]
        yield absorber.slot, 1.0 / scale if absorber.kind == "constant" else scale
        return
    scale = factors[weight_index(absorber)]
    yield absorber.slot, 1.0 / scale if absorber.kind == "output" else scale
    if absorber.kind == "output" and input_at(absorber.node, 2) is not None:
        yield 2, 1.0 / factors[absorber.indices]
