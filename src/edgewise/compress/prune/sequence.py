"""Removes neurons group by group, and fits every layer behind to what is really left in front of it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.coupling import Coupling, Group
from edgewise.analysis.values import label, with_inferred_shapes
from edgewise.compress.nodes import constant, required
from edgewise.compress.prune.biases import with_biases, without_idle_biases
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.fit import Fit, Moments, fit
from edgewise.compress.prune.linear_layers import Layer, layers
from edgewise.compress.prune.neurons import Elimination, Read, Units, eliminate
from edgewise.compress.prune.replay import Replay
from edgewise.compress.runner import Opener
from edgewise.errors import RecipeError
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array, Feeds

STAGE: Final = "prune_neurons"


@dataclass(frozen=True, eq=False)
class Pruned:
    """A model that lost neurons.

    Attributes:
        model: The model.
        removed: For each group the units that are gone.
        declines: What could not be made up for, and layers with too few samples.
        errors: For each group the largest relative error of one of its readers after compensation, on rows held out:
            mean square of what is missing of its outputs, divided by their variance.
    """

    model: ir.Model
    removed: Mapping[str, tuple[int, ...]]
    declines: tuple[Decline, ...]
    errors: Mapping[str, float]


def prune_neurons(
    model: ir.Model,
    coupling: Coupling,
    widths: Mapping[str, int],
    open_model: Opener,
    feeds: Sequence[Feeds],
) -> Pruned:
    """Return `model` with fewer units in each group of `widths`.

    Args:
        model: The float model; not changed.
        coupling: Its groups.
        widths: How many units are left, by the name of the group.
        open_model: Opens the models that are run: parts of `model`, float and pruned so far.
        feeds: Unlabelled samples.

    Raises:
        RecipeError: If a width names no group, or does not lie within its size.
    """
    _check(coupling, widths)
    prepared, coupled = with_biases(with_inferred_shapes(model), coupling)
    groups = {group.name: group for group in coupled.groups if widths.get(group.name, group.size) < group.size}
    work = _Sweep(prepared, groups, widths, open_model, feeds)
    work.run()
    now = work.now
    removed = {name: tuple(sorted(units)) for name, units in work.removed.items()}
    result = cut(now, removed, coupled)
    without_idle_biases(result, model)
    return Pruned(result, removed, tuple(work.declines), work.errors)


def _check(coupling: Coupling, widths: Mapping[str, int]) -> None:
    sizes = {group.name: group.size for group in coupling.groups}
    for name, width in widths.items():
        if name not in sizes:
            raise RecipeError(
                f"Only units of a group can be removed. Received `{name}`, which is none.",
                hint="`edgewise inspect` lists the groups of a model, and what is pinned and why.",
            )
        if not 1 <= width <= sizes[name]:
            raise RecipeError(
                f"Of the {sizes[name]} units of `{name}`, 1 to {sizes[name]} can be left. Received {width}."
            )


class _Sweep:
    """One sweep over the layers of a model, in which groups become narrower."""

    def __init__(
        self,
        model: ir.Model,
        groups: Mapping[str, Group],
        widths: Mapping[str, int],
        open_model: Opener,
        feeds: Sequence[Feeds],
    ) -> None:
        self.model, self.now = model, model.clone()
        self.groups, self.widths = groups, widths
        self.open_model, self.feeds = open_model, feeds
        self.removed: dict[str, tuple[int, ...]] = {}
        self.declines: list[Decline] = []
        self.errors: dict[str, float] = {}
        found = list(layers(self.now))
        self.layers = [layer for layer in found if isinstance(layer, Layer)]
        self.places = {label(node): index for index, node in enumerate(model.graph)}

    def run(self) -> None:
        """Choose, compensate and write, from the first layer that loses something to the last."""
        stops = [list(stop) for _, stop in itertools.groupby(self.layers, key=lambda layer: layer.source)]
        readers = {reader.node for group in self.groups.values() for reader in group.readers}
        first = next((index for index, stop in enumerate(stops) if any(x.name in readers for x in stop)), len(stops))
        stops = stops[first:]
        local = self._local(stops)
        self._choose_in_front([group for name, group in self.groups.items() if name not in local])
        wanted = [[layer.target for layer in stop] for stop in stops]
        made = {value.name: index for index, node in enumerate(self.model.graph) for value in node.outputs}
        needed = [min(made[name] for name in names) for names in wanted]
        teacher = Replay(self.model, self.open_model, self.feeds)
        student = Replay(self.now, self.open_model, self.feeds)
        for index, stop in enumerate(stops):
            moments = [Moments(x.unfolding.groups, x.unfolding.columns, x.outputs) for x in stop]
            place = min(needed[index + 1 :], default=len(made))
            sources = {name for x in stop for name in (x.source, x.shortcut) if name}
            teacher_run = teacher.run(wanted[index], place)
            student_run = student.run(sources, stop[0].index)
            for sample, (targets, inputs) in enumerate(zip(teacher_run, student_run, strict=True)):
                for layer, seen in zip(stop, moments, strict=True):
                    self._add(layer, seen, targets, inputs, sample)
            self._settle(stop, moments, [self.groups[name] for name, at in local.items() if at == index])

    def _local(self, stops: Sequence[Sequence[Layer]]) -> dict[str, int]:
        """Return the groups whose readers all lie in one stop, and which."""
        where = {layer.name: index for index, stop in enumerate(stops) for layer in stop}
        result = {}
        for name, group in self.groups.items():
            places = {where.get(reader.node) if reader.weight == 1 else None for reader in group.readers}
            if len(places) == 1 and (place := places.pop()) is not None:
                result[name] = place
        return result

    def _choose_in_front(self, groups: Sequence[Group]) -> None:
        """Choose the units of groups with readers in many places, by the inputs of the float model."""
        if not groups:
            return
        for name, elimination in eliminations(self.model, groups, self.open_model, self.feeds).items():
            self.removed[name] = elimination.removed(self.widths[name])

    def _add(
        self, layer: Layer, moments: Moments, targets: Mapping[str, Array], inputs: Mapping[str, Array], sample: int
    ) -> None:
        x = inputs[layer.source]
        chosen = layer.chosen(x.shape, len(self.feeds), sample)
        wanted = layer.targets(targets[layer.target], chosen)
        if layer.shortcut is not None:
            wanted = wanted - layer.targets(inputs[layer.shortcut], chosen)
        moments.add(layer.unfolding.rows(x, chosen), wanted, sample=sample)

    def _settle(self, stop: Sequence[Layer], moments: Sequence[Moments], groups: Iterable[Group]) -> None:
        """Choose the units that only this stop reads, and fit its layers."""
        for group in groups:
            reads = []
            for layer, seen in zip(stop, moments, strict=True):
                units, summary = column_units(layer, group), seen.all()
                if units is not None and summary is not None:
                    reads.append(Read(layer.weight, summary, units))
            order = eliminate(reads, group.size, least=self.widths[group.name])
            self.removed[group.name] = order.removed(self.widths[group.name])
        for layer, seen in zip(stop, moments, strict=True):
            kept = np.ones((layer.unfolding.groups, layer.unfolding.columns), bool)
            losing = []
            for name, gone in self.removed.items():
                units = column_units(layer, self.groups[name])
                if units is not None:
                    kept &= ~np.isin(units, gone)
                    losing.append(name)
            fitted = fit(layer.weight, seen, kept)
            write(self.now, layer, fitted)
            for name in losing:
                self.errors[name] = max(self.errors.get(name, 0.0), fitted.error)


def eliminations(
    model: ir.Model, groups: Collection[Group], open_model: Opener, feeds: Sequence[Feeds]
) -> dict[str, Elimination]:
    """Return the order in which the units of each group go, by what the float model's inputs of all readers show."""
    found = {layer.name: layer for layer in layers(model) if isinstance(layer, Layer)}
    readers = {reader.node for group in groups for reader in group.readers}
    read = [layer for name, layer in found.items() if name in readers]
    replay = Replay(model, open_model, feeds)
    summaries = {}
    stops = [list(stop) for _, stop in itertools.groupby(read, key=lambda layer: layer.source)]
    for stop in stops:
        moments = [Moments(x.unfolding.groups, x.unfolding.columns, 0) for x in stop]
        for sample, values in enumerate(replay.run([x.source for x in stop], stop[0].index)):
            for layer, seen in zip(stop, moments, strict=True):
                chosen = layer.chosen(values[layer.source].shape, len(feeds), sample)
                rows = layer.unfolding.rows(values[layer.source], chosen)
                seen.add(rows, np.zeros((*rows.shape[:2], 0), np.float32), sample=sample)
        for layer, seen in zip(stop, moments, strict=True):
            summary = seen.all()
            if summary is not None:
                summaries[layer.name] = summary.of_weight(layer.weight)
    result = {}
    for group in groups:
        reads = []
        for reader in group.readers:
            if reader.node in summaries and reader.weight == 1:
                units = column_units(found[reader.node], group)
                if units is not None:
                    reads.append(Read(found[reader.node].weight, summaries[reader.node], units))
        result[group.name] = eliminate(reads, group.size)
    return result


def column_units(layer: Layer, group: Group) -> Units | None:
    """Return the unit of each column of `layer`, -1 where it has none, shape `[G, K]`; None if it reads none."""
    reader = next((reader for reader in group.readers if reader.node == layer.name), None)
    if reader is None:
        return None
    units = next(axis.units for axis in group.axes if (axis.value, axis.axis) == (layer.source, reader.axis))
    unfolding = layer.unfolding
    return np.repeat(units.reshape(unfolding.groups, -1), unfolding.kernel, axis=1)


def write(model: ir.Model, layer: Layer, fitted: Fit) -> None:
    """Write a fitted layer into the model that it belongs to, in place."""
    weight = required(layer.node.inputs[1])
    weight.const_value = ir.tensor(layer.unfolding.restore(fitted.weight).astype(np.float32), name=weight.name)
    if layer.bias is not None:
        bias = model.graph.initializers[layer.bias]
        old = constant(bias)
        shape = fitted.bias.shape if old is None else old.shape
        bias.const_value = ir.tensor(fitted.bias.reshape(shape).astype(np.float32), name=bias.name)
