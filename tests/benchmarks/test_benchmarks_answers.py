"""Flips, divergence, pooling, and the split: what the rows of fidelity are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from answers import (
    SMALLEST_PROBABILITY,
    Distance,
    are_probabilities,
    compare,
    divergences,
    drawn,
    flips,
    log_probabilities,
    pooled,
)

LOGITS = arrays(np.float32, (4, 3), elements=st.floats(-20, 20, width=32))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, row by row, as the definition has it."""
    powers = np.exp(logits.astype(np.float64))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@given(st.integers(4, 2000), st.integers(1, 500), st.integers(0, 20))
def test_what_calibrates_is_never_evaluated(samples: int, calibration: int, seed: int) -> None:
    chosen, evaluated = drawn(samples, calibration, seed)
    assert sorted([*chosen, *evaluated]) == list(range(samples))
    assert len(chosen) == max(1, min(calibration, samples // 4))
    assert list(chosen) == sorted(chosen)
    assert list(evaluated) == sorted(evaluated)


def test_a_seed_draws_the_same_samples_and_another_one_draws_others() -> None:
    first, again, other = (drawn(1000, 200, seed)[0] for seed in (0, 0, 1))
    assert list(first) == list(again)
    assert list(first) != list(other)


@given(LOGITS, LOGITS)
def test_the_divergence_is_that_of_its_definition(original: np.ndarray, quantized: np.ndarray) -> None:
    p, q = softmax(original), softmax(quantized)
    expected = [sum(a * math.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]
    logits = original.astype(np.float64) - 30  # never negative and summing to 1, so never taken for probabilities
    # Logarithms of up to 40 are subtracted from each other in float64, each a sum of some terms.
    np.testing.assert_allclose(divergences(logits, quantized), expected, atol=40 * 2.0**-52 * 20, rtol=1e-12)
    assert divergences(logits, quantized).min() >= -40 * 2.0**-52 * 20
    np.testing.assert_allclose(divergences(logits, original), 0, atol=40 * 2.0**-52 * 20)


def test_probabilities_are_not_put_through_a_softmax_again() -> None:
    original = np.array([[0.7, 0.3], [0.5, 0.5]], np.float32)
    quantized = np.array([[0.5, 0.5], [1.0, 0.0]], np.float32)
    assert are_probabilities(original)
    found = divergences(original, quantized)
    assert found[0] == pytest.approx(0.7 * math.log(1.4) + 0.3 * math.log(0.6), abs=1e-6)
    assert found[1] == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / SMALLEST_PROBABILITY), abs=1e-5)


def test_logits_are_told_from_probabilities() -> None:
    assert not are_probabilities(np.array([[0.7, 0.4]]))
    assert not are_probabilities(np.array([[1.5, -0.5]]))
    assert not are_probabilities(np.array([[0.7, 0.3], [3.0, 1.0]]))


def test_log_probabilities_of_large_logits_are_finite() -> None:
    found = log_probabilities(np.array([[1e4, 0.0]]), probabilities=False)
    assert list(found[0]) == [0.0, -1e4]


def test_quantized_probabilities_are_made_to_sum_to_one() -> None:
    found = log_probabilities(np.array([[0.5, 0.25]]), probabilities=True)
    np.testing.assert_allclose(np.exp(found), [[2 / 3, 1 / 3]])


def test_flips_are_counted_by_class_and_the_first_of_equal_scores_wins() -> None:
    original = np.array([[2, 1, 0], [0, 1, 1], [0, 0, 1], [3, 2, 1]])
    quantized = np.array([[2, 1, 0], [0, 1, 2], [0, 0, 9], [1, 2, 3]])
    assert flips(original, quantized) == 2


def test_pooling_counts_flips_and_weighs_every_answer_alike() -> None:
    same = np.log(np.array([[0.5, 0.5]] * 3)), np.log(np.array([[0.5, 0.5]] * 3))
    other = np.log(np.array([[0.5, 0.5]])), np.log(np.array([[0.25, 0.75]]))
    found = pooled([same, other])
    assert (found.flips, found.n) == (1, 4)
    assert found.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 4)


def test_the_best_rivals_are_chosen_apart_for_flips_and_for_divergence() -> None:
    rivals = {"a": Distance(40, 0.2, 100), "b": Distance(50, 0.1, 100)}
    verdict = compare(Distance(20, 0.05, 100), rivals)
    assert (verdict.flips_of, verdict.flips, verdict.flips_count) == ("a", 0.5, True)
    assert (verdict.kl_of, verdict.kl) == ("b", 0.5)


@pytest.mark.parametrize(("fewest", "counts"), [(29, False), (30, True)])
def test_fewer_than_thirty_flips_of_the_best_rival_decide_nothing(fewest: int, counts: bool) -> None:
    rivals = {"best": Distance(fewest, 0.2, 100), "worst": Distance(90, 0.2, 100)}
    assert compare(Distance(1, 0.1, 100), rivals).flips_count == counts


def test_a_rival_without_flips_is_not_divided_by() -> None:
    rivals = {"a": Distance(0, 0.1, 10)}
    assert compare(Distance(0, 0.1, 10), rivals).flips == 1
    assert compare(Distance(1, 0.1, 10), rivals).flips == math.inf
