"""Finds the candidates worth a certificate: built, timed, scored on the select split, and ordered by safety."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Final

from msgspec.structs import replace

from edgewise.backends import registry
from edgewise.errors import BackendError, ContractError, DataError, ModelError
from edgewise.measure.accuracy import Scores, constant_output, summarise
from edgewise.measure.certificate import MOST_RUNGS, certify
from edgewise.measure.metrics import PerSample
from edgewise.pipeline.certify import CONFIDENCE
from edgewise.pipeline.inputs import percent
from edgewise.pipeline.job import Job
from edgewise.pipeline.propose import propose, pruned_form
from edgewise.pipeline.score import pace_of, score
from edgewise.pipeline.screen import Timing, build_all, time_all
from edgewise.records.candidate import Candidate, Prune
from edgewise.records.certificate import Certificate
from edgewise.records.codec import Record
from edgewise.records.run import Outcome
from edgewise.search.ladder import Point, pick
from edgewise.search.stopping import Stage, affordable

FIRST_LOOK: Final = 64
"""Select samples on which a candidate is rejected early, if it is already shown there to lose too much."""

REJECT_AT: Final = 0.999
"""Confidence of that rejection: with some twenty candidates, a good one is lost in 2 % of the runs at most."""

SMALLER: Final = 0.9
"""A candidate that is not faster may still win by its size, if it is below this share of the untouched model's."""

SLOWER_FOR_SIZE: Final = 0.95
"""How slow it may be then, as a ratio of speeds."""

DECISIONS: Final = frozenset({"top1", "top5", "accuracy"})
"""Metrics that count right decisions. A regression, or a rank by scores, may well be on one side of every threshold."""

PRUNED_TIMES: Final = (0.85, 0.7, 0.55, 0.4)
"""Shares of the best candidate's time that pruning aims at, one after the other."""

FIRST_PRUNING: Final = 0.25
"""Share of the budget that has to be left for the first pruning: it measures what every option saves and breaks."""

FINISH_S: Final = 15.0
"""Kept back for the last timing, cold starts and writing. Empirical: 8 to 12 s for models of a few megabytes."""


class Exploration(Record, frozen=True, kw_only=True):
    """What the search found. It is stored: the ladder stays fixed from before the certify split is opened.

    Attributes:
        ladder: Candidates to certify, safest first.
        outcomes: What became of every candidate, in the order of the proposals.
        notes: What the user should know, in full sentences.
    """

    ladder: tuple[Candidate, ...]
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]


def explore(job: Job) -> Exploration:
    """Try every candidate, the cheap questions first; a candidate is rejected as soon as one is answered against it.

    Done once: a resumed run with more time left would find another ladder, after it has seen the certify split.

    Raises:
        ModelError: If the untouched model cannot be run, or gives the same answer for every sample.
    """
    return job.workspace.store.recall("exploration", "", Exploration, lambda: _explore(job))


def _explore(job: Job) -> Exploration:
    precisions = {name: registry.get(name).precisions() for name in job.backends}
    small = job.request.goal.max_size_bytes is not None
    candidates = propose(precisions, job.request.effort.threads, small=small)
    failures = build_all(job, candidates)
    baseline = job.untouched[0]
    if baseline in failures:
        raise not_runnable(failures[baseline])
    original = _score_baseline(job, baseline)
    built = [candidate for candidate in candidates if candidate not in failures]
    timings = time_all(job, built, baseline)
    book = _Book(job, original, timings)
    for candidate, reason in failures.items():
        book.reject(candidate, f"it could not be built: {reason}")
    contenders = [candidate for candidate in built if candidate not in job.untouched and book.may_win(candidate)]
    contenders.sort(key=book.median_us)
    job.progress.stage("Scoring candidates", len(contenders) * len(job.data.select))
    for candidate in contenders:
        book.examine(candidate)
    pruned = _prune_the_best(job, book, baseline)
    ladder = book.ladder()
    return Exploration(ladder=ladder, outcomes=book.outcomes([*candidates, *pruned]), notes=tuple(book.notes))


def _prune_the_best(job: Job, book: _Book, baseline: Candidate) -> list[Candidate]:
    """Take more and more from the best candidate while what is left stays within the bound; return what was tried.

    The first that loses too much is tried once more, trained on the whole model's answers, where PyTorch is installed.
    """
    best, tried, longest_s = book.best(), list[Candidate](), FIRST_PRUNING * job.request.effort.budget_s
    if best is None:
        return tried
    waiting = [pruned_form(best, time) for time in PRUNED_TIMES]
    while waiting:
        candidate, began_s = waiting.pop(0), job.deadline.left_s
        if began_s < book.reserve_s() + longest_s:
            book.notes.append("The time budget ended before less of the model was tried; a larger `--budget` tries it.")
            break
        tried.append(candidate)
        failure = build_all(job, [candidate]).get(candidate)
        if failure is not None:
            book.reject(candidate, f"it could not be built: {failure}")
            break
        book.add(time_all(job, [baseline, candidate], baseline))
        if book.may_win(candidate):
            book.examine(candidate)
        if not book.is_within(candidate):
            waiting = [_trained(candidate)] if _can_train(candidate) else []
        longest_s = max(longest_s, began_s - job.deadline.left_s)
    return tried


