"""Finds the regions of a graph that can go as a whole: one value comes in, one goes out, and nothing else leaves.

A region is a pair of values, the entry u and the exit v, such that every path from the model's inputs to v goes through
u (u dominates v), and everything that is computed between them is read between them alone. Dominators are found in one
pass over the graph, because it has no cycles: the immediate dominator of a value is the nearest common dominator of
what its node reads (Cooper, Harvey and Kennedy 2001, "A Simple, Fast Dominance Algorithm", for acyclic graphs).

BatchNormalization is best folded first (`passes.optimize`): else it stays where the convolution before it goes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import onnx_ir as ir

from edgewise.analysis.cost import layer_costs
from edgewise.analysis.values import elements, is_standard, label, with_inferred_shapes
from edgewise.compress.nodes import constant, has_subgraphs
from edgewise.compress.prune.flow import FLOATS, Flow, activation_of, bounds, is_behind_activation
from edgewise.errors import ContractError
from edgewise.records.findings import Decline

STAGE: Final = "prune_layers"

Kind: TypeAlias = Literal["branch", "stretch", "mapping"]
"""`branch`: v is `u + f(u)`, and f can go. `stretch`: u and v have one shape, and all between them can go. `mapping`:
their shapes differ, and only a linear map can stand in for what is between them."""

LONGEST: Final = 2
"""Regions for each exit, nearest entry first, unless another number is asked for."""

_CHANNELS_SECOND: Final = frozenset({
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool",
    "GlobalMaxPool", "GroupNormalization", "InstanceNormalization", "MaxPool", "Resize", "SpaceToDepth",
})  # fmt: skip
_CHANNELS_LAST: Final = frozenset({"Gemm", "GRU", "LayerNormalization", "LSTM", "MatMul", "RNN"})
_MAPS: Final = 4  # Axes of an image: batch, channels, height, width.

_INTEGER: Final = frozenset({
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
})  # fmt: skip


@dataclass(frozen=True)
class Channels:
    """How a linear map over channels can lead from a region's entry to its exit.

    Attributes:
        axis: Axis of the channels in both values, from the front.
        entry: Channels of the entry, C.
        exit: Channels of the exit, C'.
        strides: For each axis behind the channels, how many places of the entry there are for one of the exit.
        macs: Multiply-accumulates of a full map.
    """

    axis: int
    entry: int
    exit: int
    strides: tuple[int, ...]
    macs: int


@dataclass(frozen=True)
class Region:
    """A part of a graph that can go as a whole.

    Attributes:
        name: Name of the exit; with the entry before it where a nearer entry has that name. Unique within a graph.
        kind: What can be done with it.
        entry: Name of the value u that comes in; it may be read elsewhere, too.
        core: Name of the value that is made of the entry, before an activation behind it.
        exit: Name of the value v that goes out: what a Relu or Clip that alone reads `core` makes of it, or `core`.
        keeps_activation: Whether the entry may have values that this activation changes: it then stays.
        nodes: Names of the nodes between entry and core, in graph order (see `analysis.values.label`).
        macs: Their multiply-accumulates.
        parameters: Numbers in the weights that nothing else reads.
        channels: How a linear map can stand in, or None where none can.
    """

    name: str
    kind: Kind
    entry: str
    core: str
    exit: str
    keeps_activation: bool
    nodes: tuple[str, ...]
    macs: int
    parameters: int
    channels: Channels | None

    @property
    def can_drop(self) -> bool:
        """Whether the exit can become the entry."""
        return self.kind != "mapping"


@dataclass(frozen=True)
class Regions:
    """What can go from a graph as a whole, and what cannot.

    Attributes:
        found: In the order of their exits; nested and overlapping ones as well.
        declines: Residual additions that cannot go, nodes that regions cannot contain, each with the reason.
    """

    found: tuple[Region, ...]
    declines: tuple[Decline, ...]


@dataclass(frozen=True)
class _Candidate:
    kind: Kind
    entry: ir.Value
    core: ir.Value
    nodes: frozenset[ir.Node]
    work: frozenset[ir.Node]
    channels: Channels | None


def find_regions(model: ir.Model, *, longest: int = LONGEST) -> Regions:
    """Return the regions of `model` that do any multiply-accumulates.

    Of several regions with the same products inside, branches are listed, else the smallest one.

    Args:
        model: The model; not changed. Only its main graph is looked at.
        longest: Most regions with one exit, nearest entry first, >= 1: 1 lists single layers and blocks, 2 also pairs.

    Raises:
        ContractError: If `longest` is below 1.
    """
    if longest < 1:
        raise ContractError(f"There has to be at least one region for each exit. Received {longest}.")
    model = with_inferred_shapes(model)
    quantized = next((node for node in model.graph.all_nodes() if node.op_type in _INTEGER), None)
    if quantized is not None:
        reason = "the model is quantized already: layers are pruned before that"
        return Regions((), (_decline(quantized, reason),))
    flow, macs = Flow(model.graph), _macs(model)
    declines = [_decline(node, "its body is not looked into") for node in model.graph if has_subgraphs(node)]
    best: dict[frozenset[ir.Node], list[_Candidate]] = {}
    for node in model.graph:
        for core in node.outputs:
            for candidate in _candidates(flow, core, macs, longest):
                _keep(best.setdefault(candidate.work, []), candidate)
        if (why := _why_no_branch(flow, node)) is not None:
            declines.append(_decline(node, why))
    kept = [candidate for candidates in best.values() for candidate in candidates]
    found = _named(kept, flow, macs)
    if not found:
        reason = "nothing in it lies between two values such that nothing else leaves"
        declines.append(Decline(stage=STAGE, node="", operator="", reason=reason))
    return Regions(found, tuple(declines))


def _candidates(flow: Flow, core: ir.Value, macs: Mapping[ir.Node, int], longest: int) -> list[_Candidate]:
    """Return regions that end at `core`, nearest entry first, each with more products inside than the one before."""
    if core.dtype not in FLOATS or is_behind_activation(core):
        return []
    found: list[_Candidate] = []
    works: set[frozenset[ir.Node]] = {frozenset()}
    for entry in flow.dominators(core):
        nodes = flow.between(entry, core)
        if flow.leak(nodes, core) is not None:
            # Whatever leaves here leaves every larger region as well: what reads it is no ancestor of `core`.
            break
        work = frozenset(node for node in nodes if macs.get(node))
        candidate = None if work in works else _candidate(flow, entry, core, (nodes, work), macs)
        if candidate is not None:
            works.add(work)
            found.append(candidate)
        if len(works) > longest:
            break
    return found


def _candidate(
    flow: Flow,
    entry: ir.Value,
    core: ir.Value,
    inside: tuple[frozenset[ir.Node], frozenset[ir.Node]],
    macs: Mapping[ir.Node, int],
) -> _Candidate | None:
    nodes, work = inside
    if entry.dtype != core.dtype:
        return None
    channels = _channels(entry, core)
    if same_shape(entry, core):
        kind: Kind = "branch" if flow.shortcut(core) is entry else "stretch"
    elif channels is not None and channels.macs < sum(macs[node] for node in work):
        kind = "mapping"
    else:
        return None
    return _Candidate(kind, entry, core, nodes, work, channels)


_ORDER: Final[Mapping[Kind, int]] = {"branch": 0, "stretch": 1, "mapping": 2}


def _keep(kept: list[_Candidate], new: _Candidate) -> None:
    """Add `new` to the regions with the same products, where it is no worse than they are."""

    def rank(candidate: _Candidate) -> tuple[int, int]:
        return _ORDER[candidate.kind], 0 if candidate.kind == "branch" else len(candidate.nodes)

    if not kept or rank(new) < rank(kept[0]):
        kept[:] = [new]
    elif new.kind == "branch":
        kept.append(new)


def _named(kept: Iterable[_Candidate], flow: Flow, macs: Mapping[ir.Node, int]) -> tuple[Region, ...]:
    ordered = sorted(kept, key=lambda one: (flow.position(one.core), len(one.nodes)))
    names: set[str] = set()
    return tuple(_region(candidate, flow, macs, names) for candidate in ordered)


def _region(candidate: _Candidate, flow: Flow, macs: Mapping[ir.Node, int], names: set[str]) -> Region:
    activation = activation_of(candidate.core)
    out = candidate.core if activation is None else activation.outputs[0]
    entry, core, leaving = (str(value.name) for value in (candidate.entry, candidate.core, out))
    name = f"{entry}..{leaving}" if leaving in names else leaving
    names.add(name)
    return Region(
        name=name,
        kind=candidate.kind,
        entry=entry,
        core=core,
        exit=leaving,
        keeps_activation=activation is not None and not _is_idle(activation, candidate.entry),
        nodes=tuple(label(node) for node in sorted(candidate.nodes, key=flow.index)),
        macs=sum(macs[node] for node in candidate.work),
        parameters=_parameters(candidate.nodes),
        channels=candidate.channels,
    )


def _is_idle(activation: ir.Node, value: ir.Value) -> bool:
    """Return whether the activation leaves `value` as it is, whatever the inputs of the model are."""
    low, high = bounds(value)
    least, most = bounds(activation.outputs[0])
    if activation.op_type == "Relu":
        least, most = 0.0, math.inf
    return low >= least and high <= most


def _parameters(nodes: Collection[ir.Node]) -> int:
    read = {value for node in nodes for value in node.inputs if value is not None and constant(value) is not None}
    return sum(elements(value) for value in read if all(reader in nodes for reader in value.consumers()))


def same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Return whether both shapes are known to be equal; dynamic dimensions are when they bear one name."""
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    pairs = zip(one.shape, other.shape, strict=True)
    return all(_same_dim(a, b) for a, b in pairs)


