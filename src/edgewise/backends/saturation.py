"""Finds out by running how wide 8-bit weights may be before a backend's kernels saturate, on this machine as it is set.

x86 without a dot-product instruction sums 8-bit products in pairs, in 16 bits, saturating (Intel 64 and IA-32 manual,
vol. 2, PMADDUBSW): 2 x 255 x 127 is 64,770, and 32,767 comes out. The processor's flags do not decide it: settings
such as ONEDNN_MAX_CPU_ISA, emulators and virtual machines take instructions away, and a runtime need not use those
that are there. So a graph of small 8-bit layers is run, whose exact sums are known.

The cure is narrower weights, not a runtime's safe mode: docs/adr/0010-saturation-is-measured.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from edgewise.backends.processor import exact_product_bits, features, is_x86
from edgewise.errors import EdgewiseError
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Array, Outputs

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgewise.backends.protocol import Backend

ActivationType = Literal["uint8", "int8"]

MEASURED: Final = "measured"
"""How `Target.exact_product_bits` is known where it was found out by running."""

WIDTHS: Final = (8, 7)
"""Weight bits that are tried, the widest first. No pair of products with 7-bit weights leaves 16 bits."""

STEP: Final = 1024.0
"""Step of the 8-bit outputs. The exact sums are within 128 of them; one saturated pair is off by 31 or more."""

_OPSET: Final = 17
_IR_VERSION: Final = 8


@dataclass(frozen=True)
class Layer:
    """One layer of the probe.

    Attributes:
        operator: `Conv` or `MatMul`.
        input: Shape of its input.
        weight: Shape of its weight: `[C_out, C_in / groups, height, width]`, or `[C_in, C_out]`.
        groups: Groups of a Conv.
    """

    operator: Literal["Conv", "MatMul"]
    input: tuple[int, ...]
    weight: tuple[int, ...]
    groups: int = 1

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of its output; windows stay inside the input."""
        if self.operator == "MatMul":
            return (*self.input[:-1], self.weight[1])
        sizes = (size - window + 1 for size, window in zip(self.input[2:], self.weight[2:], strict=True))
        return (self.input[0], self.weight[0], *sizes)

    @property
    def output_axis(self) -> int:
        """Axis of the weight along which its outputs lie."""
        return 0 if self.operator == "Conv" else 1


LAYERS: Final[Mapping[str, Layer]] = {
    "conv_3x3_of_3": Layer("Conv", (1, 3, 10, 10), (16, 3, 3, 3)),
    "conv_3x3_of_24": Layer("Conv", (1, 24, 10, 10), (24, 24, 3, 3)),
    "conv_3x3_of_64": Layer("Conv", (1, 64, 10, 10), (32, 64, 3, 3)),
    "conv_1x1_of_32": Layer("Conv", (1, 32, 8, 8), (64, 32, 1, 1)),
    "conv_1x1_of_96": Layer("Conv", (1, 96, 7, 7), (24, 96, 1, 1)),
    "conv_in_groups": Layer("Conv", (1, 32, 8, 8), (32, 16, 3, 3), groups=2),
    "depthwise_3x3": Layer("Conv", (1, 32, 10, 10), (32, 1, 3, 3), groups=32),
    "depthwise_5x5": Layer("Conv", (1, 32, 12, 12), (32, 1, 5, 5), groups=32),
    "matmul_of_one_row": Layer("MatMul", (1, 128), (128, 64)),
    "matmul_of_8_rows": Layer("MatMul", (8, 96), (96, 33)),
    "matmul_of_a_sequence": Layer("MatMul", (1, 7, 64), (64, 64)),
}
"""What is run: each kind of layer, at widths that fill a vector register, that do not, and that need several."""


@dataclass(frozen=True)
class Exactness:
    """How wide weights may be on one backend and machine.

    Attributes:
        bits: Weight bits up to which 8-bit products are summed exactly.
        measured: Whether that was found by running; else it follows from the processor's flags.
        reason: Why it could not be measured, as a full sentence; empty where it was.
        saturated: Layers of `LAYERS` whose sums are not exact with 8-bit weights.
    """

    bits: int
    measured: bool
    reason: str = ""
    saturated: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """How `bits` is known, in words."""
        return MEASURED if self.measured else f"by the processor's flags: {self.reason}"


_FOUND: Final[dict[tuple[str, str], Exactness]] = {}
"""What this process has found out, by backend and activation type: runtimes read their settings once."""


def exactness(backend: Backend, activation_type: ActivationType = "uint8") -> Exactness:
    """Return up to how many weight bits `backend` sums 8-bit products exactly here.

    Runs once a process: for ONNX Runtime in 0.03 s, for OpenVINO in 0.2 to 0.4 s, which it takes to compile (Zen 4).

    Args:
        backend: Where the probe runs, on one thread.
        activation_type: Element type of its quantized activations.

    Returns:
        What was measured. Where the backend cannot run the probe, what the processor's flags say, with the reason.
    """
    key = (backend.name, activation_type)
    if key not in _FOUND:
        _FOUND[key] = _found_out(backend, activation_type)
    return _FOUND[key]


