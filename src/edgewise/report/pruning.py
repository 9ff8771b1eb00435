"""The pictures of pruning: the network before and after, width by width, and the layers that are gone."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise.records.pruning import GroupWidth, Pruning, RemovedLayer
from edgewise.report import quantities as q
from edgewise.report.columns import Shrunk, shrunk
from edgewise.report.figures import Figure
from edgewise.report.frame import NARROW, WIDE, Axis


@dataclass(frozen=True)
class GroupRow:
    """One line of the table of groups."""

    units: str
    makers: str
    before: str
    after: str
    error: str


@dataclass(frozen=True)
class LayerRow:
    """One line of the table of layers that are gone."""

    name: str
    operators: str
    macs: str
    instead: str


@dataclass(frozen=True)
class PruningFigures:
    """What the report shows of pruning.

    Attributes:
        says: What it came to, in sentences.
        widths: Every group of units before and after.
        groups: The groups that lost units.
        layers: The layers that are gone.
    """

    says: tuple[str, ...]
    widths: Figure
    groups: tuple[GroupRow, ...]
    layers: tuple[LayerRow, ...]


def pruning_figures(pruning: Pruning) -> PruningFigures:
    """Return the picture and the tables."""
    return PruningFigures(
        says=_says(pruning),
        widths=_widths(pruning),
        groups=tuple(_group(group) for group in pruning.narrowed),
        layers=tuple(_layer(layer) for layer in pruning.layers),
    )


def _says(pruning: Pruning) -> tuple[str, ...]:
    macs = f"{q.count(pruning.macs_before)} multiply-accumulates became {q.count(pruning.macs_after)}"
    weights = f"{q.count(pruning.parameters_before)} weights {q.count(pruning.parameters_after)}"
    left = _left(pruning.macs_after, pruning.macs_before), _left(pruning.parameters_after, pruning.parameters_before)
    said = [f"{macs} ({left[0]} are left), {weights} ({left[1]})."]
    if pruning.trials:
        found = pruning.trials[-1]
        changed = "" if found.flips is None else f"{q.count(found.flips)} answers changed, "
        said.append(
            f"On {q.plural(found.n, 'calibration sample')} that nothing was fitted to: {changed}"
            f"{q.share(found.nsr)} noise at the outputs."
        )
    return tuple(said)


def _left(after: int, before: int) -> str:
    return q.share(after / before) if before else q.NONE


def _widths(pruning: Pruning) -> Figure:
    title = "Width of each group of coupled units, before and after"
    if not pruning.groups:
        return Figure(title, None, None, (), ("No units of this model could be removed, only whole layers.",))
    row = [Shrunk(group.before, group.after, _tip(group)) for group in pruning.groups]
    axes = (Axis("groups of units, in graph order"), Axis("units"))
    caption = ["Outline: the units that there were. Filled: those that are left."]
    if full := len(pruning.groups) - len(pruning.narrowed):
        caption.append(f"{q.plural(full, 'group')} kept all of their units.")
    return Figure(title, shrunk(row, axes, WIDE), shrunk(row, axes, NARROW), (), tuple(caption))


def _tip(group: GroupWidth) -> str:
    return (
        f"{group.name}\n{q.count(group.before)} before, {q.count(group.after)} now\nmade by {', '.join(group.makers)}"
    )


def _group(group: GroupWidth) -> GroupRow:
    return GroupRow(
        units=group.name,
        makers=", ".join(group.makers),
        before=q.count(group.before),
        after=q.count(group.after),
        error=q.NONE if group.error is None else q.share(group.error),
    )


def _layer(layer: RemovedLayer) -> LayerRow:
    instead = {"nothing": "nothing", "shift": "a shift", "affine": "a scale and a shift", "linear": "one linear layer"}
    return LayerRow(layer.name, layer.operators, q.count(layer.macs), instead[layer.stand_in])
