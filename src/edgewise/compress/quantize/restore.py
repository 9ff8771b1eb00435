"""Takes nodes of a quantized graph back to floating point: what a node's integers cost, one node at a time.

Works on any QDQ graph: ours, ONNX Runtime's, NNCF's. Every pair of QuantizeLinear and DequantizeLinear belongs to the
node that reads it, and where no node that works on integers does, to the node in front of it. So a node that is
restored loses the pairs in front of it, its integer weights, and the pair behind it as far as no other node needs
that; which is the graph that a plan with this node in `keep` makes. An activation that only the range of a removed pair
stood for (ONNX Runtime's quantizer drops Relu and Clip) is put back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.compress import nodes
from edgewise.compress.nodes import unused_name
from edgewise.compress.quantize import operators
from edgewise.compress.quantize.placement import final, label
from edgewise.errors import ContractError
from edgewise.records.tensors import Array

PAIR_DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})
"""Where QuantizeLinear and DequantizeLinear come from; ONNX Runtime has its own for 16 and 4 bits."""

MOVERS: Final = frozenset(
    {
        "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose", "MaxPool", "Slice", "Gather",
        "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
    }
)  # fmt: skip
"""Operators that only move values: on integers they add no error of their own, and follow what reads them."""

MATCHING_STEPS: Final = 2.0
"""Root mean square, in steps of the integers, by which rounded weights may differ from their floating-point ones, those
at the ends left out.

Rounding to nearest makes 0.29, second-order rounding about 0.5 (empirical), weights of another scale, such as those
before a batch normalization was folded, many.
"""

_Activation: TypeAlias = tuple[str, list["ir.TensorProtocol | None"]]
"""An operator and its constants."""

_BINARY: Final = frozenset({"Add", "Sub", "Mul", "Div"})


def quantized_nodes(model: ir.Model) -> tuple[str, ...]:
    """Return the nodes of the main graph that work on integers, by `label`, in graph order.

    A node does if its weights are stored as integers, or if all that it reads is dequantized and what it makes is
    quantized again, behind a fused Relu or Clip at most. Nodes that only move values are left out.
    """
    return tuple(label(node) for node in model.graph if _works_on_integers(node) and not _only_moves(node))


def restored(model: ir.Model, nodes: Collection[str], *, reference: ir.Model | None = None) -> ir.Model:
    """Return a copy of a quantized model in which the named nodes compute in floating point.

    Args:
        model: A QDQ graph; not changed. Weights are shared.
        nodes: Nodes by `label`.
        reference: The model from which it was made, for the weights before they were rounded: looked up by node and
            input, else by name, and taken only where they are no further from the integers than rounding takes them
            (`MATCHING_STEPS`). None, or where they are not found: the dequantized integers.

            Activations that are missing behind a node are looked up in it as well; without it, a Relu stands for a
            range that begins at zero behind an operator that can give less.

    Raises:
        ContractError: If a name is no node that works on integers.
    """
    copy = model.clone()
    work = _Restorer(copy, reference)
    missing = sorted(set(nodes) - {label(node) for node in work.working})
    if missing:
        raise ContractError(f"Only a node that works on integers can be restored. Received `{missing[0]}`.")
    work.restore([node for node in work.working if label(node) in set(nodes)])
    common.RemoveUnusedNodesPass()(copy)
    return copy


def matched(model: ir.Model, reference: ir.Model) -> tuple[str, ...]:
    """Return the nodes with integer weights whose weights before rounding are found in `reference`, by `label`."""
    originals = Originals(reference)
    return tuple(
        label(node)
        for node in model.graph
        if _works_on_integers(node)
        and any(integers_of(value) is not None for value in node.inputs)
        and originals.of(node) is not None
    )


def pair_in_front(value: ir.Value | None) -> tuple[ir.Node, ir.Node] | None:
    """Return the QuantizeLinear and DequantizeLinear that make `value`, or None if it is made otherwise."""
    dequantize = _made_by(value, "DequantizeLinear")
    quantize = None if dequantize is None else _made_by(dequantize.inputs[0], "QuantizeLinear")
    return None if dequantize is None or quantize is None else (quantize, dequantize)


def stands_for_relu(producer: ir.Node | None) -> bool:
    """Return whether a range from zero on behind `producer` may stand for a Relu: it can give less than zero itself."""
    if producer is None or not nodes.is_standard(producer):
        return False
    return producer.op_type in operators.WEIGHTED | _BINARY


def dequantized(node: ir.Node) -> Array | None:
    """Return what a DequantizeLinear always gives, or None where that is not constant.

    Source: ONNX operator `DequantizeLinear`, opset 21: one scale, one for each index along `axis`, or one for each
    block of `block_size` along it.
    """
    integers, scale = nodes.constant(node.inputs[0]), nodes.constant(node.inputs[1])
    zero = nodes.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if integers is None or scale is None:
        return None
    scales = along(node, scale, integers.shape)
    zeros = np.zeros(()) if zero is None else along(node, zero, integers.shape).astype(np.float64)
    # float64 holds every int32 exactly.
    real: Array = (integers.astype(np.float64) - zeros).astype(np.float32) * scales.astype(np.float32)
    return real.astype(scale.dtype)


def along(node: ir.Node, parameter: Array, shape: tuple[int, ...]) -> Array:
    """Return the scales or zero points of a QuantizeLinear or DequantizeLinear so that they broadcast over `shape`."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = int(nodes.attribute(node, "axis", 1)) % len(shape)
    block = int(nodes.attribute(node, "block_size", 0))
    if block:
        return np.repeat(parameter, block, axis=axis).take(range(shape[axis]), axis=axis)
    return parameter.reshape([-1 if index == axis else 1 for index in range(len(shape))])


