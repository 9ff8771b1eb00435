"""Which layers of a quantized model do the damage, why, and what keeping each of them in floating point costs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import onnx_ir as ir

from edgewise.analysis.values import with_inferred_shapes
from edgewise.backends import registry
from edgewise.compress.quantize.aligned import aligned
from edgewise.compress.quantize.causes import Cause, diagnose, tapped
from edgewise.compress.quantize.operators import RECURRENT, WEIGHTED
from edgewise.compress.quantize.placement import KEPT, label, place
from edgewise.compress.quantize.reasons import read_reasons
from edgewise.compress.quantize.restore import matched, quantized_nodes, restored
from edgewise.compress.quantize.sensitivity import Sensitivity, sensitivities
from edgewise.errors import DataError, EdgewiseError, RecipeError
from edgewise.measure.latency import measure_group, ratio
from edgewise.measure.metrics import METRICS, PerSample, default_metric
from edgewise.measure.process import Entry
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline.judge import open_judge, opened
from edgewise.pipeline.progress import Progress
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import Record
from edgewise.records.measurements import Latency
from edgewise.records.tensors import Array, Feeds, Outputs, Run
from edgewise.search.worst import worst

TIMED_FEEDS: Final = 8
"""Samples that are timed in rotation."""

LEAST_SHARE_ALONE: Final = 0.5
"""Below this share of the damage, what layers gain one at a time does not tell which of them do it."""

MOST_JOINT: Final = 8
"""Layers that are looked for then. Each takes a few runs of all samples."""


class Cost(Record, frozen=True, kw_only=True):
    """What keeping a layer in floating point costs in time.

    Attributes:
        extra_us: Microseconds that one inference takes longer: negative where floating point is faster.
        low: Lower end of the interval.
        high: Upper end.
        confidence: Its level.
    """

    extra_us: float
    low: float
    high: float
    confidence: float


class Culprit(Record, frozen=True, kw_only=True):
    """One layer of a quantized model.

    Attributes:
        node: The layer.
        operator: Its operator type.
        share: Share of the whole damage that goes away when this layer alone is in floating point; below 0 where its
            errors make up for others. None for a layer that is in floating point already.
        gained: The same in the unit of the damage; None likewise.
        flips: How many answers fewer differ from the reference's; None where there are no decisions.
        points: By how much the metric improves, in its own unit; None without labels.
        cause: Why it is wrong.
        why: The same in words, with its numbers.
        cost: What keeping it in floating point costs, where that was measured.
    """

    node: str
    operator: str
    share: float | None
    gained: float | None
    flips: int | None
    points: float | None
    cause: Cause
    why: str
    cost: Cost | None = None


class Culprits(Record, frozen=True, kw_only=True):
    """Where the damage of a quantized model comes from.

    Attributes:
        measure: What the damage is: `KL` in nats, or `NSR` (noise-to-signal ratio) of outputs that are no scores.
        whole: The quantized model against the reference.
        rest: What remains with every layer in floating point, in the unit of the damage.
        metric: The metric of the points; empty without labels.
        layers: The layers on integers, those that gain most first.
        floats: The layers that could be on integers but are not.
        weights_found: How many layers have their weights before rounding in the reference; the others are restored with
            rounded weights, so that what rounding did stays in `rest`.
        backend: Where costs were measured; empty where they were not.
        joint: Where layers do their damage jointly: the few that do most of it, each quantized alone; together in
            floating point they take away `joint_share` of the damage. Empty where single layers explain it, or no such
            few do.
        joint_share: See `joint`.
    """

    measure: str
    whole: Sensitivity
    rest: float
    metric: str
    layers: tuple[Culprit, ...]
    floats: tuple[Culprit, ...]
    weights_found: int
    backend: str = ""
    joint: tuple[str, ...] = ()
    joint_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How costs are measured.

    Attributes:
        worst: How many of the worst layers are timed.
        budget_s: Seconds for all of them together.
        backend: Where.
        options: How the backend runs them.
    """

    worst: int
    budget_s: float
    backend: str = "ort"
    options: RunOptions = field(default_factory=RunOptions)


