"""Certificates: which procedure each metric gets, what is certified, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import ContractError, DataError, RecipeError
from edgewise.measure import betting, bootstrap, discordance
from edgewise.measure.accuracy import Scores, scores
from edgewise.measure.certificate import certify, fixed_sequence
from edgewise.measure.metrics import METRICS, Metric, PerSample
from edgewise.records.certificate import Certificate
from edgewise.records.codec import decode, encode

TOP1 = METRICS["top1"]
FRACTION = PerSample(name="fraction", score=lambda *_: 0.0)


def _scores(values: Any, metric: Metric = TOP1, samples: str = "same") -> Scores:
    array = np.asarray(values, dtype="<f8")
    assert isinstance(metric, PerSample)
    return Scores(
        metric=metric.name, n=array.size, samples=samples, value=metric.total(array), values=array.tobytes(), items=b"",
        same_output=False, same_decision=False,
    )  # fmt: skip


def _pair(worse: int, better: int, n: int, *, right: int = 0) -> tuple[Scores, Scores]:
    before, after = np.zeros(n), np.zeros(n)
    before[:worse], after[worse : worse + better] = 1, 1
    before[n - right :], after[n - right :] = 1, 1
    return _scores(before), _scores(after)


def test_right_or_wrong_gets_the_exact_bound() -> None:
    before, after = _pair(12, 8, 2000, right=1500)
    found = certify(before, after, metric=TOP1, max_drop=0.01, reused=2, isa="abc")
    assert found.passed
    assert found.upper == discordance.upper(12, 8, 2000, confidence=0.95)
    assert found.lower == -discordance.upper(8, 12, 2000, confidence=0.95)
    assert (found.worse, found.better, found.n, found.drop) == (12, 8, 2000, 0.002)
    assert (found.claim, found.exact, found.relative, found.samples_needed) == ("drop", True, False, None)
    assert found.original - found.optimized == pytest.approx(found.drop)
    assert (found.method, found.reused, found.isa, found.confidence) == (discordance.METHOD, 2, "abc", 0.95)
    assert decode(encode(found), Certificate) == found


def test_too_few_samples_get_the_bound_that_they_support_and_the_number_that_would_do() -> None:
    before, after = _pair(3, 2, 200)
    found = certify(before, after, metric=TOP1, max_drop=0.01)
    assert not found.passed
    assert 0.01 < found.upper < 0.05
    assert found.samples_needed is not None
    assert found.samples_needed > 200
    scale = found.samples_needed / 200
    more = certify(*_pair(round(3 * scale), round(2 * scale), found.samples_needed), metric=TOP1, max_drop=0.0105)
    assert more.passed


def test_no_number_of_samples_certifies_what_is_not_so() -> None:
    found = certify(*_pair(30, 5, 500), metric=TOP1, max_drop=0.05)
    assert not found.passed
    assert found.samples_needed is None


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_samples_certify_nothing_small(n: int) -> None:
    found = certify(*_pair(0, 0, n), metric=TOP1, max_drop=0.01)
    assert not found.passed
    assert found.drop == 0
    assert found.upper == pytest.approx(1 - 0.05 ** (1 / n), abs=0.001)
    assert found.samples_needed is not None
    assert 299 <= found.samples_needed <= 310


def test_nothing_changed_on_enough_samples() -> None:
    found = certify(*_pair(0, 0, 305, right=300), metric=TOP1, max_drop=0.01)
    assert found.passed
    assert (found.worse, found.better) == (0, 0)


def test_lower_is_better_is_turned_around() -> None:
    metric = PerSample(name="top1", score=lambda *_: 0.0, higher_is_better=False)
    before, after = _pair(10, 1, 300)
    found = certify(after, before, metric=metric, max_drop=0.2)
    assert (found.worse, found.better) == (10, 1)


def test_fractions_get_a_bet() -> None:
    rng = np.random.default_rng(1)
    before = rng.choice([0.25, 0.5, 1.0], size=3000)
    after = np.clip(before - rng.choice([0.0, 0.25, -0.25], p=[0.96, 0.02, 0.02], size=3000), 0, 1)
    found = certify(_scores(before, FRACTION), _scores(after, FRACTION), metric=FRACTION, max_drop=0.01)
    assert found.method == betting.METHOD
    assert found.passed
    assert found.exact
    assert (found.worse, found.better) == (None, None)
    assert found.lower < found.drop < found.upper <= 0.01
    tight = certify(_scores(before, FRACTION), _scores(after, FRACTION), metric=FRACTION, max_drop=0.002)
    assert not tight.passed
    assert tight.samples_needed is not None
    assert tight.samples_needed > 3000


def test_a_bet_that_reaches_the_bound_asked_for_exactly_passes() -> None:
    # The bound is a point of the grid to which the one asked for belongs; rounding must not turn it into a failure.
    before = np.full(900, 0.5)
    for max_drop in (0.0071, 0.0083, 0.0123):
        found = certify(_scores(before, FRACTION), _scores(before, FRACTION), metric=FRACTION, max_drop=max_drop)
        assert found.upper <= max_drop
        assert found.passed


def test_without_labels_the_flip_rate_is_bounded() -> None:
    agreement = METRICS["agreement"]
    same = np.ones(473)
    same[7] = 0
    found = certify(None, _scores(same, agreement), metric=agreement, max_drop=0.01)
    # 473 samples with one flip show at most 1 % (Clopper-Pearson).
    assert found.passed
    assert (found.claim, found.drop, found.original, found.exact) == ("flip-rate", 1 / 473, 1.0, True)
    assert found.method == betting.BINOMIAL_METHOD
    few = certify(_scores(np.ones(472), agreement), _scores(same[:472], agreement), metric=agreement, max_drop=0.01)
    assert not few.passed
    assert few.samples_needed is not None


def test_flips_within_sequences_get_a_bet() -> None:
    agreement = METRICS["agreement"]
    values = np.random.default_rng(0).choice([1.0, 0.98], size=800)
    found = certify(None, _scores(values, agreement), metric=agreement, max_drop=0.05)
    assert (found.claim, found.method, found.passed) == ("flip-rate", betting.METHOD, True)
    assert found.lower <= found.drop <= found.upper


def test_cosine_is_bounded_from_one() -> None:
    cosine = METRICS["cosine"]
    values = 1 - np.random.default_rng(0).random(2000) * 0.004
    found = certify(None, _scores(values, cosine), metric=cosine, max_drop=0.01)
    assert (found.claim, found.relative, found.passed, found.exact) == ("drop", False, True, True)
    assert found.drop == pytest.approx(0.002, abs=1e-4)


@pytest.mark.parametrize("name", ["rmse", "mae", "psnr"])
def test_unbounded_metrics_are_relative_and_approximate(name: str) -> None:
    metric = METRICS[name]
    rng = np.random.default_rng(2)
    before = rng.exponential(size=400) + 1
    after = before * (1 + rng.normal(0.002, 0.01, size=400) * (1 if name != "psnr" else -1))
    original, optimized = _scores(before, metric), _scores(after, metric)
    found = certify(original, optimized, metric=metric, max_drop=0.01)
    assert (found.relative, found.exact, found.method, found.passed) == (True, False, bootstrap.METHOD, True)
    expected = abs(optimized.value - original.value) / original.value
    assert found.drop == pytest.approx(expected)
    assert found.lower < found.drop < found.upper
    assert not certify(original, optimized, metric=metric, max_drop=0.001).passed


def test_whole_set_metrics_are_resampled_in_pairs() -> None:
    class Data:
        state: dict[str, str] = {}  # noqa: RUF012 - a stand-in for a property

        def __len__(self) -> int:
            return 200

        def feeds(self, index: int) -> dict[str, Any]:
            return {"x": np.asarray([[index]])}

        def label(self, index: int) -> int:
            return index % 2

    noise = np.random.default_rng(0).normal(size=(2, 200))

    def model(row: int, share: float) -> Callable[[Any], dict[str, Any]]:
        def run(feeds: Any) -> dict[str, Any]:
            index = int(feeds["x"][0, 0])
            return {"y": np.asarray([[index % 2 + noise[0, index] + share * noise[row, index]]], np.float32)}

        return run

    auc = METRICS["auc"]
    before = scores(model(1, 0.0), Data(), range(200), auc)
    near = scores(model(1, 0.05), Data(), range(200), auc)
    far = scores(model(1, 1.0), Data(), range(200), auc)
    found = certify(before, near, metric=auc, max_drop=0.02)
    assert (found.passed, found.exact, found.relative) == (True, False, False)
    assert not certify(before, far, metric=auc, max_drop=0.02).passed
    # Unpaired, two AUC of 200 samples differ by chance by several points.
    assert found.upper - found.lower < 0.02


def test_a_relative_drop_from_nothing_is_declined() -> None:
    mae = METRICS["mae"]
    with pytest.raises(DataError, match="must not be 0"):
        certify(_scores(np.zeros(20), mae), _scores(np.ones(20), mae), metric=mae, max_drop=0.1)


def test_too_few_samples_for_a_bootstrap_are_declined() -> None:
    mae = METRICS["mae"]
    with pytest.raises(DataError, match="at least 10 samples"):
        certify(_scores(np.ones(3), mae), _scores(np.ones(3), mae), metric=mae, max_drop=0.1)


@pytest.mark.parametrize("max_drop", [-0.01, math.nan, math.inf])
def test_an_impossible_bound_is_declined(max_drop: float) -> None:
    with pytest.raises(RecipeError, match="`max_drop`"):
        certify(*_pair(0, 0, 5), metric=TOP1, max_drop=max_drop)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 2.0])
def test_an_impossible_confidence_is_declined(confidence: float) -> None:
    with pytest.raises(RecipeError, match="`confidence`"):
        certify(*_pair(0, 0, 5), metric=TOP1, max_drop=0.1, confidence=confidence)


def test_only_the_same_samples_and_metric_can_be_paired() -> None:
    one = _scores([1, 0, 1])
    for original, message in (
        (_scores([1, 0, 1], samples="other"), "same samples"),
        (_scores([1, 0]), "same samples"),
        (_scores([1, 0, 1], METRICS["top5"]), "`top5` and `top1`"),
        (None, "needs the scores of the original"),
    ):
        with pytest.raises(ContractError, match=message):
            certify(original, one, metric=TOP1, max_drop=0.1)


@given(
    counts=st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(1, 200)),
    max_drop=st.floats(0, 0.2),
)
@settings(max_examples=20, deadline=None)
def test_a_certificate_is_consistent(counts: tuple[int, int, int], max_drop: float) -> None:
    worse, better, same = counts
    found = certify(*_pair(worse, better, worse + better + same), metric=TOP1, max_drop=max_drop)
    assert found.passed == (found.upper <= max_drop)
    assert found.lower <= found.drop <= found.upper
    if found.samples_needed is not None:
        assert not found.passed
        assert found.drop < max_drop


def _tests(*outcomes: tuple[int, int]) -> tuple[list[Callable[[], Certificate]], list[int]]:
    opened: list[int] = []

    def test(rung: int, worse: int, better: int) -> Certificate:
        opened.append(rung)
        return certify(*_pair(worse, better, 1000), metric=TOP1, max_drop=0.02)

    return [lambda rung=rung, pair=pair: test(rung, *pair) for rung, pair in enumerate(outcomes)], opened  # type: ignore[misc]


def test_rungs_are_tested_until_the_first_failure() -> None:
    tests, opened = _tests((1, 0), (4, 4), (60, 0), (0, 0))
    found = fixed_sequence(tests)
    assert [certificate.passed for certificate in found] == [True, True, False]
    # The fourth would have passed, and is not even run: that is what makes four tests cost no more than one.
    assert opened == [0, 1, 2]
    assert fixed_sequence([]) == ()


def test_more_than_four_rungs_are_declined() -> None:
    tests, opened = _tests(*[(0, 0)] * 5)
    with pytest.raises(ContractError, match="At most 4 rungs"):
        fixed_sequence(tests)
    assert opened == [0, 1, 2, 3]