class _Restorer:
    """The state of one call of `restored`."""

    def __init__(self, model: ir.Model, reference: ir.Model | None) -> None:
        self.graph = model.graph
        self.originals = None if reference is None else Originals(reference)
        self.working = [node for node in model.graph if _works_on_integers(node)]
        self.names = {value.name for graph in model.graphs() for value in graph.initializers.values()}
        for graph in model.graphs():
            self.names.update(value.name for node in graph for value in node.outputs)
            self.names.update(value.name for value in graph.inputs)
        self.labels = {label(node) for node in model.graph}
        self.floats: dict[int, ir.Value] = {}
        self.active: dict[ir.Value, ir.Value] = {}

    def restore(self, nodes: list[ir.Node]) -> None:
        chosen = self._with_movers(dict.fromkeys(nodes))
        others = set(self.working) - set(chosen)
        for node in chosen:
            self._restore_constants(node)
        for node in chosen:
            for slot, value in enumerate(node.inputs):
                if (pair := pair_in_front(value)) is not None:
                    node.replace_input_with(slot, self._in_front(pair[0]))
            for output in node.outputs:
                self._bypass_behind(final(output), others)

    def _with_movers(self, chosen: dict[ir.Node, None]) -> dict[ir.Node, None]:
        """Add the nodes that only move values for the sake of those that are restored."""
        movers = [node for node in self.working if _only_moves(node)]
        integers = set(self.working)
        changed = True
        while changed:
            changed = False
            for node in movers:
                if node in chosen:
                    continue
                readers = {
                    reader for output in node.outputs for reader in _readers_behind(output) if reader in integers
                }
                maker = _maker(node.inputs[0])
                if all(reader in chosen for reader in readers) and (readers or maker in chosen):
                    chosen[node] = None
                    changed = True
        return chosen

    def _bypass_behind(self, value: ir.Value, others: set[ir.Node]) -> None:
        """Let whatever does not work on integers read `value` itself, not what its pair makes of it."""
        for quantize in _readers(value, "QuantizeLinear"):
            for dequantize in _readers(quantize.outputs[0], "DequantizeLinear"):
                made = dequantize.outputs[0]
                edges = [(reader, slot) for reader, slot in made.uses() if reader not in others]
                gives = made.is_graph_output() and not value.is_graph_output()
                if not (edges or gives):
                    continue
                real = self._in_front(quantize)
                for reader, slot in edges:
                    reader.replace_input_with(slot, real)
                if gives:
                    self._give(made, real)

    def _in_front(self, quantize: ir.Node) -> ir.Value:
        """Return the real numbers that `quantize` reads, behind the activations that its range alone stood for."""
        value = nodes.required(quantize.inputs[0])
        producer = value.producer()
        if producer is None or value in self.active:
            return self.active.get(value, value)
        real = value
        for operator, constants in self._lost_activations(producer, value, quantize):
            node = ir.node(operator, [real, *(None if c is None else self._float(c, None) for c in constants)])
            made = node.outputs[0]
            made.name = node.name = unused_name(self.names, f"{value.name}_{operator.lower()}")
            made.type = value.type
            made.shape = None if value.shape is None else value.shape.copy()
            self.graph.insert_after(producer, node)
            real, producer = made, node
        self.active[value] = real
        return real

    def _lost_activations(self, producer: ir.Node, value: ir.Value, quantize: ir.Node) -> list[_Activation]:
        """Return the activations that followed `producer`, and that only the range of `quantize` still stands for."""
        twin = None if self.originals is None else self.originals.twin(producer)
        if twin is not None:
            return [
                (node.op_type, [_tensor(constant) for constant in node.inputs[1:]])
                for node in _activations_behind(twin.outputs[value.index() or 0])
                if label(node) not in self.labels
            ]
        zero = nodes.constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
        begins_at_zero = zero is not None and zero.dtype.kind in "iu" and bool(np.all(zero == np.iinfo(zero.dtype).min))
        return [("Relu", [])] if begins_at_zero and stands_for_relu(producer) else []

    def _give(self, old: ir.Value, new: ir.Value) -> None:
        """Let the model give `new` under the name of its output `old`."""
        name = old.name
        old.name = unused_name(self.names, f"{name}_dequantized")
        new.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is old:
                self.graph.outputs[index] = new

    def _restore_constants(self, node: ir.Node) -> None:
        originals = None if self.originals is None else self.originals.of(node)
        for slot, value in enumerate(node.inputs):
            if originals is not None and slot in originals:
                original = originals[slot]
                node.replace_input_with(slot, None if original is None else self._float(original, value))
            elif (integers := integers_of(value)) is not None and (values := dequantized(integers)) is not None:
                node.replace_input_with(slot, self._float(ir.tensor(values), value))

    def _float(self, tensor: ir.TensorProtocol, old: ir.Value | None) -> ir.Value:
        """Return an initializer that holds `tensor` in place of `old`; the same for all that read `old`."""
        if old is None or id(old) not in self.floats:
            name = unused_name(self.names, f"{old.name if old is not None else 'weight'}_float")
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.numpy().shape))
            value.const_value = tensor
            self.graph.register_initializer(value)
            if old is None:
                return value
            self.floats[id(old)] = value
        return self.floats[id(old)]


