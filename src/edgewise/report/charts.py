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

from edgewise.report import svg
from edgewise.report.axes import Scale, log_ticks, padded, padded_log, tick_labels, ticks
from edgewise.report.frame import GLYPH_WIDTH, Axis, Frame, grid, held, plain

_LOG_FROM: Final = 4.0
"""Ratio of the ends of an axis of times from which on it is logarithmic (empirical: readability)."""
_ROW_GLYPH_WIDTH: Final = 8.0
"""Pixels that a character of the 13-pixel text of rows takes at most, whose numbers are bold (empirical)."""


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


def distribution(curves: Sequence[Curve], axis: Axis, frame: Frame) -> str:
    """Return the empirical distribution functions of `curves`: the share of runs that took at most x.

    The axis ends a little beyond the largest 99 % quantile where the slowest runs lie far beyond it: one
    interruption by the operating system would otherwise take up most of the picture.
    """
    drawable = [curve for curve in curves if len(curve.quantiles) > 1 and min(curve.quantiles) > 0]
    drawable = [curve for curve in drawable if plain(*curve.quantiles)]
    low = min((curve.quantiles[0] for curve in drawable), default=1.0)
    high = max((curve.quantiles[-1] for curve in drawable), default=10.0)
    tail = max((_quantile(curve.quantiles, 0.99) for curve in drawable), default=10.0)
    x, x_ticks = _time_scale([low, min(high, 1.25 * tail)], frame)
    y = Scale(0.0, 1.0, frame.height - frame.bottom, frame.top)
    axes = (axis, Axis("share of runs, %", 100.0))
    parts = [grid(x, x_ticks, y, [0.0, 0.25, 0.5, 0.75, 1.0], axes=axes, frame=frame)]
    for curve in drawable:
        last = len(curve.quantiles) - 1
        path = _cut([(value, index / last) for index, value in enumerate(curve.quantiles)], x.high)
        parts.append(svg.polyline([(x.at(a), y.at(b)) for a, b in path], f"curve {curve.kind}"))
    for curve in drawable:
        for level, tip in zip((0.5, 0.9, 0.99), curve.tips, strict=True):
            at = (x.at(_quantile(curve.quantiles, level)), y.at(level))
            parts.append(svg.mark(tip, f"{curve.kind} dot", [svg.circle(*at, 4.5)], at))
    return svg.chart(parts, frame.width, frame.height)


def scatter(points: Sequence[Point], x_axis: Axis, y_axis: Axis, frame: Frame) -> str:
    """Return a plot of `points` with whiskers, and the Pareto front as a staircase through those on it.

    Marks whose position is not a usable number, or not above 0 on the axis of times, are left out.
    """
    drawable = [_with_plain_whiskers(point) for point in points if point.x > 0 and plain(point.x, point.y)]
    x, x_ticks = _time_scale([value for point in drawable for value in (point.x, *(point.x_range or ()))], frame)
    low, high = padded([value for point in drawable for value in (point.y, *(point.y_range or ()))])
    bottom, top = frame.height - frame.bottom, frame.top
    y = Scale(low, high, top, bottom) if y_axis.down else Scale(low, high, bottom, top)
    parts = [grid(x, x_ticks, y, ticks(low, high, 5), axes=(x_axis, y_axis), frame=frame)]
    front = sorted((x.at(point.x), y.at(point.y)) for point in drawable if point.front)
    if len(front) > 1:
        parts.append(svg.polyline(staircase(front), "front"))
    # The marks that matter are drawn last, on top of the others.
    order = ("rejected", "measured", "rung", "original", "chosen")
    for point in sorted(drawable, key=lambda point: order.index(point.kind) if point.kind in order else 0):
        at = (x.at(point.x), y.at(point.y))
        shapes = []
        if point.x_range:
            shapes.append(svg.line(x.at(point.x_range[0]), at[1], x.at(point.x_range[1]), at[1], "whisker"))
        if point.y_range:
            shapes.append(svg.line(at[0], y.at(point.y_range[0]), at[0], y.at(point.y_range[1]), "whisker"))
        shapes.append(_shape(point.kind, *at))
        if point.label:
            shapes.append(_beside(at, point.label, frame))
        parts.append(svg.mark(point.tip, point.kind, shapes, at))
    return svg.chart(parts, frame.width, frame.height)


