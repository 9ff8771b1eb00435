"""Relative errors of outputs, against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import DataError
from edgewise.measure.fidelity import compare, metric, scales

RANDOM = np.random.default_rng(0)


@given(offset=st.floats(-1e3, 1e3), noise=st.floats(1e-3, 1))
def test_the_error_is_relative_to_the_deviation_whatever_the_offset(offset: float, noise: float) -> None:
    original = offset + RANDOM.standard_normal((20, 1, 5))
    other = original + noise * RANDOM.standard_normal((20, 1, 5))
    found = compare(({"y": a}, {"y": b}) for a, b in zip(original, other, strict=True))
    expected = np.sqrt(np.mean((other - original) ** 2)) / original.std()
    assert found.errors["y"] == pytest.approx(expected, rel=1e-6)
    assert found.n == 20


def test_every_output_counts_and_decisions_are_those_of_the_first() -> None:
    a = {"scores": np.array([[1.0, 2.0]]), "box": np.array([[1.0, 3.0]])}
    b = {"scores": np.array([[2.0, 1.0]]), "box": np.array([[1.0, 3.0]])}
    found = compare([(a, b), (a, a)])
    assert found.errors == {"scores": pytest.approx(math.sqrt(0.5) / 0.5), "box": 0}
    assert found.agreement == 0.5


def test_whole_numbers_count_where_they_differ() -> None:
    found = compare([({"k": np.array([[1, 2, 3, 4]])}, {"k": np.array([[1, 2, 3, 900]])})])
    assert found.errors == {"k": 0.25}


@pytest.mark.parametrize(
    ("original", "other", "error"),
    [
        ([5.0, 5.0], [5.0, 5.5], math.sqrt(0.125) / 5),  # constant: relative to its magnitude
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-9], math.inf),
        ([1.0, 2.0], [1.0, math.nan], math.inf),
        ([1.0, 2.0], [1.0, math.inf], math.inf),
        ([1.0, math.inf], [1.0, math.inf], 0.0),
    ],
)
def test_outputs_out_of_the_ordinary(original: list[float], other: list[float], error: float) -> None:
    found = compare([({"y": np.array([original])}, {"y": np.array([other])})])
    assert found.errors["y"] == pytest.approx(error)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="At least one sample"):
        compare([])
    with pytest.raises(DataError, match="one shape"):
        compare([({"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))})])


def test_the_metric_of_the_search_is_that_of_the_worst_output() -> None:
    outputs = [{"a": np.array([0.0, 2.0]), "b": np.array([0.0, 20.0]), "c": np.array([3])}]
    by_output = scales(outputs)
    assert by_output == {"a": 1.0, "b": 10.0, "c": 1.0}
    judge = metric(by_output)
    off = {"a": np.array([0.1, 2.1]), "b": np.array([2.0, 22.0]), "c": np.array([3])}
    assert judge.score(outputs[0], outputs[0]) == 1
    assert judge.score(off, outputs[0]) == pytest.approx(0.8)
    assert judge.score({**off, "a": np.array([9.0, 9.0])}, outputs[0]) == 0
    assert judge.score({**off, "c": np.array([4])}, outputs[0]) == 0
