"""The choice of the default, as a decision on numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.pipeline.conftest import FUSED, INT8, latency

from edgewise.measure.latency import ratio
from edgewise.pipeline.finish import Choice, choose, verdict, why_missed, with_fates
from edgewise.pipeline.request import Goal
from edgewise.records.candidate import Candidate, Fuse, HalveWeights, RunOptions
from edgewise.records.certificate import Certificate
from edgewise.records.measurements import ColdStart, Energy, PeakMemory
from edgewise.records.run import Outcome, Rung

UNTOUCHED = Candidate(steps=(), backend="ort", options=RunOptions())
HALF = Candidate(steps=(Fuse(), HalveWeights()), backend="ort", options=RunOptions())

CERTIFICATE = Certificate(
    claim="drop",
    metric="top1",
    max_drop=0.01,
    relative=False,
    passed=True,
    original=0.9,
    optimized=0.9,
    drop=0.0,
    lower=0.0,
    upper=0.006,
    confidence=0.95,
    method="a method",
    exact=True,
    n=500,
    worse=1,
    better=1,
    samples_needed=None,
    reused=0,
    isa="",
)
FAILED = msgspec.structs.replace(CERTIFICATE, passed=False, upper=0.03, samples_needed=2100)


def rung(
    candidate: Candidate, median_us: float, *, size: int = 1000, certificate: Certificate | None = CERTIFICATE
) -> Rung:
    own = latency(median_us)
    return Rung(
        candidate=candidate,
        certificate=certificate,
        certified=certificate is None or certificate.passed,
        latency=own,
        speedup=ratio(latency(100.0), own),
        cold_start=ColdStart(import_ms=1.0, load_ms=1.0, first_run_ms=1.0),
        memory=PeakMemory(peak_bytes=1, before_bytes=1),
        energy=Energy(joules=None, source="none"),
        size_bytes=size,
        layers=(),
    )


REFERENCE = rung(UNTOUCHED, 100.0, certificate=None)


def job(**goal: Any) -> Any:
    return SimpleNamespace(
        request=SimpleNamespace(goal=Goal(**goal)), model=SimpleNamespace(facts=SimpleNamespace(macs=1000))
    )


def chosen(*rungs: Rung, **goal: Any) -> Choice:
    return choose(job(**goal), [REFERENCE, *rungs])


def test_the_last_that_is_certified_and_better_is_chosen() -> None:
    choice = chosen(rung(FUSED, 90.0), rung(INT8, 50.0))
    assert choice.chosen == 2
    assert choice.reasons[UNTOUCHED] == "it is the model as it came"
    assert "times as fast" in choice.reasons[INT8]


def test_one_that_came_out_slower_than_the_rung_before_is_not_chosen_for_its_size() -> None:
    assert chosen(rung(INT8, 50.0), rung(FUSED, 55.0, size=500)).chosen == 1


def test_smaller_at_the_same_speed_is_better_than_untouched() -> None:
    assert chosen(rung(HALF, 100.0, size=500)).chosen == 1
    assert chosen(rung(HALF, 100.0, size=950)).chosen == 0
    assert chosen(rung(HALF, 101.0, size=500)).chosen == 0  # shown to be slower: size does not make up for it


def test_the_size_that_was_asked_for_is_worth_time_where_the_untouched_model_is_larger() -> None:
    small = rung(INT8, 140.0, size=300)
    choice = chosen(small, max_size_bytes=500)
    assert choice.chosen == 1
    assert choice.reasons[INT8] == (
        "its 300 bytes are within `--max-size`, which the untouched model exceeds (1.40 times its time)"
    )
    assert verdict(choice).startswith("0.71x as fast (0.71 to 0.71) and 3.33x smaller; ")
    assert chosen(small, max_size_bytes=1000).chosen == 0  # the untouched model fits
    assert chosen(small, max_size_bytes=299).chosen == 0  # it does not fit either
    assert chosen(rung(INT8, 140.0, size=300, certificate=FAILED), max_size_bytes=500).chosen == 0
    assert chosen(rung(INT8, 0.001, size=300), max_size_bytes=500).chosen == 0  # that time cannot be true
    # Of several that fit, the fastest that is certified.
    assert chosen(rung(FUSED, 130.0, size=400), rung(INT8, 110.0, size=450), max_size_bytes=500).chosen == 2


def test_the_failed_one_is_chosen_only_if_that_was_asked_for() -> None:
    failed = rung(INT8, 50.0, certificate=FAILED)
    assert chosen(rung(FUSED, 90.0), failed).chosen == 1
    assert chosen(failed, accept_uncertified=True).chosen == 1
    # What is certified is never given up for what is not.
    assert chosen(rung(FUSED, 90.0), failed, accept_uncertified=True).chosen == 1


def test_the_verdict_says_what_was_gained_and_what_was_shown() -> None:
    words = verdict(chosen(rung(INT8, 50.0, size=250)))
    assert words == (
        "2.00x as fast (2.00 to 2.00) and 4.00x smaller; the loss of top1 is at most 0.6 points at 95 % confidence."
    )
    assert "1.50x larger" in verdict(chosen(rung(INT8, 50.0, size=1500)))
    assert verdict(chosen(rung(INT8, 100.0, size=500))).startswith("As fast (1.00 to 1.00) and 2.00x smaller; ")


def test_the_verdict_says_why_not_and_how_many_samples_would_do() -> None:
    words = verdict(chosen(rung(INT8, 50.0, certificate=FAILED)))
    assert words == (
        "Nothing that was tried is better than the untouched model: `ort int8-mse`, 2.00x as fast, is not "
        "certified: on 500 samples the loss of top1 is at most 3 points at 95 % confidence, more than the 1 point "
        "asked for; about 2100 certify samples would show it."
    )
    hopeless = msgspec.structs.replace(FAILED, samples_needed=None)
    assert verdict(chosen(rung(INT8, 50.0, certificate=hopeless))).endswith("more than the 1 point asked for.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"claim": "flip-rate"}, "share of changed answers is at most 3 %"),
        ({"relative": True}, "loss of top1 is at most 3 % of its value"),
    ],
    ids=str,
)
def test_an_uncertified_default_is_said_to_be_one(changes: dict[str, Any], words: str) -> None:
    certificate = msgspec.structs.replace(FAILED, **changes)
    said = verdict(chosen(rung(INT8, 50.0, certificate=certificate), accept_uncertified=True))
    assert "NOT certified" in said
    assert words in said
    assert "more than the 1 %" in said


def test_fates_are_noted_and_other_outcomes_stay() -> None:
    outcomes = [Outcome(candidate=c, fate="measured", reason="old") for c in (UNTOUCHED, FUSED, INT8, HALF)]
    found = with_fates(outcomes, chosen(rung(FUSED, 90.0), rung(INT8, 50.0)))
    assert [outcome.fate for outcome in found] == ["rung", "rung", "chosen", "measured"]
    assert found[3].reason == "old"


def test_goals_that_are_missed() -> None:
    one = rung(INT8, 5000.0, size=2_500_000)
    assert why_missed(job(), one, ()) == ""
    assert why_missed(job(max_latency_us=5001.0, max_size_bytes=2_500_000), one, ()) == ""
    assert why_missed(job(max_latency_us=4000.0), one, ()) == (
        "The median latency has to stay below 4 ms; the best model that was found takes 5 ms."
    )
    tried = [
        Outcome(candidate=INT8, fate="rejected", reason="too large", size_bytes=size) for size in (2_000_000, None)
    ]
    assert why_missed(job(max_size_bytes=1_000_000), one, tried) == (
        "The model has to stay below 1.00 MB; the smallest candidate has 2.00 MB."
    )


def test_a_candidate_that_is_small_enough_is_named_with_why_it_was_not_taken() -> None:
    one = rung(UNTOUCHED, 100.0, size=400_000)
    tried = [
        Outcome(candidate=FUSED, fate="rejected", reason="too large", size_bytes=390_000),
        Outcome(candidate=INT8, fate="rung", reason="it is slower: 0.93 times.", size_bytes=74_000),
    ]
    assert why_missed(job(max_size_bytes=100_000), one, tried) == (
        "The model has to stay below 100 kB; `ort int8-mse` with 74.0 kB was not taken: it is slower: 0.93 times."
    )
