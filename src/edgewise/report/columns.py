"""Charts of quantities side by side: values as stems, numbers before and after, and the counts of a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.report import svg
from edgewise.report.axes import Scale, padded, ticks
from edgewise.report.frame import Axis, Frame, grid, plain


@dataclass(frozen=True)
class Level:
    """One value of a row of them, with its class and what it says on hover."""

    value: float
    kind: str
    tip: str


def levels(row: Sequence[Level], axes: tuple[Axis, Axis], frame: Frame) -> str:
    """Return a stem plot of values one after the other; `axes` say what is counted, and the values' quantity."""
    drawable = [level for level in row if plain(level.value)]
    low, high = padded([0.0, *(level.value for level in drawable)])
    x = Scale(0.0, max(len(drawable), 1) + 1.0, frame.left, frame.width - frame.right)
    y = Scale(low, high, frame.height - frame.bottom, frame.top)
    marks = [tick for tick in ticks(1, x.high, frame.ticks) if tick == round(tick) and tick < x.high]
    parts = [grid(x, marks, y, ticks(low, high, 5), axes=axes, frame=frame)]
    for index, level in enumerate(drawable, 1):
        at = (x.at(index), y.at(level.value))
        parts.append(
            svg.mark(level.tip, level.kind, [svg.line(at[0], y.at(0), *at, "whisker"), svg.circle(*at, 4)], at)
        )
    return svg.chart(parts, frame.width, frame.height)


@dataclass(frozen=True)
class Shrunk:
    """A number before and after, `0 <= after <= before`, with what it says on hover."""

    before: int
    after: int
    tip: str


def shrunk(row: Sequence[Shrunk], axes: tuple[Axis, Axis], frame: Frame) -> str:
    """Return pairs of bars side by side: what there was as an outline, what is left of it filled."""
    x = Scale(0.0, max(len(row), 1), frame.left, frame.width - frame.right)
    y = Scale(0.0, max([1, *(one.before for one in row)]), frame.height - frame.bottom, frame.top)
    marks = [tick for tick in ticks(0, x.high, frame.ticks) if tick == round(tick)]
    parts = [grid(x, marks, y, ticks(0.0, y.high, 5), axes=axes, frame=frame)]
    for index, one in enumerate(row):
        left, width = x.at(index + 0.1), x.at(index + 0.9) - x.at(index + 0.1)
        bars = [
            svg.rect(left, y.at(number), width, y.start - y.at(number), kind)
            for number, kind in ((one.before, "before"), (one.after, "part"))
        ]
        parts.append(svg.mark(one.tip, "c0", bars, None))
    return svg.chart(parts, frame.width, frame.height)


@dataclass(frozen=True)
class Bins:
    """A histogram: left edge of the first bin, width of each, counts; and the range that is told apart in it."""

    start: float
    width: float
    counts: tuple[int, ...]
    low: float
    high: float


def histogram(bins: Bins, tip: str, axes: tuple[Axis, Axis], frame: Frame) -> str:
    """Return a histogram whose heights are logarithms of the counts, with a line at either end of the range."""
    ends = [bins.start, bins.start + bins.width * len(bins.counts), bins.low, bins.high]
    low, high = padded(ends if plain(*ends) else [], 0.02)
    x = Scale(low, high, frame.left, frame.width - frame.right)
    top = max(math.log10(1 + max(bins.counts, default=0)), 1.0)
    y = Scale(0.0, top, frame.height - frame.bottom, frame.top)
    parts = [grid(x, ticks(low, high, frame.ticks), y, ticks(0.0, top, 4), axes=axes, frame=frame)]
    shapes = []
    for index, count in enumerate(bins.counts if plain(*ends) else ()):
        left = bins.start + index * bins.width
        kind = "part" if left + bins.width > bins.low and left < bins.high else "part outside"
        height = y.at(math.log10(1 + max(count, 0)))
        edges = x.at(left), x.at(left + bins.width)
        shapes.append(svg.rect(edges[0], height, edges[1] - edges[0], y.start - height, kind))
    parts.append(svg.mark(tip, "c0", shapes, None))
    borders = (bins.low, bins.high) if plain(*ends) else ()
    parts += [svg.line(x.at(end), frame.top, x.at(end), y.start, "reference") for end in borders]
    return svg.chart(parts, frame.width, frame.height)
