"""The two pictures: how the latencies are distributed, and accuracy against latency of every candidate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgewise.records.run import Outcome, Run, Rung
from edgewise.report import quantities as q
from edgewise.report.charts import Curve, Point, distribution, scatter, swatch
from edgewise.report.frame import NARROW, WIDE, Axis
from edgewise.report.words import Terms, faster, interval

FATES: Final = {"chosen": "Chosen", "rung": "On the ladder", "measured": "Measured", "rejected": "Rejected"}


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    swatch: str
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart with what belongs to it.

    Attributes:
        title: What it shows, for those who do not see it.
        wide: The chart for wide screens, or None where there is nothing to draw.
        narrow: The same for narrow ones.
        legend: Its key.
        caption: How to read it, and what it leaves out.
    """

    title: str
    wide: str | None
    narrow: str | None
    legend: tuple[Key, ...]
    caption: tuple[str, ...]


def latency_figure(run: Run) -> Figure:
    """Return the distributions of the rungs' latencies."""
    kinds = [_line_kind(index, run) for index in range(len(run.ladder))]
    usable = [(kind, rung) for kind, rung in zip(kinds, run.ladder, strict=True) if len(rung.latency.quantiles_us) > 1]
    legend = [
        Key(swatch(kind, line=True), rung.candidate.name, f"median {q.duration(rung.latency.median_us)}")
        for kind, rung in usable
    ]
    title = "Share of runs that took at most so long"
    if not usable:
        return Figure(title, None, None, (), ("The distributions were not recorded.",))
    curves = [_curve(kind, rung) for kind, rung in usable]
    # The default is drawn last, on top.
    curves.sort(key=lambda curve: curve.kind == "chosen")
    largest = max(rung.latency.p99_us for _, rung in usable)
    axis = _time_axis("time of one inference", largest)
    slowest = max(rung.latency.max_us for _, rung in usable)
    caption = ["A curve further to the left is faster; a steep one is steady. Marks: half, 90 % and 99 % of the runs."]
    if slowest > 1.25 * largest:
        caption.append(f"The slowest single run took {q.duration(slowest)}; the axis ends before it.")
    return Figure(
        title, distribution(curves, axis, WIDE), distribution(curves, axis, NARROW), tuple(legend), tuple(caption)
    )


def _line_kind(index: int, run: Run) -> str:
    if index == run.chosen:
        return "chosen"
    return "original" if index == 0 else f"step{min(index, 4)}"


def _curve(kind: str, rung: Rung) -> Curve:
    latency = rung.latency
    levels = (
        ("half of the runs within", latency.median_us),
        ("90 % of the runs within", latency.p90_us),
        ("99 % of the runs within", latency.p99_us),
    )
    first, second, third = (f"{rung.candidate.name}\n{says} {q.duration(value)}" for says, value in levels)
    return Curve(kind, latency.quantiles_us, (first, second, third))


def _time_axis(quantity: str, largest_us: float) -> Axis:
    unit, factor = ("µs", 1.0) if largest_us < 2000 else ("ms", 1e-3) if largest_us < 2e6 else ("s", 1e-6)
    return Axis(f"{quantity}, {unit}", factor)


def pareto_figure(run: Run, terms: Terms) -> Figure:
    """Return accuracy against latency of every candidate for which both are known."""
    timed = [outcome for outcome in run.outcomes if outcome.latency is not None]
    scored = [outcome for outcome in timed if outcome.accuracy is not None]
    by_loss = not scored
    drawn = [outcome for outcome in timed if outcome.drop is not None] if by_loss else scored
    title = f"{terms.lost if by_loss else terms.metric} against latency"
    if not drawn:
        says = "No candidate has both a latency and an accuracy: there is nothing to draw. The table below has all."
        return Figure(title, None, None, (), (says,))
    down = by_loss or any(x.accuracy is not None and not x.accuracy.higher_is_better for x in drawn)
    points = with_front([_point(outcome, terms, run, by_loss=by_loss) for outcome in drawn], down=down)
    factor = 100.0 if by_loss or terms.percent else 1.0
    name = f"{terms.lost}, {terms.unit}" if by_loss else f"{terms.metric}{', %' if terms.percent else ''}"
    y_axis = Axis(f"{name}{' (up is better: less)' if down else ''}", factor, down)
    x_axis = _time_axis("median latency", max(point.x for point in points))
    return Figure(
        title,
        scatter(points, x_axis, y_axis, WIDE),
        scatter(points, x_axis, y_axis, NARROW),
        _fate_legend(points),
        _pareto_caption(run, drawn, by_loss=by_loss),
    )


