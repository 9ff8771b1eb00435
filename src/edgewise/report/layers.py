"""Time and size of each layer: the costly ones by name, the others in sum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgewise.records.measurements import LayerCost
from edgewise.records.run import Run, Rung
from edgewise.report import quantities as q
from edgewise.report.charts import Part, meter, stack
from edgewise.report.noise import NoiseFigures, noise_figures
from edgewise.report.pruning import PruningFigures, pruning_figures

TOP: Final = 25
_OPERATORS: Final = 6
"""Operator types with a colour of their own; the others share one."""


@dataclass(frozen=True)
class LayerRow:
    """One line of the table; a number that is not known is `NONE`, and its bar None."""

    node: str
    operator: str
    time: str
    time_bar: str | None
    share: str
    weights: str
    weights_bar: str | None
    macs: str
    summed: bool


@dataclass(frozen=True)
class LayerTable:
    """The layers of one rung.

    Attributes:
        name: The candidate.
        says: How the table is sorted, and what is known of the times.
        rows: The costly layers, then the sum of the others.
        total: The sum of all.
        timed: Whether there is any time: without one, its columns are left out.
        bar: The time by operator type as one bar, or None.
    """

    name: str
    says: str
    rows: tuple[LayerRow, ...]
    total: LayerRow
    timed: bool
    bar: str | None


@dataclass(frozen=True)
class LayerSection:
    """The section of the report.

    Attributes:
        tables: The default, then the untouched model where that is another one.
        legend: Class and name of each operator type in the bars.
        missing: Why there is nothing for a rung, where there is nothing.
        noise: The pictures of quantization noise, where it was measured.
        pruning: The pictures of what the default lost by pruning, where it was pruned.
    """

    tables: tuple[LayerTable, ...]
    legend: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    noise: NoiseFigures | None
    pruning: PruningFigures | None


def layer_section(run: Run) -> LayerSection:
    """Return the section about layers."""
    rungs = [run.ladder[run.chosen]] + ([run.ladder[0]] if run.chosen else [])
    shown = [rung for rung in rungs if rung.layers]
    kinds = _kinds(shown)
    return LayerSection(
        tables=tuple(_table(rung, kinds) for rung in shown),
        legend=_legend(kinds),
        missing=tuple(f"No layer costs were recorded for {r.candidate.name}." for r in rungs if not r.layers),
        noise=None if run.noise is None else noise_figures(run.noise),
        pruning=None if run.pruning is None else pruning_figures(run.pruning),
    )


def _kinds(rungs: Sequence[Rung]) -> dict[str, str]:
    """Return a colour class for every operator type that has a time, the same in all bars."""
    times: defaultdict[str, float] = defaultdict(float)
    for rung in rungs:
        for layer in rung.layers:
            if layer.time_us is not None and layer.time_us > 0:
                times[layer.operator] += layer.time_us
    ranked = sorted(times, key=lambda operator: -times[operator])
    return {operator: f"c{index}" if index < _OPERATORS else "rest" for index, operator in enumerate(ranked)}


def _legend(kinds: dict[str, str]) -> tuple[tuple[str, str], ...]:
    named = [(kind, operator or "unnamed") for operator, kind in kinds.items() if kind != "rest"]
    others = len(kinds) - len(named)
    return (*named, *([("rest", q.plural(others, "other type"))] if others else []))


def _cost(layer: LayerCost) -> tuple[float, int, int]:
    return (layer.time_us or 0.0, layer.macs, layer.weight_bytes)


def _table(rung: Rung, kinds: dict[str, str]) -> LayerTable:
    layers = rung.layers
    times = [layer.time_us for layer in layers if layer.time_us is not None]
    timed = bool(times)
    ranked = sorted(layers, key=_cost, reverse=True)
    # A last line that sums a single layer would hide its name for nothing.
    top, others = (ranked, []) if len(ranked) <= TOP + 1 else (ranked[:TOP], ranked[TOP:])
    scale = _Scale(
        time=max(times, default=0.0), total_time=sum(times), weights=max((x.weight_bytes for x in layers), default=0)
    )
    rows = [_row(layer.node or "(no name)", layer.operator, [layer], scale) for layer in top]
    if others:
        rows.append(_row(f"the other {q.count(len(others))} layers", "", others, scale, summed=True))
    return LayerTable(
        name=rung.candidate.name,
        says=_says(rung, times),
        rows=tuple(rows),
        total=_row(f"all {q.count(len(layers))} layers", "", layers, scale, summed=True),
        timed=timed,
        bar=_bar(layers, kinds) if timed and sum(times) > 0 else None,
    )


@dataclass(frozen=True)
class _Scale:
    time: float
    total_time: float
    weights: int


def _row(node: str, operator: str, layers: Sequence[LayerCost], scale: _Scale, *, summed: bool = False) -> LayerRow:
    times = [layer.time_us for layer in layers if layer.time_us is not None]
    time, weights, macs = sum(times), sum(x.weight_bytes for x in layers), sum(x.macs for x in layers)
    known = bool(times) and scale.total_time > 0
    return LayerRow(
        node=node,
        operator=operator,
        time=q.duration(time) if times else q.NONE,
        time_bar=None if summed or not times else meter(time / scale.time if scale.time else 0.0),
        share=q.share(round(time / scale.total_time, 3)) if known else q.NONE,
        weights=q.size(weights) if weights else q.NONE,
        weights_bar=None if summed or not weights else meter(weights / scale.weights),
        macs=q.amount(macs) if macs else q.NONE,
        summed=summed,
    )


def _says(rung: Rung, times: Sequence[float]) -> str:
    if not times:
        order = "multiply-accumulates" if any(layer.macs for layer in rung.layers) else "size"
        return f"Sorted by {order}: the runtime gave no time for any layer."
    said = (
        f"Sorted by time, as the runtime's profiler gave it. The times add up to {q.duration(sum(times))}; the median "
        f"latency, measured without the profiler, is {q.duration(rung.latency.median_us)}."
    )
    unknown = len(rung.layers) - len(times)
    return f"{said} {q.plural(unknown, 'layer')} without a time." if unknown else said


def _bar(layers: Sequence[LayerCost], kinds: dict[str, str]) -> str:
    sums: defaultdict[str, float] = defaultdict(float)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for layer in layers:
        if layer.time_us is not None and layer.time_us > 0:
            kind = kinds[layer.operator]
            sums[kind] += layer.time_us
            if layer.operator not in names[kind]:
                names[kind].append(layer.operator)
    whole = sum(sums.values())
    parts = []
    for kind in dict.fromkeys(kinds.values()):
        if kind in sums:
            label = ", ".join(names[kind])
            parts.append(Part(sums[kind], kind, f"{label}\n{q.duration(sums[kind])}, {q.share(sums[kind] / whole)}"))
    return stack(parts)
