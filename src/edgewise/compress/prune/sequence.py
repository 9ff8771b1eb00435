"""Removes neurons group by group, and fits every layer behind to what is really left in front of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.coupling import Coupling, Group
from edgewise.analysis.values import label, with_inferred_shapes
from edgewise.compress.nodes import constant
from edgewise.compress.prune.biases import with_biases, without_idle_biases
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.fit import SAMPLES_PER_COLUMN, Fit, Mask, Moments, fit
from edgewise.compress.prune.linear_layers import Layer, layers
from edgewise.compress.prune.neurons import Energy, Read, eliminate
from edgewise.compress.prune.readers import column_units, seen
from edgewise.compress.prune.replay import Replay
from edgewise.compress.runner import Opener
from edgewise.errors import DataError, RecipeError
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
            mean square of what is missing of its outputs, divided by their variance. 0 where no reader is fitted.
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

    Groups that one place reads are chosen by what their readers really get, groups that many places read by what these
    get in the float model. Every linear layer from the first reader on is fitted to the float model's outputs on the
    inputs that it really gets; where its output joins a shortcut, to the float model's sum less the shortcut as it is
    now.

    Args:
        model: The float model, its nodes in topological order and its batch normalizations folded; not changed.
        coupling: Its groups.
        widths: How many units are left, by the name of the group.
        open_model: Opens the models that are run: parts of `model`, float and pruned so far.
        feeds: Unlabelled samples. Each is run through both models once, part by part, and once more through the float
            model where a group has readers in many places.

    Raises:
        RecipeError: If a width names no group, or does not lie within its size.
        DataError: If there is no sample, or if one makes NaN or infinities.
    """
    check_widths(coupling, widths)
    narrower = {group.name for group in coupling.groups if widths.get(group.name, group.size) < group.size}
    if not narrower:
        return Pruned(model.clone(), {}, (), {})
    if not feeds:
        raise DataError("Pruning needs at least one sample, but there is none.", hint="Give more samples.")
    prepared, coupled = with_biases(with_inferred_shapes(model), coupling, narrower)
    groups = {group.name: group for group in coupled.groups if group.name in narrower}
    work = _Sweep(prepared, groups, widths, open_model, feeds)
    work.run()
    result = cut(work.now, work.removed, coupled)
    without_idle_biases(result, model)
    return Pruned(result, work.removed, tuple(work.declines), work.errors)


def check_widths(coupling: Coupling, widths: Mapping[str, int]) -> None:
    """Check that widths name groups and lie within their sizes.

    Raises:
        RecipeError: If one does not.
    """
    sizes = {group.name: group.size for group in coupling.groups}
    for name, width in widths.items():
        if name not in sizes:
            raise RecipeError(
                f"Only units of a group can be removed. Received `{name}`, which is none.",
                hint="`edgewise inspect` lists the groups of a model, and what is pinned and why.",
            )
        if not 1 <= width <= sizes[name]:
            size = sizes[name]
            raise RecipeError(f"Of the {size} units of `{name}`, 1 to {size} can be left. Received {width}.")


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
        self.errors = dict.fromkeys(groups, 0.0)
        self.cleared: list[Group] = []
        self.turned: list[Group] = []  # in another basis, which is all that a product can do

    def run(self) -> None:
        """Choose, compensate and write, from the first layer that loses something to the last."""
        local = self._local(_stops(layers(self.now)))
        self._choose_in_front([group for name, group in self.groups.items() if name not in local])
        self.declines.extend(unfitted(self.now, [group for group in self.groups.values() if group not in self.turned]))
        stops = _stops(layers(self.now))  # again: units may have got another basis
        changed = self._first_change(stops)
        stops, local = stops[changed:], {name: place - changed for name, place in local.items()}
        made = {str(value.name): index for index, node in enumerate(self.model.graph) for value in node.outputs}
        needed = [min(made.get(layer.target, 0) for layer in stop) for stop in stops]
        teacher = Replay(self.model, self.open_model, self.feeds)
        student = Replay(self.now, self.open_model, self.feeds)
        for index, stop in enumerate(stops):
            moments = [layer.moments() for layer in stop]
            # The first node that a later stop needs has to be run again, so that what it makes can be seen.
            place = min(needed[index + 1 :], default=len(made))
            wanted = teacher.run([layer.target for layer in stop], place)
            sources = [name for layer in stop for name in (layer.source, layer.shortcut) if name]
            for sample, (targets, inputs) in enumerate(zip(wanted, student.run(sources, stop[0].index), strict=True)):
                for layer, gathered in zip(stop, moments, strict=True):
                    self._add(layer, gathered, targets, inputs, sample)
            self._choose([self.groups[name] for name, at in local.items() if at == index], stop, moments)
            for layer, gathered in zip(stop, moments, strict=True):
                self._fit(layer, gathered)

    def _local(self, stops: Sequence[Sequence[Layer]]) -> dict[str, int]:
        """Return the groups whose readers are all fitted in one stop, and in which."""
        where = {layer.name: index for index, stop in enumerate(stops) for layer in stop}
        result = {}
        for name, group in self.groups.items():
            places = {where.get(reader.node) if reader.weight == 1 else None for reader in group.readers}
            if len(places) == 1 and (place := places.pop()) is not None:
                result[name] = place
        return result

    def _first_change(self, stops: Sequence[Sequence[Layer]]) -> int:
        """Return the first stop that loses columns, or that lies behind units that are gone already."""
        readers = {reader.node for group in self.groups.values() for reader in group.readers}
        nodes = [label(node) for node in self.now.graph]
        first = min(index for index, name in enumerate(nodes) if name in readers)
        return next((at for at, stop in enumerate(stops) if stop[-1].index >= first), len(stops))

    def _choose_in_front(self, groups: Sequence[Group]) -> None:
        """Choose the units of groups with readers in many places, by the inputs of the float model."""
        if not groups:
            return
        for one in seen(self.model, groups, self.open_model, self.feeds):
            name, size = one.group.name, one.group.size
            if one.basis:
                self.turned.append(one.group)
                for model in (self.model, self.now):
                    set_constants(model, one.basis)
            self.removed[name] = eliminate(one.reads, size, least=self.widths[name]).removed(self.widths[name])
            if any(isinstance(read, Energy) for read in one.reads):
                self.cleared.append(one.group)
                _clear_makers(self.now, one.group, self.removed[name])

    def _add(
        self, layer: Layer, moments: Moments, targets: Mapping[str, Array], inputs: Mapping[str, Array], sample: int
    ) -> None:
        rows, chosen = layer.rows(inputs[layer.source], len(self.feeds), sample)
        wanted = layer.targets(targets[layer.target], chosen)
        if layer.shortcut is not None:
            wanted = wanted - layer.targets(inputs[layer.shortcut], chosen)
        moments.add(rows, wanted, sample=sample)

    def _choose(self, groups: Iterable[Group], stop: Sequence[Layer], moments: Sequence[Moments]) -> None:
        """Choose the units that this stop alone reads."""
        for group in groups:
            reads = []
            for layer, gathered in zip(stop, moments, strict=True):
                units, summary = column_units(layer, group), gathered.all()
                if units is not None and summary is not None:
                    reads.append(Read(layer.weight, summary, units))
            width = self.widths[group.name]
            self.removed[group.name] = eliminate(reads, group.size, least=width).removed(width)

    def _fit(self, layer: Layer, moments: Moments) -> None:
        """Fit one layer to what is left of its inputs, and write it."""
        kept, losing = self._kept(layer)
        fitted = fit(layer.weight, moments, kept)
        if losing or fitted.error < fitted.error_before:
            write(self.now, layer, fitted)
            for group in self.cleared:
                if layer.name in group.makers:
                    _clear_makers(self.now, group, self.removed[group.name])
        for name in losing:
            self.errors[name] = max(self.errors[name], fitted.error)
        decline = too_few(layer, moments, kept)
        if losing and decline is not None:
            self.declines.append(decline)

    def _kept(self, layer: Layer) -> tuple[Mask, list[str]]:
        """Return which columns of a layer stay, shape `[G, K]`, and the groups that it loses some of."""
        kept = np.ones((layer.unfolding.groups, layer.unfolding.columns), bool)
        losing = []
        for name, gone in self.removed.items():
            units = column_units(layer, self.groups[name])
            if units is not None:
                kept &= ~np.isin(units, gone)
                losing.append(name)
        return kept, losing


