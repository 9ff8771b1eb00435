"""Where quantization noise arises in one model: what the report draws."""

from __future__ import annotations

from typing import Final

from edgewise.records.codec import Record

BINS: Final = 64
"""Most bins of a histogram in a record."""


class LayerNoise(Record, frozen=True, kw_only=True):
    """How far the output of one layer is off.

    Attributes:
        node: The layer.
        operator: Its operator type.
        sqnr_db: Signal-to-quantization-noise ratio at its output, errors from before it included, in decibels; None
            where it is equal.
        cause: What is wrong at this layer, in a word; see `compress/quantize/causes.py`.
        why: The same in words.
    """

    node: str
    operator: str
    sqnr_db: float | None
    cause: str
    why: str


class TensorHistogram(Record, frozen=True, kw_only=True):
    """The values of one activation, and the range that its integers cover.

    Attributes:
        tensor: Its name.
        node: The layer that reads it.
        start: Left edge of the first bin.
        width: Width of each bin, in the tensor's own unit.
        counts: Values in each bin, at most `BINS` of them.
        low: Lower end of the range of the integers.
        high: Upper end.
        clipped: Share of the values outside of it.
        why: What is wrong at the layer, in words.
    """

    tensor: str
    node: str
    start: float
    width: float
    counts: tuple[int, ...]
    low: float
    high: float
    clipped: float
    why: str


class QuantizationNoise(Record, frozen=True, kw_only=True):
    """The noise of one quantized model.

    Attributes:
        candidate: Name of the candidate.
        samples: Samples on which it was measured.
        layers: The layers that work on integers, in graph order.
        histograms: The activations that suffer most, the worst first.
        weights: Whether the rounding of the weights is part of the noise: not where preparing the model changed them.
    """

    candidate: str
    samples: int
    layers: tuple[LayerNoise, ...]
    histograms: tuple[TensorHistogram, ...]
    weights: bool = True
