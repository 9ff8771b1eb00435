"""Quantization step by step: statistics, ranges, a plan, rounding, and which nodes stay float.

Each choice is made by measuring what it does to the model's outputs on calibration samples, without labels: a step
that does not help there is not taken. `compress` has the methods; here they are handed what they need to run models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Final

import onnx_ir as ir
from msgspec.structs import replace

from edgewise.analysis.cost import layer_costs
from edgewise.analysis.target import Target
from edgewise.compress.quantize import channel_groups
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.equalize import equalize
from edgewise.compress.quantize.output_error import choose_ranges
from edgewise.compress.quantize.plan import Plan, keep_float, observed_tensors, plan
from edgewise.compress.quantize.recipe import Scheme
from edgewise.compress.quantize.restore import restored
from edgewise.compress.quantize.sensitivity import Sensitivity, sensitivities
from edgewise.compress.quantize.sequence import WAVES, round_weights
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.pipeline.judge import opened
from edgewise.pipeline.layer_times import extra_times
from edgewise.records.candidate import Quantize, RangeMethod, RunOptions
from edgewise.records.codec import Record
from edgewise.records.tensors import Feeds, Run
from edgewise.search.allocation import Option, least_damage

ROUNDING_SAMPLES: Final = 128
"""Most samples on which weights are rounded: second moments of a layer's inputs need fewer samples than extremes do,
because every sample has many positions."""

TRIAL_SAMPLES: Final = 64
"""Samples on which two ways to quantize are told apart by the model's outputs."""

DAMAGE_SAMPLES: Final = 32
"""Samples on which the damage of each single node is measured."""

HELD_BYTES: Final = 512 << 20
"""Most memory for samples that are run again and again."""

GAIN: Final = 0.97
"""A way that is not the simplest has to have less than this share of the noise. Empirical: two halves of the same
calibration samples differ by about this much."""

SHARE: Final = 0.2
"""Most of the time left that one such step may take."""

MOST_MACS: Final = 0.25
"""Most of the multiply-accumulates that may stay float: where 8 bits are slower than float, all would, and the
model would not be quantized any more."""

MOST_KEPT: Final = 12
"""Most nodes that are timed in float. Empirical: in every network that was looked at fewer do nearly all damage."""


def _no_end() -> float:
    return math.inf


def _unheard(_note: str) -> None:
    return


class Decision(Record, frozen=True, kw_only=True):
    """How one model is quantized, and what was tried.

    Attributes:
        plan: The plan.
        equalized: Whether it is for the equalized model.
        trials: Every way that was measured, against the float model, in order; the last is what was decided.
        kept: Nodes that stay float to do less damage.
    """

    plan: Plan
    equalized: bool
    trials: tuple[Sensitivity, ...]
    kept: tuple[str, ...] = ()

    @property
    def noise(self) -> float:
        """Noise-to-signal ratio at the model's outputs, as the last trial measured it."""
        return self.trials[-1].nsr


@dataclass(frozen=True)
class Material:
    """What is known of a model before it is quantized.

    Attributes:
        model: The float model.
        statistics: Of every tensor that a plan may quantize or an equalization may scale.
        feeds: Inputs to run again: all that were run, or an even part of them.
    """

    model: ir.Model
    statistics: Statistics
    feeds: Sequence[Feeds]


def gather(model: ir.Model, targets: Iterable[Target], feeds: Callable[[Run], Iterable[Feeds]]) -> Material:
    """Run every sample once, and keep what plans need to know.

    Args:
        model: The float model.
        targets: Where it may run.
        feeds: Given the run of the observed model, which a recurrent one's next step needs, yields every sample once.

    Raises:
        DataError: If there is no sample, or one makes NaN or an infinity.
    """
    names: dict[str, int | None] = dict(channel_groups.observed_tensors(model))
    for target in targets:
        # A tensor may be wanted by both: whoever wants means of channels says along which axis they lie.
        names.update({name: axis for name, axis in observed_tensors(model, target).items() if axis is not None})
        names = {**dict.fromkeys(observed_tensors(model, target)), **names}
    held = Held()
    with opened(observe(model, names)) as run:
        statistics = collect(run, held.through(feeds(run)), names)
    return Material(model, statistics, held.feeds)


