"""What the readers of a group show of it in the float model: moments of their inputs, streamed over samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.coupling import Group, Reader
from edgewise.analysis.values import input_at, is_standard, label
from edgewise.compress.nodes import constant
from edgewise.compress.prune.fit import Moments
from edgewise.compress.prune.linear_layers import RECURRENT, Layer, layers
from edgewise.compress.prune.neurons import Energy, Read, Units
from edgewise.compress.prune.replay import Replay
from edgewise.compress.prune.rotate import Basis, Makers, makers_of, principal_basis, rotated
from edgewise.compress.runner import Opener
from edgewise.errors import ContractError
from edgewise.records.tensors import Array, Feeds

_RECURRENT_RANK: Final = 3
"""Recurrent weights are `[directions, gates, units]`."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A group whose readers were all seen.

    Attributes:
        group: The group.
        layers: Those of its readers that are fitted, with the moments of their inputs.
        reads: What decides which units go.
        basis: Constants that make the units, by name, in another basis that changes nothing; `reads` are of that basis.
            Empty where the units stay as they are.
    """

    group: Group
    layers: tuple[tuple[Layer, Moments], ...]
    reads: tuple[Read | Energy, ...]
    basis: Mapping[str, Array]


def seen(model: ir.Model, groups: Sequence[Group], open_model: Opener, feeds: Sequence[Feeds]) -> Iterator[Seen]:
    """Yield each group once all of its readers were seen, each sample having been run once, part by part.

    Args:
        model: The float model, with a bias for each layer that may get one.
        groups: The groups.
        open_model: Opens parts of `model`.
        feeds: Unlabelled samples.
    """
    gathering = _Gathering(model, groups)
    replay = Replay(model, open_model, feeds)
    for place in sorted({place for place, _ in gathering.all}):
        now = [one for at, one in gathering.all if at == place]
        for sample, values in enumerate(replay.run([name for one in now for name in one.sources], place)):
            for one in now:
                one.add(values, len(feeds), sample)
        yield from gathering.finished(place)


def column_units(layer: Layer, group: Group) -> Units | None:
    """Return the unit of each column of `layer`, -1 where it has none, shape `[G, K]`; None if it reads none."""
    reader = next((reader for reader in group.readers if reader.node == layer.name and reader.weight == 1), None)
    if reader is None:
        return None
    units = units_of(group, layer.source, reader.axis)
    return np.repeat(units.reshape(layer.unfolding.groups, -1), layer.unfolding.kernel, axis=1)


def units_of(group: Group, value: str, axis: int) -> Units:
    """Return the unit of each position along an axis of a value.

    Raises:
        ContractError: If the group does not have that axis.
    """
    for found in group.axes:
        if (found.value, found.axis) == (value, axis):
            return found.units
    raise ContractError(f"A reader reads an axis of its group, but `{group.name}` has no axis {axis} of `{value}`.")


class _Gathering:
    """What is gathered for some groups, each at its place in the graph."""

    def __init__(self, model: ir.Model, groups: Sequence[Group]) -> None:
        self.model = model
        nodes = {label(node): (index, node) for index, node in enumerate(model.graph)}
        fitted = {layer.name: layer for layer in layers(model) if isinstance(layer, Layer)}
        shared: dict[str, _Linear] = {}
        self.all: list[tuple[int, _Linear | _Product | _Recurrent | _Plain]] = []
        self.of: list[tuple[Group, int, list[_Linear], list[_Product | _Recurrent | _Plain]]] = []
        for group in groups:
            linear: list[_Linear] = []
            others: list[_Product | _Recurrent | _Plain] = []
            for reader in group.readers:
                place, node = nodes[reader.node]
                layer = fitted.get(reader.node)
                if layer is not None and reader.weight == 1 and reader.slot == 0:
                    if reader.node not in shared:
                        shared[reader.node] = _Linear(layer)
                        self.all.append((place, shared[reader.node]))
                    linear.append(shared[reader.node])
                    continue
                other = _other(model, group, node, reader)
                if other is not None:
                    others.append(other)
                    self.all.append((place, other))
            last = max((nodes[reader.node][0] for reader in group.readers), default=-1)
            self.of.append((group, last, linear, others))

    def finished(self, place: int) -> Iterator[Seen]:
        """Yield the groups whose last reader lies at `place`, and let go of what no other group needs."""
        done = [entry for entry in self.of if entry[1] == place]
        self.of = [entry for entry in self.of if entry[1] != place]
        for group, _, linear, others in done:
            reads: list[Read | Energy] = []
            for one in linear:
                units, summary = column_units(one.layer, group), one.moments.all()
                if units is not None and summary is not None:
                    reads.append(Read(one.layer.weight, summary, units))
            reads.extend(read for other in others if (read := other.read()) is not None)
            basis = next((other.basis(self.model) for other in others if isinstance(other, _Product)), {})
            yield Seen(group, tuple((one.layer, one.moments) for one in linear), tuple(reads), basis)


def _other(model: ir.Model, group: Group, node: ir.Node, reader: Reader) -> _Product | _Recurrent | _Plain | None:
    """Return how the units of a reader that is not fitted are seen; None where its other operand shows them already."""
    value = input_at(node, reader.slot)
    source = "" if value is None else str(value.name)
    pair = sorted((other for other in group.readers if other.node == reader.node), key=lambda other: other.slot)
    if is_standard(node, "MatMul") and reader.weight is None and [other.slot for other in pair] == [0, 1]:
        if reader.slot == 1:
            return None
        right = input_at(node, 1)
        names = source, "" if right is None else str(right.name)
        axes = pair[0].axis, pair[1].axis
        # Another basis is for this product alone.
        makers = makers_of(model, group, names) if len(group.readers) == len(pair) else "other nodes read its units"
        return _Product(names, axes, units_of(group, names[0], axes[0]), group.size, _is_softmax_next(node), makers)
    if constant(value) is not None:
        return _recurrent(node, value, units_of(group, source, reader.axis), reader)
    return _Plain(source, reader.axis, units_of(group, source, reader.axis), group.size)


def _recurrent(node: ir.Node, value: ir.Value | None, units: Units, reader: Reader) -> _Recurrent | None:
    """Return how the units of a state are seen that recurrent weights read; None where the states are no output."""
    weight = constant(value)
    states = node.outputs[0] if node.outputs else None
    if weight is None or states is None or not states.name or not is_standard(node, *RECURRENT):
        return None
    if weight.ndim != _RECURRENT_RANK or weight.shape[0] != 1 or reader.axis != _RECURRENT_RANK - 1:
        return None
    return _Recurrent(states.name, weight.astype(np.float64), units[None])


def _is_softmax_next(node: ir.Node) -> bool:
    """Return whether a softmax over the last axis follows, behind scales and views: shifts of a row are lost."""
    value = node.outputs[0]
    while len(uses := list(value.uses())) == 1:
        after, slot = uses[0]
        if is_standard(after, "Softmax"):
            rank = None if value.shape is None else len(value.shape)
            return after.attributes.get_int("axis", -1) in {-1, None if rank is None else rank - 1}
        if not is_standard(after, "Mul", "Div", "Reshape", "Unsqueeze", "Squeeze") or slot != 0:
            return False
        shape = after.outputs[0].shape
        if value.shape is None or shape is None or value.shape[-1] != shape[-1]:
            return False
        other = input_at(after, 1)
        if is_standard(after, "Mul", "Div") and (
            other is None or other.const_value is None or other.const_value.size > 1
        ):
            return False
        value = after.outputs[0]
    return False


@dataclass
class _Linear:
    """A reader that is fitted."""

    layer: Layer
    moments: Moments = field(init=False)

    def __post_init__(self) -> None:
        self.moments = self.layer.moments(own=True)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.layer.source,)

    def add(self, values: Mapping[str, Array], samples: int, sample: int) -> None:
        rows, _ = self.layer.rows(values[self.layer.source], samples, sample)
        self.moments.add(rows, sample=sample)


@dataclass
class _Product:
    """A product of two activations over units that both have."""

    sources: tuple[str, str]
    axes: tuple[int, int]
    units: Units
    size: int
    is_softmax_next: bool
    makers: Makers | str
    total: npt.NDArray[np.float64] = field(init=False)
    grams: list[npt.NDArray[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros((self.size, self.size))
        heads = 0 if isinstance(self.makers, str) else self.makers.heads
        self.grams = [np.zeros((heads, self.size, self.size)) for _ in range(2)]

    def add(self, values: Mapping[str, Array], samples: int, sample: int) -> None:  # noqa: ARG002 - as the others
        left, right = (values[name].astype(np.float64) for name in self.sources)
        if self.is_softmax_next:
            right = right - right.mean(axis=-1, keepdims=True)
        # Units last: [.., P, D] each.
        left, right = np.moveaxis(left, self.axes[0], -1), np.moveaxis(right, self.axes[1], -1)
        grams = [one.swapaxes(-1, -2) @ one for one in (left, right)]
        self._add_heads(grams)
        product = grams[0] * grams[1]
        added = product.reshape(-1, *product.shape[-2:]).sum(axis=0)
        belongs = np.flatnonzero(self.units >= 0)
        units = self.units[belongs]
        np.add.at(self.total, (units[:, None], units[None, :]), added[np.ix_(belongs, belongs)])

    def _add_heads(self, grams: Sequence[npt.NDArray[np.float64]]) -> None:
        """Add one sample's Gram matrices of both operands, a batch of one assumed: all leading axes are heads."""
        order = np.argsort(self.units, kind="stable")
        for side, gram in enumerate(grams):
            heads = gram.reshape(-1, *gram.shape[-2:])
            if len(heads) != len(self.grams[side]) or len(order) != self.size:
                self.makers = "its heads are not where its weights have them"
                return
            self.grams[side] += heads[:, order[:, None], order[None, :]]

    def _principal(self) -> Basis | None:
        return None if isinstance(self.makers, str) else principal_basis(*self.grams)

    def read(self) -> Energy:
        basis = self._principal()
        return Energy(self.total if basis is None else np.diag(basis.strengths.sum(axis=0)))

    def basis(self, model: ir.Model) -> dict[str, Array]:
        basis = self._principal()
        return {} if basis is None or isinstance(self.makers, str) else rotated(model, self.makers, basis)


