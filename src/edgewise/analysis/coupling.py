"""Which channels, hidden units and attention heads of a graph must go together, and which cannot go at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Units = npt.NDArray[np.int64]


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

    To remove units means to delete their positions along all `axes`. What is left computes what the whole graph computes
    if those units are zero where the `readers` read them.

    Attributes:
        name: Name of the value in which the units first appear; unique within a graph.
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
