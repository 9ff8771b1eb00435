"""Writes a plan into a graph as standard QuantizeLinear and DequantizeLinear. Decides nothing."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from edgewise.compress import nodes
from edgewise.compress.nodes import unused_name
from edgewise.compress.quantize.placement import KEPT
from edgewise.compress.quantize.plan import Plan, QuantizedTensor, QuantizedWeight, integers_of, scales_of
from edgewise.compress.quantize.reasons import write_reasons
from edgewise.errors import ContractError, ModelError
from edgewise.formats.opset import raise_opset
from edgewise.records.arrays import StoredArray
from edgewise.records.tensors import Array

_LEAST_OPSET: Final = 13  # the first in which QuantizeLinear has an axis
_OPSET_OF_TYPE: Final = {16: 21, 8: _LEAST_OPSET, 4: 21, 2: 25}
"""The first opset in which integers of so many bits can be quantized and dequantized."""
_OPSET_OF_BLOCKS: Final = 21

_TYPES: Final = {8: ir.DataType.INT8, 4: ir.DataType.INT4, 2: ir.DataType.INT2}

_Key: TypeAlias = tuple[str, int | None, int, tuple[float, ...], StoredArray | None, StoredArray | None]


def apply(model: ir.Model, plan: Plan) -> ir.Model:
    """Return a copy of `model` that is quantized as `plan` says; whatever stays as it was is shared.

    16-bit activations, 4-bit weights and blocks need opset 21, 2-bit weights opset 25: the copy is raised to what it
    needs. Its metadata says which nodes stayed float by choice (`reasons`).

    Args:
        model: The model for which the plan was made; not changed.
        plan: The plan.

    Raises:
        ModelError: If the model's opset is older than 13, or cannot be raised as far as the plan needs.
        ContractError: If the plan names a tensor or node that the model does not have.
    """
    opset = model.graph.opset_imports.get("", 0)
    if opset < _LEAST_OPSET:
        raise ModelError(
            f"A model has to have opset {_LEAST_OPSET} or newer to be quantized. Received opset {opset}.",
            hint="Convert it with `onnx.version_converter`, or export it again with a newer opset.",
        )
    raised = raise_opset(model, _needed_opset(plan))
    copy = model.clone() if raised is model else raised
    writer = _Writer(copy, plan)
    for tensor in plan.tensors:
        writer.quantize_tensor(tensor)
    for weight in plan.weights:
        writer.quantize_weight(weight)
    writer.remove_unused()
    # What could not be quantized can be found out again; what was kept by choice cannot.
    write_reasons(copy, [decline for decline in plan.declines if decline.reason == KEPT])
    return copy


def _needed_opset(plan: Plan) -> int:
    needed = [_LEAST_OPSET, *(_OPSET_OF_TYPE[weight.stored_bits] for weight in plan.weights)]
    if plan.activation_type in {"uint16", "int16"}:
        needed.append(_OPSET_OF_TYPE[16])
    if any(weight.block for weight in plan.weights):
        needed.append(_OPSET_OF_BLOCKS)
    return max(needed)


class _Writer:
    """The state of one call of `apply`."""

    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self.graph = model.graph
        self.dtype = np.dtype(plan.activation_type)
        self.scales = {tensor.name: np.float32(tensor.scale) for tensor in plan.tensors}
        self.values = {value.name: value for value in [*self.graph.inputs, *self.graph.initializers.values()]}
        self.nodes: dict[str, ir.Node] = {}
        for node in self.graph:
            self.values.update({value.name: value for value in node.outputs})
            if node.outputs[0].name:
                self.nodes[node.outputs[0].name] = node
        self.names = _names(model)
        self.shared: dict[_Key, ir.Value] = {}
        self.replaced: list[ir.Value] = []

    def quantize_tensor(self, tensor: QuantizedTensor) -> None:
        """Put a Q/DQ pair behind a tensor and let its readers read the pair."""
        value = self._value(tensor.name)
        everyone = tensor.readers is None
        # Looked up first: the pair itself is going to be a reader as well.
        edges = (
            list(value.uses())
            if tensor.readers is None
            else [(self._node(reader.node), reader.slot) for reader in tensor.readers]
        )
        scale = self._initializer(f"{tensor.name}_scale", np.array(tensor.scale, np.float32))
        zero = self._initializer(f"{tensor.name}_zero_point", np.array(tensor.zero_point, self.dtype))
        quantize = ir.node("QuantizeLinear", [value, scale, zero])
        self._describe(quantize, f"{tensor.name}_quantized", ir.DataType.from_numpy(self.dtype), value.shape)
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])
        self._describe(dequantize, f"{tensor.name}_dequantized", ir.DataType.FLOAT, value.shape)
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantize, dequantize])
        else:
            self.graph.insert_after(producer, [quantize, dequantize])
        for node, slot in edges:
            node.replace_input_with(slot, dequantize.outputs[0])
        if everyone and value.is_graph_output():
            self._give(value, dequantize.outputs[0])

    def _give(self, value: ir.Value, replacement: ir.Value) -> None:
        """Let the model give `replacement` under the name of its output `value`."""
        name, producer = value.name, value.producer()
        if producer is not None and not producer.name:
            producer.name = name  # by which plans and findings call it
        value.name = unused_name(self.names, f"{name}_float")
        replacement.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = replacement

    def quantize_weight(self, weight: QuantizedWeight) -> None:
        """Put integers and a DequantizeLinear in place of the weights and the bias of a node."""
        node = self._node(weight.node)
        value = self._value(weight.name)
        key = (weight.name, weight.axis, weight.block, weight.scales, weight.block_scales, weight.integers)
        if key not in self.shared:
            # Weights that several nodes read are stored once; the first reader in the plan is the first in the graph.
            self.shared[key] = self._dequantized_weight(weight, node)
        self.replaced.append(value)
        node.replace_input_with(weight.slot, self.shared[key])
        if weight.bias_slot is None:
            if weight.activation in self.scales and self.dtype.itemsize == 1:
                self._widen_summands(node)
            return
        if weight.activation in self.scales:
            self._quantize_bias(node, weight, weight.bias_slot)
        elif weight.bias_shift:
            self._shift_bias(node, weight, weight.bias_slot)

    def _widen_summands(self, product: ir.Node) -> None:
        """Give each constant vector that is added to a product of three or more axes as many axes as it; exact.

        ONNX Runtime 1.32 makes a Gemm of such a MatMul and the vector before it looks for 8-bit operators, and finds
        none in a Gemm with a float bias: it dequantizes all weights in each run, 3 times slower than in float. It
        leaves a summand `[1, ..., 1, N]` alone.
        """
        output = product.outputs[0]
        if not nodes.is_standard(product) or product.op_type != "MatMul" or output.shape is None:
            return
        rank = len(output.shape)
        for add, slot in list(output.uses()):
            if rank < 3 or not nodes.is_standard(add) or add.op_type != "Add":
                continue
            vector = nodes.required(add.inputs[1 - slot])
            values = nodes.constant(vector)
            if values is None or values.ndim != 1:
                continue
            wide = self._initializer(f"{vector.name}_wide", values.reshape((1,) * (rank - 1) + values.shape))
            add.replace_input_with(1 - slot, wide)
            self.replaced.append(vector)

    def _dequantized_weight(self, weight: QuantizedWeight, reader: ir.Node) -> ir.Value:
        integers = integers_of(weight, self._constant(self._value(weight.name)))
        if weight.block_scales is not None:
            return self._dequantized_blocks(weight, integers, reader)
        stored = integers.astype(_TYPES[weight.stored_bits].numpy())
        # Without activations that kernels multiply them with, nobody needs a zero point: it would only take room.
        zero = weight.activation in self.scales
        return self._dequantize(weight.name, stored, scales_of(weight), weight.axis, before=reader, zero=zero)

    def _dequantized_blocks(self, weight: QuantizedWeight, integers: Array, reader: ir.Node) -> ir.Value:
        """Store integers with one scale for each block.

        Those of a Conv are stored as a matrix, because ONNX has no scale that is shared along two axes: it would have
        to be stored once for each weight of a kernel.
        """
        shape, scales, block = integers.shape, scales_of(weight), weight.block
        is_kernel = len(shape) > 2 and weight.axis == 0 and weight.block_axis == 1
        if is_kernel:
            block *= int(np.prod(shape[2:]))
            integers, scales = integers.reshape(shape[0], -1), scales.reshape(shape[0], -1)
        else:
            spread = [scales.shape[k] if k == weight.block_axis else size for k, size in enumerate(shape)]
            scales = np.broadcast_to(scales, spread)
        stored = integers.astype(_TYPES[weight.stored_bits].numpy())
        value = self._dequantize(
            weight.name, stored, np.ascontiguousarray(scales), weight.block_axis, before=reader, zero=False, block=block
        )
        if not is_kernel:
            return value
        target = self._initializer(f"{weight.name}_shape", np.array(shape, np.int64))
        reshape = ir.node("Reshape", [value, target])
        self._describe(reshape, f"{weight.name}_kernel", ir.DataType.FLOAT, ir.Shape(shape))
        self.graph.insert_before(reader, reshape)
        return reshape.outputs[0]

    def _shift_bias(self, node: ir.Node, weight: QuantizedWeight, slot: int) -> None:
        """Add the plan's shift to a bias that stays float."""
        old = node.inputs[slot] if len(node.inputs) > slot else None
        shift = np.array(weight.bias_shift)
        bias = shift if old is None else self._constant(old).astype(np.float64) + shift
        name = f"{node.outputs[0].name}_bias" if old is None or not old.name else f"{old.name}_shifted"
        if old is not None:
            self.replaced.append(old)
        if len(node.inputs) <= slot:
            node.resize_inputs(slot + 1)
        node.replace_input_with(slot, self._initializer(name, bias.astype(np.float32)))

    def _quantize_bias(self, node: ir.Node, weight: QuantizedWeight, slot: int) -> None:
        old = node.inputs[slot] if len(node.inputs) > slot else None
        bias = np.zeros((), np.float64) if old is None else self._constant(old).reshape(-1).astype(np.float64)
        if weight.bias_shift:
            bias = bias + np.array(weight.bias_shift)
        # The product in float32, as runtimes compute it.
        scales = np.array(weight.scales, np.float32) * self.scales[weight.activation]
        scales = scales if weight.axis is not None else scales[0]
        limits = np.iinfo(np.int32)
        integers = np.clip(np.rint(bias / scales.astype(np.float64)), limits.min, limits.max).astype(np.int32)
        axis = 0 if weight.axis is not None else None
        name = f"{node.outputs[0].name}_bias" if old is None or not old.name else old.name
        value = self._dequantize(name, integers, np.asarray(scales), axis, before=node)
        if old is not None:
            self.replaced.append(old)
        if len(node.inputs) <= slot:
            node.resize_inputs(slot + 1)
        node.replace_input_with(slot, value)

    def _dequantize(
        self,
        name: str,
        integers: Array,
        scales: Array,
        axis: int | None,
        *,
        before: ir.Node,
        zero: bool = True,
        block: int = 0,
    ) -> ir.Value:
        """Store `integers` and return their real numbers, which a new node computes just before `before`."""
        inputs = [self._initializer(f"{name}_quantized", integers), self._initializer(f"{name}_scale", scales)]
        if zero:
            inputs.append(self._initializer(f"{name}_zero_point", np.zeros(scales.shape, integers.dtype)))
        attributes = {} if axis is None else {"axis": axis}
        if block:
            attributes["block_size"] = block
        node = ir.node("DequantizeLinear", inputs, attributes)
        self._describe(node, f"{name}_dequantized", ir.DataType.FLOAT, ir.Shape(integers.shape))
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _initializer(self, name: str, values: Array) -> ir.Value:
        name = unused_name(self.names, name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(values.dtype)),
            shape=ir.Shape(values.shape),
            const_value=ir.Tensor(values, name=name),
        )
        self.graph.register_initializer(value)
        return value

    def _describe(self, node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
        """Name a new node and its output, and give the output its type and shape."""
        output = node.outputs[0]
        output.name = unused_name(self.names, name)
        output.dtype = dtype
        output.shape = None if shape is None else shape.copy()
        node.name = output.name

    def remove_unused(self) -> None:
        """Remove weights and biases that nobody reads any more."""
        for value in self.replaced:
            if value.uses() or value.is_graph_output():
                continue
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                self.graph.remove(producer, safe=True)
            elif value.name is not None and value.name in self.graph.initializers:
                del self.graph.initializers[value.name]

    def _value(self, name: str) -> ir.Value:
        if name not in self.values:
            raise ContractError(f"A plan belongs to one model, and this one has no tensor `{name}`.")
        return self.values[name]

    def _node(self, name: str) -> ir.Node:
        if name not in self.nodes:
            raise ContractError(f"A plan belongs to one model, and this one has no node that makes `{name}`.")
        return self.nodes[name]

    @staticmethod
    def _constant(value: ir.Value) -> Array:
        values = nodes.constant(value)
        if values is None:
            raise ContractError(f"A plan belongs to one model, and in this one `{value.name}` is not constant.")
        return values


def _names(model: ir.Model) -> set[str | None]:
    """Return every name that is taken, subgraphs included."""
    names: set[str | None] = set()
    for graph in model.graphs():
        names.update(value.name for value in [*graph.inputs, *graph.initializers.values()])
        for node in graph:
            # A node and a value may have one name, two nodes may not: ONNX Runtime refuses them.
            names.update([node.name, *(value.name for value in node.outputs)])
    return names
