"""Linear layers of a graph as matrices that can be fitted: what they read, what they should give, where it stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.values import is_standard, label
from edgewise.compress.nodes import constant, required
from edgewise.compress.prune.fit import Stack
from edgewise.compress.unfold import Dense, Unfolding, spread, unfolding
from edgewise.errors import ContractError
from edgewise.records.tensors import Array

LINEAR: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with one activation and constant weights, for which a regression is defined."""

_PRODUCTS: Final = 1 << 24  # Multiplications of one sample's Gram matrix: about a millisecond.
_MOST_POSITIONS: Final = 256
_LEAST_ROWS: Final = 24
"""Rows of each column that all samples together give at least, as far as there are so many."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer.

    Attributes:
        node: The node.
        index: Its place among the nodes of the graph.
        source: Name of the activation that it reads.
        unfolding: How it is a product of matrices.
        bias: Name of the constant with its bias, or None where it has none: it stays without.
        output: Name of the value that holds what it makes, the bias included.
        sum: Name of the Add behind it that joins a shortcut which is known before the layer, or None.
        shortcut: Name of the shortcut, or None.
    """

    node: ir.Node
    index: int
    source: str
    unfolding: Unfolding
    bias: str | None
    output: str
    sum: str | None
    shortcut: str | None

    @property
    def name(self) -> str:
        """Its label."""
        return label(self.node)

    @property
    def target(self) -> str:
        """Name of the value of the float model that the layer should come nearest to."""
        return self.sum or self.output

    @property
    def outputs(self) -> int:
        """Outputs of each group."""
        return self.unfolding.outputs

    @property
    def weight(self) -> Stack:
        """Its matrix, shape `[G, R, K]`."""
        values = constant(self.node.inputs[1])
        if values is None:
            raise ContractError(f"A layer has constant weights, but `{self.name}` has none.")
        return self.unfolding.matrix(values)

    def chosen(self, shape: tuple[int, ...], samples: int, sample: int) -> npt.NDArray[np.int64]:
        """Return the positions of one sample that are read.

        Args:
            shape: Shape of its activation.
            samples: How many samples there are.
            sample: Number of this one.
        """
        groups, columns = self.unfolding.groups, self.unfolding.columns
        affordable = _PRODUCTS // (groups * columns * columns)
        needed = math.ceil(_LEAST_ROWS * columns / max(samples, 1))
        most = min(max(affordable, needed, 1), max(_MOST_POSITIONS, needed))
        return spread(self.unfolding.positions(shape), most, sample)

    def targets(self, values: Array, chosen: npt.NDArray[np.int64]) -> Array:
        """Return rows of a value of the shape of the output, shape `[P, G, R]`."""
        axis = -1 if isinstance(self.unfolding, Dense) else 1
        rows = np.moveaxis(values, axis, -1).reshape(-1, self.unfolding.groups, self.unfolding.outputs)
        return np.asarray(rows[chosen])


def layers(model: ir.Model) -> Iterator[Layer | tuple[ir.Node, str]]:
    """Yield the linear layers of the main graph in its order, and those that cannot be fitted with the reason.

    Args:
        model: A model whose nodes are in topological order, its biases made constant (`biases.with_biases`).
    """
    places = {id(node): index for index, node in enumerate(model.graph)}
    for index, node in enumerate(model.graph):
        if not is_standard(node, *LINEAR) or len(node.inputs) < 2 or node.inputs[0] is None:
            continue
        weight = constant(node.inputs[1])
        if weight is None:
            continue
        if weight.dtype != np.float32:
            yield node, f"its weights are {weight.dtype}, and only float32 is fitted"
        elif (why := _why_not(node)) is not None:
            yield node, why
        elif isinstance(found := unfolding(node, weight), str):
            yield node, found
        else:
            yield _layer(node, index, found, places)


def _why_not(node: ir.Node) -> str | None:
    weight = node.inputs[1]
    if weight is not None and len(weight.uses()) > 1:
        return "another node reads its weights as well"
    if node.op_type == "Gemm" and any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "it scales its product"
    return None


def _layer(node: ir.Node, index: int, found: Unfolding, places: dict[int, int]) -> Layer:
    output, bias = node.outputs[0], None
    if node.op_type == "MatMul":
        after = _only_reader(output)
        if after is not None and is_standard(after, "Add"):
            other = _other(after, output)
            if _is_bias(other, found.outputs):
                bias, output = other, after.outputs[0]
    elif len(node.inputs) > 2 and _is_bias(node.inputs[2], found.groups * found.outputs):
        bias = node.inputs[2]
    total, shortcut = None, None
    after = _only_reader(output)
    if after is not None and is_standard(after, "Add"):
        other = _other(after, output)
        if other is not None and constant(other) is None and _same_shape(output, other):
            producer = other.producer()
            if producer is None or places[id(producer)] < index:
                total, shortcut = after.outputs[0].name, other.name
    return Layer(
        node,
        index,
        str(required(node.inputs[0]).name),
        found,
        None if bias is None else bias.name,
        str(output.name),
        total,
        shortcut,
    )


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
