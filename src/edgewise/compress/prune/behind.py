"""The linear layers behind a value: what they read, what they give, and what lies between the value and them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.values import input_at, is_constant, is_standard, label
from edgewise.compress.nodes import constant, has_subgraphs
from edgewise.compress.prune.fit import Moments, Stack
from edgewise.compress.unfold import Dense, Unfolding, unfolding
from edgewise.errors import ContractError
from edgewise.records.tensors import Array

_OPERATORS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_LONGEST: Final = 16
"""Most nodes between a value and the linear layers behind it (empirical: a LayerNormalization written out has nine)."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear layer with constant weights.

    Attributes:
        node: The node.
        unfolding: How it is a product of matrices.
        source: The activation that it reads.
        bias: The constant with its bias, which nothing else reads; None where there is none.
        output: What it makes, the bias included.
    """

    node: ir.Node
    unfolding: Unfolding
    source: ir.Value
    bias: ir.Value | None
    output: ir.Value

    @property
    def name(self) -> str:
        """Its label."""
        return label(self.node)

    @property
    def weight(self) -> Stack:
        """Its matrix, shape `[G, R, K]`."""
        values = constant(self.node.inputs[1])
        if values is None:
            raise ContractError(f"The weights of `{self.name}` have to be constant.")
        return self.unfolding.matrix(values)

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Every column, shape `[G, K]`."""
        return np.ones((self.unfolding.groups, self.unfolding.columns), bool)

    def moments(self) -> Moments:
        """Return empty moments of its inputs and of what it should give."""
        return Moments(self.unfolding.groups, self.unfolding.columns, self.unfolding.outputs)

    def targets(self, values: Array, chosen: npt.NDArray[np.int64]) -> Array:
        """Return rows of a value of the shape of the output, shape `[P, G, R]`."""
        axis = -1 if isinstance(self.unfolding, Dense) else 1
        moved = np.moveaxis(values, axis, -1)
        rows = moved[np.unravel_index(chosen, moved.shape[:-1])]
        return np.asarray(rows.reshape(len(chosen), self.unfolding.groups, self.unfolding.outputs))


def readers(graph: ir.Graph) -> Iterator[Reader | tuple[ir.Node, str]]:
    """Yield the linear layers of `graph` in its order, and those that cannot be fitted, with the reason as a clause."""
    for node in graph:
        weight = constant(node.inputs[1]) if is_standard(node, *_OPERATORS) and len(node.inputs) > 1 else None
        if weight is not None:
            found = _reader(node, weight)
            yield (node, found) if isinstance(found, str) else found


def _reader(node: ir.Node, weight: Array) -> Reader | str:
    source = node.inputs[0]
    found = _why_not(node, weight) or unfolding(node, weight)
    if isinstance(found, str):
        return found
    if source is None:
        return "its activation is left out"
    outputs, bias = found.groups * found.outputs, None
    if node.op_type != "MatMul":
        given = input_at(node, 2)
        bias = _own_bias(given, outputs)
        if given is not None and bias is None:
            return f"its bias `{given.name}` is not its own"
        return Reader(node, found, source, bias, node.outputs[0])
    after = only_reader(node.outputs[0])
    if after is not None and is_standard(after, "Add"):
        bias = _own_bias(other_operand(after, node.outputs[0]), outputs)
    return Reader(node, found, source, bias, node.outputs[0] if after is None or bias is None else after.outputs[0])


def _why_not(node: ir.Node, weight: Array) -> str | None:
    stored = node.inputs[1]
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, and only float32 is fitted"
    if stored is None or len(stored.uses()) > 1 or not stored.is_initializer():
        return "another node reads its weights as well"
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "it scales its product"
    return None


def _own_bias(value: ir.Value | None, outputs: int) -> ir.Value | None:
    values = constant(value)
    if value is None or values is None or values.shape[-1:] != (outputs,) or values.size != outputs:
        return None
    return value if value.is_initializer() and len(value.uses()) == 1 else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the node that alone reads `value`, once; None where there is none, or it is an output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def other_operand(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the operand of a node of two that is not `value`."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def behind(core: ir.Value, known: Mapping[ir.Node, Reader]) -> tuple[Sequence[ir.Node], Sequence[Reader]]:
    """Return the nodes that depend on `core` and constants alone as far as the next linear layers, and those layers.

    Args:
        core: A value that a node makes.
        known: The linear layers of its graph.

    Raises:
        ContractError: If no node makes it.
    """
    producer, graph = core.producer(), core.graph
    if producer is None or graph is None:
        raise ContractError(f"A node has to make `{core.name}`.")
    reached, nodes, found = {core}, list[ir.Node](), list[Reader]()
    is_later = False
    for node in graph:
        if is_later and any(value in reached for value in node.inputs):
            if node in known:
                found.append(known[node])
            elif len(nodes) < _LONGEST and _follows(node, reached):
                nodes.append(node)
                reached.update(node.outputs)
        is_later = is_later or node is producer
    return nodes, found


def _follows(node: ir.Node, reached: set[ir.Value]) -> bool:
    others = [value for value in node.inputs if value is not None and value not in reached]
    return not has_subgraphs(node) and all(is_constant(value) and not value.is_graph_input() for value in others)
