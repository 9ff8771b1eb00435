"""Linear layers of a graph as matrices that can be fitted: what they read, what they should give, where it stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.values import VIEWS, is_standard, label
from edgewise.compress.nodes import constant, required
from edgewise.compress.prune.fit import Fit, Moments, Stack
from edgewise.compress.unfold import Dense, Rows, Unfolding, spread, unfolding
from edgewise.errors import ContractError
from edgewise.records.tensors import Array

LINEAR: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with one activation and constant weights, for which a regression is defined."""

RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
"""Operators whose input weights are fitted; their recurrent weights stay."""

LARGEST_GRAM: Final = 4608 * 4608
"""Most numbers of one layer's Gram matrices: 162 MiB in float64."""

_ROWS: Final = 1 << 16
"""Rows that all samples together give a layer (empirical: more changes nothing that can be seen)."""

_ROWS_PER_COLUMN: Final = 24
"""Rows of each column that all samples together give at least, as far as there are so many."""

_RECURRENT_BIAS: Final = 3


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer, or the input weights of a recurrent one.

    Attributes:
        node: The node.
        index: Its place among the nodes of the graph.
        source: Name of the activation that it reads.
        unfolding: How it is a product of matrices.
        bias: Name of the constant with its bias, or None where it has none: it stays without.
        target: Name of the value of the float model that decides what the layer should give: its own output, the bias
            included, or the Add behind it that joins a shortcut; of a recurrent layer, its input.
        shortcut: Name of the shortcut, known before the layer, or None. What the layer should give is then the float
            model's sum less the shortcut as it is now, so that it makes up for what the shortcut has lost.
        weight: Its matrix in the float model, shape `[G, R, K]`.
        old_bias: Its bias in the float model, shape `[G, R]`; zeros where it has none.
    """

    node: ir.Node
    index: int
    source: str
    unfolding: Unfolding
    bias: str | None
    target: str
    shortcut: str | None
    weight: Stack
    old_bias: Stack

    @property
    def name(self) -> str:
        """Its label."""
        return label(self.node)

    @property
    def is_recurrent(self) -> bool:
        """Whether it is the input weights of a recurrent layer."""
        return is_standard(self.node, *RECURRENT)

    def moments(self, *, own: bool = False) -> Moments:
        """Return empty moments.

        Args:
            own: Whether the layer should give what it makes of the very inputs that are going to be added.
        """
        size = self.unfolding.groups, self.unfolding.columns, self.unfolding.outputs
        return Moments(*size, has_bias=self.bias is not None, own=(self.weight, self.old_bias) if own else None)

    def rows(self, activation: Array, samples: int, sample: int) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Return rows of one sample's input, shape `[P, G, K]`, and which positions they are.

        Args:
            activation: The input.
            samples: How many samples there are.
            sample: Number of this one.
        """
        needed = max(_ROWS, _ROWS_PER_COLUMN * self.unfolding.columns)
        most = math.ceil(needed / max(samples, 1) / max(1, math.isqrt(self.unfolding.groups)))
        chosen = spread(self.unfolding.positions(activation.shape), most, sample)
        return self.unfolding.rows(activation, chosen), chosen

    def targets(self, values: Array, chosen: npt.NDArray[np.int64]) -> Array:
        """Return what the layer should give at some positions, shape `[P, G, R]`.

        Args:
            values: The value `target` or `shortcut`.
            chosen: The positions.
        """
        if self.is_recurrent:
            return np.asarray(self.unfolding.rows(values, chosen) @ self.weight[0].T + self.old_bias)
        axis = -1 if isinstance(self.unfolding, Dense) else 1
        rows = np.moveaxis(values, axis, -1).reshape(-1, self.unfolding.groups, self.unfolding.outputs)
        return np.asarray(rows[chosen])

    def constants(self, model: ir.Model, fitted: Fit) -> dict[str, Array]:
        """Return the constants of a fitted layer by name.

        Args:
            model: The model that it belongs to.
            fitted: Its matrix and bias.
        """
        weight = required(self.node.inputs[1])
        shape = np.shape(_array(weight))
        values = self.unfolding.restore(fitted.weight).astype(np.float32).reshape(shape)
        result: dict[str, Array] = {str(weight.name): values}
        if self.bias is not None:
            old = _array(model.graph.initializers[self.bias])
            new = old.copy()
            if self.is_recurrent:
                new[:, : old.shape[1] // 2] = fitted.bias.reshape(len(old), -1)
            else:
                new = fitted.bias.reshape(old.shape)
            result[self.bias] = new.astype(np.float32)
        return result


def layers(model: ir.Model) -> Iterator[Layer | tuple[ir.Node, str]]:
    """Yield the linear layers of the main graph in its order, and those that cannot be fitted with the reason.

    Args:
        model: A model whose nodes are in topological order (`biases.with_biases`).
    """
    places = {id(node): index for index, node in enumerate(model.graph)}
    for index, node in enumerate(model.graph):
        if not is_standard(node, *LINEAR, *RECURRENT) or len(node.inputs) < 2 or node.inputs[0] is None:
            continue
        weight = constant(node.inputs[1])
        if weight is None:
            continue
        if (why := _why_not(node, weight)) is not None:
            yield node, why
        elif isinstance(found := _unfolding(node, weight), str):
            yield node, found
        elif (numbers := found.groups * found.columns**2) > LARGEST_GRAM:
            yield node, f"the Gram matrix of its inputs would hold {numbers} numbers, and {LARGEST_GRAM} are the limit"
        else:
            yield _layer(node, index, found, places)


def _why_not(node: ir.Node, weight: Array) -> str | None:
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, and only float32 is fitted"
    value = required(node.inputs[1])
    if len(value.uses()) > 1:
        return f"another node reads its weights `{value.name}` as well"
    if not value.is_initializer():
        return "its weights are the output of a node"
    if node.op_type == "Gemm" and any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "it scales its product"
    return None


def _unfolding(node: ir.Node, weight: Array) -> Unfolding | str:
    if is_standard(node, *RECURRENT):
        return Dense(outputs=weight.shape[0] * weight.shape[1], columns=weight.shape[2], right_transposed=True)
    return unfolding(node, weight)


def _layer(node: ir.Node, index: int, found: Unfolding, places: dict[int, int]) -> Layer:
    bias: ir.Value | None = None
    target, shortcut = node.outputs[0], None
    if is_standard(node, *RECURRENT):
        target = required(node.inputs[0])
        bias = node.inputs[_RECURRENT_BIAS] if len(node.inputs) > _RECURRENT_BIAS else None
        bias = bias if bias is not None and bias.is_initializer() and len(bias.uses()) == 1 else None
    else:
        bias, output = _bias(node, found)
        target, shortcut = _sum(output, found, index, places) or (output, None)
    return Layer(
        node=node,
        index=index,
        source=str(required(node.inputs[0]).name),
        unfolding=found,
        bias=None if bias is None else bias.name,
        target=str(target.name),
        shortcut=None if shortcut is None else shortcut.name,
        weight=_matrix(node, found),
        old_bias=_old_bias(node, found, bias),
    )


def _matrix(node: ir.Node, found: Unfolding) -> Stack:
    weight = _array(required(node.inputs[1]))
    return found.matrix(weight.reshape(-1, weight.shape[-1]) if is_standard(node, *RECURRENT) else weight)


def _old_bias(node: ir.Node, found: Unfolding, bias: ir.Value | None) -> Stack:
    if bias is None:
        return np.zeros((found.groups, found.outputs))
    values = _array(bias)
    if is_standard(node, *RECURRENT):
        values = values[:, : values.shape[1] // 2]
    return np.asarray(values, np.float64).reshape(found.groups, found.outputs)


def _bias(node: ir.Node, found: Unfolding) -> tuple[ir.Value | None, ir.Value]:
    """Return the bias of a layer that it alone has, and its output with the bias."""
    output = node.outputs[0]
    if node.op_type != "MatMul":
        operand = node.inputs[2] if len(node.inputs) > 2 else None
        return (operand if _is_bias(operand, found.groups * found.outputs) else None), output
    after = _only_reader(output)
    if after is not None and is_standard(after, "Add"):
        other = _other(after, output)
        if _is_bias(other, found.outputs):
            return other, after.outputs[0]
    return None, output


def _sum(
    output: ir.Value, found: Unfolding, index: int, places: dict[int, int]
) -> tuple[ir.Value, ir.Value | None] | None:
    """Return the sum that a layer goes into, and its other term, if that is known before the layer."""
    value, after = output, _only_reader(output)
    # Rows stay rows where the last axis stays.
    while after is not None and is_standard(after, *VIEWS) and isinstance(found, Dense):
        value = after.outputs[0]
        if value.shape is None or len(value.shape) == 0 or value.shape[-1] != found.outputs:
            return None
        after = _only_reader(value)
    if after is None or not is_standard(after, "Add"):
        return None
    other = _other(after, value)
    if other is None or constant(other) is not None or not _same_shape(value, other):
        return None
    producer = other.producer()
    if producer is not None and places[id(producer)] >= index:
        return None
    return after.outputs[0], other


def _array(value: ir.Value) -> Array:
    values = constant(value)
    if values is None:
        raise ContractError(f"A layer has constant weights, but `{value.name}` is none.")
    return values


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _is_bias(value: ir.Value | None, outputs: int) -> bool:
    values = constant(value)
    return (
        value is not None
        and values is not None
        and values.size == outputs
        and values.shape[-1:] == (outputs,)
        and len(value.uses()) == 1
        and value.is_initializer()
    )


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and other.shape is not None and list(one.shape) == list(other.shape)