class Originals:
    """The weights of a model before it was quantized.

    Args:
        reference: That model.
    """

    def __init__(self, reference: ir.Model) -> None:
        self.nodes = {label(node): node for node in reference.graph}
        self.initializers = reference.graph.initializers

    def twin(self, node: ir.Node) -> ir.Node | None:
        """Return the node that `node` was."""
        found = self.nodes.get(label(node))
        return found if found is not None and found.op_type == node.op_type else None

    def of(self, node: ir.Node) -> dict[int, ir.TensorProtocol | None] | None:
        """Return the constants of `node` by input index, None for one that it did not have; None if they are not found.

        All or nothing: a bias that takes back the error of rounded weights is wrong beside the weights themselves.
        """
        found: dict[int, ir.TensorProtocol | None] = {}
        twin = self.twin(node)
        weighty = False
        for slot, value in enumerate(node.inputs):
            integers = integers_of(value)
            if integers is None and nodes.constant(value) is None:
                continue
            original = self._constant(twin, slot, integers)
            weighty |= integers is not None
            if original is None and twin is not None and _is_left_out(twin, slot) and slot >= _LEAST_INPUTS:
                found[slot] = None
            elif original is not None and (integers is None or _fits(original.numpy(), integers)):
                found[slot] = original
            elif integers is not None:
                return None
        return found if weighty else None

    def _constant(self, twin: ir.Node | None, slot: int, integers: ir.Node | None) -> ir.TensorProtocol | None:
        if twin is not None:
            return _tensor(twin.inputs[slot]) if slot < len(twin.inputs) else None
        name = None if integers is None or integers.inputs[0] is None else integers.inputs[0].name
        known = self.initializers.get((name or "").removesuffix("_quantized"))
        return None if known is None else known.const_value


