"""The last measurements, the choice of the default, and the words for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import msgspec

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact
from edgewise.errors import EdgewiseError
from edgewise.measure import gate
from edgewise.measure.energy import energy
from edgewise.measure.latency import empty_call_us, measure_group, ratio
from edgewise.measure.memory import cold_start_and_memory
from edgewise.pipeline.explore import SMALLER
from edgewise.pipeline.job import Job
from edgewise.pipeline.screen import entry
from edgewise.records.candidate import Candidate
from edgewise.records.certificate import Certificate, SyntheticCheck
from edgewise.records.codec import Record
from edgewise.records.measurements import ColdStart, Energy, Latency, LayerCost, PeakMemory
from edgewise.records.run import Outcome, Rung
from edgewise.report import quantities

FINAL_SHARE: Final = 0.25
"""Share of the time left that goes into the last timing."""

LONGEST_FINAL_S: Final = 45.0
SHORTEST_FINAL_S: Final = 3.0
PROFILE_REPEATS: Final = 20

_NONE_REJECTED: Mapping[Candidate, str] = MappingProxyType({})


class FinalTimes(Record, frozen=True, kw_only=True):
    """The last timing of the ladder, in one group: the untouched model first.

    Attributes:
        names: The candidates that were timed.
        latencies: Of each of them.
        failures: What became of the others, in full sentences.
    """

    names: tuple[str, ...]
    latencies: tuple[Latency, ...]
    failures: tuple[str, ...]


class Footprint(Record, frozen=True, kw_only=True):
    """What a fresh process of one rung takes, and where its time goes."""

    cold_start: ColdStart
    memory: PeakMemory
    energy: Energy
    layers: tuple[LayerCost, ...]


@dataclass(frozen=True)
class Choice:
    """The default of the ladder.

    Attributes:
        ladder: The untouched model first, then the rungs, safest first.
        chosen: Index of the default.
        reasons: Why each rung was or was not taken, by candidate.
    """

    ladder: tuple[Rung, ...]
    chosen: int
    reasons: Mapping[Candidate, str]


def measure_ladder(
    job: Job, rungs: Sequence[Candidate], found: Sequence[Certificate | SyntheticCheck]
) -> tuple[tuple[Rung, ...], tuple[str, ...]]:
    """Measure the untouched model and the rungs that were tested, against each other.

    A rung whose process fails is left out.

    Args:
        job: The run.
        rungs: Candidates that were tested, safest first.
        found: What was proven of each, or seen where there were no samples.

    Returns:
        The ladder, and what the user should know, in full sentences.
    """
    tested = [*job.untouched, *rungs]
    times = job.workspace.store.recall(
        "final-times", " | ".join(c.name for c in tested), FinalTimes, lambda: _time(job, tested)
    )
    latencies = dict(zip(times.names, times.latencies, strict=True))
    reference = min(job.untouched, key=lambda c: latencies[c.name].median_us)
    baseline = latencies[reference.name]
    ladder = []
    for candidate, proof in zip([reference, *rungs], [None, *found], strict=True):
        if candidate.name not in latencies:
            continue
        footprint = _footprint(job, candidate)
        ladder.append(
            Rung(
                candidate=candidate,
                certificate=proof if isinstance(proof, Certificate) else None,
                certified=proof is None or (isinstance(proof, Certificate) and proof.passed),
                check=proof if isinstance(proof, SyntheticCheck) else None,
                latency=latencies[candidate.name],
                speedup=ratio(baseline, latencies[candidate.name]),
                cold_start=footprint.cold_start,
                memory=footprint.memory,
                energy=footprint.energy,
                size_bytes=job.workshop.build(candidate).size_bytes,
                layers=footprint.layers,
            )
        )
    return tuple(ladder), times.failures


def _time(job: Job, tested: Sequence[Candidate]) -> FinalTimes:
    budget_s = min(LONGEST_FINAL_S, max(SHORTEST_FINAL_S, FINAL_SHARE * job.deadline.left_s))
    job.progress.stage(f"Timing the ladder in turns ({budget_s:.0f} s)")
    results = measure_group(
        [entry(job, candidate) for candidate in tested],
        job.timing_feeds(),
        budget_s=budget_s,
        seed=job.request.data.seed + 1,
    )
    latencies, failures = {}, []
    for candidate, result in zip(tested, results, strict=True):
        if isinstance(result, Latency):
            latencies[candidate.name] = result
        elif candidate.is_untouched:
            raise result
        else:
            failures.append(f"`{candidate.name}` failed when it was timed for the last time: {result.message}")
    return FinalTimes(names=tuple(latencies), latencies=tuple(latencies.values()), failures=tuple(failures))


def _footprint(job: Job, candidate: Candidate) -> Footprint:
    store = job.workspace.store
    return store.recall("footprint", candidate.name, Footprint, lambda: _measure_footprint(job, candidate))


def _measure_footprint(job: Job, candidate: Candidate) -> Footprint:
    job.progress.stage(f"Cold start, memory, energy and layers of {candidate.name}")
    feeds = job.timing_feeds()
    member = entry(job, candidate)
    cold_start, memory = cold_start_and_memory(member, feeds)
    return Footprint(
        cold_start=cold_start,
        memory=memory,
        energy=energy(member, feeds),
        layers=_layers(job, candidate),
    )


def _layers(job: Job, candidate: Candidate) -> tuple[LayerCost, ...]:
    """Return the times of the layers, or nothing where the runtime gives none: a report without them is still one."""
    member = entry(job, candidate)
    backend = registry.get(candidate.backend)
    try:
        return backend.profile(Artifact.read(member.folder, member.spec), job.timing_feeds(1)[0], PROFILE_REPEATS)
    except EdgewiseError as error:
        job.progress.note(f"No times of single layers for `{candidate.name}`: {error.message}")
        return ()


def choose(job: Job, ladder: Sequence[Rung]) -> Choice:
    """Choose the default: the last rung that is certified and better than the untouched model.

    Better is: shown to be faster, or smaller without being slower (`measure/gate.py`). Where a size was asked for and
    the untouched model is larger, whatever has that size is better: its speed was not the question. If there is none,
    the rung that failed its test is chosen where `--accept-uncertified` says so. Where there were no samples none is
    certified, and those that stayed within the tolerance are chosen among in the same way.
    """
    reference = ladder[0]
    reasons: dict[Candidate, str] = {reference.candidate: "it is the model as it came"}
    chosen = 0
    for index, rung in enumerate(ladder):
        if index == 0:
            continue
        verdict = _gate(job, reference, rung)
        reasons[rung.candidate] = verdict.reason
        held = rung.certified if rung.check is None else rung.check.passed
        if not held and (chosen or not job.request.goal.accept_uncertified):
            reasons[rung.candidate] = _shortfall(rung)
        elif verdict.accepted and (not chosen or rung.latency.median_us <= ladder[chosen].latency.median_us):
            chosen = index
    return Choice(tuple(ladder), chosen, reasons)


def _gate(job: Job, reference: Rung, rung: Rung) -> gate.Verdict:
    implausible = gate.why_implausible(
        rung.speedup, reference.latency, rung.latency, empty_call_us=empty_call_us(), macs=job.model.facts.macs
    )
    verdict = gate.faster(rung.speedup, implausible=implausible)
    if verdict.accepted or verdict.suspicious:
        return verdict
    if job.request.goal.is_reduced_to(rung.size_bytes, from_bytes=reference.size_bytes):
        return gate.Verdict(accepted=True, suspicious=False, reason=_fits(reference, rung))
    if rung.size_bytes > SMALLER * reference.size_bytes or rung.speedup.high < 1:
        return verdict  # a few bytes are no reason to change a model, and none makes up for a loss of speed
    smaller = gate.smaller(
        rung.speedup,
        size_bytes=rung.size_bytes,
        reference_bytes=reference.size_bytes,
        implausible=implausible,
    )
    return smaller if smaller.accepted else verdict


def _fits(reference: Rung, rung: Rung) -> str:
    taken = f"{rung.latency.median_us / reference.latency.median_us:.2f} times its time"
    return (
        f"its {quantities.size(rung.size_bytes)} are within `--max-size`, which the untouched model exceeds ({taken})"
    )


def _shortfall(rung: Rung) -> str:
    """Return why a rung is not certified, what it would have gained, and what would help."""
    certificate = rung.certificate
    if certificate is None:
        return ""
    reason = (
        f"`{rung.candidate.name}`, {rung.speedup.value:.2f}x as fast, is not certified: on {certificate.n} samples "
        f"{_shown(certificate)}, more than the {_asked(certificate)} asked for"
    )
    if certificate.samples_needed is None:
        return reason
    return f"{reason}; about {certificate.samples_needed} certify samples would show it"


def with_fates(
    outcomes: Sequence[Outcome], choice: Choice, rejected: Mapping[Candidate, str] = _NONE_REJECTED
) -> tuple[Outcome, ...]:
    """Return the outcomes with what became of the rungs in the end.

    Args:
        outcomes: Those of the search.
        choice: The ladder and its default.
        rejected: Why candidates of the ladder were not put on it after all.
    """
    rungs = {rung.candidate: index for index, rung in enumerate(choice.ladder)}
    found = []
    for outcome in outcomes:
        index = rungs.get(outcome.candidate)
        if index is None:
            reason = rejected.get(outcome.candidate)
            ended = msgspec.structs.replace(outcome, fate="rejected", reason=reason) if reason else outcome
            found.append(ended)
            continue
        fate = "chosen" if index == choice.chosen else "rung"
        found.append(msgspec.structs.replace(outcome, fate=fate, reason=choice.reasons[outcome.candidate]))
    return tuple(found)


def why_missed(job: Job, chosen: Rung, outcomes: Sequence[Outcome]) -> str:
    """Return in a sentence which goal the default does not reach; empty where it reaches all."""
    goal = job.request.goal
    if goal.max_latency_us is not None and chosen.latency.median_us > goal.max_latency_us:
        return (
            f"The median latency has to stay below {goal.max_latency_us / 1e3:.3g} ms; the best model that was found "
            f"takes {chosen.latency.median_us / 1e3:.3g} ms."
        )
    if goal.max_size_bytes is not None and chosen.size_bytes > goal.max_size_bytes:
        asked = f"The model has to stay below {quantities.size(goal.max_size_bytes)}"
        sizes = {outcome: outcome.size_bytes for outcome in outcomes if outcome.size_bytes is not None}
        smallest = min(sizes, key=lambda outcome: sizes[outcome], default=None)
        if smallest is None or sizes[smallest] > goal.max_size_bytes:
            least = chosen.size_bytes if smallest is None else sizes[smallest]
            return f"{asked}; the smallest candidate has {quantities.size(least)}."
        found = f"`{smallest.candidate.name}` with {quantities.size(sizes[smallest])} was not taken"
        return f"{asked}; {found}: {smallest.reason.removesuffix('.')}."
    return ""


def verdict(choice: Choice) -> str:
    """Return the result of the run in one sentence."""
    reference, chosen = choice.ladder[0], choice.ladder[choice.chosen]
    if choice.chosen == 0:
        return f"Nothing that was tried is better than the untouched model: {_why_nothing(choice)}."
    interval = f"({chosen.speedup.low:.2f} to {chosen.speedup.high:.2f})"
    told_apart = chosen.speedup.low > 1 or chosen.speedup.high < 1
    speed = f"{chosen.speedup.value:.2f}x as fast {interval}" if told_apart else f"As fast {interval}"
    gain = reference.size_bytes / chosen.size_bytes
    size = f"{gain:.2f}x smaller" if gain >= 1 else f"{1 / gain:.2f}x larger"
    return f"{speed} and {size}; {_proof(chosen)}."


def _proof(rung: Rung) -> str:
    certificate, check = rung.certificate, rung.check
    if check is not None:
        return (
            "NOTHING was certified, because there were no samples: on "
            f"{quantities.plural(check.n, 'synthetic sample')} the outputs are off by at most "
            f"{quantities.share(check.error)} of their standard deviation ({quantities.share(check.tolerance)} allowed)"
        )
    if certificate is None:
        return "nothing was certified"
    if certificate.passed:
        return _shown(certificate)
    return f"NOT certified: {_shown(certificate)}, more than the {_asked(certificate)} asked for"


def _shown(certificate: Certificate) -> str:
    what = "share of changed answers" if certificate.claim == "flip-rate" else f"loss of {certificate.metric}"
    bound = quantities.drop(certificate.upper, unit=_unit(certificate), rounding="up")
    return f"the {what} is at most {bound} at {quantities.confidence(certificate.confidence)} confidence"


def _asked(certificate: Certificate) -> str:
    return quantities.drop(certificate.max_drop, unit=_unit(certificate))


def _unit(certificate: Certificate) -> str:
    if certificate.claim == "flip-rate":
        return "%"
    return "% of its value" if certificate.relative else "points"


def _why_nothing(choice: Choice) -> str:
    tried = [reason for candidate, reason in choice.reasons.items() if not candidate.is_untouched]
    return tried[-1] if tried else "no candidate came within the bound on the select split and was faster"
