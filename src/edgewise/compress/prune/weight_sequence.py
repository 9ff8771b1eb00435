"""Prunes single weights of one layer after the other: each sees the inputs that the pruned layers before it make."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.analysis.values import label, with_inferred_shapes
from edgewise.compress.gram import LARGEST_GRAM, Moments
from edgewise.compress.prefix import prefix
from edgewise.compress.prune.weight_layers import Fitted, Layer, fit, layer_of
from edgewise.compress.prune.weights import (
    MOST_SPARSE,
    KeptOfEvery,
    Pattern,
    allocate,
    share_of_zeros,
    tile_scores,
)
from edgewise.compress.runner import Opener
from edgewise.errors import RecipeError
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array, Feeds

STAGE: Final = "prune_weights"

_LEAST: Final = 0.05
"""Layers of which less would go stay dense: zeros that are so few cost an error and save nothing. Empirical."""

_OUTLIER: Final = 3.0
"""With a pattern that leaves no choice of how many zeros, a layer stays dense whose weights are worth so many times as
much as those of the middle one, ..."""

_SMALL: Final = 0.05
"""... if it holds at most this share of all weights. Both empirical."""


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one layer's weights.

    Attributes:
        node: Its label.
        weights: How many it has.
        zeros: How many of them are zero now.
        error: Mean squared error of its output on held-out rows as a share of its variance, what upstream lost included
            as far as it was not made up for; None where no rows were held out.
        magnitude_error: The same where the smallest magnitudes go and nothing makes up for them.
    """

    node: str
    weights: int
    zeros: int
    error: float | None
    magnitude_error: float | None


@dataclass(frozen=True)
class PrunedWeights:
    """A model of whose weights many are zero.

    Attributes:
        model: The model, float.
        declines: Layers that stay dense, and layers with few samples, with the reasons; in graph order each.
        layers: The others, in graph order.
    """

    model: ir.Model
    declines: tuple[Decline, ...]
    layers: tuple[PrunedLayer, ...]


def prune_weights(
    model: ir.Model,
    sparsity: float,
    pattern: Pattern,
    open_model: Opener,
    feeds: Sequence[Feeds],
    *,
    keep: Collection[str] = (),
) -> PrunedWeights:
    """Return `model` with zeros among its weights, and with the others fitted to make up for them.

    How many weights of a layer go follows from one threshold for all layers on what each weight is worth
    (`weights.saliency`, as a share of the variance of the layer's output); N:M takes the same from all layers.

    Args:
        model: The float model; not changed.
        sparsity: Share of zeros among the weights of all layers that are pruned, in [0, 0.95]. N:M has its own.
        pattern: Where zeros may be.
        open_model: Opens the models that are run: parts of `model`, and parts of it pruned so far.
        feeds: Unlabelled samples. Each is run through the float model a few times, and then through both models once
            for every layer, as far as that layer.
        keep: Labels of nodes that stay dense.

    Raises:
        RecipeError: If `sparsity` is out of range.
    """
    if not 0 <= sparsity <= MOST_SPARSE:
        raise RecipeError(f"At least 0 and at most {MOST_SPARSE} of all weights can go. Received {sparsity}.")
    float_model = with_inferred_shapes(model)
    declines: list[Decline] = []
    layers = list(_layers(float_model, pattern, keep, declines))
    scores = _scores(float_model, layers, pattern, open_model, feeds)
    shares = _shares(layers, scores, sparsity, pattern, declines)
    so_far = float_model.clone()
    account: list[PrunedLayer] = []
    chosen = [layer for layer in layers if layer.name in shares]
    for source, readers in itertools.groupby(chosen, key=lambda layer: layer.source):
        group = [(layer, layer.moments()) for layer in readers]
        for sample, (x, x_hat) in enumerate(_inputs(float_model, so_far, source, open_model, feeds)):
            for _, moments in group:
                moments.add(x, x_hat, sample=sample)
        for layer, moments in group:
            fitted = fit(layer, moments, pattern, shares[layer.name])
            _write(so_far, layer, fitted)
            zeros = int(np.count_nonzero(fitted.weight == 0))
            account.append(PrunedLayer(layer.name, layer.weight.size, zeros, fitted.error, fitted.magnitude_error))
            declines.extend(_few(layer, moments))
    common.RemoveUnusedNodesPass()(so_far)
    return PrunedWeights(so_far, _in_order(float_model, declines), tuple(account))


def _layers(model: ir.Model, pattern: Pattern, keep: Collection[str], declines: list[Decline]) -> Iterator[Layer]:
    """Yield the layers that can be pruned, in graph order; `declines` gets the others."""
    for node in model.graph:
        found = layer_of(node, pattern)
        if isinstance(found, Layer) and found.name in keep:
            found = "it is kept dense, as asked for"
        if isinstance(found, Layer):
            yield found
        elif found is not None:
            declines.append(_decline(node, f"its weights stay dense: {found}"))


def _decline(node: ir.Node, reason: str) -> Decline:
    return Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=reason)


def _in_order(model: ir.Model, declines: Iterable[Decline]) -> tuple[Decline, ...]:
    places = {label(node): place for place, node in enumerate(model.graph)}
    return tuple(sorted(declines, key=lambda decline: places.get(decline.node, -1)))


