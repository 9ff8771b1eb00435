"""Which channels, hidden units and attention heads of a graph must go together, and which cannot go at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.channel_flow import Flow, Making, Pattern, is_fixed, name_of, sizes_of
from edgewise.analysis.channel_labels import Labels
from edgewise.analysis.channel_rules import apply_rule
from edgewise.analysis.values import STANDARD_DOMAINS, bodies, input_at, is_constant, label, with_inferred_shapes

Units = npt.NDArray[np.int64]

Place: TypeAlias = tuple[ir.Value, int]
"""A value and one of its axes."""

_WEIGHTS: Final = {
    "Conv": (1, 0), "ConvTranspose": (1, 1), "GRU": (2, 2), "Gemm": (1, 1), "LSTM": (2, 2), "MatMul": (1, -1),
    "RNN": (2, 2),
}  # fmt: skip
"""Input index of the weights of operators that make units, and the axis on which the units lie in them."""


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
            _hold_body(flow, node, body)
    for value in model.graph.outputs:
        flow.pin(flow.of(value), f"the model's output `{value.name}` has them")
    return flow


def _hold_body(flow: Flow, node: ir.Node, body: ir.Graph) -> None:
    """Let everything stay that a body reads from the graph around it, and all that is made in it."""
    inner = list(ir.traversal.RecursiveGraphIterator(body))
    inside = {*body.inputs, *body.initializers.values(), *(value for one in inner for value in one.outputs)}
    for value in (*body.outputs, *(value for one in inner for value in one.inputs)):
        if value is not None and value not in inside:
            flow.pin(flow.of(value), f"the body of {name_of(node)} reads them")
    for one in inner:
        slot, axis = _WEIGHTS.get(one.op_type, (0, 0)) if one.domain in STANDARD_DOMAINS else (0, 0)
        weight = input_at(one, slot)
        if slot and is_fixed(weight):
            axis = 0 if one.attributes.get_int("transB", 0) else axis
            made = flow.joined.fresh(sizes_of(weight)[axis] or 0)
            flow.joined.pin(made, f"they lie in the body of {name_of(node)}")
            flow.makings.append(Making(one, made))


def _free(flow: Flow) -> set[int]:
    """Return the labels of units that can go: made by weights, summed over, and held by nothing."""
    joined = flow.joined
    read = {root for reading in flow.readings for root in joined.roots(reading.labels).tolist()}
    made = np.unique(np.concatenate([np.zeros(0, np.int64), *(making.labels for making in flow.makings)]))
    roots = joined.roots(made).tolist()
    return {at for at, root in zip(made.tolist(), roots, strict=True) if root in read and not joined.why_pinned(root)}


class _Builder:
    """Makes groups of joined labels."""

    def __init__(self, model: ir.Model, flow: Flow) -> None:
        self.flow, self.joined = flow, flow.joined
        self.free = {self.joined.root(at) for at in _free(flow)}
        made = [output for node in model.graph for output in node.outputs if output in flow.dims]
        self.rank = {value: index for index, value in enumerate(dict.fromkeys((*made, *flow.dims)))}
        order = {node: index for index, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph))}
        readings = sorted(flow.readings, key=lambda one: order[one.node])
        makings = sorted(flow.makings, key=lambda one: order[one.node])
        self.readings = [(one, self._roots(one.labels)) for one in readings]
        self.makings = [(one, self._roots(one.labels)) for one in makings]
        self.roots: dict[Place, list[int]] = {}

    def coupling(self) -> Coupling:
        """Return all groups, and what is pinned."""
        places: dict[int, list[Place]] = {root: [] for root in self.free}
        for value in self.rank:
            for axis, labels in enumerate(self.flow.dims[value]):
                if labels is not None:
                    self.roots[value, axis] = self.joined.roots(labels).tolist()
                    for root in dict.fromkeys(self.roots[value, axis]):
                        if root in self.free:
                            places[root].append((value, axis))
        # Units of one group lie at the same places: no value then loses all of an axis while every group keeps a unit.
        groups: dict[tuple[Place, ...], list[int]] = {}
        for root, where in places.items():
            groups.setdefault(tuple(where), []).append(root)
        ordered = sorted(groups.items(), key=lambda item: (self.rank[item[0][0][0]], item[0][0][1], min(item[1])))
        users = Counter(place for where in groups for place in where)
        whole = [self._group(where, set(roots), users) for where, roots in ordered if len(roots) > 1]
        single = {roots[0] for _, roots in ordered if len(roots) == 1}
        return Coupling(tuple(whole), tuple(self._pinned(single)))

    def _group(self, places: Sequence[Place], free: set[int], users: Mapping[Place, int]) -> Group:
        numbers: dict[int, int] = {}
        axes = []
        for value, axis in places:
            roots = self.roots[value, axis]
            for root in roots:
                if root in free:
                    numbers.setdefault(root, len(numbers))
            axes.append(Axis(value.name or "", axis, np.array([numbers.get(root, -1) for root in roots])))
        return Group(
            name=self._name(places, free, users),
            size=len(numbers),
            axes=tuple(axes),
            readers=tuple(
                Reader(label(reading.node), reading.slot, reading.axis, reading.weight)
                for reading, roots in self.readings
                if free & roots
            ),
            makers=tuple(dict.fromkeys(label(making.node) for making, roots in self.makings if free & roots)),
        )

    def _name(self, places: Sequence[Place], free: Collection[int], users: Mapping[Place, int]) -> str:
        """Return the value in which units first appear alone, or where they begin in the first value; unique."""
        own = next((place for place in places if users[place] == 1 and not is_constant(place[0])), None)
        value, axis = own or places[0]
        others = [one for one in range(len(self.flow.dims[value])) if one != axis and users.get((value, one))]
        name = f"{value.name} axis {axis}" if others else f"{value.name}"
        if own:
            return name
        return f"{name} from {next(at for at, root in enumerate(self.roots[value, axis]) if root in free)}"

    def _roots(self, labels: Labels) -> frozenset[int]:
        return frozenset(self.joined.roots(labels).tolist())

    def _pinned(self, single: Collection[int]) -> list[Pinned]:
        """Return what every maker makes that has to stay; `single` are the units of groups of one."""
        found: dict[tuple[ir.Node, str], int] = {}
        for making, roots in self.makings:
            for root in roots:
                if root in self.free and root not in single:
                    continue
                reason = self.joined.why_pinned(root) or "nothing sums over them"
                key = making.node, "it is the only one" if root in single else reason
                found[key] = found.get(key, 0) + 1
        return [Pinned(label(node), node.op_type, count, reason) for (node, reason), count in found.items()]
