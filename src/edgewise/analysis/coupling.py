"""Which channels, hidden units and attention heads of a graph must go together, and which cannot go at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.channel_flow import Flow, Pattern, name_of
from edgewise.analysis.channel_labels import Labels
from edgewise.analysis.channel_rules import apply_rule
from edgewise.analysis.values import bodies, is_constant, label, with_inferred_shapes

Units = npt.NDArray[np.int64]

Place: TypeAlias = tuple[ir.Value, int]
"""A value and one of its axes."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of one value, weights and activations alike, and the unit that each of its positions belongs to.

    Attributes:
        value: Name of the value.
        axis: The axis, >= 0.
        units: For each position the unit of the group, from 0, or -1 where it belongs to none of them and stays; shape
            `[dim]`. A unit may have several positions: all places of a flattened map, all entries of a head.
    """

    value: str
    axis: int
    units: Units


@dataclass(frozen=True)
class Reader:
    """A place at which units are summed over: without some of them, the sum is what is left.

    Attributes:
        node: Name of the node (see `analysis.values.label`).
        slot: Input index of the activation whose units are summed over.
        axis: Axis of that input along which they lie.
        weight: Input index of the constant weights that multiply them; None where both operands are activations.
    """

    node: str
    slot: int
    axis: int
    weight: int | None


@dataclass(frozen=True, eq=False)
class Group:
    """Units of which any may be removed, each as a whole: everywhere, and independently of the others.

    To remove units means to delete their positions along all `axes`. What is left computes what the whole graph
    computes if those units are zero where the `readers` read them.

    Attributes:
        name: Name of the value in which the units, and no others, first appear; unique within a graph.
        size: How many units there are, >= 2.
        axes: Everything that becomes shorter.
        readers: Where the units are summed over, in the order of the graph; at least one.
        makers: Names of the nodes whose constant weights make the units, in the order of the graph; at least one.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    readers: tuple[Reader, ...]
    makers: tuple[str, ...]


@dataclass(frozen=True)
class Pinned:
    """Units that cannot be removed.

    Attributes:
        node: Name of the node that makes them.
        operator: Its type.
        units: How many units there are.
        reason: Why they have to stay, as a clause: "the model's output `y` has them".
    """

    node: str
    operator: str
    units: int
    reason: str


@dataclass(frozen=True)
class Coupling:
    """What can be removed from a graph and what cannot.

    Attributes:
        groups: In the order of the graph.
        pinned: In the order of the graph.
    """

    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]


def couple(model: ir.Model) -> Coupling:
    """Return which units of `model` can go, together with what, and which have to stay.

    Every position of every axis of a constant of real numbers gets a label; operators join the labels of positions that
    have to go together, or move them as they move data. What cannot be followed holds them. A unit is a set of joined
    labels that a node makes by its weights and that are summed over, and only that, in the end.

    Where a reshape splits an axis of units in several, the units lie on the outermost of the new axes (heads, not the
    entries of heads); if that frees none, the next one is tried.

    Args:
        model: Any graph; not changed. Dimensions that are not known hold what lies along them.
    """
    shaped = with_inferred_shapes(model)
    best, choices = _followed(shaped, {}), dict[Pattern, int]()
    most = len(_free(best))
    for pattern, count in best.splits.items():
        for choice in range(1, count):
            flow = _followed(shaped, {**choices, pattern: choice})
            if len(_free(flow)) > most:
                best, most, choices = flow, len(_free(flow)), {**choices, pattern: choice}
    return _Builder(shaped, best).coupling()


def _followed(model: ir.Model, choices: Mapping[Pattern, int]) -> Flow:
    """Return the labels of every value of a graph."""
    flow = Flow(choices=choices)
    for node in model.graph:
        apply_rule(flow, node)
    for node in model.graph:
        for body in bodies(node):
            _hold_captured(flow, node, body)
    for value in model.graph.outputs:
        flow.pin(flow.of(value), f"the model's output `{value.name}` has them")
    return flow


def _hold_captured(flow: Flow, node: ir.Node, body: ir.Graph) -> None:
    """Let everything stay that a body reads from the graph around it."""
    inner = list(ir.traversal.RecursiveGraphIterator(body))
    inside = {*body.inputs, *body.initializers.values(), *(value for one in inner for value in one.outputs)}
    for value in (*body.outputs, *(value for one in inner for value in one.inputs)):
        if value is not None and value not in inside:
            flow.pin(flow.of(value), f"the body of {name_of(node)} reads them")


