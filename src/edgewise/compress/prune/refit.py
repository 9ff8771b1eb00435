"""Fits the linear layers behind what was taken out of a model anew, one after the other, on what they really get.

A layer whose output joins a shortcut is fitted to the sum of the whole model less the shortcut that is really there:
what was lost upstream flows past it, and it is the first that can put it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.values import is_standard, label, with_inferred_shapes
from edgewise.compress.nodes import constant
from edgewise.compress.prune.behind import Reader, only_reader, other_operand, readers
from edgewise.compress.prune.fit import Fit, Moments, fit
from edgewise.compress.prune.layers import drop
from edgewise.compress.prune.regions import Region, same_shape
from edgewise.compress.prune.replay import Replay
from edgewise.compress.runner import Opener
from edgewise.compress.unfold import spread
from edgewise.errors import DataError
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array, Feeds

STAGE: Final = "prune_layers"

_ROWS: Final = 1 << 14
"""Rows that all samples together give a layer (empirical)."""

_ROWS_PER_COLUMN: Final = 24
"""Rows of each column that all samples together give at least, as far as there are so many."""


@dataclass(frozen=True, eq=False)
class Refitted:
    """A model with layers that were fitted anew.

    Attributes:
        model: The model.
        errors: For each layer the mean square of what is missing of its target, divided by the target's variance, on
            rows held out.
        declines: Layers that were to be fitted and could not be.
    """

    model: ir.Model
    errors: Mapping[str, float]
    declines: tuple[Decline, ...]


def refit_readers(
    model: ir.Model,
    reference: ir.Model,
    open_model: Opener,
    feeds: Sequence[Feeds],
    *,
    names: Collection[str] | None = None,
) -> Refitted:
    """Return `model` with its linear layers fitted so that their outputs come near to those of `reference`.

    Args:
        model: A model from which regions were taken; not changed.
        reference: The model as it was before: values that are left have the names that they have there.
        open_model: Opens parts of both.
        feeds: Unlabelled samples.
        names: Names of the layers that are fitted (see `analysis.values.label`); None for all that get anything else
            than before.

    Raises:
        DataError: If there is no sample, or one makes NaN or infinities.
    """
    if not feeds:
        raise DataError(
            "Layers need at least one sample to be fitted, but there is none.",
            hint="Give more samples, or a larger calibration split.",
        )
    now, teacher = with_inferred_shapes(model), with_inferred_shapes(reference)
    wanted = _changed(now.graph, teacher.graph) if names is None else set(names)
    places = {node: index for index, node in enumerate(now.graph)}
    made = {str(value.name): index for index, node in enumerate(teacher.graph) for value in node.outputs}
    _give_biases(now.graph, wanted)
    sites, declines = list[_Site](), list[Decline]()
    for found in readers(now.graph):
        if not isinstance(found, Reader):
            node, why = found
            if label(node) in wanted:
                declines.append(_decline(node, f"it keeps its weights: {why}"))
        elif found.name in wanted:
            site = _site(found, places)
            if site.target in made:
                sites.append(site)
            else:
                declines.append(_decline(found.node, "it keeps its weights: the model had no such layer before"))
    errors = _sweep(sites, Replay(teacher, open_model, feeds), Replay(now, open_model, feeds), made, len(feeds))
    return Refitted(now, errors, tuple(declines))


def made_up_for(
    model: ir.Model, region: Region, open_model: Opener, feeds: Sequence[Feeds], *, layers: int
) -> dict[str, Array]:
    """Return constants of `model` that make up for a region that is going to be dropped, by name.

    Args:
        model: The model; not changed.
        region: A region that can be dropped.
        open_model: Opens parts of models.
        feeds: Unlabelled samples.
        layers: How many of the linear layers behind the region are fitted anew, >= 1.

    Raises:
        DataError: If there is no sample, or one makes NaN or infinities.
    """
    dropped = drop(model, region)
    changed = _changed(with_inferred_shapes(dropped).graph, with_inferred_shapes(model).graph)
    linear = [found.name for found in readers(dropped.graph) if isinstance(found, Reader) and found.name in changed]
    refitted = refit_readers(dropped, model, open_model, feeds, names=linear[:layers]).model.graph.initializers
    result = {}
    for name, value in model.graph.initializers.items():
        before, after = constant(value), constant(refitted.get(name))
        if before is not None and after is not None and after is not before and not np.array_equal(before, after):
            result[name] = after
    return result


@dataclass(frozen=True, eq=False)
class _Site:
    """A layer, its place in the graph, what it should give, and the shortcut that is added to it."""

    layer: Reader
    place: int
    target: str
    shortcut: str | None

    @property
    def reads(self) -> set[str]:
        """Names of the values that are read."""
        return {str(self.layer.source.name)} | ({self.shortcut} if self.shortcut else set())

    def add(self, moments: Moments, goal: Array, given: Mapping[str, Array], samples: int, sample: int) -> None:
        """Add one of `samples` samples to `moments`."""
        chosen = self._chosen(given[str(self.layer.source.name)], samples, sample)
        wanted = self.layer.targets(goal, chosen)
        if self.shortcut is not None:
            wanted = wanted - self.layer.targets(given[self.shortcut], chosen)
        rows = self.layer.unfolding.rows(given[str(self.layer.source.name)], chosen)
        if self.layer.bias is None:
            # With their mirror images, rows have the mean zero: the fit is then the best one without a bias.
            rows, wanted = np.concatenate([rows, -rows]), np.concatenate([wanted, -wanted])
        moments.add(rows, wanted, sample=sample)

    def _chosen(self, activation: Array, samples: int, sample: int) -> npt.NDArray[np.int64]:
        """Return the positions of one sample that are read."""
        unfolding = self.layer.unfolding
        needed = max(_ROWS, _ROWS_PER_COLUMN * unfolding.columns)
        return spread(unfolding.positions(activation.shape), -(-needed // samples), sample)


def _site(layer: Reader, places: Mapping[ir.Node, int]) -> _Site:
    place, output = places[layer.node], layer.output
    after = only_reader(output)
    shortcut = other_operand(after, output) if after is not None and is_standard(after, "Add") else None
    if after is None or shortcut is None or constant(shortcut) is not None or not same_shape(output, shortcut):
        return _Site(layer, place, str(output.name), None)
    producer = shortcut.producer()
    if producer is not None and places.get(producer, place) >= place:
        return _Site(layer, place, str(output.name), None)
    return _Site(layer, place, str(after.outputs[0].name), str(shortcut.name))


def _changed(now: ir.Graph, before: ir.Graph) -> set[str]:
    """Return the names of the nodes that read anything else than before, or anything that depends on such nodes."""
    known = {value.name: _signature(node) for node in before for value in node.outputs}
    is_changed, result = set[ir.Value](), set[str]()
    for node in now:
        is_other = known.get(node.outputs[0].name) != _signature(node)
        if is_other or any(value in is_changed for value in node.inputs):
            is_changed.update(node.outputs)
            result.add(label(node))
    return result


def _signature(node: ir.Node) -> tuple[str, tuple[str | None, ...]]:
    return node.op_type, tuple(None if value is None else value.name for value in node.inputs)


def _give_biases(graph: ir.Graph, wanted: Collection[str]) -> None:
    """Give every Conv, ConvTranspose and Gemm in `wanted` a bias, for the mean of what is gone."""
    for found in list(readers(graph)):
        if not isinstance(found, Reader) or found.bias is not None or found.name not in wanted:
            continue
        if found.node.op_type != "MatMul":
            values = np.zeros(found.unfolding.groups * found.unfolding.outputs, np.float32)
            name = f"{found.output.name}_refitted_bias"
            bias = ir.Value(name=name, const_value=ir.tensor(values, name=name), shape=ir.Shape(values.shape))
            bias.dtype = ir.DataType.FLOAT
            graph.register_initializer(bias)
            found.node.resize_inputs(3)
            found.node.replace_input_with(2, bias)


def _sweep(
    sites: Sequence[_Site], teacher: Replay, student: Replay, made: Mapping[str, int], samples: int
) -> dict[str, float]:
    """Fit one layer after the other, in place; returns their errors."""
    stops = [list(stop) for _, stop in itertools.groupby(sites, key=lambda site: site.layer.source)]
    errors = {}
    for index, stop in enumerate(stops):
        moments = [site.layer.moments() for site in stop]
        later = min((made[site.target] for rest in stops[index + 1 :] for site in rest), default=len(made))
        goals = teacher.run([site.target for site in stop], later)
        inputs = student.run({name for site in stop for name in site.reads}, stop[0].place)
        for sample, (goal, given) in enumerate(zip(goals, inputs, strict=True)):
            for site, seen in zip(stop, moments, strict=True):
                site.add(seen, goal[site.target], given, samples, sample)
        for site, seen in zip(stop, moments, strict=True):
            fitted = fit(site.layer.weight, seen, site.layer.kept)
            _write(site.layer, fitted)
            errors[site.layer.name] = fitted.error
    return errors


def _write(layer: Reader, fitted: Fit) -> None:
    weight = layer.node.inputs[1]
    if weight is not None:
        weight.const_value = ir.tensor(layer.unfolding.restore(fitted.weight).astype(np.float32), name=weight.name)
    old = constant(layer.bias)
    if layer.bias is not None and old is not None:
        values = fitted.bias.reshape(old.shape).astype(old.dtype)
        layer.bias.const_value = ir.tensor(values, name=layer.bias.name)


def _decline(node: ir.Node, reason: str) -> Decline:
    return Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=reason)