def _found_out(backend: Backend, activation_type: ActivationType) -> Exactness:
    saturated: tuple[str, ...] = ()
    for bits in WIDTHS:
        try:
            wrong = wrong_layers(backend, bits, activation_type)
        except (EdgewiseError, ImportError, OSError) as error:  # a runtime that is missing, broken, or refuses
            return _by_flags(error.message if isinstance(error, EdgewiseError) else str(error))
        if not wrong:
            return Exactness(bits=bits, measured=True, saturated=saturated)
        saturated = saturated or wrong
    return _by_flags(f"Layer `{wrong[0]}` is wrong even where no sum can saturate.")


def _by_flags(reason: str) -> Exactness:
    return Exactness(bits=exact_product_bits(features(), x86=is_x86()), measured=False, reason=reason)


def wrong_layers(backend: Backend, bits: int, activation_type: ActivationType = "uint8") -> tuple[str, ...]:
    """Run the probe and return the layers whose sums are not exact, in the order of `LAYERS`.

    Args:
        backend: Where it runs.
        bits: Weight bits, 2 to 8.
        activation_type: Element type of quantized activations.

    Raises:
        BackendMissingError: If the runtime is not installed.
        BackendError: If it refuses or fails.
    """
    artifact = backend.compile(probe(bits, activation_type), RunOptions())
    session = backend.open(artifact)
    try:
        largest = float(np.iinfo(activation_type).max)
        feeds = {f"x_{name}": np.full(layer.input, largest, np.float32) for name, layer in LAYERS.items()}
        answers = session.run(feeds)
    finally:
        session.close()
    return tuple(name for name in LAYERS if not _is_exact(name, bits, activation_type, answers))


def _is_exact(name: str, bits: int, activation_type: ActivationType, answers: Outputs) -> bool:
    layer = LAYERS[name]
    expected = exact_sums(layer, bits, activation_type)
    if layer.operator == "Conv":
        expected = expected.reshape(-1, 1, 1)
    return bool(np.all(np.abs(answers[name] - expected) < STEP))


def exact_sums(layer: Layer, bits: int, activation_type: ActivationType) -> Array:
    """Return what each output of a layer has to be, in int64, shape `[C_out]`: every input is the largest integer."""
    summed = tuple(axis for axis in range(len(layer.weight)) if axis != layer.output_axis)
    sums: Array = weights(layer, bits).sum(axis=summed, dtype=np.int64) * int(np.iinfo(activation_type).max)
    return sums


def weights(layer: Layer, bits: int) -> Array:
    """Return a layer's weights, int8.

    A third of those of an output are `2^(bits-1) - 1`, the others minus half of it, in another order for each output,
    and every second output has the other sign. So the sum is near zero and any way to pair neighbours, channels or
    taps meets pairs of the large ones, which lose 32,003 of 64,770 where they saturate; pairs of the others cannot, and
    nothing makes up for the loss.
    """
    large = 2 ** (bits - 1) - 1
    outputs = layer.weight[layer.output_axis]
    terms = int(np.prod(layer.weight)) // outputs
    row = np.full(terms, -(large // 2), np.int8)
    row[: round(terms / 3)] = large
    random = np.random.default_rng(0)
    rows = np.stack([random.permutation(row) * (-1) ** (index % 2) for index in range(outputs)]).astype(np.int8)
    return np.ascontiguousarray(rows.T) if layer.operator == "MatMul" else rows.reshape(layer.weight)


def probe(bits: int, activation_type: ActivationType) -> ir.Model:
    """Return the layers side by side as one graph in QDQ form; inputs `x_NAME`, outputs `NAME`, float32."""
    import onnx_ir as ir  # noqa: PLC0415 - a device describes its target without it: by the flags

    tape = ir.tape.Tape()
    constants: list[ir.Value] = []
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []

    def constant(name: str, value: Array) -> ir.Value:
        tensor = ir.tensor(value, name=name)
        made = ir.val(name, tensor.dtype, list(value.shape), const_value=tensor)
        constants.append(made)
        return made

    limits = np.iinfo(activation_type)
    one, step = constant("one", np.array(1, np.float32)), constant("step", np.array(STEP, np.float32))
    zero = constant("zero", np.array(0, activation_type))
    middle = constant("middle", np.array((int(limits.max) + int(limits.min) + 1) // 2, activation_type))
    for name, layer in LAYERS.items():
        values = weights(layer, bits)
        scales = constant(f"scales_{name}", np.ones(layer.weight[layer.output_axis], np.float32))
        inputs.append(ir.val(f"x_{name}", ir.DataType.FLOAT, list(layer.input)))
        quantized = tape.op("QuantizeLinear", [inputs[-1], one, zero])
        activation = tape.op("DequantizeLinear", [quantized, one, zero])
        weight = tape.op(
            "DequantizeLinear", [constant(f"weight_{name}", values), scales], attributes={"axis": layer.output_axis}
        )
        attributes = {"group": layer.groups} if layer.operator == "Conv" else {}
        summed = tape.op(layer.operator, [activation, weight], attributes=attributes)
        integers = tape.op("QuantizeLinear", [summed, step, middle])
        output = ir.val(name, ir.DataType.FLOAT, list(layer.output))
        outputs.append(tape.op("DequantizeLinear", [integers, step, middle], output=output))
    graph = ir.Graph(
        inputs, outputs, nodes=tape.nodes, initializers=constants, opset_imports={"": _OPSET}, name="saturation"
    )
    return ir.Model(graph, ir_version=_IR_VERSION)