def _same_dim(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    if isinstance(one, ir.SymbolicDim) and one.value is None:
        return False
    return one == other


def _channels(entry: ir.Value, core: ir.Value) -> Channels | None:
    """Return how a linear map over channels leads from one value to the other, or None where none can."""
    if entry.shape is None or core.shape is None or len(entry.shape) != len(core.shape) or len(core.shape) < 2:
        return None
    axis = _channel_axis(entry)
    if axis != _channel_axis(core):
        return None
    before, behind = entry.shape[axis], core.shape[axis]
    if not isinstance(before, int) or not isinstance(behind, int):
        return None
    if not all(_same_dim(a, b) for a, b in zip(entry.shape[:axis], core.shape[:axis], strict=True)):
        return None
    strides = [_stride(a, b) for a, b in zip(entry.shape[axis + 1 :], core.shape[axis + 1 :], strict=True)]
    known = tuple(stride for stride in strides if stride is not None)
    if len(known) < len(strides):
        return None
    return Channels(axis, before, behind, known, before * elements(core))


def _stride(before: int | ir.SymbolicDim, behind: int | ir.SymbolicDim) -> int | None:
    """Return the step of a window of one place that makes `behind` places of `before`, or None."""
    if _same_dim(before, behind):
        return 1
    if not isinstance(before, int) or not isinstance(behind, int) or behind < 1 or behind > before:
        return None
    step = -(-before // behind)
    return step if (before - 1) // step + 1 == behind else None


def _channel_axis(value: ir.Value) -> int:
    """Return the axis of the channels: the second beside convolutions, the last beside products of matrices."""
    rank = 0 if value.shape is None else len(value.shape)
    around = [value.producer(), *value.consumers()]
    for _ in range(3):
        kinds = {node.op_type for node in around if node is not None}
        if kinds & _CHANNELS_SECOND and not kinds & _CHANNELS_LAST:
            return 1
        if kinds & _CHANNELS_LAST and not kinds & _CHANNELS_SECOND:
            return rank - 1
        around = [reader for node in around if node is not None for reader in _behind(node, rank)]
    return 1 if rank >= _MAPS else rank - 1


def _behind(node: ir.Node, rank: int) -> list[ir.Node]:
    """Return the readers of what `node` makes, where that has the same axes."""
    if node.op_type in {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}:
        return []
    outputs = [value for value in node.outputs if value.shape is not None and len(value.shape) == rank]
    return [reader for value in outputs for reader in value.consumers()]


def _why_no_branch(flow: Flow, node: ir.Node) -> str | None:
    """Return why the branch that ends in this addition cannot go; None where it can, or where it ends none."""
    if not is_standard(node, "Add") or node.outputs[0].dtype not in FLOATS:
        return None
    core = node.outputs[0]
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None or left is right or flow.is_fixed(left) or flow.is_fixed(right):
        return None
    entry = flow.shortcut(core)
    if entry is None:
        return None
    if not same_shape(entry, core):
        return f"`{entry.name}` and `{core.name}` are not known to have the same shape"
    if entry not in set(flow.dominators(core)):
        return f"what is added to `{entry.name}` depends on more than that"
    return flow.leak(flow.between(entry, core), core)


def _macs(model: ir.Model) -> dict[ir.Node, int]:
    """Return the multiply-accumulates of each node of the main graph."""
    # Costs come in graph order, and those of bodies behind the node that carries them.
    costs = iter(layer_costs(model))
    return {node: next(cost.macs for cost in costs if cost.node == label(node)) for node in model.graph}


def _decline(node: ir.Node, reason: str) -> Decline:
    return Decline(stage=STAGE, node=label(node), operator=node.op_type, reason=reason)
