"""Narrower widths of each group, independently of each other: what each would cost, ready to be put together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgewise.analysis.coupling import Coupling
from edgewise.analysis.values import with_inferred_shapes
from edgewise.compress.nodes import constant
from edgewise.compress.prune.biases import with_biases, without_idle_biases
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.fit import fit
from edgewise.compress.prune.neurons import eliminate
from edgewise.compress.prune.readers import Seen, column_units, seen
from edgewise.compress.prune.sequence import check_widths
from edgewise.compress.runner import Opener
from edgewise.errors import ContractError, DataError
from edgewise.records.tensors import Array, Feeds


@dataclass(frozen=True, eq=False)
class Option:
    """One width of one group, all other groups left as they are.

    Attributes:
        group: Name of the group; of the region, where constants make up for one that is going to be dropped.
        width: How many units are left.
        removed: The units that go, in ascending order.
        constants: Weights and biases of the readers by name, compensated, in the layout of the model; a bias that the
            model does not have has the name that `stitch` gives it.
        error: What the readers lose: mean square of what is missing of their outputs after compensation, divided by
            their variance, summed over the readers that are fitted; on rows held out where there are some. Where none
            is fitted, the lost share of the energy.
    """

    group: str
    width: int
    removed: tuple[int, ...]
    constants: Mapping[str, Array]
    error: float


def options(
    model: ir.Model,
    coupling: Coupling,
    widths: Mapping[str, Sequence[int]],
    open_model: Opener,
    feeds: Sequence[Feeds],
) -> dict[str, tuple[Option, ...]]:
    """Return for each group an option of each width, by the inputs that the readers get in the float model.

    Narrower options of a group lose all that wider ones lose, and more.

    Args:
        model: The float model; not changed.
        coupling: Its groups.
        widths: Widths by the name of the group; the size itself is an option that changes nothing.
        open_model: Opens parts of `model`.
        feeds: Unlabelled samples, each run once.

    Returns:
        Options in the order of `widths`.

    Raises:
        RecipeError: If a width names no group, or does not lie within its size.
        DataError: If there is no sample, or if one makes NaN or infinities.
    """
    for name, several in widths.items():
        for width in several:
            check_widths(coupling, {name: width})
    if not feeds:
        raise DataError("Pruning needs at least one sample, but there is none.", hint="Give more samples.")
    prepared, coupled = with_biases(with_inferred_shapes(model), coupling, _names(coupling))
    groups = [group for group in coupled.groups if widths.get(group.name)]
    result = {
        one.group.name: _options(prepared, one, widths[one.group.name])
        for one in seen(prepared, groups, open_model, feeds)
    }
    return {name: result.get(name, ()) for name in widths}


def stitch(model: ir.Model, coupling: Coupling, chosen: Collection[Option]) -> ir.Model:
    """Return a copy of `model` with the options `chosen`; runs nothing.

    Where two of them change the same constant, their changes add up.

    Args:
        model: The model that the options were made for; not changed.
        coupling: Its groups.
        chosen: At most one option of each group.

    Raises:
        ContractError: If two options are of one group, or one is of another model.
    """
    names = [option.group for option in chosen]
    if len(set(names)) < len(names):
        raise ContractError(f"Of each group there is at most one option. Received {sorted(names)}.")
    prepared, coupled = with_biases(with_inferred_shapes(model), coupling, _names(coupling))
    constants = prepared.graph.initializers
    before = {name: _array(prepared, name) for option in chosen for name in option.constants}
    after = {name: values.astype(np.float64) for name, values in before.items()}
    for option in chosen:
        for name, values in option.constants.items():
            after[name] += values.astype(np.float64) - before[name]
    for name, values in after.items():
        constants[name].const_value = ir.tensor(values.astype(np.float32), name=name)
    result = cut(prepared, {option.group: option.removed for option in chosen if option.removed}, coupled)
    without_idle_biases(result, model)
    return result


def _names(coupling: Coupling) -> set[str]:
    return {group.name for group in coupling.groups}


def _array(model: ir.Model, name: str) -> Array:
    values = constant(model.graph.initializers.get(name))
    if values is None:
        raise ContractError(f"Options belong to one model, and this one has no constant `{name}`.")
    return values


def _options(model: ir.Model, one: Seen, widths: Sequence[int]) -> tuple[Option, ...]:
    group = one.group
    order = eliminate(one.reads, group.size, least=min(widths))
    made = {width: _option(model, one, width, order.removed(width)) for width in set(widths)}
    plain = [float(order.errors[group.size - width]) for width in widths]
    return tuple(
        made[width] if one.layers else _with_error(made[width], error)
        for width, error in zip(widths, plain, strict=True)
    )


def _with_error(option: Option, error: float) -> Option:
    return Option(option.group, option.width, option.removed, option.constants, error)


def _option(model: ir.Model, one: Seen, width: int, removed: tuple[int, ...]) -> Option:
    constants = dict(one.basis) if removed else {}
    error = 0.0
    for layer, moments in one.layers if removed else ():
        units = column_units(layer, one.group)
        if units is None:
            continue
        fitted = fit(layer.weight, moments, ~np.isin(units, removed))
        constants |= layer.constants(model, fitted)
        error += fitted.error
    return Option(one.group.name, width, removed, constants, error)
