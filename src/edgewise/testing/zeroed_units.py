"""What a network is with some of its units zeroed where they are read: what removing them means, spelled out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.coupling import Coupling, Group, Reader
from edgewise.analysis.values import label
from edgewise.compress.nodes import constant, required
from edgewise.errors import ContractError
from edgewise.passes.rewriting import Edit, all_nodes, graph_of
from edgewise.records.tensors import Array

_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})


def zeroed(model: ir.Model, removed: Mapping[str, Collection[int]], coupling: Coupling) -> ir.Model:
    """Return a copy of `model` in which the units of groups are zero wherever the groups' readers read them.

    A Mul by zeros and ones stands before every operand that is read; the hidden state, which is no operand, is left out
    of recurrent weights.

    Args:
        model: The model that `coupling` describes; not changed.
        removed: The units, by the name of their group.
        coupling: The groups.

    Raises:
        ContractError: If a reader does not exist, or the coupling does not say where units lie in what it reads.
    """
    copy = model.clone()
    edit = Edit(copy)
    nodes = {label(node): node for node in all_nodes(copy)}
    names = {label(node): [None if value is None else value.name for value in node.inputs] for node in all_nodes(copy)}
    for group in coupling.groups:
        gone = sorted(removed.get(group.name, ()))
        for reader in group.readers if gone else ():
            if reader.node not in nodes:
                raise ContractError(f"Every reader has to be a node of the model. `{reader.node}` is none.")
            node = nodes[reader.node]
            if node.op_type in _RECURRENT and reader.weight == 2:
                mask = _mask(group, names[reader.node][2], 2, gone)
                weight = required(node.inputs[2])
                array = constant(weight)
                if array is None:
                    raise ContractError(f"The recurrent weights of `{reader.node}` have to be constant.")
                node.replace_input_with(2, edit.update(node, weight, array * mask.astype(array.dtype)))
            else:
                _multiply(edit, node, reader, _mask(group, names[reader.node][reader.slot], reader.axis, gone))
    return copy


def _mask(group: Group, value: str | None, axis: int, gone: list[int]) -> Array:
    """Return zeros where units that are gone lie along the axis, and ones elsewhere, shape `[dim]`."""
    for one in group.axes:
        if one.value == value and one.axis == axis:
            return ~np.isin(one.units, gone)
    raise ContractError(f"Group `{group.name}` has to say where its units lie along axis {axis} of `{value}`.")


def _multiply(edit: Edit, node: ir.Node, reader: Reader, mask: Array) -> None:
    value = required(node.inputs[reader.slot])
    if value.shape is None:
        raise ContractError(f"The rank of `{value.name}` has to be known.")
    dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    shape = [1] * len(value.shape)
    shape[reader.axis] = len(mask)
    factors = edit.constant(node, "zeros_and_ones", mask.astype(dtype).reshape(shape))
    product = edit.node("Mul", [value, factors])
    product.outputs[0].type, product.outputs[0].shape = value.type, value.shape
    graph_of(node).insert_before(node, product)
    node.replace_input_with(reader.slot, product.outputs[0])