def _can_train(candidate: Candidate) -> bool:
    return candidate.pruned is not None and not candidate.pruned.recovered and find_spec("torch") is not None


def _trained(candidate: Candidate) -> Candidate:
    steps = tuple(replace(step, recovered=True) if isinstance(step, Prune) else step for step in candidate.steps)
    return replace(candidate, steps=steps)


def not_runnable(reason: str) -> ModelError:
    """Return the error that says that the untouched model cannot be run, so that there is nothing to compare with."""
    return ModelError(
        f"The untouched model has to run in ONNX Runtime, but: {reason.removesuffix('.')}.",
        hint="`edgewise inspect` lists the operators that each backend lacks.",
    )


def _score_baseline(job: Job, baseline: Candidate) -> Scores:
    job.progress.stage("Scoring the untouched model", len(job.data.select))
    scores = score(job, baseline, "select")
    constant = constant_output(scores)
    if constant is not None and (scores.same_output or job.metric.name in DECISIONS):
        raise ModelError(constant, hint="Check the pre-processing and the export: this model is of no use as it is.")
    return scores


class _Book:
    """Keeps account of what became of every candidate."""

    def __init__(self, job: Job, original: Scores, timings: Mapping[Candidate, Timing]) -> None:
        self.notes: list[str] = []
        self._job = job
        self._original = None if job.label_free else original
        self._pace_s = pace_of(job, job.untouched[0])
        self._timings = timings
        self._outcomes: dict[Candidate, Outcome] = {}
        self._estimates: dict[Candidate, Certificate] = {}
        self._late = False

    def median_us(self, candidate: Candidate) -> float:
        """Return the median latency of the first timing."""
        latency = self._timings[candidate].latency
        return float("inf") if latency is None else latency.median_us

    def add(self, timings: Mapping[Candidate, Timing]) -> None:
        """Take in the times of more candidates."""
        self._timings = {**self._timings, **timings}

    def is_within(self, candidate: Candidate) -> bool:
        """Return whether a candidate was scored, and lost no more than is allowed."""
        estimate = self._estimates.get(candidate)
        return estimate is not None and estimate.drop <= self._job.bound

    def best(self) -> Candidate | None:
        """Return the fastest candidate that lost no more than is allowed, or None."""
        return min(filter(self.is_within, self._estimates), key=self.median_us, default=None)

    def reserve_s(self) -> float:
        """Return the seconds that certifying and measuring what was found will take at most."""
        slowest_s = max(map(self._seconds, self._estimates), default=self._pace_s)
        return len(self._job.data.certify) * (self._pace_s + MOST_RUNGS * slowest_s) + FINISH_S

    def reject(self, candidate: Candidate, reason: str) -> None:
        """Note that a candidate goes no further."""
        self._outcomes[candidate] = self._outcome(candidate, "rejected", reason)

    def may_win(self, candidate: Candidate) -> bool:
        """Return whether a candidate can still become the default; if not, note why."""
        reason = self._why_no_winner(candidate)
        if reason:
            self.reject(candidate, reason)
        return not reason

    def _why_no_winner(self, candidate: Candidate) -> str:
        timing, goal = self._timings[candidate], self._job.request.goal
        if timing.speedup is None or timing.latency is None:
            return f"it could not be timed: {timing.failure}"
        size = self._size(candidate)
        if goal.max_size_bytes is not None and size > goal.max_size_bytes:
            return f"it has {size / 1e6:.3g} MB, more than `--max-size`"
        untouched = self._size(self._job.untouched[0])
        if goal.is_reduced_to(size, from_bytes=untouched):
            return ""  # that it is slower is no reason: the size was asked for
        smaller = size < SMALLER * untouched
        if timing.speedup.high < 1 and not (smaller and timing.speedup.high > SLOWER_FOR_SIZE):
            return f"it is slower than the untouched model ({timing.speedup.value:.2f}x)"
        return ""

    def examine(self, candidate: Candidate) -> None:
        """Score a candidate on the select split, on its first samples at first."""
        if not self._has_time(candidate):
            self.reject(candidate, "the time budget ended before it was its turn")
            return
        try:
            reason = self._first_look(candidate)
            if reason:
                self.reject(candidate, reason)
                return
            scores = score(self._job, candidate, "select")
            estimate = self._estimate(scores, self._original, CONFIDENCE)
        except (BackendError, DataError) as error:
            self.reject(candidate, f"it failed on the select split: {error.message}")
            return
        self._estimates[candidate] = estimate
        self._outcomes[candidate] = replace(
            self._outcome(candidate, "measured", "it was timed and scored, but another one is safer or faster"),
            accuracy=summarise(scores, self._job.metric),
            drop=estimate.drop,
        )

    def _first_look(self, candidate: Candidate) -> str:
        """Return why a candidate is rejected on its first samples, or nothing."""
        metric, select = self._job.metric, self._job.data.select
        if not isinstance(metric, PerSample) or len(select) < 3 * FIRST_LOOK:
            return ""
        scores = score(self._job, candidate, "select", first=FIRST_LOOK)
        original = self._original and score(self._job, self._job.untouched[0], "select", first=FIRST_LOOK)
        estimate = self._estimate(scores, original, REJECT_AT)
        if estimate.lower <= self._job.bound:
            return ""
        return f"on {FIRST_LOOK} select samples it already loses at least {percent(estimate.lower)}"

    def _estimate(self, scores: Scores, original: Scores | None, confidence: float) -> Certificate:
        """Bound the drop as the certificate will, on samples that serve the search."""
        return certify(
            original,
            scores,
            metric=self._job.metric,
            max_drop=self._job.bound,
            confidence=confidence,
        )

    def _has_time(self, candidate: Candidate) -> bool:
        """Return whether scoring a candidate leaves time to certify and to measure what was found."""
        job = self._job
        certify_s = len(job.data.certify) * (self._pace_s + MOST_RUNGS * self._seconds(candidate))
        stages = [
            Stage(seconds=len(job.data.select) * self._seconds(candidate)),
            Stage(seconds=certify_s + FINISH_S, required=True),
        ]
        enough = 0 in affordable(0.0, job.deadline.left_s, stages)
        if not enough and not self._late:
            self._late = True
            self.notes.append(
                "The time budget ended before every candidate was scored; a new run with a larger `--budget` tries all."
            )
        return enough or not self._estimates

    def _seconds(self, candidate: Candidate) -> float:
        """Estimate the seconds that scoring one sample takes: as for the untouched model, less what is faster."""
        untouched_us = self.median_us(self._job.untouched[0])
        gained_us = untouched_us - self.median_us(candidate)
        # The two clocks ran at different times: what was gained may seem more than there was.
        return max(0.0, self._pace_s - 1e-6 * self._job.steps_per_sample * gained_us)

    def ladder(self) -> tuple[Candidate, ...]:
        """Return the candidates to certify, safest first (the rule is in `search/ladder.py`).

        Pruned ones come behind all others, and only if they are clearly faster: the first failure ends the tests, and
        what pruning risks must not cost what there is without it, however well it did on the select split.
        """
        whole = [candidate for candidate in self._estimates if candidate.pruned is None]
        pruned = [candidate for candidate in self._estimates if candidate.pruned is not None]
        rungs = self._picked(whole, MOST_RUNGS - bool(pruned), reserve=True)
        fastest = min((self._point(candidate).cost_low for candidate in rungs), default=math.inf)
        faster = [candidate for candidate in pruned if self._point(candidate).cost_high < fastest]
        return (*rungs, *self._picked(faster, MOST_RUNGS - len(rungs), reserve=False))

    def _picked(self, candidates: Sequence[Candidate], most: int, *, reserve: bool) -> tuple[Candidate, ...]:
        points = [self._point(candidate) for candidate in candidates]
        return tuple(candidates[index] for index in pick(points, most=most, reserve=reserve))

    def _point(self, candidate: Candidate) -> Point:
        """Return what was learnt of a candidate: its cost relative to the untouched model, and its drop."""
        estimate, speedup = self._estimates[candidate], self._timings[candidate].speedup
        if speedup is None:
            raise ContractError(f"`{candidate.name}` was scored, but never timed.")
        # The certify split has another size: widths of bounds go with the root of the number of samples.
        asked = self._job.bound
        width = (estimate.upper - estimate.drop) * math.sqrt(estimate.n / len(self._job.data.certify))
        if self._job.data.synthetic:  # nothing is bounded there: what counts is what is seen
            width = 0.0
        return Point(
            cost=1 / speedup.value,
            cost_low=1 / speedup.high,
            cost_high=1 / speedup.low,
            drop=estimate.drop,
            reach=asked - width,
            asked=asked,
        )

    def outcomes(self, candidates: Sequence[Candidate]) -> tuple[Outcome, ...]:
        """Return what became of every candidate, in the order given."""
        for candidate in candidates:
            if candidate not in self._outcomes:
                self._outcomes[candidate] = self._outcome(
                    candidate, "measured", "it is what the others are compared with"
                )
        return tuple(self._outcomes[candidate] for candidate in candidates)

    def _outcome(self, candidate: Candidate, fate: str, reason: str) -> Outcome:
        build = self._job.workshop.build(candidate)
        timing = self._timings.get(candidate)
        return Outcome(
            candidate=candidate,
            fate=fate,
            reason=reason,
            size_bytes=build.size_bytes or None,
            latency=None if timing is None else timing.latency,
            speedup=None if timing is None else timing.speedup,
            declines=build.declines,
        )

    def _size(self, candidate: Candidate) -> int:
        return self._job.workshop.build(candidate).size_bytes
