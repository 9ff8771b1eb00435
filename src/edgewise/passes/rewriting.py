"""What every rewrite needs: walking, matching by hand, replacing, and saying what was done or why not.

A rewrite is a `SitePass`: it names the operators it looks at, and `visit` answers for one node with `Done`, with
`Declined` and the reason, or with None where the node is no site at all. Sites are visited over and over until a sweep
changes nothing, so a pass is idempotent by construction; declines are those of the last sweep. Sub-graphs (the bodies
of If, Loop and Scan) are visited like the main graph: their nodes are rewritten where all that a rewrite removes lies
in one body, and captured values are never replaced by others.

Matching is written out rather than declared as patterns for onnxscript's rewriter: that stops at the first mismatch
without saying on which of several near misses, and cannot decline with a reason per site.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from edgewise.errors import ContractError
from edgewise.passes.protocol import Findings, Pass
from edgewise.records.findings import Change, Decline
from edgewise.records.tensors import Array

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

MAX_SWEEPS = 10_000
"""No rewrite applies more often than a model has nodes; beyond this a pass undoes its own work."""


@dataclass(frozen=True)
class Done:
    """A site was rewritten; `what` says so in the past tense."""

    what: str


@dataclass(frozen=True)
class Declined:
    """A site was left as it was; `reason` can follow "because"."""

    reason: str


Outcome: TypeAlias = Done | Declined | None


class SitePass(Pass):
    """A rewrite that looks at one node at a time."""

    operators: ClassVar[frozenset[str]]
    """Operator types of the standard domain at which sites end."""

    @abc.abstractmethod
    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Rewrite the site that ends at `node`, decline it, or say with None that it is no site."""

    def rewrite(self, model: ir.Model) -> Findings:
        """Visit every site until nothing changes."""
        findings = Findings()
        edit = Edit(model)
        for _ in range(MAX_SWEEPS):
            changes, declines = self._sweep(model, edit)
            findings.changes += changes
            if not changes:
                findings.declines = declines
                return findings
        raise ContractError(f"Pass `{self.name}` has to come to an end. It still changed the model in its last sweep.")

    def _sweep(self, model: ir.Model, edit: Edit) -> tuple[list[Change], list[Decline]]:
        changes, declines = [], []
        for node in list(all_nodes(model)):
            if node.graph is None or node.domain not in STANDARD_DOMAINS or node.op_type not in self.operators:
                continue
            name, operator = label(node), node.op_type
            match self.visit(node, edit):
                case Done(what):
                    changes.append(Change(stage=self.name, node=name, what=what))
                case Declined(reason):
                    declines.append(Decline(stage=self.name, node=name, operator=operator, reason=reason))
        return changes, declines


class Edit:
    """Changes to one model that keep it legal: fresh names, types and shapes carried over."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names: set[str] | None = None

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return opset(self._model)

    def fresh_name(self, base: str) -> str:
        """Return a value name that nothing in the model or its sub-graphs bears."""
        if self._names is None:
            self._names = _value_names(self._model)
        name, number = base, 0
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def constant(self, near: ir.Node, base: str, array: Array) -> ir.Value:
        """Return a new initializer in the graph of `near` that holds `array`."""
        graph = graph_of(near)
        name = self.fresh_name(base)
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        graph.register_initializer(value)
        return value

    def update(self, near: ir.Node, value: ir.Value, array: Array) -> ir.Value:
        """Return a value that holds `array`: `value` itself where `near` alone reads it, else a new initializer.

        Tensors are shared with the model that the caller keeps: the value gets another one, none is written to.
        """
        graph = graph_of(near)
        if value.is_initializer() and value.graph is graph and sole_reader(value) is near:
            value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
            value.shape = ir.Shape(array.shape)
            value.dtype = value.const_value.dtype
            return value
        return self.constant(near, value.name or "weight", array)

    def node(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | Iterable[ir.Attr] = (),
        *,
        outputs: int = 1,
        name: str | None = None,
    ) -> ir.Node:
        """Return a new standard-domain node with fresh output names, not yet in any graph."""
        attrs = ir.convenience.convert_attributes(attributes) if isinstance(attributes, Mapping) else list(attributes)
        base = name or operator
        new = ir.Node("", operator, inputs, attrs, num_outputs=outputs, name=name)
        for index, value in enumerate(new.outputs):
            value.name = self.fresh_name(f"{base}/output_{index}")
        return new

    def replace(self, root: ir.Node, dead: Sequence[ir.Node], new: Sequence[ir.Node], value: ir.Value) -> None:
        """Put `new` in the place of `root`; `value` takes over the first output of `root`; `dead` (with `root`) goes.

        Everything in `dead` has to lie in the graph of `root` and to have no reader outside of `dead`.
        """
        ir.convenience.replace_nodes_and_values(graph_of(root), root, list(dead), list(new), [root.outputs[0]], [value])

    def swap(self, root: ir.Node, dead: Sequence[ir.Node], new: ir.Node) -> None:
        """Put the single node `new` in the place of `root` and of the nodes in `dead`."""
        self.replace(root, dead, [new], new.outputs[0])

    def bypass(self, node: ir.Node, value: ir.Value) -> str | None:
        """Let the readers of `node`'s only output read `value`, and remove `node`.

        Returns:
            None when it was done, or why it cannot be.
        """
        output = node.outputs[0]
        if output.is_graph_output():
            if value.is_graph_input() or value.is_initializer() or value.producer() is None:
                return f"`{output.name}` is an output of the graph and `{value.name}` is not computed in it"
            if value.graph is not node.graph:
                return f"`{output.name}` is an output of a body and `{value.name}` lies outside of it"
            if value.is_graph_output():
                return f"both `{value.name}` and `{output.name}` are outputs of the graph"
        if value.shape is None or (output.shape is not None and not is_static(value)):
            value.shape = output.shape
        if value.type is None:
            value.type = output.type
        name, rename = output.name, output.is_graph_output()
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        graph_of(node).remove(node, safe=True)
        if rename:
            value.name = name
        return None


def opset(model: ir.Model) -> int:
    """Return the version of the standard operator set that `model` imports."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def _value_names(model: ir.Model) -> set[str]:
    names: set[str] = set()
    for graph in all_graphs(model):
        names.update(value.name for value in graph.inputs if value.name)
        names.update(graph.initializers)
        for node in graph:
            names.update(value.name for value in node.outputs if value.name)
    return names


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and every sub-graph of it. Functions are inlined first or left alone."""
    yield model.graph
    yield from model.graph.subgraphs()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of the main graph and of its sub-graphs, in graph order."""
    yield from ir.traversal.RecursiveGraphIterator(model.graph)


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph that `node` lies in."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ContractError(f"Node `{label(node)}` has to lie in a graph when it is rewritten. Received {graph=}.")
    return graph