def _fate_legend(points: Sequence[Point]) -> tuple[Key, ...]:
    counts = Counter(point.kind for point in points)
    names = {"chosen": "chosen", "original": "original", "rung": "on the ladder", "measured": "measured"}
    names["rejected"] = "rejected"
    return tuple(
        Key(swatch(kind, line=False), text, q.count(counts[kind])) for kind, text in names.items() if counts[kind]
    )


def _pareto_caption(run: Run, drawn: Sequence[Outcome], *, by_loss: bool) -> tuple[str, ...]:
    found = ["Left is faster, up is better. The line is the front: no candidate that was kept is better in both."]
    whiskers = "Whiskers: the middle 80 % of the round medians across"
    accuracy = next((x.accuracy for x in drawn if x.accuracy is not None), None)
    if accuracy is not None and not by_loss:
        whiskers += f", the {q.confidence(accuracy.confidence)} interval ({accuracy.method}) upright"
        whiskers += f" ({q.plural(accuracy.n, 'sample')} of the select split)"
    found.append(f"{whiskers}.")
    if missing := len(run.outcomes) - len(drawn):
        found.append(
            f"Not drawn: {q.plural(missing, 'candidate')} of which the latency or the accuracy was not measured; "
            "the table of candidates says why."
        )
    return tuple(found)


def _point(outcome: Outcome, terms: Terms, run: Run, *, by_loss: bool) -> Point:
    latency, accuracy = outcome.latency, outcome.accuracy
    rounds = sorted(latency.rounds_us) if latency is not None else []
    kind = outcome.fate if outcome.fate in FATES else "measured"
    if kind != "chosen" and outcome.candidate == run.ladder[0].candidate:
        kind = "original"
    y = outcome.drop if by_loss else accuracy.value if accuracy is not None else None
    # What is drawn is held to what the caller selected; the rest of these expressions satisfies the type checker.
    return Point(
        x=latency.median_us if latency is not None else math.nan,
        y=y if y is not None else math.nan,
        x_range=(rounds[len(rounds) // 10], rounds[-1 - len(rounds) // 10]) if rounds else None,
        y_range=(accuracy.low, accuracy.high) if accuracy is not None and not by_loss else None,
        kind=kind,
        label=outcome.candidate.name if kind in {"chosen", "original"} else "",
        tip=_tip(outcome, terms),
    )


def _tip(outcome: Outcome, terms: Terms) -> str:
    said = [outcome.candidate.name, FATES.get(outcome.fate, outcome.fate)]
    if outcome.latency is not None:
        said.append(f"median {q.duration(outcome.latency.median_us)}")
    if outcome.speedup is not None:
        said.append(f"{' '.join(faster(outcome.speedup))} ({interval(outcome.speedup)})")
    if outcome.accuracy is not None:
        said.append(f"{outcome.accuracy.metric} {terms.accuracy(outcome.accuracy)}")
    if outcome.drop is not None:
        said.append(f"{terms.lost}: {terms.loss(outcome.drop)} on the select split")
    if outcome.size_bytes is not None:
        said.append(f"{q.size(outcome.size_bytes)} on disk")
    if outcome.reason:
        said.append(outcome.reason)
    return "\n".join(said)


def with_front(points: Sequence[Point], *, down: bool) -> list[Point]:
    """Return `points` with `front` set on those that none of the kept ones beats in both directions.

    Args:
        points: The candidates; a smaller x is better. Rejected ones are never on the front.
        down: Whether a smaller y is better.
    """
    sign = -1.0 if down else 1.0
    kept = [point for point in points if point.kind != "rejected" and math.isfinite(point.x) and math.isfinite(point.y)]
    best, front = -math.inf, set()
    for point in sorted(kept, key=lambda point: (point.x, -sign * point.y)):
        if sign * point.y > best:
            best = sign * point.y
            front.add(id(point))
    return [replace(point, front=id(point) in front) for point in points]
