"""Takes regions out of a graph: the exit becomes the entry, or what a linear stand-in makes of it."""

from __future__ import annotations

import math
from dataclasses import replace as replace_field
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.analysis.values import label
from edgewise.compress.nodes import constant
from edgewise.compress.prune.behind import Reader, readers
from edgewise.compress.prune.regions import Channels, Region
from edgewise.compress.prune.stand_in import Affine, Linear, StandIn
from edgewise.compress.unfold import Window
from edgewise.errors import ContractError
from edgewise.records.tensors import Array

_MATRIX: Final = 2  # Axes of a matrix.


def drop(model: ir.Model, region: Region) -> ir.Model:
    """Return a copy of `model` in which the exit of `region` is its entry, and nothing is left of what was between.

    A Relu or Clip at the exit stays where the entry may have values that it would change. Inputs and outputs keep their
    names; an output that would be another value gets an Identity.

    Args:
        model: The model in which the region was found; not changed.
        region: A branch or a stretch.

    Raises:
        ContractError: If the region is not of this model, or its entry and exit have different shapes.
    """
    if not region.can_drop:
        raise ContractError(f"Only a linear map leads from `{region.entry}` to `{region.exit}`: their shapes differ.")
    copy = model.clone()
    values = _values(copy, region)
    goes = region.core if region.keeps_activation else region.exit
    _redirect(copy.graph, values[goes], values[region.entry])
    common.RemoveUnusedNodesPass()(copy)
    return copy


def replace(model: ir.Model, region: Region, stand_in: StandIn) -> ir.Model:
    """Return a copy of `model` in which `stand_in` makes the core of `region` of its entry.

    It is a Conv with a window of one place, or a MatMul or Gemm beside products of matrices. Where a Conv or Gemm makes
    the entry and nothing but the region reads it, both become one if that multiplies no more. A scale and a shift of
    each channel are a Mul and an Add, which `passes.optimize` merges into a neighbour where there is a linear one.

    Args:
        model: The model in which the region was found; not changed.
        region: Any region through which a linear map leads.
        stand_in: The map, of as many channels as the region has.

    Raises:
        ContractError: If the region is not of this model, no linear map leads through it, or the channels differ.
    """
    channels = region.channels
    if channels is None:
        raise ContractError(f"No linear map over channels leads from `{region.entry}` to `{region.exit}`.")
    _check(channels, stand_in)
    copy = model.clone()
    values = _values(copy, region)
    entry, core = values[region.entry], values[region.core]
    writer = _Writer(copy.graph, core)
    if isinstance(stand_in, Affine):
        made = writer.affine(entry, stand_in, channels)
    else:
        made = writer.merged(_maker(copy, entry, region), stand_in, channels) or writer.linear(
            entry, stand_in, channels
        )
    _redirect(copy.graph, core, made)
    common.RemoveUnusedNodesPass()(copy)
    return copy


def _check(channels: Channels, stand_in: StandIn) -> None:
    if isinstance(stand_in, Affine):
        is_fitting = (*stand_in.scale.shape, *stand_in.shift.shape) == (channels.entry, channels.exit)
        is_fitting = is_fitting and channels.entry == channels.exit and all(step == 1 for step in channels.strides)
    else:
        is_fitting = stand_in.matrix.shape == (channels.exit, channels.entry)
        is_fitting = is_fitting and stand_in.shift.shape == (channels.exit,)
    if not is_fitting:
        raise ContractError(
            f"A stand-in has to lead from {channels.entry} channels to {channels.exit} with the steps "
            f"{list(channels.strides)}; this one does not."
        )


def _maker(model: ir.Model, entry: ir.Value, region: Region) -> Reader | None:
    """Return the Conv or Gemm that makes the entry for the region alone, or None where there is none."""
    node, inside = entry.producer(), set(region.nodes)
    if node is None or entry.is_graph_output() or not all(label(reader) in inside for reader in entry.consumers()):
        return None
    found = next((one for one in readers(model.graph) if isinstance(one, Reader) and one.node is node), None)
    if found is None or node.op_type not in {"Conv", "Gemm"} or found.unfolding.groups > 1 or found.output is not entry:
        return None
    padding = node.attributes.get_string("auto_pad", "NOTSET")
    return found if padding in {"NOTSET", "VALID"} and not node.attributes.get_int("transA", 0) else None


