from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import DataError
from edgewise.samples.split import Splits, are_classes, split


def _sets(parts: Splits) -> tuple[list[int], list[int], list[int]]:
    return parts.calibrate.tolist(), parts.select.tolist(), parts.certify.tolist()


@given(n=st.integers(3, 3000), seed=st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_the_sets_are_disjoint_complete_and_of_the_sizes_that_are_documented(n: int, seed: int) -> None:
    calibrate, select, certify = _sets(split(n, None, seed))
    assert sorted(calibrate + select + certify) == list(range(n))
    assert len(calibrate) == max(1, min(300, round(0.15 * n)))
    assert len(select) == max(1, round(0.25 * n))
    assert certify


@given(labels=st.lists(st.integers(0, 5), min_size=3, max_size=400), seed=st.integers(0, 2**16))
@settings(max_examples=80, deadline=None)
def test_each_class_has_its_share_of_each_set(labels: list[int], seed: int) -> None:
    n = len(labels)
    parts = split(n, labels, seed)
    calibrate, select, certify = _sets(parts)
    assert sorted(calibrate + select + certify) == list(range(n))
    if not are_classes(labels):
        return
    for label, count in Counter(labels).items():
        for chosen, size, slack in ((calibrate, len(calibrate), 1), (select, len(select), 2)):
            # A class is one stretch of the row, and of evenly spaced places a stretch holds its share to within one. In
            # the rest of the row, which is one off itself, that adds up to less than two.
            assert abs(sum(labels[index] == label for index in chosen) - count * size / n) < slack + 1e-9


def test_equal_seeds_give_equal_sets_and_others_do_not() -> None:
    labels = [index % 3 for index in range(100)]
    assert _sets(split(100, labels, 7)) == _sets(split(100, labels, 7))
    assert _sets(split(100, labels, 7)) != _sets(split(100, labels, 8))


def test_every_sample_is_equally_likely_to_certify() -> None:
    # A set of 12 in 20, drawn 4,000 times: each sample's count is binomial, deviation sqrt(4000 * 0.6 * 0.4) = 31.
    counts = np.zeros(20)
    labels = [0] * 14 + [1] * 6
    for seed in range(4000):
        counts[split(20, labels, seed).certify] += 1
    assert np.abs(counts - 2400).max() < 5 * 31


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_samples_say_what_to_do(n: int) -> None:
    with pytest.raises(DataError, match=f"Received {n}") as caught:
        split(n, None, 0)
    assert "--calibration" in (caught.value.hint or "")


def test_three_samples_are_one_each() -> None:
    assert [len(part) for part in _sets(split(3, None, 0))] == [1, 1, 1]


def test_another_number_of_labels_is_an_error() -> None:
    with pytest.raises(DataError, match=r"10 samples.*9 labels"):
        split(10, [0] * 9, 0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 0, 1], True), (["a", "b", "a", "b"], True), ([True, False, True, False], True),
        ([0, 0, 0, 0], False), ([0.5, 1.5, 0.5, 1.5], False), (["w", "x", "y", "z"], False),
        ([np.zeros(2), np.zeros(2)], False), ([], False), ([0, "a", 0, "a"], False),
    ],
)  # fmt: skip
def test_which_labels_are_classes(labels: list[Any], expected: bool) -> None:
    assert are_classes(labels) is expected
