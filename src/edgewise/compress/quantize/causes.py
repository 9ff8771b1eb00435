"""Why a quantized layer is wrong: what its integers do to each activation and to its weights, and which of it is worst.

Errors are compared where they do harm, at the layer's output: an error of an input channel counts as much as the
weights that it meets, `E y^2 = sum_c (sum of w_c^2) E x_c^2`, as if channels were uncorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress import nodes
from edgewise.compress.quantize.placement import label
from edgewise.compress.quantize.restore import (
    MOVERS,
    Originals,
    along,
    dequantized,
    integers_of,
    pair_in_front,
    quantized_nodes,
    stands_for_relu,
)
from edgewise.compress.statistics import observe
from edgewise.records.codec import Record
from edgewise.records.tensors import Array, Feeds, Run

Cause: TypeAlias = Literal["range", "outlier-channel", "saturation", "rounding", "unsupported", "kept"]
Floats: TypeAlias = npt.NDArray[np.float64]

OUTLIER: Final = 8.0
"""How many times the median channel's range one channel's has to be to count as an outlier: it costs the others 3 of
their 8 bits."""

SATURATED: Final = 0.01
"""Share of the integers at the ends from which on they are said to saturate; fewer are outliers beyond the range."""

WIDE: Final = 32.0
"""How many times the root mean square of the values the range has to be to be too wide: 8 bits then leave 8 steps."""


class Diagnosis(Record, frozen=True, kw_only=True):
    """Why one layer is wrong.

    Attributes:
        node: The layer, by label.
        cause: The worst of it.
        words: The same in a clause with its numbers.
        clipped: Largest share of the values of one of its activations that lie outside of its range.
        outlier: Largest ratio of one channel's range to the median channel's, of its activations.
        activation_nsr: Noise-to-signal ratio at its output that the integers of its activations make.
        weight_nsr: The same of its weights.
    """

    node: str
    cause: Cause
    words: str
    clipped: float
    outlier: float
    activation_nsr: float
    weight_nsr: float


@dataclass(frozen=True)
class Grid:
    """The integers of a QuantizeLinear: real = scale x (integer - zero point).

    Attributes:
        low: Smallest real number among them.
        high: Largest one.
        scale: Their distance.
    """

    low: float
    high: float
    scale: float

    @classmethod
    def of(cls, quantize: ir.Node) -> Grid | None:
        """Return the grid of a node with one constant scale, or None."""
        scale = nodes.constant(quantize.inputs[1])
        zero = nodes.constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else np.zeros((), np.uint8)
        if scale is None or zero is None or scale.size != 1 or zero.size != 1:
            return None
        kind = str(quantize.outputs[0].dtype or "").upper() if zero.dtype.kind not in "iu" else zero.dtype.name.upper()
        if kind not in ir.DataType.__members__ or not ir.DataType[kind].is_integer():
            return None
        bits = ir.DataType[kind].bitwidth
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ir.DataType[kind].is_signed() else (0, 2**bits - 1)
        step, offset = float(scale.reshape(())), int(zero.reshape(()))
        return cls((least - offset) * step, (most - offset) * step, step)


@dataclass
class ActivationNoise:
    """What a grid does to an activation, summed over all that was seen.

    Attributes:
        grid: The grid.
        axis: Axis of the channels, or None for one channel.
        floor: Whether the grid's beginning at zero stands for a Relu, so that what is below it is meant to go.
        count: Values in all.
        outside: Values that lie outside of the grid by more than half a step.
        low: Smallest value.
        high: Largest value.
        signal: Sum of squares of each channel, shape `[C]`; clipping is the squared distance to the grid's range,
            rounding that of what is left to the grid; peaks the largest magnitudes.
    """

    grid: Grid
    axis: int | None
    floor: bool = False
    count: int = 0
    outside: int = 0
    low: float = math.inf
    high: float = -math.inf
    signal: Floats = field(default_factory=lambda: np.zeros(1))
    clipping: Floats = field(default_factory=lambda: np.zeros(1))
    rounding: Floats = field(default_factory=lambda: np.zeros(1))
    peaks: Floats = field(default_factory=lambda: np.zeros(1))

    def add(self, values: Array) -> None:
        """Add the values of one sample; what is not finite counts for nothing."""
        real = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        if not real.size:
            return
        if self.floor:
            real = np.maximum(real, 0.0)
        inside = np.clip(real, self.grid.low, self.grid.high)
        rounded = np.rint(inside / self.grid.scale) * self.grid.scale
        self.count += real.size
        self.outside += int(np.count_nonzero(np.abs(real - inside) > self.grid.scale / 2))
        self.low, self.high = min(self.low, float(real.min())), max(self.high, float(real.max()))
        self.signal = self._plus(self.signal, np.square(real))
        self.clipping = self._plus(self.clipping, np.square(real - inside))
        self.rounding = self._plus(self.rounding, np.square(inside - rounded))
        peaks = self._by_channel(np.abs(real)).max(axis=1)
        self.peaks = np.maximum(self.peaks, peaks) if len(self.peaks) == len(peaks) else peaks

    @property
    def clipped(self) -> float:
        """Share of the values outside of the range."""
        return self.outside / self.count if self.count else 0.0

    @property
    def outlier(self) -> float:
        """Ratio of the widest channel's range to the median one's, dead channels left out; 1 for one channel."""
        return outlier(self.peaks)

    @property
    def spread(self) -> float:
        """The range's larger end in units of the values' root mean square; 0 without any."""
        power = float(self.signal.sum()) / max(self.count, 1)
        return max(-self.grid.low, self.grid.high) / math.sqrt(power) if power else 0.0

    def _plus(self, sums: Floats, values: Floats) -> Floats:
        added: Floats = self._by_channel(values).sum(axis=1)
        # The number of channels is only known with the first sample, or changes: then channels are of no use.
        total: Floats = added + (sums if len(sums) == len(added) else sums.sum() / len(added))
        return total

    def _by_channel(self, values: Floats) -> Floats:
        if self.axis is None or values.ndim == 0:
            rows: Floats = values.reshape(1, -1)
        else:
            rows = np.moveaxis(values, self.axis, 0).reshape(values.shape[self.axis], -1)
        return rows


@dataclass(frozen=True)
class WeightNoise:
    """What integers do to the weights of a node, by input channel.

    Attributes:
        gain: Sum of squares of the weights that each input channel meets, shape `[C]`.
        error: The same of what rounding changed.
        clipped: Share of the error that weights beyond the integers' range make; 0 where they are not known.
        outlier: Ratio of the widest output channel's range to the median one's where all share one scale, else 1.
    """

    gain: Floats
    error: Floats
    clipped: float
    outlier: float


def outlier(peaks: Floats) -> float:
    """Return the ratio of the largest of `peaks` to the median of those above 0; 1 where fewer than two are."""
    alive = peaks[peaks > 0]
    return float(alive.max() / np.median(alive)) if len(alive) > 1 else 1.0


def activations(model: ir.Model, names: Sequence[str]) -> dict[str, dict[str, ActivationNoise]]:
    """Return, for each node, the tensors in floating point that become integers for it, nothing added yet."""
    wanted = set(names)
    found: dict[str, dict[str, ActivationNoise]] = {}
    for node in model.graph:
        if label(node) not in wanted:
            continue
        pairs = [_pair(value) for value in node.inputs]
        seen: dict[str, ActivationNoise] = {}
        for pair in pairs:
            value = None if pair is None else pair[0].inputs[0]
            grid = None if pair is None or nodes.constant(value) is not None else Grid.of(pair[0])
            if value is not None and grid is not None:
                floor = grid.low == 0 and stands_for_relu(value.producer())
                seen[value.name or ""] = ActivationNoise(grid, _channel_axis(node), floor)
        found[label(node)] = seen
    return found


def diagnose(
    model: ir.Model, run: Run, feeds: Iterable[Feeds], *, nodes: Sequence[str], reference: ir.Model | None = None
) -> tuple[Diagnosis, ...]:
    """Return why each node is wrong, in the order of `nodes`.

    Args:
        model: A QDQ graph.
        run: Runs what `tapped(model, nodes)` gave.
        feeds: The samples, each read once.
        nodes: Nodes that work on integers, by label.
        reference: The model before it was quantized; without it the weights' error is taken to be a uniform rounding.
    """
    seen = activations(model, nodes)
    for feed in feeds:
        outputs = run(feed)
        for tensors in seen.values():
            for name, noise in tensors.items():
                values = feed[name] if name in feed else outputs[name]
                noise.add(values)
    originals = None if reference is None else Originals(reference)
    by_label = {label(node): node for node in model.graph}
    return tuple(_diagnosis(name, seen.get(name, {}), weight_noise(by_label[name], originals)) for name in nodes)


def tapped(model: ir.Model, nodes: Sequence[str] | None = None) -> ir.Model:
    """Return a copy of `model` that also gives what `diagnose` needs to see."""
    asked = quantized_nodes(model) if nodes is None else nodes
    return observe(model, sorted({name for tensors in activations(model, asked).values() for name in tensors}))


def weight_noise(node: ir.Node, originals: Originals | None) -> WeightNoise | None:
    """Return what integers do to the weights of `node`, or None where it has none."""
    for slot, value in enumerate(node.inputs):
        stored = integers_of(value)
        real = None if stored is None else dequantized(stored)
        if stored is None or real is None or real.ndim < 2:
            continue
        found = None if originals is None else originals.of(node)
        tensor = None if found is None else found.get(slot)
        scale = nodes.constant(stored.inputs[1])
        integers = nodes.constant(stored.inputs[0])
        if scale is None or integers is None:
            continue
        steps = along(stored, scale, real.shape).astype(np.float64)
        clipped = 0.0
        if tensor is None:
            error = np.broadcast_to(np.square(steps) / 12, real.shape)
        else:
            values = tensor.numpy().astype(np.float64)
            error = np.square(values - real)
            largest = np.abs(integers.astype(np.int64)).max(initial=0)
            beyond = np.abs(values) > (largest + 0.5) * steps
            clipped = float(error[beyond].sum() / error.sum()) if error.any() else 0.0
        shared = scale.size == 1
        return WeightNoise(
            gain=_by_input(node, np.square(real.astype(np.float64))),
            error=_by_input(node, error),
            clipped=clipped,
            outlier=outlier(_output_peaks(node, real)) if shared else 1.0,
        )
    return None


def _diagnosis(name: str, tensors: Mapping[str, ActivationNoise], weights: WeightNoise | None) -> Diagnosis:
    worst, clip, rounding = None, 0.0, 0.0
    for noise in tensors.values():
        gain = _fitting(weights.gain if weights is not None else None, len(noise.signal))
        signal = float(noise.signal @ gain)
        parts = [float(part @ gain) / signal if signal else 0.0 for part in (noise.clipping, noise.rounding)]
        if worst is None or sum(parts) > clip + rounding:
            worst, (clip, rounding) = noise, parts
    weight = _weight_nsr(worst, weights)
    if weights is not None and weight >= clip + rounding:
        cause, words = _of_weights(weights, weight)
    elif worst is None:
        cause, words = "rounding", "nothing was measured of it"
    else:
        cause, words = _of_activation(worst, clip, rounding)
    return Diagnosis(
        node=name,
        cause=cause,
        words=words,
        clipped=max((noise.clipped for noise in tensors.values()), default=0.0),
        outlier=max((noise.outlier for noise in tensors.values()), default=1.0),
        activation_nsr=clip + rounding,
        weight_nsr=weight,
    )


def _weight_nsr(activation: ActivationNoise | None, weights: WeightNoise | None) -> float:
    if weights is None:
        return 0.0
    power = np.ones(len(weights.gain)) if activation is None else _fitting(activation.signal, len(weights.gain))
    signal = float(power @ weights.gain)
    return float(power @ weights.error) / signal if signal else 0.0


def _of_weights(weights: WeightNoise, nsr: float) -> tuple[Cause, str]:
    if weights.outlier >= OUTLIER:
        return "outlier-channel", f"one channel of its weights has {weights.outlier:.0f}x the median channel's range"
    if weights.clipped > 0.5:
        return "saturation", f"{weights.clipped:.0%} of its weights' error is beyond the ends of their integers"
    return "rounding", f"rounding its weights makes {_db(nsr)} of noise"


def _of_activation(noise: ActivationNoise, clip: float, rounding: float) -> tuple[Cause, str]:
    grid = noise.grid
    if clip > rounding:
        if noise.clipped >= SATURATED:
            return (
                "saturation",
                f"{noise.clipped:.1%} of its integers are at the ends of [{grid.low:.3g}, {grid.high:.3g}]",
            )
        return "range", (
            f"{noise.clipped:.2%} of its values, from {noise.low:.3g} to {noise.high:.3g}, lie outside of "
            f"[{grid.low:.3g}, {grid.high:.3g}]"
        )
    if noise.outlier >= OUTLIER:
        return "outlier-channel", f"one channel has {noise.outlier:.0f}x the median channel's range"
    if noise.spread >= WIDE:
        return "range", f"its range [{grid.low:.3g}, {grid.high:.3g}] is {noise.spread:.0f}x what the values are"
    return "rounding", f"rounding its activations makes {_db(rounding)} of noise"


def _db(nsr: float) -> str:
    return f"{10 * math.log10(nsr):.0f} dB" if nsr > 0 else "no"


def _pair(value: ir.Value | None) -> tuple[ir.Node, ir.Node] | None:
    """Return the pair in front of `value`, before the nodes that only move what it gives."""
    while (pair := pair_in_front(value)) is None:
        producer = None if value is None else value.producer()
        if producer is None or producer.op_type not in MOVERS:
            return None
        value = producer.inputs[0]
    return pair


def _channel_axis(node: ir.Node) -> int | None:
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if nodes.attribute(node, "transA", 0) else 1
        case "MatMul":
            return -1
        case _:
            value = node.inputs[0]
            ndim = 0 if value is None or value.shape is None else len(value.shape)
            return 1 if ndim == 4 else -1 if ndim else None


def _by_input(node: ir.Node, squares: Floats) -> Floats:
    """Return the sums of `squares`, of the weights' shape, by input channel."""
    match node.op_type:
        case "Conv":
            groups = int(nodes.attribute(node, "group", 1))
            grouped = squares.reshape(groups, squares.shape[0] // groups, squares.shape[1], -1)
            return np.asarray(grouped.sum(axis=(1, 3)).reshape(-1))
        case "ConvTranspose":
            axis = 0
        case "Gemm":
            axis = 1 if nodes.attribute(node, "transB", 0) else 0
        case _:
            axis = squares.ndim - 2
    return np.asarray(squares.sum(axis=tuple(index for index in range(squares.ndim) if index != axis)))


def _output_peaks(node: ir.Node, weights: Array) -> Floats:
    """Return the largest magnitude of the weights of each output channel."""
    match node.op_type:
        case "Conv":
            axis = 0
        case "ConvTranspose":
            axis = 1
        case "Gemm":
            axis = 0 if nodes.attribute(node, "transB", 0) else 1
        case _:
            axis = weights.ndim - 1
    others = tuple(index for index in range(weights.ndim) if index != axis)
    peaks: Floats = np.abs(weights.astype(np.float64)).max(axis=others)
    return peaks


def _fitting(values: Floats | None, size: int) -> Floats:
    """Return `values` if there is one for each channel, else the same for all: a ratio needs no scale."""
    return values if values is not None and len(values) == size else np.ones(size)
