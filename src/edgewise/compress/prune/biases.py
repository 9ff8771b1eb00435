"""Gives linear layers a bias of their own, so that the mean of what is removed has somewhere to go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgewise.analysis.coupling import Axis, Coupling
from edgewise.analysis.values import is_standard, label
from edgewise.compress.nodes import constant, unused_name
from edgewise.compress.prune.linear_layers import LINEAR
from edgewise.errors import ContractError
from edgewise.records.tensors import Array

_LEFT_OUT = "_bias"


def with_biases(model: ir.Model, coupling: Coupling, groups: Collection[str]) -> tuple[ir.Model, Coupling]:
    """Return a copy in which linear layers have a bias that they alone read, and the coupling with what was added.

    New biases are zero, so that the function stays. A MatMul gets an Add behind it if it reads one of `groups`, as an
    Add takes time where a bias takes none; its own output keeps its name. See `without_idle_biases` for those that stay
    zero.

    Args:
        model: The model; not changed, weights are shared.
        coupling: Its groups.
        groups: Names of the groups that are going to lose units.
    """
    readers = {reader.node for group in coupling.groups if group.name in groups for reader in group.readers}
    copy = model.clone()
    work = _Biases(copy, coupling)
    for node in list(copy.graph):
        weight = constant(node.inputs[1]) if is_standard(node, *LINEAR) and len(node.inputs) > 1 else None
        if weight is None or weight.ndim < 2 or weight.dtype != np.float32:
            continue
        if node.op_type == "MatMul":
            if weight.ndim == 2 and label(node) in readers and not work.has_add(node):
                work.give_add(node, weight.shape[1])
        else:
            work.give_operand(node, _outputs(node, weight.shape))
    return copy, work.coupling()


def without_idle_biases(model: ir.Model, given: ir.Model) -> None:
    """Take Adds out of `model`, in place, that `with_biases` put in and whose bias stayed zero.

    Args:
        model: A model that `with_biases` gave, possibly with other weights.
        given: The model that it was given.
    """
    known = {label(node) for node in given.graph}
    for node in list(model.graph):
        if label(node) in known or not is_standard(node, "Add"):
            continue
        bias = constant(node.inputs[1])
        if bias is not None and not bias.any():
            made, source = node.outputs[0], node.inputs[0]
            if source is None:
                raise ContractError("An Add has two operands.")
            ir.convenience.replace_all_uses_with(made, source)
            model.graph.remove(node, safe=True)


def _outputs(node: ir.Node, shape: tuple[int, ...]) -> int:
    match node.op_type:
        case "Gemm":
            return int(shape[0] if node.attributes.get_int("transB", 0) else shape[1])
        case "ConvTranspose":
            return int(shape[1] * node.attributes.get_int("group", 1))
    return int(shape[0])


class _Biases:
    """A model while it is given biases."""

    def __init__(self, model: ir.Model, coupling: Coupling) -> None:
        self.graph = model.graph
        self.given = coupling
        self.names = {value.name for node in model.graph for value in node.outputs}
        self.names |= {value.name for value in model.graph.inputs} | set(model.graph.initializers)
        self.more: dict[str, list[tuple[str, int | None]]] = {}  # value -> what has its axes: name, the only axis of it

    def has_add(self, node: ir.Node) -> bool:
        uses = list(node.outputs[0].uses())
        if node.outputs[0].is_graph_output():
            return True
        if len(uses) != 1 or not is_standard(uses[0][0], "Add"):
            return False
        other = uses[0][0].inputs[1 - uses[0][1]]
        return constant(other) is not None

    def give_add(self, node: ir.Node, outputs: int) -> None:
        old = node.outputs[0]
        bias = self._initializer(f"{old.name}{_LEFT_OUT}", np.zeros(outputs, np.float32))
        name = unused_name(self.names, f"{old.name}_biased")
        add = ir.node("Add", [None, bias], name=name)
        made = add.outputs[0]
        made.name, made.type = name, old.type
        made.shape = None if old.shape is None else old.shape.copy()
        ir.convenience.replace_all_uses_with(old, made)
        add.replace_input_with(0, old)
        self.graph.insert_after(node, add)
        self._follow(old, [(name, None), (str(bias.name), -1)])

    def give_operand(self, node: ir.Node, outputs: int) -> None:
        old = node.inputs[2] if len(node.inputs) > 2 else None
        if old is not None:
            values = constant(old)
            if values is None or values.size != outputs or (len(old.uses()) == 1 and old.is_initializer()):
                return
            new = self._initializer(f"{node.outputs[0].name}{_LEFT_OUT}", np.array(values))
            self._follow(old, [(str(new.name), None)])
        else:
            new = self._initializer(f"{node.outputs[0].name}{_LEFT_OUT}", np.zeros(outputs, np.float32))
            self._follow(node.outputs[0], [(str(new.name), -1 if node.op_type == "Gemm" else 1)])
            node.resize_inputs(3)
        node.replace_input_with(2, new)

    def _follow(self, value: ir.Value, others: list[tuple[str, int | None]]) -> None:
        self.more.setdefault(str(value.name), []).extend(others)

    def _initializer(self, name: str, values: Array) -> ir.Value:
        tensor = ir.tensor(values, name=unused_name(self.names, name))
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def coupling(self) -> Coupling:
        """Return the coupling with what was added."""
        groups = tuple(
            replace(group, axes=tuple(axis for old in group.axes for axis in self._axes(old)))
            for group in self.given.groups
        )
        return replace(self.given, groups=groups)

    def _axes(self, axis: Axis) -> list[Axis]:
        result = [axis]
        value = self._ranks.get(axis.value)
        for name, only in self.more.get(axis.value, []):
            if only is None:
                result.append(replace(axis, value=name))
            elif axis.axis == (only if only >= 0 or value is None else value + only):
                result.append(replace(axis, value=name, axis=0))
        return result

    @property
    def _ranks(self) -> dict[str, int]:
        return {
            str(value.name): len(value.shape)
            for node in self.graph
            for value in node.outputs
            if value.name in self.more and value.shape is not None
        }
