"""Deletes units of groups from a model: slices its weights and mends whatever states a size.

Decides nothing: which units go is given, and where they are is what the coupling says. The result is checked: it is
legal, and every shape that ONNX infers is the one expected from the coupling.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgewise.analysis.coupling import Coupling
from edgewise.analysis.values import is_constant
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut_keep import Kept
from edgewise.compress.prune.cut_operators import mend
from edgewise.errors import ContractError, RecipeError
from edgewise.formats.shapes import infer_shapes
from edgewise.passes.contract import check
from edgewise.passes.rewriting import all_graphs, is_operator, static_shape
from edgewise.records.tensors import Array


@dataclass(frozen=True)
class Width:
    """What goes of one group.

    Attributes:
        group: Its name.
        units: How many units it has.
        removed: How many of them go.
        weights: Elements of constants that go with them if nothing goes of any other group.
    """

    group: str
    units: int
    removed: int
    weights: int


def cut(model: ir.Model, removed: Mapping[str, Collection[int]], coupling: Coupling) -> ir.Model:
    """Return a copy of `model` without some units of some groups.

    Weights of which nothing goes are shared with `model`. Inputs and outputs keep names, types and shapes.

    Args:
        model: The model that `coupling` describes; not changed.
        removed: Units to remove, by the name of their group; from 0.
        coupling: The groups.

    Raises:
        RecipeError: If no unit of a group, or no position of a value (a part of a Split, say), would be left.
        ContractError: If a group, unit or value does not exist, if the model's inputs or outputs would become shorter,
            or if the result is not legal or its shapes are not what the coupling says.
    """
    kept = Kept(coupling, removed)
    copy = model.clone()
    before, after = _values(model), _values(copy)
    _check_values(kept, before)
    for name in kept:
        _shorten(after[name], kept)
    mend(model, copy, kept)
    _remove_unread(copy, model)
    _check_result(model, copy)
    return copy


def widths(model: ir.Model, coupling: Coupling, removed: Mapping[str, Collection[int]]) -> tuple[Width, ...]:
    """Return for each group of which units go how large it is and what goes, in the order of the graph.

    Raises:
        RecipeError: As `cut` does.
        ContractError: If a group, unit or value does not exist.
    """
    values = _values(model)
    result = []
    for group in coupling.groups:
        units = set(removed.get(group.name, ()))
        if not units:
            continue
        kept = Kept(coupling, {group.name: units})
        _check_values(kept, values)
        gone = 0
        for name in kept:
            array = constant(values[name])
            gone += 0 if array is None else array.size - kept.sliced(values[name], array).size
        result.append(Width(group.name, group.size, len(units), gone))
    return tuple(result)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """Return every value of the model and of the bodies in it by its name."""
    values: dict[str, ir.Value] = {}
    for graph in all_graphs(model):
        values.update({value.name: value for value in graph.inputs if value.name})
        values.update(graph.initializers)
        values.update({value.name: value for node in graph for value in node.outputs if value.name})
    return values


def _check_values(kept: Kept, values: Mapping[str, ir.Value]) -> None:
    for name in kept:
        if name not in values:
            raise ContractError(f"A coupling has to be of the model that is cut. It has no value `{name}`.")
        value = values[name]
        if kept.axes(name) and (value.is_graph_input() or value.is_graph_output()):
            raise ContractError(f"Inputs and outputs have to keep their shapes. `{name}` would become shorter.")
        for axis, mask in kept.axes(name).items():
            if value.shape is None:
                continue
            size = value.shape[axis] if axis < len(value.shape) else -1
            if isinstance(size, int) and size != len(mask):
                raise ContractError(
                    f"A coupling has to be of the model that is cut. Axis {axis} of `{name}` has {len(mask)} positions "
                    f"in it and the shape {value.shape} in the model."
                )


def _shorten(value: ir.Value, kept: Kept) -> None:
    """Slice the constant that `value` holds, and shorten the shape that is recorded of it."""
    axes = kept.axes(value.name or "")
    array = constant(value)
    if array is not None:
        _hold(value, kept.sliced(value, array))
    elif value.shape is not None:
        value.shape = ir.Shape([
            int(axes[axis].sum()) if axis in axes else size for axis, size in enumerate(value.shape)
        ])  # fmt: skip


def _hold(value: ir.Value, array: Array) -> None:
    """Let an initializer or the output of a Constant node hold `array`."""
    tensor = ir.Tensor(np.ascontiguousarray(array), dtype=value.dtype, name=value.name)
    producer = value.producer()
    if producer is not None:
        producer.attributes.clear()
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)


def _remove_unread(copy: ir.Model, model: ir.Model) -> None:
    """Drop the constants that nothing reads any more; those that nothing read before stay as they were."""
    read = {value.name for value in _constants(model) if value.uses()}
    for value in list(_constants(copy)):
        if value.uses() or value.is_graph_output() or value.name not in read:
            continue
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            producer.graph.remove(producer, safe=True)
        elif value.graph is not None and value.name is not None:
            del value.graph.initializers[value.name]


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    for graph in all_graphs(model):
        yield from (value for value in graph.initializers.values() if not value.is_graph_input())
        yield from (node.outputs[0] for node in graph if is_operator(node, "Constant"))


def _check_result(model: ir.Model, copy: ir.Model) -> None:
    """Check that the copy is legal and that inference finds the shapes that are recorded.

    Raises:
        ContractError: If it is not, or does not.
    """
    check("cut", model, copy.clone())  # of a copy: the checker puts weights back in another order
    before, after = model.clone(), copy.clone()
    strict = _infers(before)
    try:
        infer_shapes(after, strict=strict)
    except RecipeError as error:
        raise ContractError(f"A model that was cut has to be consistent. {error.message}") from error
    known = {name for name, value in _values(before).items() if static_shape(value) is not None}
    found = _values(after)
    for name, value in _values(copy).items():
        expected, inferred = static_shape(value), found[name].shape
        if expected is None or name not in known or is_constant(value):
            continue
        if expected != static_shape(found[name]):
            raise ContractError(
                f"A model that was cut has to have the shapes that its coupling says. `{name}` should have "
                f"{expected} and has {inferred}."
            )


def _infers(model: ir.Model) -> bool:
    """Infer the shapes of `model`, in place, and return whether every node fits those of its inputs."""
    try:
        infer_shapes(model, strict=True)
    except RecipeError:
        infer_shapes(model)
        return False
    return True
