"""Quantization step by step: statistics, ranges, a plan, rounding, and which nodes stay float.

Each choice is made by measuring what it does to the model's outputs on calibration samples, without labels: a step
that does not help there is not taken. `compress` has the methods; here they are handed what they need to run models.
"""

from __future__ import annotations

import math
import time
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Final, Literal, TypeAlias

import onnx_ir as ir
from msgspec.structs import replace

from edgewise.analysis.cost import layer_costs
from edgewise.analysis.target import Target
from edgewise.compress.quantize import channel_groups
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.equalize import equalize
from edgewise.compress.quantize.output_error import SAMPLES as RANGE_SAMPLES
from edgewise.compress.quantize.output_error import choose_ranges
from edgewise.compress.quantize.plan import Plan, keep_float, observed_tensors, plan, widened
from edgewise.compress.quantize.recipe import Scheme
from edgewise.compress.quantize.restore import restored
from edgewise.compress.quantize.sensitivity import Sensitivity, sensitivities
from edgewise.compress.quantize.sequence import round_weights
from edgewise.compress.quantize.smooth import smooth
from edgewise.compress.runner import Opener
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.errors import RecipeError
from edgewise.passes.protocol import Findings
from edgewise.pipeline.judge import opened
from edgewise.pipeline.layer_times import extra_times
from edgewise.pipeline.widths import worth_more_bits
from edgewise.records.candidate import Quantize, RangeMethod, RunOptions
from edgewise.records.codec import Record
from edgewise.records.findings import Decline
from edgewise.records.tensors import Feeds, Run
from edgewise.search.allocation import Option, least_damage
from edgewise.search.worst import worst

ROUNDING_SAMPLES: Final = 128
"""Most samples on which weights are rounded: second moments of a layer's inputs need fewer samples than extremes do,
because every sample has many positions."""

TRIAL_SAMPLES: Final = 64
"""Samples on which two ways to quantize are told apart by the model's outputs."""

DAMAGE_SAMPLES: Final = 16
"""Samples on which the damage of each single node is measured."""

HELD_BYTES: Final = 512 << 20
"""Most memory for samples that are run again and again."""

GAIN: Final = 0.97
"""A way that is not the simplest has to have less than this share of the noise. Empirical: two halves of the same
calibration samples differ by about this much."""

SHARE: Final = 0.3
"""Most of the time left that one such step may take."""

LEAST_SHARE: Final = 0.15
"""Share of the noise that has to come from weights for rounding to be tried: it cannot take away more than that, which
is 0.7 dB."""

TIMED_TOGETHER: Final = 4
"""Variants that are open beside the whole while they are timed: so many copies of the model there are in memory."""

MOST_MACS: Final = 0.25
"""Most of the multiply-accumulates that may stay float: where 8 bits are slower than float, all would, and the
model would not be quantized any more."""

MOST_KEPT: Final = 8
"""Most nodes that are timed in float. Empirical: in every network that was looked at fewer do nearly all damage."""


Preparation: TypeAlias = Literal["as it is", "equalized", "smoothed"]

PREPARATIONS: Final[Mapping[Preparation, Callable[[ir.Model, Statistics], tuple[ir.Model, Findings]]]] = {
    "equalized": equalize,
    "smoothed": smooth,
}
"""Ways to give a model another form with the same function, which may be easier to quantize."""


def _no_end() -> float:
    return math.inf


def _unheard(_note: str) -> None:
    return


class Decision(Record, frozen=True, kw_only=True):
    """How one model is quantized, and what was tried.

    Attributes:
        plan: The plan.
        prepared: For which form of the model it is: as it is, with equalized channels, or with smoothed activations.
        trials: Every way that was measured, against the float model, in order; the last is what was decided.
        kept: Nodes that stay float to do less damage.
        wide: Weights that have 8 bits to do less damage, though fewer were asked for.
    """

    plan: Plan
    prepared: Preparation = "as it is"
    trials: tuple[Sensitivity, ...]
    kept: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()

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
    held = Held()
    statistics = _statistics(model, targets, lambda run: held.through(feeds(run)))
    return Material(model, statistics, held.feeds)


def _statistics(model: ir.Model, targets: Iterable[Target], feeds: Callable[[Run], Iterable[Feeds]]) -> Statistics:
    """Return the statistics of every tensor that a plan may quantize or an equalization may scale."""
    # Smoothing scales a part of these.
    names: dict[str, int | None] = {**channel_groups.observed_tensors(model)}
    for target in targets:
        # A tensor may be wanted by both: whoever wants means of channels says along which axis they lie.
        for name, axis in observed_tensors(model, target).items():
            names[name] = names.get(name) if axis is None else axis
    with opened(observe(model, names)) as run:
        return collect(run, feeds(run), names)


