"""Charts as SVG text: numbers in, markup out. Nothing here knows a record.

Colours, line widths and fonts belong to the style sheet; the markup carries classes and geometry alone (a `style`
attribute would be refused by the page's content security policy). Every mark has a `title` and takes the keyboard
focus, so that a chart can be read without a script. No ids: a page holds each chart once for wide screens and once for
narrow ones, because text that is scaled down with its chart cannot be read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Final

from edgewise.report.axes import Scale, log_ticks, padded, padded_log, tick_labels, ticks

_LOG_FROM: Final = 4.0
"""Ratio of the ends of an axis of times from which on it is logarithmic (empirical: readability)."""
_GLYPH_WIDTH: Final = 6.6
"""Pixels that a character of a chart's 12-pixel text takes at most, on average over a name (empirical)."""
_TINY: Final = 1e-150
_ROW_GLYPH_WIDTH: Final = 8.0
"""The same for the 13-pixel text of rows, whose numbers are bold (empirical)."""


@dataclass(frozen=True)
class Frame:
    """The size of a chart in pixels, and the room that its axes take."""

    width: float
    height: float
    left: float = 64
    right: float = 20
    top: float = 30
    bottom: float = 48
    ticks: int = 7


WIDE: Final = Frame(width=960, height=400)
NARROW: Final = Frame(width=340, height=320, left=52, right=10, ticks=4)


@dataclass(frozen=True)
class Axis:
    """What an axis says.

    Attributes:
        title: The quantity, with its unit.
        factor: What a value is multiplied with for its label.
        down: Whether the better values are the smaller ones and are drawn at the top or right all the same.
    """

    title: str
    factor: float = 1.0
    down: bool = False


@dataclass(frozen=True)
class Curve:
    """One distribution.

    Attributes:
        kind: Class of its line.
        quantiles: Equally spaced quantiles from 0 % to 100 %, at least two.
        tips: What the marks at 50 %, 90 % and 99 % say.
    """

    kind: str
    quantiles: tuple[float, ...]
    tips: tuple[str, str, str]


@dataclass(frozen=True)
class Point:
    """One mark of a scatter plot.

    Attributes:
        x: Its position, with the ends of the horizontal whisker in `x_range`; y likewise.
        kind: Class of the mark, which also decides its shape (see `_shape`).
        label: Text beside it, or empty.
        tip: What it says on hover; the first line is its title.
        front: Whether the line of the Pareto front goes through it.
    """

    x: float
    y: float
    x_range: tuple[float, float] | None
    y_range: tuple[float, float] | None
    kind: str
    label: str
    tip: str
    front: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a chart of intervals.

    Attributes:
        label: Its name, above it.
        low: Lower end of the interval, at most `value`.
        value: The value.
        high: Upper end.
        kind: Class of the row.
        text: The numbers as text, at the right end of the label's line.
        tip: What it says on hover.
    """

    label: str
    low: float
    value: float
    high: float
    kind: str
    text: str
    tip: str


@dataclass(frozen=True)
class Part:
    """One part of a whole."""

    amount: float
    kind: str
    tip: str


@dataclass(frozen=True)
class Level:
    """One value of a row of them, with its class and what it says on hover."""

    value: float
    kind: str
    tip: str


def levels(row: Sequence[Level], axes: tuple[Axis, Axis], frame: Frame) -> str:
    """Return a stem plot of values one after the other; `axes` say what is counted, and the values' quantity."""
    drawable = [level for level in row if _plain(level.value)]
    low, high = padded([0.0, *(level.value for level in drawable)])
    x = Scale(0.0, max(len(drawable), 1) + 1.0, frame.left, frame.width - frame.right)
    y = Scale(low, high, frame.height - frame.bottom, frame.top)
    marks = [tick for tick in ticks(1, x.high, frame.ticks) if tick == round(tick) and tick < x.high]
    parts = [_grid(x, marks, y, ticks(low, high, 5), axes=axes, frame=frame)]
    for index, level in enumerate(drawable, 1):
        at = (x.at(index), y.at(level.value))
        parts.append(_mark(level.tip, level.kind, [_line(at[0], y.at(0), *at, "whisker"), _circle(*at, 4)], at))
    return _svg(parts, frame.width, frame.height)


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
    parts = [_grid(x, marks, y, ticks(0.0, y.high, 5), axes=axes, frame=frame)]
    for index, one in enumerate(row):
        left, width = x.at(index + 0.1), x.at(index + 0.9) - x.at(index + 0.1)
        bars = [
            _rect(left, y.at(number), width, y.start - y.at(number), kind)
            for number, kind in ((one.before, "before"), (one.after, "part"))
        ]
        parts.append(_mark(one.tip, "c0", bars, None))
    return _svg(parts, frame.width, frame.height)


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
    low, high = padded(ends if _plain(*ends) else [], 0.02)
    x = Scale(low, high, frame.left, frame.width - frame.right)
    top = max(math.log10(1 + max(bins.counts, default=0)), 1.0)
    y = Scale(0.0, top, frame.height - frame.bottom, frame.top)
    parts = [_grid(x, ticks(low, high, frame.ticks), y, ticks(0.0, top, 4), axes=axes, frame=frame)]
    shapes = []
    for index, count in enumerate(bins.counts if _plain(*ends) else ()):
        left = bins.start + index * bins.width
        kind = "part" if left + bins.width > bins.low and left < bins.high else "part outside"
        height = y.at(math.log10(1 + max(count, 0)))
        edges = x.at(left), x.at(left + bins.width)
        shapes.append(_rect(edges[0], height, edges[1] - edges[0], y.start - height, kind))
    parts.append(_mark(tip, "c0", shapes, None))
    borders = (bins.low, bins.high) if _plain(*ends) else ()
    parts += [_line(x.at(end), frame.top, x.at(end), y.start, "reference") for end in borders]
    return _svg(parts, frame.width, frame.height)


