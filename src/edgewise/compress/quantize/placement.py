"""Where Q/DQ pairs go: which nodes are 8-bit, which edges of the graph carry integers. Knows no number."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from edgewise.analysis.target import Target
from edgewise.compress import nodes
from edgewise.compress.nodes import Weighted
from edgewise.compress.quantize import operators
from edgewise.compress.quantize.operators import FUSED_ACTIVATIONS, RECURRENT, WEIGHTED
from edgewise.records.findings import Decline

STAGE = "quantize"

QUANTIZED_ALREADY = "the model is quantized already, and is left as it is"

KEPT = "it is kept in float: 8 bits do more damage here than their time is worth"

_NO_RANK = "the number of dimensions of what it reads or makes is not known"

Edge = tuple[ir.Node, int]


@dataclass(frozen=True)
class Site:
    """A tensor that becomes 8-bit.

    Attributes:
        value: The tensor.
        readers: The nodes and input indices that read the integers, or None for every reader, outputs of the model
            included.
    """

    value: ir.Value
    readers: tuple[Edge, ...] | None


@dataclass(frozen=True)
class Placement:
    """Which nodes and tensors become 8-bit.

    Attributes:
        sites: The tensors, in graph order.
        weighted: The nodes with constant weights, in graph order, with their operands.
        others: The remaining 8-bit nodes, in graph order.
        shared: Sets of site names that have to have one range; each with the names whose values make that range.
        declines: Nodes that stay float, and why, in graph order.
    """

    sites: tuple[Site, ...]
    weighted: tuple[tuple[ir.Node, Weighted], ...]
    others: tuple[ir.Node, ...]
    shared: tuple[tuple[frozenset[str], frozenset[str]], ...]
    declines: tuple[Decline, ...]


def place(model: ir.Model, target: Target, *, keep: Collection[str] = ()) -> Placement:
    """Return where Q/DQ pairs go so that `target` runs as much as possible with 8-bit kernels.

    Args:
        model: The model, with inferred types; not changed.
        target: Where it will run.
        keep: Nodes that stay float, by `label`.

    Nodes with weights are 8-bit wherever they can be. Other operators follow: one is 8-bit where its inputs are
    integers anyway and an 8-bit operator reads what it makes. So residual sums of convolutional networks become 8-bit;
    the inputs of Softmax and LayerNormalization, attention masks and the residual stream of transformers, whose
    outliers 8 bits cannot hold, stay float.

    Operators that only move data are not listed among the declines: they cost the same either way.

    A model that is quantized already is left as it is: its scales are somebody's choice, and what is float in it, too.
    """
    found = operators.integer_node(model)
    if found is not None:
        left = Decline(stage=STAGE, node=label(found), operator=found.op_type, reason=QUANTIZED_ALREADY)
        return Placement(sites=(), weighted=(), others=(), shared=(), declines=(left,))
    return _Placer(model, target, keep).place()


class _Placer:
    """The state of one call of `place`."""

    def __init__(self, model: ir.Model, target: Target, keep: Collection[str]) -> None:
        self.graph = model.graph
        self.target = target
        self.keep = frozenset(keep)
        self.operands: dict[ir.Node, Weighted] = {}
        self.chosen: dict[ir.Node, None] = {}  # a set that keeps graph order
        self.reasons: dict[ir.Node, str] = {}
        self.position = {node: index for index, node in enumerate(model.graph)}

    def place(self) -> Placement:
        for node in self.graph:
            self._consider(node)
        self._drop_lonely()
        order = sorted(self.chosen, key=self.position.__getitem__)
        sites = tuple(self._sites())
        return Placement(
            sites=sites,
            weighted=tuple((node, self.operands[node]) for node in order if node in self.operands),
            others=tuple(node for node in order if node not in self.operands),
            shared=self._shared({site.value for site in sites}),
            declines=tuple(
                Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=reason)
                for node, reason in sorted(self.reasons.items(), key=lambda item: self.position[item[0]])
            ),
        )

    def _consider(self, node: ir.Node) -> None:
        """Choose `node` for now, or note why not."""
        if label(node) in self.keep:
            self.reasons[node] = KEPT
        elif nodes.has_subgraphs(node):
            self.reasons[node] = "it has subgraphs, which stay float"
        elif not nodes.is_standard(node):
            return
        elif node.op_type in RECURRENT:
            self.reasons[node] = "ONNX has no 8-bit form of recurrent operators that keeps their state"
        elif node.op_type in WEIGHTED:
            self._consider_weighted(node)
        elif node.op_type in self.target.quantized_operators and node.op_type not in FUSED_ACTIVATIONS:
            reason = self._why_not_follower(node)
            if reason is None:
                self.chosen[node] = None
            elif reason and node.op_type not in self.target.same_range_operators:
                self.reasons[node] = reason

    def _consider_weighted(self, node: ir.Node) -> None:
        if node.op_type not in self.target.quantized_operators:
            self.reasons[node] = f"`{self.target.backend}` has no 8-bit kernel for {node.op_type}"
            return
        operands = operators.weighted(node)
        if isinstance(operands, str):
            self.reasons[node] = operands
            return
        activation = node.inputs[operands.activation]
        if not _is_float32(activation):
            self.reasons[node] = f"its input is {_type_name(activation)}, and only float32 can be quantized"
            return
        if not _have_ranks([activation, node.outputs[0]]):
            self.reasons[node] = _NO_RANK
            return
        self.operands[node] = operands
        self.chosen[node] = None

    def _why_not_follower(self, node: ir.Node) -> str | None:
        """Return why `node` cannot be 8-bit whatever its neighbours are; empty where that goes without saying."""
        values = [node.inputs[slot] for slot in operators.activation_slots(node) if slot < len(node.inputs)]
        if not all(_is_float32(value) for value in [*values, node.outputs[0]]):
            return ""
        if not _have_ranks([*values, node.outputs[0]]):
            return _NO_RANK
        if any(nodes.constant(value) is not None for value in values):
            return "one of its operands is constant"
        return operators.why_not_follower(node)

    def _drop_lonely(self) -> None:
        """Take back followers until each has 8-bit neighbours on both sides."""
        changed = True
        while changed:
            changed = False
            for node in [node for node in self.chosen if node not in self.operands]:
                reason = self._why_lonely(node)
                if reason is not None:
                    del self.chosen[node]
                    if node.op_type not in self.target.same_range_operators:
                        self.reasons[node] = reason
                    changed = True

    def _why_lonely(self, node: ir.Node) -> str | None:
        for slot in self._slots(node):
            value = nodes.required(node.inputs[slot])
            if not (self._made(value) or any(reader in self.operands for reader, _ in self._integer_edges(value))):
                return f"its input `{value.name}` is not made by an 8-bit operator"
        if not any(self._is_read(final(output)) for output in node.outputs):
            return f"no 8-bit operator reads `{node.outputs[0].name}`"
        return None

    def _slots(self, node: ir.Node) -> tuple[int, ...]:
        """Return the input indices at which a chosen node takes integers."""
        operands = self.operands.get(node)
        return (operands.activation,) if operands else operators.activation_slots(node)

    def _integer_edges(self, value: ir.Value) -> Iterator[Edge]:
        """Yield the chosen readers of `value`."""
        for node, slot in value.uses():
            if node in self.chosen and slot in self._slots(node):
                yield node, slot

    def _is_read(self, value: ir.Value) -> bool:
        return next(self._integer_edges(value), None) is not None

    def _made(self, value: ir.Value) -> bool:
        """Whether an 8-bit operator makes `value`, fused activations included."""
        return origin(value).producer() in self.chosen

    def _sites(self) -> Iterator[Site]:
        for value in [*self.graph.inputs, *(value for node in self.graph for value in node.outputs)]:
            before = origin(value)
            producer = before.producer()
            if (
                producer in self.chosen
                and producer.op_type not in self.target.float_output_operators
                and final(before) is value
            ):
                yield Site(value, None)
            elif edges := list(self._integer_edges(value)):
                yield Site(value, tuple(sorted(edges, key=lambda edge: (self.position[edge[0]], edge[1]))))

    def _shared(self, sites: set[ir.Value]) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
        """Return the sets of tensors that have to have one range."""
        parent = {value: value for value in sites}

        def root(value: ir.Value) -> ir.Value:
            while parent[value] is not value:
                value = parent[value]
            return value

        made_here: set[ir.Value] = set()
        for node in self.chosen:
            if node.op_type not in self.target.same_range_operators:
                continue
            outputs = [final(output) for output in node.outputs]
            inputs = [node.inputs[slot] for slot in self._slots(node)]
            group = [value for value in [*inputs, *outputs] if value in parent]
            made_here.update(value for value in outputs if value in parent)
            for value in group[1:]:
                parent[root(value)] = root(group[0])
        groups: dict[ir.Value, list[ir.Value]] = {}
        for value in sites:
            groups.setdefault(root(value), []).append(value)
        shared = [
            (_names(group), _names([value for value in group if value not in made_here]) or _names(group))
            for group in groups.values()
            if len(group) > 1
        ]
        return tuple(sorted(shared, key=lambda pair: min(pair[0])))


def label(node: ir.Node) -> str:
    """Return the name by which findings call `node`."""
    return node.name or node.outputs[0].name or ""


def final(value: ir.Value) -> ir.Value:
    """Return `value` behind the activations that are fused into the operator that makes it."""
    while _is_private(value):
        (reader, _), *_ = value.uses()
        if not _is_fused(reader):
            break
        value = reader.outputs[0]
    return value


def origin(value: ir.Value) -> ir.Value:
    """Return what `value` was before the activations that are fused into the operator that makes it."""
    while (producer := value.producer()) is not None and _is_fused(producer):
        before = producer.inputs[0]
        if before is None or not _is_private(before):
            break
        value = before
    return value


def _is_fused(node: ir.Node) -> bool:
    return (
        nodes.is_standard(node)
        and node.op_type in FUSED_ACTIVATIONS
        and all(value is None or nodes.constant(value) is not None for value in node.inputs[1:])
    )


def _is_private(value: ir.Value) -> bool:
    """Whether exactly one node reads `value`, and the model does not give it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _is_float32(value: ir.Value | None) -> bool:
    # Where inference knew no type, the other operands decide: the checker has made sure that they agree.
    return value is not None and value.dtype in {None, ir.DataType.FLOAT}


def _have_ranks(values: Iterable[ir.Value | None]) -> bool:
    """Whether all have a known number of dimensions, without which no runtime gives them for observation."""
    return all(value is not None and value.shape is not None for value in values)


def _type_name(value: ir.Value | None) -> str:
    return "missing" if value is None or value.dtype is None else value.dtype.name.lower()


def _names(values: list[ir.Value]) -> frozenset[str]:
    return frozenset(value.name or "" for value in values)
