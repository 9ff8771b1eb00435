"""Pruning for a goal in time: what each option saves and breaks, which options together, and the pruned model.

Costs and damages are measured one option at a time, a knapsack over both chooses (Frantar and Alistarh 2022, "SPDY";
Kurtic et al. 2023, "ZipLM"), a search over coefficients corrects for what does not add up, and the chosen widths are
then pruned one layer after the other on what is really left. `compress/prune` has the methods.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from msgspec.structs import replace

from edgewise.analysis.coupling import Coupling, couple
from edgewise.analysis.facts import model_facts
from edgewise.analysis.target import Target
from edgewise.analysis.values import label
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.layers import drop
from edgewise.compress.prune.options import Option as Narrowing
from edgewise.compress.prune.options import options as narrowings
from edgewise.compress.prune.options import stitch
from edgewise.compress.prune.refit import made_up_for, refit_readers
from edgewise.compress.prune.sequence import prune_neurons
from edgewise.compress.prune.weight_sequence import prune_weights
from edgewise.compress.prune.weights import Blocks, KeptOfEvery, Pattern, Unstructured
from edgewise.compress.quantize.sensitivity import Sensitivity, sensitivities
from edgewise.compress.runner import Opener
from edgewise.errors import RecipeError
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline.judge import opened
from edgewise.pipeline.pruning_choices import Choice, Parts, merged
from edgewise.pipeline.pruning_costs import Stopwatch
from edgewise.pipeline.quantize import comparable, evenly, without
from edgewise.records.candidate import RunOptions
from edgewise.records.findings import Decline
from edgewise.records.pruning import GroupWidth, Pruning, PruningTrial
from edgewise.records.tensors import Feeds
from edgewise.search.allocation import Option
from edgewise.search.coefficients import Refined, refine

TRIAL_SAMPLES: Final = 64
"""Samples on which pruned models are told apart by their outputs."""

DAMAGE_SAMPLES: Final = 24
"""Samples on which the damage of each single option is measured."""

TOLERANCE: Final = 0.02
"""How far the measured time may be above the one that was asked for, as a share of the whole model's."""

OVERSHOT: Final = 0.04
"""How far it may be below: what went too much did damage."""

CORRECTIONS: Final = 7
"""Times that the goal is tried to be met; each time what was missing is added."""

CORRECTION: Final = (1.1, 1.6)
"""Least and most factor by which the budget changes at a time: below, the same options may be chosen again."""

EPSILON: Final = 0.01

SHARE: Final = 0.5
"""Most of the time left that one goal may take."""

SWEEPS: Final = 6
"""Runs of all samples that compensation takes: once for every option, and twice in the end, through two models."""

FILL_SAMPLES: Final = 96
FILLED_LAYERS: Final = 4
"""Layers behind a region that goes that make up for it, while options are compared; in the end all are fitted."""

TRIES: Final = 24
"""Choices that the search over coefficients measures at most."""

_NONE: Final[Mapping[str, int]] = MappingProxyType({})
_NO_ERRORS: Final[Mapping[str, float]] = MappingProxyType({})

PatternName: TypeAlias = Literal["unstructured", "1x4", "2:4"]

PATTERNS: Final[Mapping[PatternName, Pattern]] = {
    "unstructured": Unstructured(),
    "1x4": Blocks(1, 4),
    "2:4": KeptOfEvery(2, 4),
}
"""Where zeros may be, by name."""


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
        model: Fused again, in float.
        account: What was taken.
        declines: What could not be made up for, and why.
    """

    model: ir.Model
    account: Pruning
    declines: tuple[Decline, ...] = ()

    def timed(self, time: float) -> Pruned:
        """Return the same, knowing its time as a share of the whole model's."""
        last = replace(self.account.trials[-1], time=time)
        return Pruned(self.model, replace(self.account, trials=(*self.account.trials[:-1], last)), self.declines)


def _no_end() -> float:
    return math.inf


