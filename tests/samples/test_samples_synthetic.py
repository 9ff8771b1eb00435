"""Synthetic samples keep to their laws, and are the same for the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgewise.errors import DataError
from edgewise.records.tensors import Array, Port
from edgewise.samples.bind import bind
from edgewise.samples.synthetic import Choice, Field, Law, SyntheticSource

LAST = Field(
    shape=(1, 6, 5, 2),
    dtype="float32",
    places=np.arange(60).reshape(6, 5, 2).transpose(2, 0, 1),
    mean=np.array([10.0, -3.0]),
    mixing=np.array([[2.0, 0.0], [0.6, 0.8]]),
    exponent=1.0,
    low=np.full(2, -np.inf),
    high=np.full(2, np.inf),
)


def drawn(law: Field | Choice, count: int = 400, *, steps: int | None = None) -> Array:
    source = SyntheticSource({"x": law}, count, seed=1, steps=steps)
    return np.stack([source[index].arrays["x"] for index in range(count)])


def test_fields_lie_where_the_input_has_them_with_the_covariance_asked_for() -> None:
    x = drawn(LAST, 2000).reshape(2000, 6, 5, 2)
    assert x.dtype == np.float32
    point = x[:, 3, 2]
    # Standard errors of mean and covariance from 2,000 points: 2 / sqrt(2000) = 0.045, 4 * sqrt(2 / 2000) = 0.13.
    assert np.abs(point.mean(axis=0) - LAST.mean).max() < 5 * 0.045
    assert np.abs(np.cov(point.T) - LAST.mixing @ LAST.mixing.T).max() < 5 * 0.13


def test_limits_hold_and_pixels_are_whole() -> None:
    law = replace(LAST, dtype="uint8", low=np.array([8.0, 0.0]), high=np.array([11.0, 255.0]))
    x = drawn(law, 50).reshape(50, 6, 5, 2)
    assert x.dtype == np.uint8
    assert set(np.unique(x[..., 0])) <= {8, 9, 10, 11}


def test_contrast_differs_between_samples() -> None:
    def spread(law: Field) -> float:
        return float(np.log((drawn(law) - np.repeat(LAST.mean, 1)).reshape(400, -1).std(axis=1)).std())

    assert spread(replace(LAST, spread=0.8)) > spread(LAST) + 0.3


def test_leaves_of_images_with_time() -> None:
    law = replace(LAST, leaves=True)
    assert drawn(law, 3).shape == (3, 1, 6, 5, 2)
    assert drawn(law, 3, steps=4).shape == (3, 4, 1, 6, 5, 2)


def test_choices_stay_in_their_range() -> None:
    tokens = drawn(Choice((1, 7), "int64", range(5)))
    assert tokens.dtype == np.int64
    assert set(np.unique(tokens)) == {0, 1, 2, 3, 4}
    together = drawn(Choice((1, 7), "int32", (8000.0, 16000.0), together=True))
    assert set(np.unique(together)) == {8000, 16000}
    assert np.ptp(together, axis=2).max() == 0
    assert drawn(Choice((), "bool", (1.0,)), 2).tolist() == [True, True]


def test_equal_seeds_give_equal_samples_in_any_order() -> None:
    laws: dict[str, Law] = {"x": LAST, "tokens": Choice((1, 4), "int64", range(100))}
    first, second, other = (SyntheticSource(laws, 5, seed=seed) for seed in (3, 3, 4))
    late, early = second[4], second[0]
    assert np.array_equal(first[0].arrays["x"], early.arrays["x"])
    assert np.array_equal(first[4].arrays["tokens"], late.arrays["tokens"])
    assert not np.array_equal(first[0].arrays["x"], first[1].arrays["x"])
    assert not np.array_equal(first[0].arrays["x"], other[0].arrays["x"])
    assert first.fingerprint == second.fingerprint != other.fingerprint
    changed = SyntheticSource({**laws, "x": replace(LAST, mean=LAST.mean + 1)}, 5, seed=3)
    assert changed.fingerprint != first.fingerprint
    assert first.labels() is None


def test_samples_bind_to_a_recurrent_model() -> None:
    laws = {"x": Choice((1, 4), "float32", (0.0, 1.0)), "rate": Choice((), "int64", (16000.0,))}
    inputs = (
        Port(name="x", dtype="float32", shape=(1, 4)),
        Port(name="rate", dtype="int64", shape=()),
        Port(name="state", dtype="float32", shape=(1, 8)),
    )
    dataset = bind(SyntheticSource(laws, 2, seed=0, steps=6), inputs, state={"next": "state"})
    shapes = {name: array.shape for name, array in dataset.feeds(1).items()}
    assert shapes == {"x": (6, 1, 4), "rate": (6,), "state": (1, 8)}


def test_there_is_at_least_one_and_none_behind_the_last() -> None:
    with pytest.raises(DataError, match="at least one synthetic sample"):
        SyntheticSource({"x": LAST}, 0, seed=0)
    with pytest.raises(IndexError):
        SyntheticSource({"x": LAST}, 2, seed=0)[2]