class _Writer:
    """Writes nodes in front of the one that makes `core`."""

    def __init__(self, graph: ir.Graph, core: ir.Value) -> None:
        self._graph = graph
        self._core = core
        self._type = (core.dtype or ir.DataType.FLOAT).numpy()

    def affine(self, entry: ir.Value, stand_in: Affine, channels: Channels) -> ir.Value:
        """Return the scaled and shifted entry."""
        tail = (1,) * len(channels.strides)
        value = entry
        if not np.all(stand_in.scale == 1):
            value = self._node("Mul", [value, self._constant("scale", stand_in.scale.reshape(-1, *tail))])
        return self._node("Add", [value, self._constant("shift", stand_in.shift.reshape(-1, *tail))])

    def linear(self, entry: ir.Value, stand_in: Linear, channels: Channels) -> ir.Value:
        """Return the mapped entry."""
        shift = self._constant("shift", stand_in.shift)
        if channels.strides:
            shape = (*stand_in.matrix.shape, *(1 for _ in channels.strides))
            weight = self._constant("weight", stand_in.matrix.reshape(shape))
            return self._node("Conv", [entry, weight, shift], strides=list(channels.strides))
        if channels.axis == _MATRIX - 1:
            weight = self._constant("weight", stand_in.matrix)
            return self._node("Gemm", [entry, weight, shift], transB=1)
        product = self._node("MatMul", [entry, self._constant("weight", stand_in.matrix.T)])
        return self._node("Add", [product, shift])

    def merged(self, maker: Reader | None, stand_in: Linear, channels: Channels) -> ir.Value | None:
        """Return what one node makes of the maker's input, or None where two nodes multiply less.

        `A (W x + b) + s = (A W) x + (A b + s)`; every s-th place of a window with stride t has the stride `s t`.
        """
        if maker is None:
            return None
        columns, step = maker.unfolding.columns, math.prod(channels.strides)
        if columns * channels.exit > step * columns * channels.entry + channels.entry * channels.exit:
            return None
        given = constant(maker.bias)
        bias = np.zeros(channels.entry) if given is None else given.astype(np.float64)
        shift = self._constant("shift", stand_in.matrix @ bias + stand_in.shift)
        matrix = stand_in.matrix @ maker.weight[0]
        if isinstance(maker.unfolding, Window):
            weight = self._constant(
                "weight", replace_field(maker.unfolding, outputs=channels.exit).restore(matrix[None])
            )
            pairs = zip(maker.unfolding.strides, channels.strides, strict=True)
            more = {"strides": ir.AttrInt64s("strides", [one * other for one, other in pairs])}
            kept = {name: value for name, value in maker.node.attributes.items() if name != "strides"}
            return self._node("Conv", [maker.source, weight, shift], **kept, **more)
        return self._node("Gemm", [maker.source, self._constant("weight", matrix), shift], transB=1)

    def _constant(self, what: str, values: Array) -> ir.Value:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(values.astype(self._type))
        if not np.isfinite(array.astype(np.float32)).all():
            raise ContractError(f"The {what} of a stand-in has to be finite as {array.dtype}.")
        value = ir.Value(name=_free(self._graph, f"{self._core.name}_{what}"), const_value=ir.tensor(array))
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape(array.shape)
        self._graph.register_initializer(value)
        return value

    def _node(self, operator: str, inputs: list[ir.Value], **attributes: int | list[int] | ir.Attr) -> ir.Value:
        node = ir.node(operator, inputs, attributes, name=_free(self._graph, f"{self._core.name}_{operator.lower()}"))
        node.outputs[0].name = _free(self._graph, f"{node.name}_out")
        node.outputs[0].type = self._core.type
        before = self._core.producer()
        if before is None:
            raise ContractError(f"A node has to make `{self._core.name}`.")
        self._graph.insert_before(before, node)
        return node.outputs[0]


def _redirect(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`, bodies of nodes included; an output of the model keeps its name."""
    producer = old.producer()
    if producer is None:
        raise ContractError(f"A node has to make `{old.name}`.")
    if not old.is_graph_output():
        ir.convenience.replace_all_uses_with(old, new)
        return
    name, kind, shape = old.name, old.type, old.shape
    node = ir.node("Identity", [new], name=_free(graph, f"{name}_identity"))
    graph.insert_before(producer, node)
    ir.convenience.replace_all_uses_with(old, node.outputs[0], replace_graph_outputs=True)
    old.name = _free(graph, f"{name}_dropped")
    out = node.outputs[0]
    out.name, out.type, out.shape = name, kind, shape


def _values(model: ir.Model, region: Region) -> dict[str, ir.Value]:
    """Return the entry, core and exit of `region`."""
    known = {str(value.name): value for value in model.graph.inputs}
    known |= {str(value.name): value for node in model.graph for value in node.outputs}
    try:
        return {name: known[name] for name in (region.entry, region.core, region.exit)}
    except KeyError as error:
        raise ContractError(f"A region belongs to one graph, and this one has no value {error}.") from error


def _free(graph: ir.Graph, name: str) -> str:
    """Return `name`, with a number behind it where a node or value of the graph has it already."""
    taken = {value.name for node in graph.all_nodes() for value in node.outputs}
    taken |= {node.name for node in graph.all_nodes()} | set(graph.initializers) | {v.name for v in graph.inputs}
    free, count = name, 0
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    return free
