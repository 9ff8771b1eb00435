"""ONNX graphs as PyTorch modules that can be trained, and the trained weights back into the graph.

The module interprets the graph: it needs neither the code nor the framework in which the model was written. Samples
are computed together by `torch.func.vmap`, each as the graph says, so that a graph of batch 1 trains on mini-batches
although its shapes, transposes and gathers name that 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgewise.errors import ContractError, ModelError
from edgewise.formats.torch_layers import Call, along, dequantize, on_grid
from edgewise.formats.torch_missing import missing
from edgewise.formats.torch_operators import OPERATORS, Operator, torch_type
from edgewise.records.findings import Decline
from edgewise.records.tensors import Array, Feeds

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise missing() from error

Tensor: TypeAlias = "torch.Tensor"
Tensors: TypeAlias = "dict[str, torch.Tensor]"
_Environment: TypeAlias = dict[ir.Value, Any]

OLDEST_OPSET: Final = 13
"""Oldest opset: from it on axes are operands, and softmax is along one axis."""

_CONTROL: Final = Operator(lambda _, *x: x)
"""Stands for the nodes that carry graphs or constants, which the interpreter runs itself."""

_STAGE: Final = "torch"
_TRAINED: Final = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
_SCALARS_ARE_WEIGHTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""A single number is a weight of these; elsewhere it is a constant of a formula, such as the half in a GELU."""


def declines(model: ir.Model) -> tuple[Decline, ...]:
    """Return the nodes that have no form in PyTorch here, each with the reason."""
    if _opset(model) < OLDEST_OPSET:
        old = f"its opset is {_opset(model)}, and {OLDEST_OPSET} is the oldest that is supported"
        return (Decline(stage=_STAGE, node="", operator="", reason=old),)
    found = []
    for node in model.graph.all_nodes():
        reason = _why_not(node, _opset(model))
        if reason is not None:
            name = str(node.name or node.outputs[0].name or node.op_type)
            found.append(Decline(stage=_STAGE, node=name, operator=node.op_type, reason=reason))
    return tuple(found)


def to_module(model: ir.Model, *, quantized: bool = False) -> OnnxModule:
    """Return `model` as a module; see `OnnxModule`. `model` is not changed.

    Args:
        model: A model whose operators are all in `OPERATORS`.
        quantized: Whether weights that are stored as integers are trained, too: in floating point, rounded to their
            steps at each use, with a straight-through gradient.

    Raises:
        ModelError: If an operator has no form in PyTorch here; it is named.
    """
    if refused := declines(model):
        named = "; ".join(f"`{one.operator or 'the model'}` {one.node}: {one.reason}" for one in refused[:5])
        raise ModelError(
            f"To be trained, every operator of a model has to be one that edgewise knows in PyTorch. {len(refused)} of "
            f"them are not: {named}.",
            hint="The model can be compressed without recovery.",
        )
    return OnnxModule(model, quantized=quantized)


def to_model(module: OnnxModule) -> ir.Model:
    """Return the graph with the weights that `module` has now; names, structure and interface stay as they were."""
    result = module.source.clone()
    clones = dict(_initializers(result))
    with torch.no_grad():
        for key, array in module.arrays().items():
            held = _held(clones[key])
            if not np.array_equal(array, held.numpy()):
                clones[key].const_value = ir.Tensor(array, dtype=held.dtype, name=held.name)
    return result