class Held:
    """An even part of a stream of unknown length: every feed at first, then every second, every fourth ...

    Args:
        most_bytes: Most memory for them; one is always kept.
    """

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self.feeds: list[Feeds] = []
        self._most_bytes = most_bytes
        self._every = 1

    def through(self, feeds: Iterable[Feeds]) -> Iterator[Feeds]:
        """Yield what `feeds` yields, and keep a part of it."""
        for index, feed in enumerate(feeds):
            if index % self._every == 0:
                self.feeds.append({name: array.copy() for name, array in feed.items()})
                size = max(1, sum(array.nbytes for array in feed.values()))
                if len(self.feeds) > max(1, self._most_bytes // size):
                    self.feeds = self.feeds[::2]
                    self._every *= 2
            yield feed


def evenly(feeds: Sequence[Feeds], most: int) -> Sequence[Feeds]:
    """Return at most `most` of the feeds, evenly spread."""
    return feeds[:: max(1, -(-len(feeds) // most))]


@dataclass
class Quantizer:
    """Quantizes one model for one target. What several recipes share is done once.

    Attributes:
        material: The float model, and what calibration showed.
        target: Where it will run.
        left_s: Gives the seconds that are left: steps that would take too many of them are left out.
        note: Hears of steps that are left out.
    """

    material: Material
    target: Target
    left_s: Callable[[], float] = _no_end
    note: Callable[[str], None] = _unheard
    _pace_s: float = field(default=0.0, init=False, repr=False)
    _made: dict[tuple[str, RangeMethod], Decision] = field(default_factory=dict, init=False, repr=False)

    def decide(self, step: Quantize, options: RunOptions | None = None) -> Decision:
        """Return how the model is quantized.

        8-bit weights are rounded last, when it is known which nodes stay float: what each layer makes up for is then
        what really comes in. With fewer bits nearest rounding would hide which activations do damage: they come first.

        Args:
            step: What is asked for.
            options: How the result will run: layers are timed like that.

        Raises:
            RecipeError: If the scheme does not exist.
        """
        decision = self._nearest(step.scheme, step.ranges)
        steps = [self._rounded] if step.rounding == "second-order" else []
        if step.extra_time and decision.plan.tensors:
            relieved = partial(self._relieved, extra_time=step.extra_time, options=options or RunOptions())
            steps.insert(0 if Scheme.parse(step.scheme).weight_bits == 8 else len(steps), relieved)
        for improved in steps:
            decision = improved(decision)
        return decision

    def _affords(self, runs: int, what: str) -> bool:
        """Return whether so many runs of the model, and as much again for the rest, take a small share of the time."""
        enough = 2 * runs * self._pace_s <= SHARE * self.left_s()
        if not enough:
            self.note(f"The time budget is too short for {what}; a larger `--budget` tries it.")
        return enough

    def model(self, decision: Decision) -> ir.Model:
        """Return the quantized model."""
        return apply(self._source(decision).model, decision.plan)

    def _source(self, decision: Decision) -> Material:
        return self._equalized if decision.equalized and self._equalized is not None else self.material

    @cached_property
    def _equalized(self) -> Material | None:
        """The equalized model and what the samples show of it; None where nothing can be equalized."""
        model, findings = equalize(self.material.model, self.material.statistics)
        return gather(model, [self.target], lambda _run: self.material.feeds) if findings.changes else None

    def _nearest(self, scheme: str, ranges: RangeMethod) -> Decision:
        """Return the best of the ways to quantize with nearest rounding, every node quantized that can be."""
        if (scheme, ranges) not in self._made:
            best, *others = (self._tried(way) for way in self._ways(scheme, ranges))
            trials = list(best.trials)
            for other in others:
                trials.extend(other.trials)
                if other.noise < GAIN * best.noise:
                    best = other
            self._made[scheme, ranges] = replace(best, trials=(*trials, best.trials[-1]))
        return self._made[scheme, ranges]

    def _rounded(self, decision: Decision) -> Decision:
        """Return `decision` with second-order rounding, or as it is where that makes more noise."""
        if not self._affords(WAVES * min(len(self.material.feeds), ROUNDING_SAMPLES), "second-order rounding"):
            return decision
        source = self._source(decision)
        rounded = round_weights(source.model, decision.plan, opened, evenly(source.feeds, ROUNDING_SAMPLES))
        return self._better(decision, self._tried(replace(decision, plan=rounded), ", second-order rounding"))

    def _tried(self, decision: Decision, how: str = "") -> Decision:
        """Return `decision` with how far its model is from the float one as its last trial."""
        plan_made = decision.plan
        name = f"{'equalized, ' if decision.equalized else ''}{plan_made.scheme}, {plan_made.ranges} ranges{how}"
        feeds = evenly(self.material.feeds, TRIAL_SAMPLES)
        began = time.monotonic()
        trials = sensitivities(self.material.model, {name: lambda: self.model(decision)}, opened, feeds)
        self._pace_s = (time.monotonic() - began) / len(feeds)
        return replace(decision, trials=(*decision.trials, *trials))

    @staticmethod
    def _better(before: Decision, after: Decision) -> Decision:
        """Return the one with less noise; both know all trials, and the last one is that of the result."""
        if after.noise < before.noise:
            return after
        return replace(before, trials=(*after.trials, before.trials[-1]))

    def _ways(self, scheme: str, ranges: RangeMethod) -> Iterator[Decision]:
        """Yield plans with nearest rounding, the simplest first."""
        bits = Scheme.parse(scheme).activation_bits
        choosing = ranges == "output" and bits == 8
        sources = [(self.material, False)]
        if choosing and self._equalized is not None:
            sources.append((self._equalized, True))
        methods: tuple[RangeMethod, ...] = ("mse", "output") if choosing else (_histogram_method(ranges, bits),)
        for source, equalized in sources:
            for method in methods:
                chosen = None
                if method == "output":
                    chosen = choose_ranges(source.model, self.target, source.statistics, opened, source.feeds)
                asked = Quantize(scheme=scheme, ranges=method, rounding="nearest")
                made = plan(source.model, source.statistics, self.target, asked, chosen=chosen)
                yield Decision(plan=made, equalized=equalized, trials=())

    def _relieved(self, whole: Decision, extra_time: float, options: RunOptions) -> Decision:
        """Return `whole` with those nodes in float that take away most damage for at most `extra_time` more time."""
        if not self._affords(len(whole.plan.nodes) * DAMAGE_SAMPLES, "measuring the damage of each layer"):
            return whole
        damages = self.damages(whole)
        worst = [name for name in sorted(damages, key=lambda name: -damages[name]) if damages[name] > 0][:MOST_KEPT]
        share = partial(self._extra_times, whole, options)
        items = [
            (Option(cost=0.0, damage=damages[name]), Option(cost=cost, damage=0.0))
            for name, cost in zip(worst, share([[name] for name in worst]), strict=True)
        ]
        found = least_damage(items, extra_time) if items else None
        kept = [name for name, choice in zip(worst, found.choices if found else (), strict=False) if choice]
        macs = {cost.node: cost.macs for cost in layer_costs(self._source(whole).model)}
        most_macs = MOST_MACS * sum(macs.get(name, 0) for name in whole.plan.nodes)
        # Costs need not add up: the least useful nodes are given back until all together fit.
        while kept and (sum(macs.get(name, 0) for name in kept) > most_macs or share([kept])[0] > extra_time):
            kept.pop()
        if not kept:
            return whole
        relieved = replace(self._keeping(whole, kept), trials=whole.trials, kept=tuple(kept))
        return self._better(whole, self._tried(relieved, f", {len(kept)} nodes in float"))

    def _extra_times(self, whole: Decision, options: RunOptions, kept: Sequence[Sequence[str]]) -> list[float]:
        """Return for each set of nodes what keeping it in float costs, as a share of the whole's time."""
        variants = [self.model(self._keeping(whole, names)) for names in kept]
        return extra_times(self.target.backend, self.model(whole), variants, options, self.material.feeds[0])

    def _keeping(self, whole: Decision, names: Sequence[str]) -> Decision:
        made = keep_float(self._source(whole).model, whole.plan, self.target, names)
        return Decision(plan=made, equalized=whole.equalized, trials=())

    def damages(self, decision: Decision) -> dict[str, float]:
        """Return the damage of every quantized node by name: the noise at the outputs if it alone is quantized."""
        source, names = self._source(decision).model, decision.plan.nodes
        quantized = self.model(decision)

        def alone(name: str) -> Callable[[], ir.Model]:
            return lambda: restored(quantized, [other for other in names if other != name], reference=source)

        feeds = evenly(self.material.feeds, DAMAGE_SAMPLES)
        found = sensitivities(source, {name: alone(name) for name in names}, opened, feeds)
        return {one.node: one.nsr for one in found}


def _histogram_method(ranges: RangeMethod, bits: int | None) -> RangeMethod:
    """Return how ranges are chosen where the layers' outputs are not looked at."""
    if ranges != "output":
        return ranges
    # 16 bits have resolution to spare, and without activations there are no ranges: nothing is clipped.
    return "mse" if bits == 8 else "min-max"
