"""Writes a plan into a graph as standard QuantizeLinear and DequantizeLinear. Decides nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgewise.compress.quantize import affine, operators
from edgewise.compress.quantize.plan import Plan, QuantizedTensor, QuantizedWeight
from edgewise.errors import ContractError, ModelError
from edgewise.records.arrays import StoredArray
from edgewise.records.tensors import Array

_LEAST_OPSET = 13  # the first in which QuantizeLinear has an axis


def apply(model: ir.Model, plan: Plan) -> ir.Model:
    """Return a copy of `model` that is quantized as `plan` says; whatever stays as it was is shared.

    Args:
        model: The model for which the plan was made; not changed.
        plan: The plan.

    Raises:
        ModelError: If the model's opset is older than 13.
        ContractError: If the plan names a tensor or node that the model does not have.
    """
    opset = model.graph.opset_imports.get("", 0)
    if opset < _LEAST_OPSET:
        raise ModelError(
            f"A model has to have opset {_LEAST_OPSET} or newer to be quantized. Received opset {opset}.",
            hint="Convert it with `onnx.version_converter`, or export it again with a newer opset.",
        )
    copy = model.clone()
    writer = _Writer(copy, plan)
    for tensor in plan.tensors:
        writer.quantize_tensor(tensor)
    for weight in plan.weights:
        writer.quantize_weight(weight)
    writer.remove_unused()
    return copy


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
        self.shared: dict[tuple[str, int | None, tuple[float, ...], StoredArray | None], ir.Value] = {}
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
        name = value.name
        value.name = self._unique(f"{name}_float")
        replacement.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = replacement

    def quantize_weight(self, weight: QuantizedWeight) -> None:
        """Put integers and a DequantizeLinear in place of the weights and the bias of a node."""
        node = self._node(weight.node)
        value = self._value(weight.name)
        key = (weight.name, weight.axis, weight.scales, weight.integers)
        if key not in self.shared:
            # Weights that several nodes read are stored once; the first reader in the plan is the first in the graph.
            self.shared[key] = self._dequantized_weight(weight, node)
        self.replaced.append(value)
        node.replace_input_with(weight.slot, self.shared[key])
        if weight.bias_slot is not None:
            self._quantize_bias(node, weight, weight.bias_slot)

    def _dequantized_weight(self, weight: QuantizedWeight, reader: ir.Node) -> ir.Value:
        scales = np.array(weight.scales if weight.axis is not None else weight.scales[0], np.float32)
        if weight.integers is not None:
            integers = weight.integers.numpy()
        else:
            values, largest = self._constant(self._value(weight.name)), 2 ** (weight.bits - 1) - 1
            integers = np.clip(affine.quantize_array(values, scales, 0, np.int8, axis=weight.axis), -largest, largest)
        return self._dequantize(weight.name, integers, scales, weight.axis, before=reader)

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

    def _dequantize(self, name: str, integers: Array, scales: Array, axis: int | None, *, before: ir.Node) -> ir.Value:
        """Store `integers` and return their real numbers, which a new node computes just before `before`."""
        stored = self._initializer(f"{name}_quantized", integers)
        scale = self._initializer(f"{name}_scale", scales)
        zero = self._initializer(f"{name}_zero_point", np.zeros(scales.shape, integers.dtype))
        node = ir.node("DequantizeLinear", [stored, scale, zero], None if axis is None else {"axis": axis})
        self._describe(node, f"{name}_dequantized", ir.DataType.FLOAT, ir.Shape(integers.shape))
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _initializer(self, name: str, values: Array) -> ir.Value:
        name = self._unique(name)
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
        output.name = self._unique(name)
        output.dtype = dtype
        output.shape = None if shape is None else shape.copy()
        node.name = output.name

    def _unique(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self.names:
            number += 1
            candidate = f"{name}_{number}"
        self.names.add(candidate)
        return candidate

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
        values = operators.constant(value)
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