def _few(layer: Layer, moments: Moments) -> Iterator[Decline]:
    """Yield a decline where there were fewer rows than inputs."""
    columns, count = layer.unfolding.columns, moments.count
    if moments.is_too_large or not count:
        what = "its inputs are too large to be multiplied" if moments.is_too_large else "no sample gave it an input"
        yield _decline(layer.node, f"its smallest weights went, and nothing makes up for them: {what}")
    elif count < columns:
        needed = -(-columns * moments.samples // count)
        yield _decline(
            layer.node,
            f"what stays is fitted cautiously: {moments.samples} samples gave {count} rows for its {columns} inputs, "
            f"and {needed} samples would give enough",
        )


def _shares(
    layers: Sequence[Layer],
    scores: Mapping[str, Array],
    sparsity: float,
    pattern: Pattern,
    declines: list[Decline],
) -> dict[str, float]:
    """Return the share of zeros of each layer that is pruned, by label."""
    if isinstance(pattern, KeptOfEvery):
        dense = _outliers(layers, scores)
        shares = dict.fromkeys((layer.name for layer in layers), share_of_zeros(pattern, sparsity))
    else:
        found = allocate([scores[layer.name] for layer in layers], sparsity)
        shares = dict(zip(scores, found, strict=True))
        dense = {
            layer.name: f"only {share:.1%} of them are worth as little as what goes elsewhere"
            for layer, share in zip(layers, found, strict=True)
            if 0 <= share < _LEAST and sparsity > 0
        }
    declines.extend(
        _decline(layer.node, f"its weights stay dense: {dense[layer.name]}") for layer in layers if layer.name in dense
    )
    return {name: share for name, share in shares.items() if name not in dense}


def _outliers(layers: Sequence[Layer], scores: Mapping[str, Array]) -> dict[str, str]:
    """Return small layers whose weights are worth far more than those of the others, with the reason."""
    if not layers:
        return {}
    worth = {layer.name: float(np.mean(scores[layer.name])) * layer.weight.size for layer in layers}
    total, middle = sum(layer.weight.size for layer in layers), float(np.median(list(worth.values())))
    return {
        layer.name: f"they are worth {worth[layer.name] / middle:.1f} times as much as those of the middle layer"
        for layer in layers
        if worth[layer.name] > _OUTLIER * middle and layer.weight.size <= _SMALL * total
    }


def _scores(
    model: ir.Model, layers: Sequence[Layer], pattern: Pattern, open_model: Opener, feeds: Sequence[Feeds]
) -> dict[str, Array]:
    """Return what each weight (each block of them) of each layer is worth, in the order of `layers`."""
    found: dict[str, Array] = {}
    for part in _parts(layers):
        moments = {layer.name: layer.moments() for layer in part}
        sources = {layer.source for layer in part}
        for sample, seen in enumerate(_tensors(model, sources, open_model, feeds)):
            for layer in part:
                moments[layer.name].add(seen[layer.source], seen[layer.source], sample=sample)
        for layer in part:
            summary = moments[layer.name].all()
            # Without inputs, magnitudes: as if all inputs were alike and independent.
            scores = layer.matrix**2 / np.square(layer.matrix).sum() if summary is None else layer.scores(summary)
            found[layer.name] = tile_scores(scores, pattern, layer.unfolding.kernel)
    return found


def _parts(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield layers whose Gram matrices have room in memory together."""
    part: list[Layer] = []
    size = 0
    for layer in layers:
        more = layer.unfolding.groups * layer.unfolding.columns**2
        if part and size + more > LARGEST_GRAM:
            yield part
            part, size = [], 0
        part.append(layer)
        size += more
    if part:
        yield part


def _tensors(
    model: ir.Model, names: Collection[str], open_model: Opener, feeds: Iterable[Feeds]
) -> Iterator[Mapping[str, Array]]:
    """Yield for every sample the tensors `names`."""
    inputs = {value.name for value in model.graph.inputs}
    made = sorted(name for name in names if name not in inputs)
    if not made:
        yield from feeds
        return
    with open_model(prefix(model, made)) as run:
        for feed in feeds:
            yield {**feed, **run(feed)}


def _inputs(
    model: ir.Model, so_far: ir.Model, source: str, open_model: Opener, feeds: Sequence[Feeds]
) -> Iterator[tuple[Array, Array]]:
    """Yield for every sample the tensor `source` in both models."""
    both = zip(_tensors(model, [source], open_model, feeds), _tensors(so_far, [source], open_model, feeds), strict=True)
    yield from ((one[source], other[source]) for one, other in both)


def _write(model: ir.Model, layer: Layer, fitted: Fitted) -> None:
    """Give the node of this layer in `model` its new weights and bias."""
    node = next(node for node in model.graph if label(node) == layer.name)
    _set(model.graph, node, 1, fitted.weight, "pruned")
    if fitted.bias is not None:
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        _set(model.graph, node, 2, fitted.bias, "bias")


def _set(graph: ir.Graph, node: ir.Node, slot: int, array: Array, what: str) -> None:
    """Make `array` a constant operand of `node`; what it replaces goes, where nobody else reads it."""
    old = node.inputs[slot]
    taken = {value.name for one in graph for value in one.outputs} | set(graph.initializers)
    taken |= {value.name for value in graph.inputs}
    stem = f"{node.outputs[0].name}_{what}"
    name = next(name for number in itertools.count() if (name := f"{stem}_{number}" if number else stem) not in taken)
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
    graph.register_initializer(value)
    node.replace_input_with(slot, value)
    if old is not None and old.is_initializer() and not old.is_graph_input() and not list(old.uses()):
        del graph.initializers[old.name or ""]
