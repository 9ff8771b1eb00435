"""One streaming pass over unlabelled samples: what plans need to know of every activation, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.histogram import Histogram
from edgewise.errors import ContractError, DataError
from edgewise.records.tensors import Array, Feeds, Run

POSITIONS: Final = 1 << 15
"""Most values of one tensor and one sample that go into its histogram.

Larger tensors are read at regular positions that move from sample to sample. Extremes and means stay exact; a share of
the values has, for 300 samples and as if positions were independent, a standard error of at most
0.5 / sqrt(300 x 32768) = 1.6e-4.
"""


@dataclass
class TensorStatistics:
    """What was seen of one tensor.

    Attributes:
        low: Exact smallest value.
        high: Exact largest value.
        count: How many values there were in all.
        histogram: Counts of the values, or of a regular share of them (`POSITIONS`).
        channel_sums: Sum of the values of each channel, shape `[C]`, float64; empty where it was not asked for.
        channel_squares: Sum of the squares of the values of each channel, likewise.
        channel_low: Exact smallest value of each channel, shape `[C]`, float32; empty where it was not asked for.
        channel_high: Exact largest value of each channel, likewise.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    histogram: Histogram = field(default_factory=Histogram)
    channel_sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    channel_squares: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    channel_low: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_high: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def is_constant(self) -> bool:
        """Whether every value was the same."""
        return self.low == self.high

    @property
    def channel_mean_squares(self) -> npt.NDArray[np.float64] | None:
        """Mean square of each channel, shape `[C]`, or None where it was not asked for."""
        channels = len(self.channel_squares)
        return self.channel_squares * (channels / self.count) if channels else None

    @property
    def channel_means(self) -> npt.NDArray[np.float64] | None:
        """Mean of each channel, shape `[C]`, or None where it was not asked for."""
        channels = len(self.channel_sums)
        return self.channel_sums * (channels / self.count) if channels else None


@dataclass(frozen=True)
class Statistics:
    """What was seen of all tensors that were asked for.

    Attributes:
        tensors: By name.
        samples: How many samples were run, >= 1.
    """

    tensors: Mapping[str, TensorStatistics]
    samples: int


def observe(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """Return a copy of `model` that also gives the tensors `names` as outputs; weights are shared.

    Inputs of the model stay inputs: `collect` reads them from the feeds.

    Args:
        model: The model; not changed.
        names: Values of the main graph.

    Raises:
        ContractError: If a name is no value of the main graph.
    """
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    skipped = {value.name for value in [*copy.graph.inputs, *copy.graph.outputs]}
    for name in names:
        if name in skipped:
            continue
        if name not in values:
            raise ContractError(f"A tensor to observe has to be a value of the main graph. Received `{name}`.")
        skipped.add(name)
        if values[name].type is None:
            # Outputs need a type; only real numbers are observed, and other than float32 would have been written down.
            values[name].dtype = ir.DataType.FLOAT
        copy.graph.outputs.append(values[name])
    return copy


def collect(run: Run, feeds: Iterable[Feeds], names: Mapping[str, int | None] | Iterable[str]) -> Statistics:
    """Run every sample once and keep what plans need of the tensors `names`.

    Memory: the outputs of one run, and 64 KiB for each tensor.

    Args:
        run: Runs the model that `observe` gave.
        feeds: The samples, each read once.
        names: The tensors. A mapping also says along which axis the channels lie whose means, squares and extremes are
            wanted.

    Raises:
        DataError: If there is no sample, or if one makes a NaN or an infinity; the message names tensor and sample.
        ContractError: If `run` does not give a tensor, or gives one that holds no real numbers.
    """
    axes = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)
    seen = {name: TensorStatistics() for name in axes}
    samples = 0
    for sample, feed in enumerate(feeds):
        outputs = run(feed)
        samples += 1
        for name, axis in axes.items():
            values = feed[name] if name in feed else outputs.get(name)
            if values is None:
                raise ContractError(f"The observed model has to give `{name}`, but its run did not.")
            _add(seen[name], _as_float32(values, name), axis, name=name, sample=sample)
    if samples == 0:
        raise DataError(
            "Calibration needs at least one sample, but there is none.",
            hint="Give more samples, or a larger calibration split.",
        )
    return Statistics(seen, samples)