def distribution(curves: Sequence[Curve], axis: Axis, frame: Frame) -> str:
    """Return the empirical distribution functions of `curves`: the share of runs that took at most x.

    The axis ends a little beyond the largest 99 % quantile where the slowest runs lie far beyond it: one
    interruption by the operating system would otherwise take up most of the picture.
    """
    drawable = [curve for curve in curves if len(curve.quantiles) > 1 and min(curve.quantiles) > 0]
    drawable = [curve for curve in drawable if _plain(*curve.quantiles)]
    low = min((curve.quantiles[0] for curve in drawable), default=1.0)
    high = max((curve.quantiles[-1] for curve in drawable), default=10.0)
    tail = max((_quantile(curve.quantiles, 0.99) for curve in drawable), default=10.0)
    x, x_ticks = _time_scale([low, min(high, 1.25 * tail)], frame)
    y = Scale(0.0, 1.0, frame.height - frame.bottom, frame.top)
    axes = (axis, Axis("share of runs, %", 100.0))
    parts = [_grid(x, x_ticks, y, [0.0, 0.25, 0.5, 0.75, 1.0], axes=axes, frame=frame)]
    for curve in drawable:
        last = len(curve.quantiles) - 1
        path = _cut([(value, index / last) for index, value in enumerate(curve.quantiles)], x.high)
        parts.append(_polyline([(x.at(a), y.at(b)) for a, b in path], f"curve {curve.kind}"))
    for curve in drawable:
        for level, tip in zip((0.5, 0.9, 0.99), curve.tips, strict=True):
            at = (x.at(_quantile(curve.quantiles, level)), y.at(level))
            parts.append(_mark(tip, f"{curve.kind} dot", [_circle(*at, 4.5)], at))
    return _svg(parts, frame.width, frame.height)