def _free(flow: Flow) -> set[int]:
    """Return the labels of units that can go: made by weights, summed over, and held by nothing."""
    joined = flow.joined
    read = {int(root) for reading in flow.readings for root in joined.roots(reading.labels)}
    made = {int(at) for making in flow.makings for at in making.labels}
    return {at for at in made if (root := joined.root(at)) in read and joined.why_pinned(root) is None}


class _Builder:
    """Makes groups of joined labels."""

    def __init__(self, model: ir.Model, flow: Flow) -> None:
        self.flow, self.joined = flow, flow.joined
        self.free = {self.joined.root(at) for at in _free(flow)}
        self.order = {node: index for index, node in enumerate(model.graph)}
        made = [output for node in model.graph for output in node.outputs]
        self.values = [value for value in made if value in flow.dims]
        self.values += [value for value in flow.dims if value not in set(self.values)]
        self.roots: dict[Place, Labels] = {}

    def coupling(self) -> Coupling:
        """Return all groups, and what is pinned."""
        places: dict[int, list[Place]] = {root: [] for root in self.free}
        for value in self.values:
            for axis, labels in enumerate(self.flow.dims[value]):
                if labels is not None:
                    self.roots[value, axis] = self.joined.roots(labels)
                    for root in dict.fromkeys(self.roots[value, axis].tolist()):
                        if root in self.free:
                            places[root].append((value, axis))
        # Units of one group lie at the same places: no value then loses all of an axis while every group keeps a unit.
        groups: dict[tuple[Place, ...], list[int]] = {}
        for root, where in places.items():
            groups.setdefault(tuple(where), []).append(root)
        ordered = sorted(groups.items(), key=lambda item: (self.values.index(item[0][0][0]), min(item[1])))
        users = Counter(place for where in groups for place in where)
        made = [self._group(where, set(roots), users) for where, roots in ordered]
        whole = [group for group in made if group.size > 1]
        single = [group for group in made if group.size == 1]
        return Coupling(tuple(whole), tuple(self._pinned(single)))

    def _group(self, places: Sequence[Place], free: Collection[int], users: Mapping[Place, int]) -> Group:
        numbers: dict[int, int] = {}
        axes = []
        for value, axis in places:
            roots = self.roots[value, axis].tolist()
            for root in roots:
                if root in free:
                    numbers.setdefault(root, len(numbers))
            axes.append(Axis(value.name or "", axis, np.array([numbers.get(root, -1) for root in roots])))
        own = next((place for place in places if users[place] == 1 and not is_constant(place[0])), None)
        first = places[0]
        return Group(
            name=(own[0].name or "") if own else f"{first[0].name} from {min(self._positions(first, free))}",
            size=len(numbers),
            axes=tuple(axes),
            readers=tuple(
                Reader(label(reading.node), reading.slot, reading.axis, reading.weight)
                for reading in sorted(self.flow.readings, key=lambda one: self.order[one.node])
                if self._holds(reading.labels, numbers)
            ),
            makers=tuple(
                dict.fromkeys(
                    label(making.node)
                    for making in sorted(self.flow.makings, key=lambda one: self.order[one.node])
                    if self._holds(making.labels, numbers)
                )
            ),
        )

    def _positions(self, place: Place, free: Collection[int]) -> list[int]:
        return [index for index, root in enumerate(self.roots[place].tolist()) if root in free]

    def _holds(self, labels: Labels, numbers: Mapping[int, int]) -> bool:
        return any(root in numbers for root in self.joined.roots(labels).tolist())

    def _pinned(self, single: Sequence[Group]) -> list[Pinned]:
        """Return what every maker makes that has to stay."""
        alone = {maker for group in single for maker in group.makers}
        found: dict[tuple[ir.Node, str], int] = {}
        for making in self.flow.makings:
            for root in dict.fromkeys(self.joined.roots(making.labels).tolist()):
                if root in self.free and label(making.node) not in alone:
                    continue
                reason = "it is the only one" if root in self.free else self.joined.why_pinned(root)
                key = making.node, reason or "nothing sums over them"
                found[key] = found.get(key, 0) + 1
        ordered = sorted(found.items(), key=lambda item: self.order[item[0][0]])
        return [Pinned(label(node), node.op_type, count, reason) for (node, reason), count in ordered]
