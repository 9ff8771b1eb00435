"""The frame of a chart: its size, what its axes say, and the grid with the ticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgewise.report import svg
from edgewise.report.axes import Scale, tick_labels

GLYPH_WIDTH: Final = 6.6
"""Pixels that a character of a chart's 12-pixel text takes at most, on average over a name (empirical)."""
_TINY: Final = 1e-150


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


def grid(
    x: Scale,
    x_ticks: Sequence[float],
    y: Scale,
    y_ticks: Sequence[float],
    *,
    axes: tuple[Axis, Axis],
    frame: Frame,
) -> str:
    """Return the lines and numbers of the ticks of `x` and `y`, and what `axes` say of them."""
    x_axis, y_axis = axes
    bottom, right = frame.height - frame.bottom, frame.width - frame.right
    parts = []
    for tick, text in zip(y_ticks, tick_labels(y_ticks, y_axis.factor), strict=True):
        parts.append(svg.line(frame.left, y.at(tick), right, y.at(tick), "grid"))
        parts.append(svg.text(frame.left - 8, y.at(tick) + 4, text, "tick", "end"))
    for tick, text in zip(x_ticks, tick_labels(x_ticks, x_axis.factor), strict=True):
        parts.append(svg.line(x.at(tick), bottom, x.at(tick), bottom + 5, "grid"))
        parts.append(svg.text(held(x.at(tick), text, frame.width), bottom + 19, text, "tick", "middle"))
    parts.append(svg.line(frame.left, bottom, right, bottom, "base"))
    middle = (frame.left + right) / 2
    parts.append(svg.text(middle, frame.height - 8, x_axis.title, "axis", "middle"))
    # Above the plot rather than turned by 90 degrees beside it: it reads better, and leaves room on a phone.
    parts.append(svg.text(2, 10, y_axis.title, "axis", "start"))
    return "".join(parts)


def held(x: float, text: str, width: float) -> float:
    """Return where the middle of `text` may be so that neither end leaves the chart."""
    half = len(text) * GLYPH_WIDTH / 2
    return min(max(x, half), max(width - half, half))


def plain(*values: float) -> bool:
    """Return whether all `values` are 0 or of a magnitude whose sums and ratios neither overflow nor vanish."""
    return all(value == 0 or _TINY <= abs(value) <= 1 / _TINY for value in values)