def culprits(
    reference: ir.Model,
    quantized: ir.Model,
    feeds: Sequence[Feeds],
    *,
    labels: Sequence[Any] | None,
    timing: Timing,
    progress: Progress,
) -> Culprits:
    """Measure what each layer of a quantized model does, by taking it back to floating point.

    Args:
        reference: The model from which `quantized` was made; fused, and its channels scaled, where that finds the
            weights of more layers.
        quantized: A QDQ graph with at least one node on integers.
        feeds: The samples.
        labels: One for each of the feeds, or None.
        timing: How costs are measured.
        progress: Hears what is done.

    Raises:
        UserError: If a model cannot be run, or gives NaN.
    """
    if timing.worst and timing.budget_s <= 0:
        raise RecipeError(f"`--time` has to be positive. Received {timing.budget_s:g} seconds.")
    quantized = with_inferred_shapes(quantized)
    original, _ = closest(reference, quantized)
    nodes = quantized_nodes(quantized)
    progress.stage("Restoring layers", len(nodes) + 2)
    judge = _Judge(original, labels)
    variants: dict[str, Callable[[], ir.Model]] = {
        "": lambda: quantized,
        " ": lambda: restored(quantized, nodes, reference=original),
    }
    variants |= {name: _restoring(quantized, name, original) for name in nodes}
    found = sensitivities(original, variants, judge.open, feeds, progress=progress.step)
    whole, rest, *single = (msgspec.structs.replace(one, node=one.node.strip()) for one in found)
    points = judge.points()
    with closing(open_judge(tapped(quantized, nodes))) as session:
        diagnoses = diagnose(quantized, session.run, feeds, nodes=nodes, reference=original)
    operators = {label(node): node.op_type for node in quantized.graph}
    layers = [
        Culprit(
            node=one.node,
            operator=operators[one.node],
            share=(whole.damage - one.damage) / whole.damage if whole.damage else 0.0,
            gained=whole.damage - one.damage,
            flips=None if whole.flips is None or one.flips is None else whole.flips - one.flips,
            points=None if points is None else points[index + 2] - points[0],
            cause=diagnosis.cause,
            why=diagnosis.words,
        )
        for index, (one, diagnosis) in enumerate(zip(single, diagnoses, strict=True))
    ]
    layers.sort(key=lambda layer: -(layer.gained or 0.0))
    joint: tuple[str, ...] = ()
    joint_share = 0.0
    if math.fsum(max(0.0, layer.gained or 0.0) for layer in layers) < LEAST_SHARE_ALONE * whole.damage:
        joint, joint_share = _jointly(quantized, nodes, original, feeds, whole.damage)
    return Culprits(
        measure="NSR" if whole.kl is None else "KL",
        whole=whole,
        rest=rest.damage,
        metric=judge.metric.name if judge.metric is not None and points is not None else "",
        layers=_with_costs(
            layers,
            lambda name: quantized if name is None else restored(quantized, [name], reference=original),
            feeds,
            timing,
            progress,
        ),
        floats=_floats(original, quantized, timing.backend),
        weights_found=len(matched(quantized, original)),
        backend=timing.backend if timing.worst else "",
        joint=joint,
        joint_share=joint_share,
    )


def _jointly(
    quantized: ir.Model, nodes: Sequence[str], original: ir.Model, feeds: Sequence[Feeds], damage: float
) -> tuple[tuple[str, ...], float]:
    """Return the fewest of the worst layers that take away a good part of the damage together, and that part.

    The worst are those that do most damage where each alone is quantized, found by halving.
    """

    def damages(kept: Sequence[Sequence[str]]) -> list[float]:
        variants = {
            str(index): lambda names=names: restored(quantized, names, reference=original)
            for index, names in enumerate(kept)
        }
        return [one.damage for one in sensitivities(original, variants, opened, feeds)]

    def only(sets: Sequence[Sequence[str]]) -> list[float]:
        return damages([[name for name in nodes if name not in set(one)] for one in sets])

    found = tuple(worst(nodes, only, min(MOST_JOINT, len(nodes) - 1)))
    for count in range(2, len(found) + 1):
        share = 1 - damages([found[:count]])[0] / damage
        if share >= LEAST_SHARE_ALONE:
            return found[:count], share
    return (), 0.0