@dataclass
class _Recurrent:
    """Recurrent weights of one direction: what they make of a state, as if it came from the whole sequence."""

    source: str
    weight: npt.NDArray[np.float64]
    units: Units
    moments: Moments = field(init=False)

    def __post_init__(self) -> None:
        _, outputs, columns = self.weight.shape
        self.moments = Moments(1, columns, outputs, own=(self.weight, np.zeros((1, outputs))))

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def add(self, values: Mapping[str, Array], samples: int, sample: int) -> None:  # noqa: ARG002 - as the others
        self.moments.add(values[self.source].reshape(-1, 1, self.weight.shape[2]), sample=sample)

    def read(self) -> Read | None:
        summary = self.moments.all()
        return None if summary is None else Read(self.weight, summary, self.units)


@dataclass
class _Plain:
    """A reader of which nothing is known: units count by their energy."""

    source: str
    axis: int
    units: Units
    size: int
    total: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.size)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def add(self, values: Mapping[str, Array], samples: int, sample: int) -> None:  # noqa: ARG002 - as the others
        rows = np.moveaxis(values[self.source].astype(np.float64), self.axis, 0).reshape(len(self.units), -1)
        belongs = self.units >= 0
        np.add.at(self.total, self.units[belongs], np.square(rows).sum(axis=1)[belongs])

    def read(self) -> Energy:
        return Energy(np.diag(self.total))