class OnnxModule(torch.nn.Module):  # type: ignore[misc]  # without PyTorch's types its classes are Any
    """A graph as a module.

    `forward` takes samples stacked along a new first axis: for an input of shape `[1, 3, 32, 32]` a tensor `[B, 1, 3,
    32, 32]`, and gives outputs of that form. Integer inputs that are the same in all samples are passed once, so that
    shapes and branches may depend on them.

    Floating-point initializers that are weights are parameters. Settings (bounds, scales, exponents, single numbers in
    formulas), statistics of BatchNormalization, integers, masks with infinities and float16 stay as they are.

    Attributes:
        source: The graph.
        trained: The parameters by the name of their initializer; within a subgraph `INDEX/NAME`.
    """

    def __init__(self, model: ir.Model, *, quantized: bool) -> None:
        super().__init__()
        self.source = model
        self.trained: dict[str, Any] = {}
        self._values = dict(_initializers(model))
        self._shadows: dict[str, _Shadow] = _shadows(model, self._values) if quantized else {}
        self._constants: list[tuple[ir.Value, str]] = []
        self._host: dict[ir.Value, Tensor] = {}
        self._weights = torch.nn.ParameterList()
        self._together = True
        for key, value in self._values.items():
            self._place(key, value)
        shadowed = {shadow.node: shadow for shadow in self._shadows.values()}
        self._program = _Program(model.graph, _opset(model), shadowed)

    def forward(self, samples: Mapping[str, Tensor], also: Sequence[str] = ()) -> Tensors:
        """Return the outputs, and the values named in `also`, for stacked samples."""
        varying, fixed = self._sorted(samples)

        def one(rows: Tensors) -> Tensors:
            return self._run({**fixed, **rows}, also)

        count = next(iter(samples.values())).shape[0]
        if self._together and varying:
            try:
                return dict(torch.func.vmap(one)(varying))
            except RuntimeError as error:
                if "vmap" not in str(error) and "data-dependent" not in str(error):
                    raise
                # A branch or a shape depends on the numbers of a sample: such graphs run sample by sample.
                self._together = False
        rows = [one({name: tensor[k] for name, tensor in varying.items()}) for k in range(count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def arrays(self) -> dict[str, Array]:
        """Return every trained weight as it is written: rounded to integers where the graph stores such."""
        found = {}
        for key, parameter in self.trained.items():
            shadow = self._shadows.get(key)
            found[key] = (parameter if shadow is None else shadow.grid(parameter)).detach().cpu().numpy()
            if shadow is not None:
                found[key] = found[key].astype(shadow.stored)
        return found

    def _place(self, key: str, value: ir.Value) -> None:
        """Make a parameter of an initializer, or a constant on the device or on the host."""
        if key in self._shadows or _is_weight(value):
            tensor = self._shadows[key].start if key in self._shadows else _tensor(_held(value))
            self.trained[key] = torch.nn.Parameter(tensor)
            self._weights.append(self.trained[key])
            return
        tensor = _tensor(_held(value))
        if not tensor.is_floating_point():
            self._host[value] = tensor
            return
        self.register_buffer(name := f"constant_{len(self._constants)}", tensor)
        self._constants.append((value, name))

    def _sorted(self, samples: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return the inputs that differ between samples, stacked, and those that do not, once."""
        varying, fixed = {}, {}
        for name, tensor in samples.items():
            same = not tensor.is_floating_point() and bool((tensor == tensor[:1]).all())
            if same:
                fixed[name] = tensor[0]
            else:
                varying[name] = _channels_last(tensor)
        return varying, fixed

    def _run(self, feeds: Tensors, also: Sequence[str]) -> Tensors:
        environment: _Environment = dict(self._host)
        environment.update({value: getattr(self, name) for value, name in self._constants})
        environment.update({self._values[key]: parameter for key, parameter in self.trained.items()})
        environment.update({value: feeds[str(value.name)] for value in self.source.graph.inputs if value.name in feeds})
        self._program.run(environment)
        named = {value.name: value for value in environment}
        outputs = [str(value.name) for value in self.source.graph.outputs]
        return {name: environment[named[name]] for name in [*outputs, *also]}


@dataclass(frozen=True)
class _Shadow:
    """Weights that are stored as integers, in floating point.

    Attributes:
        node: The DequantizeLinear that reads them.
        call: What that node is told.
        start: What they are worth at the start.
        scale: Their steps.
        zero: Their zero points.
        stored: Type of the integers.
    """

    node: ir.Node
    call: Call
    start: Tensor
    scale: Tensor
    zero: Tensor
    stored: Any

    def grid(self, x: Tensor) -> Tensor:
        """Return the integers for weights `x`."""
        scale, zero = (along(x, one.to(x.device, x.dtype), self.call) for one in (self.scale, self.zero))
        return on_grid(x, scale, zero, self.call.limits)

    def __call__(self, x: Tensor) -> Tensor:
        return dequantize(self.call, self.grid(x), self.scale.to(x.device), self.zero.to(x.device))


class _Program:
    """The nodes of one graph in order, ready to run."""

    def __init__(self, graph: ir.Graph, opset: int, shadows: Mapping[ir.Node, _Shadow]) -> None:
        self._graph = graph
        self._steps: list[tuple[ir.Node, Operator, Call]] = []
        self._bodies: dict[ir.Graph, _Program] = {}
        self._shadows = shadows
        for node in graph:
            self._steps.append((node, OPERATORS.get(node.op_type, _CONTROL), _call(node, opset)))
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    self._bodies[attribute.as_graph()] = _Program(attribute.as_graph(), opset, shadows)

    def run(self, environment: _Environment) -> list[Any]:
        """Compute every value of the graph into `environment`, and return the outputs."""
        for node, operator, call in self._steps:
            operands = [None if value is None else environment[value] for value in node.inputs]
            results: Any
            if node in self._shadows:
                results = self._shadows[node](operands[0])
            elif node.op_type == "Constant":
                results = _constant(node)
            elif node.op_type == "If":
                results = self._branch(node, operands, environment)
            elif node.op_type == "Loop":
                results = self._loop(node, operands, environment)
            else:
                results = operator.run(call, *_on_one_device(operands, operator.host))
            given = results if isinstance(results, list | tuple) else [results]
            environment.update(zip(node.outputs, given, strict=False))
        return [environment[value] for value in self._graph.outputs]

    def _branch(self, node: ir.Node, operands: Sequence[Tensor], environment: _Environment) -> list[Any]:
        name = "then_branch" if bool(operands[0].reshape(()).item()) else "else_branch"
        return self._bodies[node.attributes[name].as_graph()].run(dict(environment))

    def _loop(self, node: ir.Node, operands: Sequence[Any], environment: _Environment) -> list[Any]:
        body = node.attributes["body"].as_graph()
        limit = None if operands[0] is None else int(operands[0].reshape(()).item())
        carried = list(operands[2:])
        going = True if operands[1] is None else bool(operands[1].reshape(()).item())
        scans: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
        step = 0
        while going and (limit is None or step < limit):
            inner = dict(environment)
            inner.update(zip(body.inputs, [torch.tensor(step), torch.tensor(going), *carried], strict=True))
            condition, *results = self._bodies[body].run(inner)
            going = bool(condition.reshape(()).item())
            carried, rows = results[: len(carried)], results[len(carried) :]
            for scan, row in zip(scans, rows, strict=True):
                scan.append(row)
            step += 1
        return [*carried, *(torch.stack(scan) for scan in scans)]


def _why_not(node: ir.Node, opset: int) -> str | None:
    if node.domain not in {"", "ai.onnx"}:
        return f"it is an operator of `{node.domain}`"
    if node.op_type in {"Constant", "If", "Loop"}:
        return None
    operator = OPERATORS.get(node.op_type)
    if operator is None:
        return "the operator has no form in PyTorch here"
    return operator.why_not(_call(node, opset))


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def _call(node: ir.Node, opset: int) -> Call:
    attributes = {
        name: tuple(found.value) if isinstance(found.value, list) else found.value
        for name, found in node.attributes.items()
        if found.type not in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    }
    given = tuple(value is not None for value in node.inputs)
    outputs = sum(1 for value in node.outputs if value.name)
    return Call(opset, attributes, given, outputs, _limits(node))


def _limits(node: ir.Node) -> tuple[int, int]:
    """Return the least and greatest integer of a node that quantizes."""
    if node.op_type != "QuantizeLinear":
        return 0, 255
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.dtype is not None:
        return _bounds(zero.dtype)
    kind = node.attributes.get("output_dtype")
    return _bounds(ir.DataType(kind.as_int() if kind is not None and kind.as_int() else ir.DataType.UINT8))


def _bounds(kind: ir.DataType) -> tuple[int, int]:
    found = ml_dtypes.iinfo(kind.numpy())  # type: ignore[no-untyped-call]
    return int(found.min), int(found.max)


def _constant(node: ir.Node) -> Tensor:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is None:
        raise ModelError(f"A constant has to be a tensor of numbers. `{node.outputs[0].name}` is not.")
    return _tensor(tensor)


def _held(value: ir.Value) -> ir.TensorProtocol:
    """Return what an initializer holds."""
    if value.const_value is None:
        raise ContractError(f"`{value.name}` has to be an initializer, but it has no value.")
    return value.const_value


def _tensor(tensor: ir.TensorProtocol) -> Tensor:
    """Return a copy in PyTorch; integers of less than 8 bits come as int32."""
    array = tensor.numpy()
    if tensor.dtype.is_integer() and tensor.dtype.bitwidth < 8:
        return torch.from_numpy(array.astype(np.int32))
    if tensor.dtype == ir.DataType.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).to(torch_type(tensor.dtype))
    # Broadcast arrays of the standard's own size: PyTorch takes neither those of other byte orders nor read-only ones.
    return torch.from_numpy(np.array(array, order="C"))


def _initializers(model: ir.Model) -> list[tuple[str, ir.Value]]:
    """Return the constants of all graphs; those of subgraphs are told apart by the graph's number."""
    return [
        (str(name) if index == 0 else f"{index}/{name}", value)
        for index, graph in enumerate(model.graphs())
        for name, value in graph.initializers.items()
        if value.const_value is not None
    ]


def _is_weight(value: ir.Value) -> bool:
    tensor = _held(value)
    if tensor.dtype not in _TRAINED or value.is_graph_input() or value.is_graph_output():
        return False
    readers = [(node, slot) for node, slot in value.uses()]
    if any(slot in OPERATORS[node.op_type].fixed for node, slot in readers if node.op_type in OPERATORS):
        return False
    if tensor.size <= 1 and not any(node.op_type in _SCALARS_ARE_WEIGHTS for node, _ in readers):
        return False
    return bool(readers) and bool(np.isfinite(tensor.numpy()).all())


def _shadows(model: ir.Model, values: Mapping[str, ir.Value]) -> dict[str, _Shadow]:
    """Return the weights that are stored as integers with constant steps, by name."""
    found = {}
    for key, value in values.items():
        readers = list(value.uses())
        tensor = value.const_value
        if len(readers) != 1 or tensor is None or not tensor.dtype.is_integer():
            continue
        node, slot = readers[0]
        step = node.inputs[1] if len(node.inputs) > 1 else None
        scale = None if step is None else ir.convenience.get_const_tensor(step)
        if node.op_type != "DequantizeLinear" or slot != 0 or scale is None or scale.dtype not in _TRAINED:
            continue
        offset = node.inputs[2] if len(node.inputs) > 2 else None
        zero = None if offset is None else ir.convenience.get_const_tensor(offset)
        steps = _tensor(scale)
        call = _call(node, _opset(model))
        call = Call(call.opset, call.attributes, call.given, call.outputs, _bounds(tensor.dtype))
        zeros = torch.zeros_like(steps) if zero is None else _tensor(zero).to(steps.dtype)
        start = dequantize(call, _tensor(tensor), steps, zeros)
        found[key] = _Shadow(node, call, start, steps, zeros, tensor.numpy().dtype)
    return found


def _on_one_device(operands: Sequence[Tensor | None], host: Collection[int]) -> Sequence[Tensor | None]:
    """Bring integers of the host to where the other operands are, but not those that Python reads."""
    devices = [x.device for k, x in enumerate(operands) if x is not None and k not in host]
    other = next((device for device in devices if device.type != "cpu"), None)
    if other is None:
        return operands
    return [x if x is None or k in host else x.to(other) for k, x in enumerate(operands)]


def _channels_last(x: Tensor) -> Tensor:
    """Return stacked images `[B, 1, C, H, W]` with their channels side by side in memory.

    Convolutions keep that order, and are a third faster in it on x86: ResNet56 takes 0.29 s rather than 0.46 s for 32
    images on one thread.
    """
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if x.dim() == 5 and x.is_floating_point() else x


def stacked(feeds: Sequence[Feeds], device: Any = "cpu") -> Tensors:
    """Return samples stacked along a new first axis, by input.

    Raises:
        ModelError: If their shapes differ.
    """
    if not feeds:
        return {}
    for name, first in feeds[0].items():
        if other := next((one[name].shape for one in feeds if one[name].shape != first.shape), None):
            raise ModelError(
                f"Samples that are trained on together have to have one shape. Those of `{name}` have {first.shape} "
                f"and {other}.",
                hint="Give samples of one length.",
            )
    return {name: torch.from_numpy(np.stack([np.asarray(one[name]) for one in feeds])).to(device) for name in feeds[0]}