@dataclass
class Pruner:
    """Prunes one model for one target. What several goals share is measured once.

    Attributes:
        model: The fused float model.
        feeds: Calibration samples, without labels.
        target: Where the result will run.
        quantized: Whether it will run with 8-bit layers: then those are timed.
        options: How it will run.
        left_s: Gives the seconds that are left.
        seed: Seed of the search over coefficients.
    """

    model: ir.Model
    feeds: Sequence[Feeds]
    target: Target
    quantized: bool = True
    options: RunOptions = field(default_factory=RunOptions)
    left_s: Callable[[], float] = _no_end
    seed: int = 0

    @cached_property
    def parts(self) -> Parts:
        """What can be taken from the model."""
        return Parts(self.model, self.target.width_steps)

    def at(self, goal: float) -> Pruned:
        """Return the model with the least damage whose measured time is at most `goal` of the whole's.

        Raises:
            RecipeError: If nothing can be pruned, or not so much.
        """
        if not self.parts.items:
            raise nothing_pruned(self.parts.coupling)
        self._require_time()
        least, best = 1.0, None
        enough, too_little = -math.inf, 0.0
        budget = goal - 1.0
        for _ in range(CORRECTIONS):
            found = self._chosen(budget)
            if found is None:
                if too_little == 0.0:
                    least = max(1.0 + sum(min(option.cost for option in item) for item in self._table), 0.0)
                    break
                budget = (budget + too_little) / 2
                continue
            choices = self._choices(found.choices)
            # Not yet pruned layer by layer: that takes longer, and its time is the same.
            measured = self._stopwatch.time(self._stitched(choices))
            least = min(least, measured)
            if measured <= goal + TOLERANCE:
                best, enough = choices, budget
                if measured >= goal - OVERSHOT:
                    break
            else:
                too_little = budget
            # Savings do not quite add up: what was missing is added, and what was too much is halved.
            missing = float(np.clip((1.0 - goal) / max(1.0 - measured, EPSILON), *CORRECTION))
            budget = (enough + too_little) / 2 if math.isfinite(enough) else missing * budget
        if best is not None:
            pruned = self.made(best)
            return pruned.timed(self._stopwatch.time(pruned.model))
        raise RecipeError(
            f"Pruning brought this model to {least:.0%} of its time at most, but {goal:.0%} was asked for.",
            hint="Ask for a larger share of the time; a busy machine measures wrong.",
        )

    def _chosen(self, budget: float) -> Refined | None:
        """Return what is done to each item within a budget of time, or None if not so much can be saved."""
        return refine(self._table, budget, self._damage_of, tries=TRIES, seed=self.seed)

    def _choices(self, picked: Sequence[int]) -> list[Choice]:
        return [item[index] for item, index in zip(self.parts.items, picked, strict=True)]

    @cached_property
    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(self.model, self.target, self.quantized, self.options, self.feeds)

    @cached_property
    def _table(self) -> list[list[Option]]:
        """For each item and choice the time that it saves (negative), and its damage at the outputs, measured alone."""
        changed = [choice for item in self.parts.items for choice in item[1:]]
        savings = iter(
            self._stopwatch.savings(
                [self.parts.look_of(choice) for choice in changed],
                lambda members: self._rough([changed[index] for index in members]),
            )
        )
        return [
            [
                Option(cost=0.0, damage=0.0),
                *(Option(cost=-next(savings), damage=self._damage_alone(choice)) for choice in item[1:]),
            ]
            for item in self.parts.items
        ]

    @cached_property
    def _narrowings(self) -> Mapping[str, Mapping[int, Narrowing]]:
        """For each group and width which units go and what makes up for them, every group by itself."""
        widths: dict[str, set[int]] = {}
        for choice in itertools.chain.from_iterable(self.parts.items):
            for name, width in choice.widths.items():
                widths.setdefault(name, set()).add(width)
        asked = {name: sorted(found, reverse=True) for name, found in widths.items()}
        found = narrowings(self.model, self.parts.coupling, asked, opened, self._fitted)
        return {name: {option.width: option for option in options} for name, options in found.items()}

    @cached_property
    def _fills(self) -> Mapping[str, Narrowing]:
        """For each region what the layers behind it become when it goes, every region by itself."""
        feeds = evenly(self._fitted, FILL_SAMPLES)
        found = {}
        for name, region in self.parts.regions.items():
            constants = made_up_for(self.model, region, opened, feeds, layers=FILLED_LAYERS)
            found[name] = Narrowing(group=name, width=0, removed=(), constants=constants, error=0.0)
        return found

    @cached_property
    def _damages(self) -> Mapping[tuple[str, int], float]:
        """The damage at the outputs of each width of each group, and of each region that goes (width 0), alone."""
        singles: dict[tuple[str, int], Choice] = {}
        for choice in itertools.chain.from_iterable(self.parts.items):
            singles.update({(name, width): Choice({name: width}) for name, width in choice.widths.items()})
            if choice.dropped:
                singles[choice.dropped, 0] = choice
        variants = {str(index): self._thunk([choice]) for index, choice in enumerate(singles.values())}
        feeds = evenly(self._judging, DAMAGE_SAMPLES)
        found = sensitivities(self.model, variants, self._opened, feeds)
        return {key: one.damage for key, one in zip(singles, found, strict=True)}

    def _require_time(self) -> None:
        """Refuse to begin what would take more than a share of the time left.

        Raises:
            RecipeError: If it would.
        """
        began = time.monotonic()
        with self._opened(self.model) as run:
            run(self.feeds[0])
            opening_s = time.monotonic() - began
            run(self.feeds[0])
            pace_s = time.monotonic() - began - opening_s
        variants = sum(len(item) - 1 for item in self.parts.items)
        filled = FILLED_LAYERS * len(self.parts.regions)
        runs = (variants + TRIES) * DAMAGE_SAMPLES + filled * FILL_SAMPLES + SWEEPS * len(self._fitted)
        openings = variants + TRIES + 2 * filled
        # As much again goes into what is computed between runs, and into timing.
        if 2 * (runs * pace_s + openings * opening_s) > SHARE * self.left_s():
            raise RecipeError(
                "The time budget is too short for pruning: what each option does to the outputs has to be measured.",
                hint="Give a larger `--budget`.",
            )

    def _damage_alone(self, choice: Choice) -> float:
        parts = [*choice.widths.items(), *([(choice.dropped, 0)] if choice.dropped else [])]
        return sum(self._damages[part] for part in parts)

    def _damage_of(self, picked: tuple[int, ...]) -> float:
        """Return the damage of a choice for every item, each group made up for by itself."""
        return self._trial("", self._stitched(self._choices(picked)), DAMAGE_SAMPLES).damage

    def _trial(self, name: str, model: ir.Model, most: int) -> Sensitivity:
        feeds = evenly(self._judging, most)
        return sensitivities(self.model, {name: lambda: model}, self._opened, feeds)[0]

    def _thunk(self, choices: Sequence[Choice]) -> Callable[[], ir.Model]:
        return lambda: self._stitched(choices)

    @cached_property
    def _opened(self) -> Opener:
        return comparable(self.model)

    @cached_property
    def _judging(self) -> Sequence[Feeds]:
        """Samples that no compensation sees, where there are others."""
        return evenly(self.feeds, TRIAL_SAMPLES)

    @cached_property
    def _fitted(self) -> Sequence[Feeds]:
        return without(self.feeds, TRIAL_SAMPLES) or self.feeds

    def _rough(self, choices: Sequence[Choice]) -> ir.Model:
        """Return the model with some choices made and nothing made up for: it takes the same time."""
        widths, dropped = merged(choices)
        removed = {name: range(width, self.parts.groups[name].size) for name, width in widths.items()}
        return self._without(cut(self.model, removed, self.parts.coupling) if removed else self.model, dropped)

    def _stitched(self, choices: Sequence[Choice]) -> ir.Model:
        """Return the model with some choices made, each made up for by itself."""
        widths, dropped = merged(choices)
        chosen = [self._narrowings[name][width] for name, width in widths.items()]
        chosen += [self._fills[name] for name in dropped]
        return self._without(stitch(self.model, self.parts.coupling, chosen) if chosen else self.model, dropped)

    def _without(self, model: ir.Model, names: Collection[str]) -> ir.Model:
        """Return a model without some regions; the last one goes first, because another may begin where one ends."""
        order = {label(node): index for index, node in enumerate(self.model.graph)}
        for region in sorted((self.parts.regions[name] for name in names), key=lambda one: -order[one.nodes[-1]]):
            model = drop(model, region)
        return model

    def least_missed(self, count: int) -> list[str]:
        """Return the regions that go with the least damage, one after the other, each measured with those before.

        Raises:
            RecipeError: If there are not so many.
        """
        if count > len(self.parts.regions):
            raise RecipeError(
                f"Of this model {len(self.parts.regions)} layers can go, but {count} were asked for.",
                hint="`edgewise inspect` lists them.",
            )
        gone: list[str] = []
        for _ in range(count):
            left = [name for name in self.parts.regions if name not in gone]
            variants = {name: self._thunk([Choice(dropped=one) for one in (*gone, name)]) for name in left}
            found = sensitivities(self.model, variants, self._opened, evenly(self._judging, DAMAGE_SAMPLES))
            gone.append(min(found, key=lambda one: one.damage).node)
        return gone

    def with_zeros(self, share: float, pattern: PatternName) -> Pruned:
        """Return the model with a share of its weights at zero, made up for layer after layer."""
        found = prune_weights(self.model, share, PATTERNS[pattern], opened, self._fitted)
        return Pruned(found.model, self._account(found.model), found.declines)

    def recovered(self, pruned: Pruned, seconds: float) -> Pruned:
        """Return a pruned model that was trained on the whole model's answers; as it was where that does not help.

        Raises:
            RecipeError: If PyTorch is not installed.
            ModelError: If an operator is not known in PyTorch.
        """
        from edgewise.compress.recover.distil import distil  # noqa: PLC0415  PyTorch is an extra

        found = distil(pruned.model, self.model, self._fitted, held_out=self._judging, seconds=seconds, seed=self.seed)
        trial = trial_of(self._trial("recovered", found.model, TRIAL_SAMPLES))
        account = replace(pruned.account, trials=(*pruned.account.trials, trial))
        return Pruned(found.model, account, pruned.declines)

    def made(self, choices: Sequence[Choice]) -> Pruned:
        """Return the model with some choices made, layer after layer on what is really left."""
        widths, dropped = merged(choices)
        model = self._without(self.model, dropped)
        declines: tuple[Decline, ...] = ()
        if dropped:
            refitted = refit_readers(model, self.model, opened, self._fitted)
            model, declines = refitted.model, refitted.declines
        coupling = couple(model) if dropped else self.parts.coupling
        found = prune_neurons(model, coupling, widths, opened, self._fitted)
        pruned, _ = fuse(found.model)
        account = self._account(
            pruned, {name: len(gone) for name, gone in found.removed.items()}, found.errors, dropped
        )
        return Pruned(pruned, account, (*declines, *found.declines))

    def _account(
        self,
        pruned: ir.Model,
        removed: Mapping[str, int] = _NONE,
        errors: Mapping[str, float] = _NO_ERRORS,
        dropped: Collection[str] = (),
    ) -> Pruning:
        before, after = (model_facts(model, "", "") for model in (self.model, pruned))
        trial = self._trial("pruned", pruned, TRIAL_SAMPLES)
        gone = {node for name in dropped for node in self.parts.regions[name].nodes}
        return Pruning(
            groups=tuple(
                GroupWidth(
                    name=group.name,
                    makers=group.makers,
                    before=group.size,
                    after=group.size - removed.get(group.name, 0),
                    error=errors.get(group.name),
                )
                for group in self.parts.coupling.groups
                if not gone & set(group.makers)
            ),
            layers=tuple(self.parts.removed_layer(name) for name in dropped),
            macs_before=before.macs,
            macs_after=after.macs,
            parameters_before=before.parameters,
            parameters_after=after.parameters,
            trials=(trial_of(trial),),
        )


def compare(whole: ir.Model, other: ir.Model, feeds: Sequence[Feeds]) -> PruningTrial:
    """Return how far the outputs of one model are from those of another, on some samples."""
    return trial_of(sensitivities(whole, {"pruned": lambda: other}, comparable(whole), feeds)[0])


def trial_of(found: Sensitivity, time: float | None = None) -> PruningTrial:
    """Return a comparison of outputs as a record."""
    return PruningTrial(what=found.node, time=time, nsr=found.nsr, kl=found.kl, flips=found.flips, n=found.n)


def nothing_pruned(coupling: Coupling) -> RecipeError:
    """Return the refusal of a model in which nothing can be pruned, with the first of the reasons."""
    why = f" `{coupling.pinned[0].node}`: {coupling.pinned[0].reason}." if coupling.pinned else ""
    return RecipeError(
        f"Nothing of this model can be pruned.{why}", hint="`edgewise inspect` says what is pinned, and why."
    )