def _stops(found: Iterable[Layer | tuple[ir.Node, str]]) -> list[list[Layer]]:
    """Return the layers in the order of the graph, neighbours that read the same value together."""
    fitted = (layer for layer in found if isinstance(layer, Layer))
    return [list(stop) for _, stop in itertools.groupby(fitted, key=lambda layer: layer.source)]


def unfitted(model: ir.Model, groups: Iterable[Group]) -> list[Decline]:
    """Return the readers of groups that cannot make up for units that go, each with the reason."""
    found = list(layers(model))
    fitted = {layer.name for layer in found if isinstance(layer, Layer)}
    reasons = {label(one[0]): one[1] for one in found if not isinstance(one, Layer)}
    operators = {label(node): node.op_type for node in model.graph}
    declines: dict[tuple[str, str], Decline] = {}
    for group in groups:
        for reader in group.readers:
            if reader.node in fitted and reader.weight == 1 and reader.slot == 0:
                continue
            other = "it has no weights that could" if reader.weight is None else "its recurrent weights stay"
            why = reasons.get(reader.node, other)
            reason = f"it does not make up for units of `{group.name}` that go: {why}"
            operator = operators.get(reader.node, "")
            declines[reader.node, reason] = Decline(stage=STAGE, node=reader.node, operator=operator, reason=reason)
    return list(declines.values())


def too_few(layer: Layer, moments: Moments, kept: Mask) -> Decline | None:
    """Return a warning if a layer was fitted to too few rows for its width."""
    columns = int(kept.sum(axis=1).max())
    needed = int(np.ceil(SAMPLES_PER_COLUMN * columns))
    if moments.count >= needed:
        return None
    a_sample = max(1.0, moments.count / max(moments.samples, 1))
    reason = (
        f"it was fitted to {moments.count} rows, and its {columns} inputs need {needed}, that is "
        f"{int(np.ceil(needed / a_sample))} samples: a larger ridge keeps it near its old weights"
    )
    return Decline(stage=STAGE, node=layer.name, operator=layer.node.op_type, reason=reason)


def write(model: ir.Model, layer: Layer, fitted: Fit) -> None:
    """Write a fitted layer into the model that it belongs to, in place."""
    set_constants(model, layer.constants(model, fitted))


def set_constants(model: ir.Model, constants: Mapping[str, Array]) -> None:
    """Write constants into a model, in place."""
    for name, values in constants.items():
        model.graph.initializers[name].const_value = ir.tensor(values, name=name)


def _clear_makers(model: ir.Model, group: Group, gone: Sequence[int]) -> None:
    """Set units to zero where they are made, in place: a reader without weights cannot leave them out."""
    for axis in group.axes:
        value = model.graph.initializers.get(axis.value)
        old = constant(value)
        if value is None or old is None or old.dtype.kind != "f":
            continue
        new = old.copy()
        new.swapaxes(0, axis.axis)[np.isin(axis.units, gone)] = 0.0
        value.const_value = ir.tensor(new, name=value.name)