def scatter(points: Sequence[Point], x_axis: Axis, y_axis: Axis, frame: Frame) -> str:
    """Return a plot of `points` with whiskers, and the Pareto front as a staircase through those on it.

    Marks whose position is not a usable number, or not above 0 on the axis of times, are left out.
    """
    drawable = [_with_plain_whiskers(point) for point in points if point.x > 0 and _plain(point.x, point.y)]
    x, x_ticks = _time_scale([value for point in drawable for value in (point.x, *(point.x_range or ()))], frame)
    low, high = padded([value for point in drawable for value in (point.y, *(point.y_range or ()))])
    bottom, top = frame.height - frame.bottom, frame.top
    y = Scale(low, high, top, bottom) if y_axis.down else Scale(low, high, bottom, top)
    parts = [_grid(x, x_ticks, y, ticks(low, high, 5), axes=(x_axis, y_axis), frame=frame)]
    front = sorted((x.at(point.x), y.at(point.y)) for point in drawable if point.front)
    if len(front) > 1:
        parts.append(_polyline(staircase(front), "front"))
    # The marks that matter are drawn last, on top of the others.
    order = ("rejected", "measured", "rung", "original", "chosen")
    for point in sorted(drawable, key=lambda point: order.index(point.kind) if point.kind in order else 0):
        at = (x.at(point.x), y.at(point.y))
        shapes = []
        if point.x_range:
            shapes.append(_line(x.at(point.x_range[0]), at[1], x.at(point.x_range[1]), at[1], "whisker"))
        if point.y_range:
            shapes.append(_line(at[0], y.at(point.y_range[0]), at[0], y.at(point.y_range[1]), "whisker"))
        shapes.append(_shape(point.kind, *at))
        if point.label:
            shapes.append(_beside(at, point.label, frame))
        parts.append(_mark(point.tip, point.kind, shapes, at))
    return _svg(parts, frame.width, frame.height)


def _with_plain_whiskers(point: Point) -> Point:
    x_range, y_range = point.x_range, point.y_range
    return replace(
        point,
        x_range=x_range if x_range is not None and _plain(*x_range) and min(x_range) > 0 else None,
        y_range=y_range if y_range is not None and _plain(*y_range) else None,
    )