def _with_plain_whiskers(point: Point) -> Point:
    x_range, y_range = point.x_range, point.y_range
    return replace(
        point,
        x_range=x_range if x_range is not None and plain(*x_range) and min(x_range) > 0 else None,
        y_range=y_range if y_range is not None and plain(*y_range) else None,
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
    rows = [row for row in rows if plain(row.low, row.value, row.high)]
    values = [value for row in rows for value in (row.low, row.value, row.high)]
    low, high = padded(values + [value for value, _ in lines], 0.05)
    x = Scale(low, high, 12, frame.width - 12)
    return _rows(rows, x, axis=axis, lines=lines, frame=frame, from_value=None)


def bars(rows: Sequence[Row], axis: Axis, lines: Sequence[tuple[float, str]], frame: Frame) -> str:
    """Return one bar from 0 with a whisker for every row, and vertical `lines` (value, label)."""
    rows = [row for row in rows if plain(row.low, row.value, row.high)]
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
        parts.append(svg.line(x.at(tick), head, x.at(tick), bottom, "grid"))
        parts.append(svg.text(held(x.at(tick), text, frame.width), bottom + 17, text, "tick", "middle"))
    parts.append(svg.text(frame.width / 2, bottom + 38, axis.title, "axis", "middle"))
    for value, text in lines:
        parts.append(svg.line(x.at(value), head - 6, x.at(value), bottom, "reference"))
        parts.append(svg.text(held(x.at(value), text, frame.width), head - 11, text, "reference-label", "middle"))
    for index, row in enumerate(rows):
        top = head + step * index
        at = (x.at(row.value), top + 36)
        room = int((frame.width - 24) / _ROW_GLYPH_WIDTH) - len(row.text) - 2
        shapes = [
            svg.text(12, top + 19, shortened(row.label, room), "row-label", "start"),
            svg.text(frame.width - 12, top + 19, row.text, "row-text", "end"),
        ]
        if from_value is not None:
            zero = x.at(from_value)
            shapes.append(svg.rect(zero, at[1] - 7, at[0] - zero, 14, "bar"))
        shapes.append(svg.line(x.at(row.low), at[1], x.at(row.high), at[1], "whisker"))
        shapes += [svg.line(x.at(end), at[1] - 5, x.at(end), at[1] + 5, "whisker") for end in (row.low, row.high)]
        if from_value is None:
            shapes.append(svg.circle(*at, 5))
        parts.append(svg.mark(row.tip, row.kind, shapes, at))
    return svg.chart(parts, frame.width, bottom + foot)


def stack(parts: Sequence[Part], width: float = 960, height: float = 22) -> str:
    """Return one bar, divided in proportion to `parts`; those that are not above 0 have no room in it."""
    drawable = [part for part in parts if part.amount > 0 and plain(part.amount)]
    whole = sum(part.amount for part in drawable)
    pieces, start = [], 0.0
    for part in drawable:
        length = width * part.amount / whole
        shape = svg.rect(start, 0, max(length - 2, 0.5), height, "part")
        pieces.append(svg.mark(part.tip, part.kind, [shape], None))
        start += length
    return svg.chart(pieces, width, height, stretch=True)


def meter(fraction: float) -> str:
    """Return a small bar for a table's cell, filled to `fraction` (held to 0 to 1)."""
    share = min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0
    shapes = [svg.rect(0, 0, 100, 6, "trough"), svg.rect(0, 0, 100 * share, 6, "fill")]
    return (
        f'<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">{"".join(shapes)}</svg>'
    )


def swatch(kind: str, *, line: bool) -> str:
    """Return the key of a legend: a piece of the line, or the mark, of `kind`."""
    shape = svg.line(1, 8, 27, 8, f"curve {kind}") if line else f'<g class="{escape(kind)}">{_shape(kind, 14, 8)}</g>'
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


def _cut(path: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """Return `path`, sorted by x, up to where it crosses `end`."""
    inside = [point for point in path if point[0] <= end]
    if inside and len(inside) < len(path):
        (x0, y0), (x1, y1) = inside[-1], path[len(inside)]
        inside.append((end, y0 + (y1 - y0) * (end - x0) / (x1 - x0)))
    return inside


def _quantile(quantiles: Sequence[float], level: float) -> float:
    return quantiles[round(level * (len(quantiles) - 1))]


def _beside(at: tuple[float, float], label: str, frame: Frame) -> str:
    """Return the text beside a mark: on the side with more room, above it."""
    room = max(at[0], frame.width - at[0]) - 16
    text = shortened(label, int(room / GLYPH_WIDTH))
    left = at[0] > frame.width / 2
    y = at[1] - 12 if at[1] > frame.top + 24 else at[1] + 20
    return svg.text(at[0] - 8 if left else at[0] + 8, y, text, "point-label", "end" if left else "start")


def _shape(kind: str, x: float, y: float) -> str:
    """Return the mark of a fate: told apart by shape, too, for readers who see few colours and for print."""
    match kind:
        case "rejected":
            return svg.path([(x - 4.5, y - 4.5), (x + 4.5, y + 4.5)]) + svg.path(
                [(x - 4.5, y + 4.5), (x + 4.5, y - 4.5)]
            )
        case "rung":
            return svg.path([(x, y - 7), (x + 7, y), (x, y + 7), (x - 7, y)], close=True)
        case "chosen":
            turn = [math.pi * (index / 5 - 0.5) for index in range(10)]
            radii = [10.0 if index % 2 == 0 else 4.6 for index in range(10)]
            corners = [(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(turn, radii, strict=True)]
            return svg.path(corners, close=True)
        case "original":
            return svg.rect(x - 6, y - 6, 12, 12, "shape")
        case _:
            return svg.circle(x, y, 5)
