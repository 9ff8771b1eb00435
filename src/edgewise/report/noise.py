"""The pictures of quantization noise: the signal-to-noise ratio of each layer, and the activations that suffer most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgewise.records.quantization import LayerNoise, QuantizationNoise, TensorHistogram
from edgewise.report import quantities as q
from edgewise.report.columns import Bins, Level, histogram, levels
from edgewise.report.figures import Figure
from edgewise.report.frame import NARROW, WIDE, Axis, Frame

TOP: Final = 12
"""Layers in the table."""

CAUSES: Final = {
    "range": "range",
    "outlier-channel": "outlier channel",
    "saturation": "saturation",
    "rounding": "rounding",
}
"""The causes in the order of their colours; any other has the last one."""

_LOW: Final = 220.0
"""Height of a histogram in pixels: several stand below each other."""

_COUNTS: Final = Axis("values in a bin, power of ten")


@dataclass(frozen=True)
class NoiseRow:
    """One line of the table."""

    node: str
    operator: str
    sqnr: str
    why: str


@dataclass(frozen=True)
class NoiseFigures:
    """What the report shows of quantization noise.

    Attributes:
        name: The candidate.
        says: On how many samples it was measured, and what is left out.
        levels: The ratio of each layer, in graph order.
        legend: Class and name of each cause in it.
        rows: The layers with the smallest ratio, the worst first.
        histograms: The activations that suffer most.
    """

    name: str
    says: str
    levels: Figure
    legend: tuple[tuple[str, str], ...]
    rows: tuple[NoiseRow, ...]
    histograms: tuple[Figure, ...]


def noise_figures(noise: QuantizationNoise) -> NoiseFigures:
    """Return the pictures and the table of one candidate."""
    known = [layer for layer in noise.layers if layer.sqnr_db is not None]
    ranked = sorted(known, key=lambda layer: layer.sqnr_db or 0.0)
    says = f"Measured on {q.plural(noise.samples, 'sample')} against the same graph in floating point."
    if not noise.weights:
        says += " The rounding of the weights is left out: preparing the model changed them first."
    return NoiseFigures(
        name=noise.candidate,
        says=says,
        levels=_levels(known, len(noise.layers)),
        legend=tuple((_kind(cause), CAUSES.get(cause, cause)) for cause in _present(known)),
        rows=tuple(_row(layer) for layer in ranked[:TOP]),
        histograms=tuple(_histogram(found) for found in noise.histograms),
    )


def _present(layers: list[LayerNoise]) -> list[str]:
    found = {layer.cause for layer in layers}
    return [cause for cause in CAUSES if cause in found] + sorted(found - set(CAUSES))


def _kind(cause: str) -> str:
    return f"c{list(CAUSES).index(cause)}" if cause in CAUSES else "rest"


def _levels(layers: list[LayerNoise], count: int) -> Figure:
    title = "Signal-to-quantization-noise ratio at the output of each layer"
    if not layers:
        return Figure(title, None, None, (), ("No layer differs from the same one in floating point.",))
    row = [Level(layer.sqnr_db or 0.0, _kind(layer.cause), _tip(layer)) for layer in layers]
    axes = (Axis("layers on integers, in graph order"), Axis("SQNR, dB"))
    caption = ["Higher is better: 20 dB more is a tenth of the error. Errors from layers before are part of it."]
    if count > len(layers):
        caption.append(f"Not drawn: {q.plural(count - len(layers), 'layer')} without any error.")
    return Figure(title, levels(row, axes, WIDE), levels(row, axes, NARROW), (), tuple(caption))


def _tip(layer: LayerNoise) -> str:
    return f"{layer.node}\n{layer.operator}, {_db(layer.sqnr_db)}\n{layer.why}"


def _db(value: float | None) -> str:
    return q.NONE if value is None else f"{value:.1f} dB".replace("-", q.MINUS)


def _row(layer: LayerNoise) -> NoiseRow:
    return NoiseRow(node=layer.node, operator=layer.operator, sqnr=_db(layer.sqnr_db), why=layer.why)


def _histogram(found: TensorHistogram) -> Figure:
    bins = Bins(found.start, found.width, found.counts, found.low, found.high)
    axes = (Axis("value"), _COUNTS)
    tip = f"{found.tensor}\nrange {found.low:.4g} to {found.high:.4g}\n{q.share(found.clipped)} of the values outside"
    frames = [Frame(width=f.width, height=_LOW, left=f.left, right=f.right, ticks=f.ticks) for f in (WIDE, NARROW)]
    wide, narrow = (histogram(bins, tip, axes, frame) for frame in frames)
    lines = f"Lines: the range of the integers, {found.low:.4g} to {found.high:.4g}"
    outside = f"{q.share(found.clipped)} of the values lie outside"
    return Figure(found.tensor, wide, narrow, (), (f"Read by {found.node}: {found.why}.", f"{lines}; {outside}."))
