"""How values depend on each other in a graph: dominators, what lies between two values, and what leaves there."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Final

import onnx_ir as ir

from edgewise.analysis.values import is_standard, label
from edgewise.compress.nodes import constant, has_subgraphs

FLOATS: Final = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE,
})  # fmt: skip

ACTIVATIONS: Final = ("Relu", "Clip")

_RANDOM: Final = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip

_SAME_VALUES: Final = (
    "Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "MaxPool",
    "GlobalMaxPool", "Split",
)  # fmt: skip
_DEEPEST: Final = 8  # Nodes that are looked back at for the bounds of a value.


class Flow:
    """Which values every path to another one goes through.

    Args:
        graph: A graph in topological order; bodies of its nodes are not looked into.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._index = {node: index for index, node in enumerate(graph)}
        self._fixed: set[ir.Value] = set()
        # Immediate dominators; None for what depends on several inputs of the graph, or on none that could be named.
        self._above: dict[ir.Value, ir.Value | None] = dict.fromkeys(graph.inputs)
        self._depth: dict[ir.Value, int] = dict.fromkeys(graph.inputs, 1)
        for node in graph:
            self._add(node)

    def _add(self, node: ir.Node) -> None:
        sources = [value for value in node.inputs if value is not None and not self.is_fixed(value)]
        is_opaque = has_subgraphs(node) or node.op_type in _RANDOM
        if not sources and not is_opaque:
            self._fixed.update(node.outputs)
            return
        above = None if is_opaque else self._common(sources)
        for value in node.outputs:
            self._above[value] = above
            self._depth[value] = 1 if above is None else self._depth[above] + 1

    def _common(self, values: list[ir.Value]) -> ir.Value | None:
        """Return the nearest value that dominates, or is, each of `values`."""
        one: ir.Value | None = values[0]
        for value in values[1:]:
            other: ir.Value | None = value
            while one is not other:
                if one is None or other is None:
                    return None
                if self._depth[one] > self._depth[other]:
                    one = self._above[one]
                else:
                    other = self._above[other]
        return one

    def is_fixed(self, value: ir.Value) -> bool:
        """Return whether `value` is the same for all inputs of the model."""
        return value in self._fixed or (value.is_initializer() and not value.is_graph_input())

    def index(self, node: ir.Node) -> int:
        """Return the place of `node` in the graph."""
        return self._index[node]

    def position(self, value: ir.Value) -> int:
        """Return the place of the node that makes `value`, -1 for an input."""
        producer = value.producer()
        return -1 if producer is None else self._index[producer]

    def dominators(self, value: ir.Value) -> Iterator[ir.Value]:
        """Yield the values that every path from the inputs to `value` goes through, nearest first."""
        above = self._above.get(value)
        while above is not None:
            yield above
            above = self._above[above]

    def between(self, entry: ir.Value, core: ir.Value) -> frozenset[ir.Node]:
        """Return the nodes that make `core` of `entry`, which dominates it."""
        found: set[ir.Node] = set()
        left = [core]
        while left:
            node = left.pop().producer()
            if node is None or node in found:
                continue
            found.add(node)
            left += [v for v in node.inputs if v is not None and v is not entry and not self.is_fixed(v)]
        return frozenset(found)

    def leak(self, nodes: Collection[ir.Node], core: ir.Value) -> str | None:
        """Return what else than `core` leaves `nodes`, as a clause; None if nothing does."""
        for value in (value for node in nodes for value in node.outputs if value is not core):
            if value.is_graph_output():
                return f"`{value.name}` inside of it is an output of the model"
            outside = next((reader for reader in value.consumers() if reader not in nodes), None)
            if outside is not None:
                return f"`{value.name}` inside of it is also read by `{label(outside)}`"
        return None

    def shortcut(self, core: ir.Value) -> ir.Value | None:
        """Return u where `core` is the sum of u and of something that depends on u; else None."""
        node = core.producer()
        if node is None or not is_standard(node, "Add") or None in node.inputs:
            return None
        one, other = node.inputs
        for entry, rest in ((one, other), (other, one)):
            if entry is not None and rest is not None and entry is not rest and self._depends(rest, entry):
                return entry
        return None

    def _depends(self, value: ir.Value, source: ir.Value) -> bool:
        earliest = self.position(source)
        left, seen = [value], set[ir.Value]()
        while left:
            one = left.pop()
            if one is source:
                return True
            node = one.producer()
            if one in seen or node is None or self._index[node] <= earliest:
                continue
            seen.add(one)
            left += [given for given in node.inputs if given is not None]
        return False


def activation_of(core: ir.Value) -> ir.Node | None:
    """Return the Relu or Clip with constant bounds that alone reads `core`, or None."""
    readers = core.consumers()
    if len(core.uses()) != 1 or core.is_graph_output() or not is_standard(readers[0], *ACTIVATIONS):
        return None
    reader = readers[0]
    fixed = all(value is None or constant(value) is not None for value in reader.inputs[1:])
    return reader if fixed and reader.inputs[0] is core and reader.graph is core.graph else None


def is_behind_activation(value: ir.Value) -> bool:
    """Return whether a Relu or Clip makes `value` of a value that nothing else reads."""
    node = value.producer()
    core = None if node is None or not node.inputs else node.inputs[0]
    return core is not None and activation_of(core) is node


def bounds(value: ir.Value, depth: int = _DEEPEST) -> tuple[float, float]:  # noqa: PLR0911 - one return an operator
    """Return the lowest and highest that `value` can be, read off the nodes before it; infinite where unknown."""
    node = value.producer()
    unknown = (-math.inf, math.inf)
    if node is None or depth == 0 or not is_standard(node, node.op_type):
        return unknown
    given = [bounds(one, depth - 1) for one in node.inputs[:2] if one is not None]
    match node.op_type:
        case "Relu":
            return max(0.0, given[0][0]), max(0.0, given[0][1])
        case "Clip":
            low, high = (_number(node, index, bound) for index, bound in ((1, -math.inf), (2, math.inf)))
            return min(max(given[0][0], low), high), max(min(given[0][1], high), low)
        case "Sigmoid" | "HardSigmoid" | "Softmax":
            return 0.0, 1.0
        case "Add":
            return sum(low for low, _ in given), sum(high for _, high in given)
        case "AveragePool" | "GlobalAveragePool":
            return min(given[0][0], 0.0), max(given[0][1], 0.0)
        case operator if operator in _SAME_VALUES:
            return given[0]
    return unknown


def _number(node: ir.Node, index: int, default: float) -> float:
    value = node.inputs[index] if index < len(node.inputs) else None
    array = constant(value)
    if array is not None and array.size == 1:
        return float(array.reshape(()))
    return default
