"""The elements of a chart as SVG text: coordinates in pixels and classes in, markup out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def mark(tip: str, kind: str, shapes: Sequence[str], target: tuple[float, float] | None) -> str:
    """Return `shapes` as one mark that says `tip` and takes the focus, with an unseen disc around `target` to hit."""
    hit = circle(*target, 13, kind="hit") if target else ""
    return (
        f'<g class="mark {escape(kind)}" tabindex="0" role="img"><title>{escape(tip)}</title>{"".join(shapes)}{hit}</g>'
    )


def chart(parts: Iterable[str], width: float, height: float, *, stretch: bool = False) -> str:
    """Return a whole chart of `width` times `height` pixels; `stretch` lets its proportions follow its place."""
    aspect = ' preserveAspectRatio="none"' if stretch else ""
    return f'<svg viewBox="0 0 {_n(width)} {_n(height)}"{aspect} role="group">{"".join(parts)}</svg>'


def polyline(points: Sequence[tuple[float, float]], kind: str) -> str:
    """Return a line through `points`."""
    return f'<polyline class="{escape(kind)}" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}"/>'


def path(points: Sequence[tuple[float, float]], *, close: bool = False) -> str:
    """Return a drawn shape with the corners `points`."""
    return f'<path class="shape" d="M{"L".join(f"{_n(x)} {_n(y)}" for x, y in points)}{"Z" if close else ""}"/>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line between two points."""
    return f'<line class="{escape(kind)}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a rectangle by its upper left corner; a width below 0 is none."""
    size = f'width="{_n(max(width, 0))}" height="{_n(height)}"'
    return f'<rect class="{escape(kind)}" x="{_n(x)}" y="{_n(y)}" {size}/>'


def circle(x: float, y: float, radius: float, kind: str = "shape") -> str:
    """Return a disc by its centre."""
    return f'<circle class="{escape(kind)}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>'


def text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    """Return `words` with their base line at y and their `anchor` at x."""
    return f'<text class="{escape(kind)}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def _n(value: float) -> str:
    """Return a coordinate with a tenth of a pixel: what an eye can tell, in few bytes."""
    rounded = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if rounded == "-0" else rounded