def label(node: ir.Node) -> str:
    """Return the node's name, or that of its first output where it has none."""
    return node.name or (node.outputs[0].name if node.outputs else None) or node.op_type


def is_operator(node: ir.Node | None, *operators: str) -> bool:
    """Return whether `node` is one of these operators of the standard domain."""
    return node is not None and node.domain in STANDARD_DOMAINS and node.op_type in operators


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Return the node's input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of a value that is the same in every run, or None.

    An initializer that is also an input of the graph is only a default: a caller may feed another one.
    """
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None and (value.is_initializer() or is_operator(value.producer(), "Constant")):
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and is_operator(producer, "Constant"):
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    return None


def scalar(value: ir.Value | None) -> float | None:
    """Return the number in a constant of one element, or None."""
    array = constant(value)
    if array is None or array.size != 1 or not np.issubdtype(array.dtype, np.number):
        return None
    return float(array.reshape(()).item())


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the integers in a constant of rank 0 or 1, or None."""
    array = constant(value)
    if array is None or array.ndim > 1 or not np.issubdtype(array.dtype, np.integer):
        return None
    return tuple(int(item) for item in array.reshape(-1))


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the value's shape where every dimension is known, else None."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)
    return tuple(int(dim) for dim in dims if isinstance(dim, int)) if all(isinstance(d, int) for d in dims) else None


def is_static(value: ir.Value) -> bool:
    """Return whether every dimension of the value is known."""
    return static_shape(value) is not None


def rank(value: ir.Value | None) -> int | None:
    """Return the number of the value's dimensions, or None where unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def why_not_private(value: ir.Value, reader: ir.Node) -> str | None:
    """Return why `value` cannot vanish into its one reader, or None when it can."""
    if value.is_graph_output():
        return f"`{value.name}` is also an output of the graph"
    if (uses := len(value.uses())) != 1:
        return f"`{value.name}` has {uses} readers"
    producer = value.producer()
    if producer is not None and producer.graph is not reader.graph:
        return f"`{value.name}` is computed outside of this body and read inside"
    return None


def sole_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`, when there is exactly one and nothing else needs the value."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def attributes_of(node: ir.Node, *left_out: str) -> list[ir.Attr]:
    """Return the node's attributes without those named."""
    return [attribute for name, attribute in node.attributes.items() if name not in left_out]


def same_type(value: ir.Value, array: Array) -> Array:
    """Return `array` in the element type of `value`, or float32 where that is unknown."""
    dtype = value.dtype
    with np.errstate(over="ignore"):  # too large becomes infinite, which callers look for
        return array.astype(np.float32 if dtype is None else dtype.numpy())


def why_not_closed(root: ir.Node, dead: Sequence[ir.Node]) -> str | None:
    """Return why the nodes of a matched pattern cannot go, or None when nothing but the pattern needs them.

    Args:
        root: The last node of the pattern; its output lives on.
        dead: All nodes of the pattern, `root` among them.
    """
    nodes = set(dead)
    for node in dead:
        if node.graph is not root.graph:
            return f"`{label(node)}` lies outside of this body"
        if node is root:
            continue
        for value in node.outputs:
            if value.is_graph_output():
                return f"`{value.name}` is also an output of the graph"
            if outside := [use.node for use in value.uses() if use.node not in nodes]:
                return f"`{value.name}` is also read by `{label(outside[0])}`"
    return None