_LEAST_INPUTS: Final = 2
"""The bias is the third input of every operator that has one."""


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


def _activations_behind(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the activations that are fused into the operator that makes `value`."""
    last = final(value)
    while value is not last:
        (node, _), *_others = value.uses()
        yield node
        value = node.outputs[0]


def _is_left_out(node: ir.Node, slot: int) -> bool:
    return slot >= len(node.inputs) or node.inputs[slot] is None


def _fits(original: Array, integers: ir.Node) -> bool:
    """Return whether rounding may have made what `integers` gives of `original`."""
    values, scale = dequantized(integers), nodes.constant(integers.inputs[1])
    stored = nodes.constant(integers.inputs[0])
    if values is None or scale is None or stored is None:
        return False
    if original.dtype != values.dtype or original.shape != values.shape:
        return False
    if _is_wide(integers):
        return True  # a bias: its steps are tiny, and what it was shifted by is not
    steps = (original.astype(np.float64) - values) / along(integers, scale, values.shape)
    magnitudes = np.abs(stored.astype(np.int64))
    inside = steps[magnitudes < magnitudes.max(initial=0)]  # at the ends there is clipping, which may take any away
    return not inside.size or bool(np.sqrt(np.mean(np.square(inside))) <= MATCHING_STEPS)


def _is_wide(integers: ir.Node) -> bool:
    value = integers.inputs[0]
    return value is not None and value.dtype == ir.DataType.INT32


def _works_on_integers(node: ir.Node) -> bool:
    if _is(node, "QuantizeLinear", "DequantizeLinear"):
        return False
    given = [value for value in node.inputs if value is not None]
    if any(_has_integer_values(value) for value in given):
        return True
    activations = [value for value in given if node.op_type in _BINARY or nodes.constant(value) is None]
    if not activations or any(_made_by(value, "DequantizeLinear") is None for value in activations):
        return False
    # A mover passes integers on even where nothing quantizes what it makes.
    return node.op_type in operators.WEIGHTED | MOVERS or any(
        _readers(final(output), "QuantizeLinear") for output in node.outputs
    )


def _only_moves(node: ir.Node) -> bool:
    return node.op_type in MOVERS and not any(value is not None and _has_integer_values(value) for value in node.inputs)


def _has_integer_values(value: ir.Value) -> bool:
    """Return whether `value` is a constant that is stored as integers, or rounded to them first."""
    if integers_of(value) is not None:
        return True
    pair = pair_in_front(value)
    return pair is not None and nodes.constant(pair[0].inputs[0]) is not None


def integers_of(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear of stored integers that makes `value`."""
    node = _made_by(value, "DequantizeLinear")
    return node if node is not None and nodes.constant(node.inputs[0]) is not None else None


def _is(node: ir.Node, *kinds: str) -> bool:
    return node.domain in PAIR_DOMAINS and node.op_type in kinds


def _made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and _is(node, kind) else None


def _readers(value: ir.Value, kind: str) -> tuple[ir.Node, ...]:
    return tuple(dict.fromkeys(node for node, slot in value.uses() if slot == 0 and _is(node, kind)))


def _readers_behind(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that read `value`, behind its pairs where there are some."""
    for node, _ in value.uses():
        if _is(node, "QuantizeLinear", "DequantizeLinear"):
            yield from _readers_behind(node.outputs[0])
        else:
            yield node


def _maker(value: ir.Value | None) -> ir.Node | None:
    """Return the node that makes `value`, before its pairs and fused activations."""
    node = None if value is None else value.producer()
    while node is not None and (_is(node, "QuantizeLinear", "DequantizeLinear") or node.op_type in {"Relu", "Clip"}):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node