def closest(reference: ir.Model, quantized: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Return the reference, what fusion makes of it, or that with rescaled channels: whichever has most of the weights.

    Returns:
        The model, of the same function as `reference`, and the tensors whose channels are scaled as in `quantized`.
    """
    try:
        fused, _ = fuse(reference)
    except EdgewiseError:
        return reference, ()
    scaled, names = aligned(fused, quantized)
    if names and len(matched(quantized, scaled)) >= len(matched(quantized, fused)):
        return scaled, names
    return (fused if len(matched(quantized, fused)) > len(matched(quantized, reference)) else reference), ()


def _restoring(quantized: ir.Model, name: str, reference: ir.Model) -> Callable[[], ir.Model]:
    return lambda: restored(quantized, [name], reference=reference)


class _Judge:
    """Opens models in ONNX Runtime as they are written, and scores what they answer on the way.

    Args:
        reference: The model that is not scored.
        labels: One for each sample, or None.
    """

    def __init__(self, reference: ir.Model, labels: Sequence[Any] | None) -> None:
        self.reference = reference
        self.labels = labels
        self.metric: PerSample | None = None
        self.scores: list[list[float]] = []

    @contextmanager
    def open(self, model: ir.Model) -> Iterator[Run]:
        """Open a model; each run is taken for the next sample."""
        with closing(open_judge(model)) as session:
            if model is self.reference or self.labels is None:
                yield session.run
                return
            scores: list[float] = []
            self.scores.append(scores)

            def run(feeds: Feeds) -> Outputs:
                outputs = session.run(feeds)
                self._score(next(iter(outputs.values()))[0], scores)
                return outputs

            yield run

    def points(self) -> list[float] | None:
        """Return the metric of each model that was opened, larger is better; None where there is none."""
        if self.metric is None or self.labels is None:
            return None
        sign = 1.0 if self.metric.higher_is_better else -1.0
        return [sign * self.metric.total(scores) for scores in self.scores]

    def _score(self, output: Array, scores: list[float]) -> None:
        if self.labels is None:
            return
        try:
            if self.metric is None:
                metric = METRICS[default_metric(self.labels, output.shape)]
                if not isinstance(metric, PerSample) or metric.against != "labels":
                    self.labels = None
                    return
                self.metric = metric
            scores.append(self.metric.score(output, self.labels[len(scores)]))
        except (DataError, RecipeError):
            self.labels = None  # labels of another sort, such as text: they say nothing here


def _with_costs(
    layers: Sequence[Culprit],
    models: Callable[[str | None], ir.Model],
    feeds: Sequence[Feeds],
    timing: Timing,
    progress: Progress,
) -> tuple[Culprit, ...]:
    """Return the layers, the worst of them with what keeping them in floating point costs."""
    first = layers[: timing.worst]
    if not first:
        return tuple(layers)
    progress.stage(f"Timing {len(first)} layers in turns ({timing.budget_s:.0f} s)")
    backend = registry.get(timing.backend)
    with tempfile.TemporaryDirectory(prefix="edgewise-diff-") as scratch:
        entries = []
        for index, name in enumerate([None, *(layer.node for layer in first)]):
            artifact = backend.compile(models(name), timing.options)
            folder = Path(scratch) / str(index)
            artifact.write(folder)
            entries.append(Entry(name or "the quantized model", folder, artifact.spec))
        timed = [feeds[index] for index in range(min(TIMED_FEEDS, len(feeds)))]
        base, *others = measure_group(entries, timed, budget_s=timing.budget_s)
    if not isinstance(base, Latency):
        raise base
    costs: list[Cost | None] = []
    for name, latency in zip([layer.node for layer in first], others, strict=True):
        if not isinstance(latency, Latency):
            progress.note(f"`{name}` could not be timed: {latency.message}")
        costs.append(cost(base, latency) if isinstance(latency, Latency) else None)
    with_costs = [msgspec.structs.replace(layer, cost=one) for layer, one in zip(first, costs, strict=True)]
    return (*with_costs, *layers[timing.worst :])


def cost(before: Latency, after: Latency) -> Cost:
    """Return how much longer `after` takes than `before`, from the same rounds: from their ratio and its interval."""
    found = ratio(before, after)
    return Cost(
        extra_us=before.median_us * (1 / found.value - 1),
        low=before.median_us * (1 / found.high - 1),
        high=before.median_us * (1 / found.low - 1),
        confidence=found.confidence,
    )


def _floats(reference: ir.Model, quantized: ir.Model, backend: str) -> tuple[Culprit, ...]:
    """Return the layers that are in floating point: why, as the model says, else as a plan for the backend does."""
    declines = {decline.node: decline.reason for decline in place(reference, registry.get(backend).target()).declines}
    declines |= {decline.node: decline.reason for decline in read_reasons(quantized)}
    integers = set(quantized_nodes(quantized))
    return tuple(
        Culprit(
            node=label(node),
            operator=node.op_type,
            share=None,
            gained=None,
            flips=None,
            points=None,
            cause="kept" if declines.get(label(node)) == KEPT else "unsupported",
            why=declines.get(label(node), "it was left in floating point, although it could be 8-bit"),
        )
        for node in quantized.graph
        if node.op_type in WEIGHTED | RECURRENT and label(node) not in integers
    )


class Sampled(Sequence[Feeds]):
    """The first samples of a data set, read when they are asked for.

    Args:
        read: Returns the feeds of a sample.
        count: How many there are.
    """

    def __init__(self, read: Callable[[int], Feeds], count: int) -> None:
        self._read = read
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Feeds:  # type: ignore[override]  # slices are never asked for
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._read(index)
