"""Gives a float model the scales of channels that a quantized one was made with, so that both can be compared.

Equalization and smoothing divide channels by factors and let the weights around them take the factors: the function
stays, but weights and the tensors in between are others. Which factors they were is read off the quantized weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.quantize.channel_groups import Group, constant_at, divide, find_groups, weight_index
from edgewise.compress.quantize.channel_relations import Absorber
from edgewise.compress.quantize.restore import dequantized, integers_of, pair_in_front
from edgewise.passes.rewriting import constant, input_at, label
from edgewise.records.tensors import Array

MOST_MISFIT: Final = 0.5
"""Factors are believed if they leave less than this share of the squared difference of the weights. Of what rounding
makes, a factor for a channel of `n` weights takes an `n`-th."""

SWEEPS: Final = 3
"""The weights that make a set may read one that is scaled later. Empirical: the second sweep settles it."""


def aligned(reference: ir.Model, quantized: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Return `reference` with the scales of channels that `quantized` has, and the tensors that were scaled.

    Args:
        reference: A fused float model, with inferred shapes; not changed.
        quantized: A QDQ graph that was made from it, or from what equalization or smoothing made of it.

    Returns:
        A model of the same function as `reference`, and names in the order in which they were found.
    """
    copy = reference.clone()
    theirs = {label(node): node for node in quantized.graph}
    scaled: dict[str, None] = {}  # a set that keeps its order
    groups, _ = find_groups(copy)
    for _ in range(SWEEPS):
        changed = False
        for group in groups:
            factors = _factors(group, theirs)
            if np.any(factors != 1.0) and divide(copy, group, factors) is None:
                scaled.update(dict.fromkeys(value.name for value in group.values if value.name))
                changed = True
        if not changed:
            break
    return copy, tuple(scaled)


def _factors(group: Group, theirs: Mapping[str, ir.Node]) -> npt.NDArray[np.float64]:
    """Return by what the other model's channels are divided; 1 where that cannot be told, or is no more than rounding.

    What makes a channel tells it, first of all in graph order: what reads it is scaled along its outputs as well, by
    factors of a set that comes later.
    """
    factors, known = np.ones(group.size), np.zeros(group.size, bool)
    before = after = 0.0
    for absorber in group.absorbers:
        if absorber.kind not in {"output", "constant"}:
            continue
        for indices, ours, other in _pairs(absorber, theirs):
            square, product, energy = (
                np.bincount(indices, (one * two).reshape(-1), group.size)
                for one, two in ((ours, ours), (ours, other), (other, other))
            )
            # Least squares of `other = ours / s`; a channel of zeros has no factor.
            told = ~known & (product > 0)
            factors[told] = square[told] / product[told]
            before += float(np.sum((square - 2 * product + energy)[told]))
            after += float(np.sum((energy - product * product / np.where(square > 0, square, 1.0))[told]))
            known |= told
    return factors if after < MOST_MISFIT * before else np.ones(group.size)


def _pairs(
    absorber: Absorber, theirs: Mapping[str, ir.Node]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Yield the constant of both models and the index of each of its numbers; nothing where the other has none."""
    node = theirs.get(label(absorber.node))
    other = None if node is None or node.op_type != absorber.node.op_type else _held(node, absorber.slot)
    ours = constant_at(absorber.node, absorber.slot)
    if other is None:
        return
    indices = weight_index(absorber) if absorber.kind == "output" else absorber.indices
    shapes = [one.shape for one in (indices, ours, other)]
    try:  # One number for all channels became one for each of them when it took factors.
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        return
    if np.prod(shape) == max(np.prod(one) for one in shapes):
        spread, one, two = (np.broadcast_to(array, shape) for array in (indices, ours, other))
        yield spread.reshape(-1), one.astype(np.float64), two.astype(np.float64)


def _held(node: ir.Node, slot: int) -> Array | None:
    """Return the constant that `node` reads at `slot`, as a real number where it is stored as integers."""
    value = input_at(node, slot)
    if (pair := pair_in_front(value)) is not None:
        return constant(input_at(pair[0], 0))  # a constant that is rounded when the model runs
    integers = integers_of(value)
    return constant(value) if integers is None else dequantized(integers)