def judged_tensors(model: ir.Model) -> tuple[str, ...]:
    """Return the tensors of real numbers from which a model without any among its outputs makes them; else none.

    What ends in ArgMax or TopK gives whole numbers, and those have no noise.
    """
    waiting = list(model.graph.outputs)
    found: dict[str, None] = {}  # a set that keeps its order
    if any(_is_real(value) for value in waiting):
        return ()
    seen = set(waiting)
    while waiting:
        producer = waiting.pop().producer()
        for value in () if producer is None else producer.inputs:
            if value is None or value in seen or value.is_initializer():
                continue
            seen.add(value)
            if _is_real(value):
                found[value.name or ""] = None
            else:
                waiting.append(value)
    return tuple(found)


def comparable(whole: ir.Model) -> Opener:
    """Return what opens variants of a model so that their outputs can be compared: with its judged tensors."""
    judged = judged_tensors(whole)
    return lambda model: opened(observe(model, judged) if judged else model)


def _is_real(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


class Held:
    """An even part of a stream of unknown length: every feed at first, then every second, every fourth ...

    Args:
        most_bytes: Most memory for them; one is always kept.
    """

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self.feeds: list[Feeds] = []
        self._most_bytes = most_bytes
        self._bytes = 0
        self._every = 1

    def through(self, feeds: Iterable[Feeds]) -> Iterator[Feeds]:
        """Yield what `feeds` yields, and keep a part of it."""
        for index, feed in enumerate(feeds):
            if index % self._every == 0:
                self.feeds.append({name: array.copy() for name, array in feed.items()})
                self._bytes += _size(feed)
                while self._bytes > self._most_bytes and len(self.feeds) > 1:
                    self._bytes -= sum(map(_size, self.feeds[1::2]))
                    del self.feeds[1::2]
                    self._every *= 2
            yield feed


def _size(feed: Feeds) -> int:
    return sum(array.nbytes for array in feed.values())


def nothing_quantized(declines: Sequence[Decline]) -> RecipeError:
    """Return the refusal of a model in which nothing can be quantized, with the first of the reasons."""
    why = f" `{declines[0].node}`: {declines[0].reason}." if declines else ""
    return RecipeError(
        f"No node of this model can be quantized.{why}", hint="`edgewise inspect` says why, node by node."
    )


def evenly(feeds: Sequence[Feeds], most: int) -> Sequence[Feeds]:
    """Return at most `most` of the feeds, evenly spread."""
    return feeds[:: _stride(feeds, most)]


def without(feeds: Sequence[Feeds], most: int) -> Sequence[Feeds]:
    """Return the feeds that `evenly(feeds, most)` leaves out."""
    every = _stride(feeds, most)
    return [feed for index, feed in enumerate(feeds) if index % every]


def _stride(feeds: Sequence[Feeds], most: int) -> int:
    return max(1, -(-len(feeds) // most))


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
    _damages: dict[Plan, dict[str, float]] = field(default_factory=dict, init=False, repr=False)
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
        if step.extra_size and Scheme.parse(step.scheme).weight_bits < 8:
            steps.append(partial(self._widened, step=step))
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

    @property
    def _damage_samples(self) -> int:
        return len(evenly(self.material.feeds, DAMAGE_SAMPLES))

    def model(self, decision: Decision) -> ir.Model:
        """Return the quantized model."""
        return apply(self._source(decision).model, decision.plan)

    def _source(self, decision: Decision) -> Material:
        return self._forms[decision.prepared]

    @cached_property
    def _opened(self) -> Opener:
        return comparable(self.material.model)

    @cached_property
    def _forms(self) -> dict[Preparation, Material]:
        """The model as it is, and the forms that it can be given without a change of its function."""
        forms: dict[Preparation, Material] = {"as it is": self.material}
        feeds = self.material.feeds
        for name, prepare in PREPARATIONS.items():
            model, findings = prepare(self.material.model, self.material.statistics)
            if findings.changes:
                forms[name] = Material(model, _statistics(model, [self.target], lambda _run: feeds), feeds)
        return forms

    def _nearest(self, scheme: str, ranges: RangeMethod) -> Decision:
        """Return the best of the ways to quantize with nearest rounding, every node quantized that can be."""
        if (scheme, ranges) not in self._made:
            best, *others = (self._tried(way) for way in self._ways(scheme, ranges))
            trials = list(best.trials)
            for other in others:
                trials.extend(other.trials)
                if other.noise < GAIN * best.noise:
                    best = other
            self._made[scheme, ranges] = _ending_with(best, trials)
        return self._made[scheme, ranges]

    def _rounded(self, decision: Decision) -> Decision:
        """Return `decision` with second-order rounding, or as it is where that makes more noise."""
        source = self._source(decision)
        # Not on the samples of the trials, where there are others: rounding is fitted to what it sees.
        others = evenly(without(source.feeds, TRIAL_SAMPLES) or source.feeds, ROUNDING_SAMPLES)
        if not self._affords(len(decision.plan.weights) * len(others) // 2, "second-order rounding"):
            return decision
        if decision.plan.tensors and self._noise_of_weights(decision) < LEAST_SHARE * decision.noise:
            return decision
        rounded = round_weights(source.model, decision.plan, opened, others)
        return self._better(decision, self._tried(replace(decision, plan=rounded)))

    def _noise_of_weights(self, decision: Decision) -> float:
        """Return the noise at the outputs if the weights alone are quantized: the most that rounding can take away."""
        return self._tried(replace(decision, plan=replace(decision.plan, tensors=()))).noise

    def _tried(self, decision: Decision) -> Decision:
        """Return `decision` with how far its model is from the float one as its last trial."""
        feeds, variants = evenly(self.material.feeds, TRIAL_SAMPLES), {_words(decision): lambda: self.model(decision)}
        began = time.monotonic()
        trials = sensitivities(self.material.model, variants, self._opened, feeds)
        self._pace_s = (time.monotonic() - began) / len(feeds)
        return replace(decision, trials=(*decision.trials, *trials))

    @staticmethod
    def _better(before: Decision, after: Decision) -> Decision:
        """Return the one with less noise; both know all trials, and the last one is that of the result."""
        if after.noise < before.noise:
            return after
        return _ending_with(before, after.trials)

    def _ways(self, scheme: str, ranges: RangeMethod) -> Iterator[Decision]:
        """Yield plans with nearest rounding, the simplest first."""
        bits = Scheme.parse(scheme).activation_bits
        choosing = ranges == "output" and bits == 8
        methods: tuple[RangeMethod, ...] = ("mse", "output") if choosing else (_histogram_method(ranges, bits),)
        forms: dict[Preparation, Material] = self._forms if choosing else {"as it is": self.material}
        for prepared, source in forms.items():
            for method in methods:
                chosen = None
                if method == "output":
                    few = evenly(source.feeds, RANGE_SAMPLES)
                    chosen = choose_ranges(source.model, self.target, source.statistics, opened, few)
                asked = Quantize(scheme=scheme, ranges=method, rounding="nearest")
                made = plan(source.model, source.statistics, self.target, asked, chosen=chosen)
                yield Decision(plan=made, prepared=prepared, trials=())

    def _relieved(self, whole: Decision, extra_time: float, options: RunOptions) -> Decision:
        """Return `whole` with those nodes in float that take away most damage for at most `extra_time` more time."""
        sets = min(len(whole.plan.nodes), 4 * MOST_KEPT)
        if not self._affords(sets * self._damage_samples, "measuring the damage of each layer"):
            return whole
        macs = {cost.node: cost.macs for cost in layer_costs(self._source(whole).model)}
        most_macs = MOST_MACS * sum(macs.get(name, 0) for name in whole.plan.nodes)
        damages = self._damages_of(whole)
        harmful = [name for name, damage in damages.items() if damage > 0 and macs.get(name, 0) <= most_macs]
        share = partial(self._extra_times, whole, options)
        items = [
            (Option(cost=0.0, damage=damages[name]), Option(cost=cost, damage=0.0))
            for name, cost in zip(harmful, share([[name] for name in harmful]), strict=True)
        ]
        found = least_damage(items, extra_time) if items else None
        kept = [name for name, choice in zip(harmful, found.choices if found else (), strict=False) if choice]

        def fits(count: int) -> bool:
            few = kept[:count]
            return sum(macs.get(name, 0) for name in few) <= most_macs and share([few])[0] <= extra_time

        # Costs need not add up: as many as fit together, those that do most damage first.
        kept = kept[: bisect(range(1, len(kept) + 1), False, key=lambda count: not fits(count))]
        if not kept:
            return whole
        relieved = replace(self._keeping(whole, kept), trials=whole.trials, kept=tuple(kept))
        return self._better(whole, self._tried(relieved))

    def _widened(self, narrow: Decision, step: Quantize) -> Decision:
        """Return `narrow` with 8-bit weights where fewer bits do most damage for the bytes, within `extra_size`."""
        names = list(dict.fromkeys(weight.name for weight in narrow.plan.weights))
        if not self._affords(len(names) * self._damage_samples, "measuring which weights need more bits"):
            return narrow
        source, feeds = self._source(narrow), evenly(self.material.feeds, DAMAGE_SAMPLES)

        def only(name: str) -> Callable[[], ir.Model]:
            weights = tuple(weight for weight in narrow.plan.weights if weight.name == name)
            return lambda: apply(source.model, replace(narrow.plan, tensors=(), weights=weights))

        found = sensitivities(source.model, {name: only(name) for name in names}, self._opened, feeds)
        wide = worth_more_bits(source.model, narrow.plan, self.target, {one.node: one.nsr for one in found}, step)
        if not wide:
            return narrow
        made = widened(source.model, narrow.plan, source.statistics, self.target, wide)
        better = self._better(narrow, self._tried(replace(narrow, plan=made, wide=wide)))
        # The layers behind the wider ones made up for noise that is not there any more.
        return self._rounded(better) if better.wide and step.rounding == "second-order" else better

    def _extra_times(self, whole: Decision, options: RunOptions, kept: Sequence[Sequence[str]]) -> list[float]:
        """Return for each set of nodes what keeping it in float costs, as a share of the whole's time."""
        base, feed, times = self.model(whole), self.material.feeds[0], []
        for start in range(0, len(kept), TIMED_TOGETHER):
            variants = [self.model(self._keeping(whole, names)) for names in kept[start : start + TIMED_TOGETHER]]
            times += extra_times(self.target.backend, base, variants, options, feed)
        return times

    def _keeping(self, whole: Decision, names: Sequence[str]) -> Decision:
        made = keep_float(self._source(whole).model, whole.plan, self.target, names)
        return replace(whole, plan=made, trials=())

    def _damages_of(self, whole: Decision) -> dict[str, float]:
        """Return `damages`, measured once for all recipes that begin with the same plan."""
        if whole.plan not in self._damages:
            self._damages[whole.plan] = self.damages(whole)
        return self._damages[whole.plan]

    def damages(self, decision: Decision) -> dict[str, float]:
        """Return the quantized nodes that do most damage, by name: the noise at the outputs if each alone is quantized.

        Of many nodes a few are looked for by halving: the noise of a set is about the sum of that of its nodes.
        """
        source, names = self._source(decision).model, decision.plan.nodes
        quantized = self.model(decision)
        feeds = evenly(self.material.feeds, DAMAGE_SAMPLES)

        def only(kept: Sequence[str]) -> Callable[[], ir.Model]:
            return lambda: restored(quantized, [name for name in names if name not in set(kept)], reference=source)

        def measure(sets: Sequence[Sequence[str]]) -> list[float]:
            variants = {str(index): only(one) for index, one in enumerate(sets)}
            return [one.nsr for one in sensitivities(source, variants, self._opened, feeds)]

        return worst(names, measure, MOST_KEPT)


def _words(decision: Decision) -> str:
    """Return what a decision does, for people."""
    made = decision.plan
    words: list[str] = [] if decision.prepared == "as it is" else [decision.prepared]
    words += [made.scheme, f"{made.ranges} ranges"]
    if any(weight.integers is not None for weight in made.weights):
        words.append("second-order rounding")
    if decision.wide:
        words.append(f"more bits for: {', '.join(decision.wide)}")
    if decision.kept:
        words.append(f"in float: {', '.join(decision.kept)}")
    return ", ".join(words)


def _ending_with(result: Decision, trials: Sequence[Sensitivity]) -> Decision:
    """Return `result` knowing all `trials`, its own, which is one of them, at the end as well."""
    own = result.trials[-1]
    return replace(result, trials=tuple(trials) if trials[-1] == own else (*trials, own))


def _histogram_method(ranges: RangeMethod, bits: int | None) -> RangeMethod:
    """Return how ranges are chosen where the layers' outputs are not looked at."""
    if ranges != "output":
        return ranges
    # 16 bits have resolution to spare, and without activations there are no ranges: nothing is clipped.
    return "mse" if bits == 8 else "min-max"