def staircase(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the steps through `front`, positions sorted by x: level first, then up or down.

    Between two candidates of the front there is none, so a slanted line would promise what does not exist.
    """
    corners = [front[0]]
    for (_, before), (at, after) in pairwise(front):
        corners += [(at, before), (at, after)]
    return corners


def intervals(rows: Sequence[Row], axis: Axis, lines: Sequence[tuple[float, str]], frame: Frame) -> str:
    """Return one line with whiskers for every row, and vertical `lines` (value, label) to compare them with."""
    rows = [row for row in rows if _plain(row.low, row.value, row.high)]
    values = [value for row in rows for value in (row.low, row.value, row.high)]
    low, high = padded(values + [value for value, _ in lines], 0.05)
    x = Scale(low, high, 12, frame.width - 12)
    return _rows(rows, x, axis=axis, lines=lines, frame=frame, from_value=None)


def bars(rows: Sequence[Row], axis: Axis, lines: Sequence[tuple[float, str]], frame: Frame) -> str:
    """Return one bar from 0 with a whisker for every row, and vertical `lines` (value, label)."""
    rows = [row for row in rows if _plain(row.low, row.value, row.high)]
    values = [value for row in rows for value in (row.value, row.high)] + [value for value, _ in lines]
    # Subnormal numbers cannot be divided into ticks; nothing that is measured is as small.
    high = max([value for value in values if value >= sys.float_info.min], default=1.0)
    x = Scale(0.0, high * 1.05, 12, frame.width - 12)
    return _rows(rows, x, axis=axis, lines=lines, frame=frame, from_value=0.0)


def _rows(
    rows: Sequence[Row],
    x: Scale,
    *,
    axis: Axis,
    lines: Sequence[tuple[float, str]],
    frame: Frame,
    from_value: float | None,
) -> str:
    step, head, foot = 52.0, 26.0, 46.0
    bottom = head + step * len(rows)
    marks = ticks(x.low, x.high, frame.ticks)
    parts = []
    for tick, text in zip(marks, tick_labels(marks, axis.factor), strict=True):
        parts.append(_line(x.at(tick), head, x.at(tick), bottom, "grid"))
        parts.append(_text(_held(x.at(tick), text, frame.width), bottom + 17, text, "tick", "middle"))
    parts.append(_text(frame.width / 2, bottom + 38, axis.title, "axis", "middle"))
    for value, text in lines:
        parts.append(_line(x.at(value), head - 6, x.at(value), bottom, "reference"))
        parts.append(_text(_held(x.at(value), text, frame.width), head - 11, text, "reference-label", "middle"))
    for index, row in enumerate(rows):
        top = head + step * index
        at = (x.at(row.value), top + 36)
        room = int((frame.width - 24) / _ROW_GLYPH_WIDTH) - len(row.text) - 2
        shapes = [
            _text(12, top + 19, shortened(row.label, room), "row-label", "start"),
            _text(frame.width - 12, top + 19, row.text, "row-text", "end"),
        ]
        if from_value is not None:
            zero = x.at(from_value)
            shapes.append(_rect(zero, at[1] - 7, at[0] - zero, 14, "bar"))
        shapes.append(_line(x.at(row.low), at[1], x.at(row.high), at[1], "whisker"))
        shapes += [_line(x.at(end), at[1] - 5, x.at(end), at[1] + 5, "whisker") for end in (row.low, row.high)]
        if from_value is None:
            shapes.append(_circle(*at, 5))
        parts.append(_mark(row.tip, row.kind, shapes, at))
    return _svg(parts, frame.width, bottom + foot)


def stack(parts: Sequence[Part], width: float = 960, height: float = 22) -> str:
    """Return one bar, divided in proportion to `parts`; those that are not above 0 have no room in it."""
    drawable = [part for part in parts if part.amount > 0 and _plain(part.amount)]
    whole = sum(part.amount for part in drawable)
    pieces, start = [], 0.0
    for part in drawable:
        length = width * part.amount / whole
        shape = _rect(start, 0, max(length - 2, 0.5), height, "part")
        pieces.append(_mark(part.tip, part.kind, [shape], None))
        start += length
    return _svg(pieces, width, height, stretch=True)


def meter(fraction: float) -> str:
    """Return a small bar for a table's cell, filled to `fraction` (held to 0 to 1)."""
    held = min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0
    shapes = [_rect(0, 0, 100, 6, "trough"), _rect(0, 0, 100 * held, 6, "fill")]
    return (
        f'<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">{"".join(shapes)}</svg>'
    )


def swatch(kind: str, *, line: bool) -> str:
    """Return the key of a legend: a piece of the line, or the mark, of `kind`."""
    shape = _line(1, 8, 27, 8, f"curve {kind}") if line else f'<g class="{escape(kind)}">{_shape(kind, 14, 8)}</g>'
    return f'<svg class="swatch" viewBox="0 0 28 16" width="28" height="16" aria-hidden="true">{shape}</svg>'


def shortened(text: str, room: int) -> str:
    """Return `text` in at most `room` characters (at least 4), its middle left out where it is longer."""
    room = max(room, 4)
    if len(text) <= room:
        return text
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"


def _time_scale(values: Iterable[float], frame: Frame) -> tuple[Scale, list[float]]:
    usable = list(values)
    log = bool(usable) and max(usable) / min(usable) >= _LOG_FROM
    low, high = padded_log(usable) if log or not usable else padded(usable)
    scale = Scale(low, high, frame.left, frame.width - frame.right, log or not usable)
    return scale, log_ticks(low, high, frame.ticks) if scale.log else ticks(low, high, frame.ticks)


def _grid(
    x: Scale,
    x_ticks: Sequence[float],
    y: Scale,
    y_ticks: Sequence[float],
    *,
    axes: tuple[Axis, Axis],
    frame: Frame,
) -> str:
    x_axis, y_axis = axes
    bottom, right = frame.height - frame.bottom, frame.width - frame.right
    parts = []
    for tick, text in zip(y_ticks, tick_labels(y_ticks, y_axis.factor), strict=True):
        parts.append(_line(frame.left, y.at(tick), right, y.at(tick), "grid"))
        parts.append(_text(frame.left - 8, y.at(tick) + 4, text, "tick", "end"))
    for tick, text in zip(x_ticks, tick_labels(x_ticks, x_axis.factor), strict=True):
        parts.append(_line(x.at(tick), bottom, x.at(tick), bottom + 5, "grid"))
        parts.append(_text(_held(x.at(tick), text, frame.width), bottom + 19, text, "tick", "middle"))
    parts.append(_line(frame.left, bottom, right, bottom, "base"))
    middle = (frame.left + right) / 2
    parts.append(_text(middle, frame.height - 8, x_axis.title, "axis", "middle"))
    # Above the plot rather than turned by 90 degrees beside it: it reads better, and leaves room on a phone.
    parts.append(_text(2, 10, y_axis.title, "axis", "start"))
    return "".join(parts)


def _cut(path: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """Return `path`, sorted by x, up to where it crosses `end`."""
    inside = [point for point in path if point[0] <= end]
    if inside and len(inside) < len(path):
        (x0, y0), (x1, y1) = inside[-1], path[len(inside)]
        inside.append((end, y0 + (y1 - y0) * (end - x0) / (x1 - x0)))
    return inside


def _quantile(quantiles: Sequence[float], level: float) -> float:
    return quantiles[round(level * (len(quantiles) - 1))]


def _plain(*values: float) -> bool:
    """Return whether all `values` are 0 or of a magnitude whose sums and ratios neither overflow nor vanish."""
    return all(value == 0 or _TINY <= abs(value) <= 1 / _TINY for value in values)


def _beside(at: tuple[float, float], label: str, frame: Frame) -> str:
    """Return the text beside a mark: on the side with more room, above it."""
    room = max(at[0], frame.width - at[0]) - 16
    text = shortened(label, int(room / _GLYPH_WIDTH))
    left = at[0] > frame.width / 2
    y = at[1] - 12 if at[1] > frame.top + 24 else at[1] + 20
    return _text(at[0] - 8 if left else at[0] + 8, y, text, "point-label", "end" if left else "start")


def _held(x: float, text: str, width: float) -> float:
    """Return where the middle of `text` may be so that neither end leaves the chart."""
    half = len(text) * _GLYPH_WIDTH / 2
    return min(max(x, half), max(width - half, half))


def _shape(kind: str, x: float, y: float) -> str:
    """Return the mark of a fate: told apart by shape, too, for readers who see few colours and for print."""
    match kind:
        case "rejected":
            return _path([(x - 4.5, y - 4.5), (x + 4.5, y + 4.5)]) + _path([(x - 4.5, y + 4.5), (x + 4.5, y - 4.5)])
        case "rung":
            return _path([(x, y - 7), (x + 7, y), (x, y + 7), (x - 7, y)], close=True)
        case "chosen":
            turn = [math.pi * (index / 5 - 0.5) for index in range(10)]
            radii = [10.0 if index % 2 == 0 else 4.6 for index in range(10)]
            corners = [(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(turn, radii, strict=True)]
            return _path(corners, close=True)
        case "original":
            return _rect(x - 6, y - 6, 12, 12, "shape")
        case _:
            return _circle(x, y, 5)


def _mark(tip: str, kind: str, shapes: Sequence[str], target: tuple[float, float] | None) -> str:
    hit = _circle(*target, 13, kind="hit") if target else ""
    return (
        f'<g class="mark {escape(kind)}" tabindex="0" role="img"><title>{escape(tip)}</title>{"".join(shapes)}{hit}</g>'
    )


def _svg(parts: Iterable[str], width: float, height: float, *, stretch: bool = False) -> str:
    aspect = ' preserveAspectRatio="none"' if stretch else ""
    return f'<svg viewBox="0 0 {_n(width)} {_n(height)}"{aspect} role="group">{"".join(parts)}</svg>'


def _polyline(points: Sequence[tuple[float, float]], kind: str) -> str:
    return f'<polyline class="{escape(kind)}" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}"/>'


def _path(points: Sequence[tuple[float, float]], *, close: bool = False) -> str:
    return f'<path class="shape" d="M{"L".join(f"{_n(x)} {_n(y)}" for x, y in points)}{"Z" if close else ""}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{escape(kind)}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    size = f'width="{_n(max(width, 0))}" height="{_n(height)}"'
    return f'<rect class="{escape(kind)}" x="{_n(x)}" y="{_n(y)}" {size}/>'


def _circle(x: float, y: float, radius: float, kind: str = "shape") -> str:
    return f'<circle class="{escape(kind)}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{escape(kind)}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _n(value: float) -> str:
    """Return a coordinate with a tenth of a pixel: what an eye can tell, in few bytes."""
    text = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