def _as_float32(values: Array, name: str) -> npt.NDArray[np.float32]:
    # Not `np.issubdtype(..., floating)`: bfloat16 is a type of its own in numpy.
    if values.dtype.kind not in "fV":
        raise ContractError(f"A tensor to observe has to hold real numbers, but `{name}` is {values.dtype}.")
    return values.astype(np.float32, copy=False)


def _add(
    statistics: TensorStatistics, values: npt.NDArray[np.float32], axis: int | None, *, name: str, sample: int
) -> None:
    """Add one sample's `values` to `statistics`."""
    if values.size == 0:
        return
    channels = None if axis is None else _channels(values, axis)
    # Both propagate NaN, so that two passes over the array tell everything; those over the channels are such passes.
    if channels is None:
        low, high = float(values.min()), float(values.max())
    else:
        low, high = float(channels.low.min()), float(channels.high.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        kind = "NaN" if math.isnan(low) or math.isnan(high) else "an infinity"
        raise DataError(
            f"Every activation has to be finite, but calibration sample {sample} makes {kind} in `{name}`.",
            hint="Look for NaN, infinities or extreme values in that sample, and for a wrong pre-processing.",
        )
    statistics.low, statistics.high = min(statistics.low, low), max(statistics.high, high)
    statistics.count += values.size
    statistics.histogram.add(_share(values, sample), low, high)
    if channels is not None:
        _add_channels(statistics, channels, name=name)


@dataclass(frozen=True)
class _Channels:
    """What one sample holds of each channel; every array has the shape `[C]`."""

    sums: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]


def _add_channels(statistics: TensorStatistics, channels: _Channels, *, name: str) -> None:
    if len(statistics.channel_sums) == 0:
        statistics.channel_sums, statistics.channel_squares = channels.sums, channels.squares
        statistics.channel_low, statistics.channel_high = channels.low, channels.high
        return
    if len(statistics.channel_sums) != len(channels.sums):
        # The number of channels changes from sample to sample: there is no mean of a channel.
        raise ContractError(f"`{name}` has to have the same number of channels in every sample.")
    statistics.channel_sums = statistics.channel_sums + channels.sums
    statistics.channel_squares = statistics.channel_squares + channels.squares
    statistics.channel_low = np.minimum(statistics.channel_low, channels.low)
    statistics.channel_high = np.maximum(statistics.channel_high, channels.high)


def _share(values: npt.NDArray[np.float32], sample: int) -> npt.NDArray[np.float32]:
    """Return at most `POSITIONS` of the values, evenly spread."""
    flat = values.reshape(-1)
    step = -(-flat.size // POSITIONS)
    if step <= 1:
        return flat
    # A step that divides no dimension visits all rows, columns and channels alike.
    while math.gcd(step, flat.size) != 1:
        step += 1
    # Multiples of an odd constant near 2**32 / golden ratio, modulo the step: successive offsets lie far apart.
    return flat[(sample * 2654435761) % step :: step]


def _channels(values: npt.NDArray[np.float32], axis: int) -> _Channels:
    """Return sums, sums of squares and extremes over all axes but `axis`."""
    axis %= values.ndim
    outer, inner = math.prod(values.shape[:axis]), math.prod(values.shape[axis + 1 :])
    rows = values.reshape(outer, values.shape[axis], inner)
    # Sums along the contiguous axis in float32: numpy adds pairwise there, the error stays at a few unit roundoffs.
    # Squares in float64: those of large values are no float32.
    with np.errstate(over="ignore"):
        sums = (rows.sum(axis=2) if inner > 1 else rows[:, :, 0]).sum(axis=0, dtype=np.float64)
    if not np.isfinite(sums).all():  # values are finite: their sum is no float32
        sums = rows.sum(axis=(0, 2), dtype=np.float64)
    return _Channels(
        sums=sums,
        squares=np.einsum("oci,oci->c", rows, rows, dtype=np.float64),
        low=rows.min(axis=(0, 2)),
        high=rows.max(axis=(0, 2)),
    )
