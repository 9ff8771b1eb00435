from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.compress.gram import LARGEST_INPUT, Moments, Summary
from edgewise.compress.unfold import Dense, Window
from edgewise.errors import ContractError, DataError

Floats = npt.NDArray[np.float32]


def pairs(count: int, rows: int, columns: int, *, mean: float = 0.0) -> list[tuple[Floats, Floats]]:
    random = np.random.default_rng(columns)
    mix = random.standard_normal((columns, columns))
    xs = [(random.standard_normal((rows, columns)) @ mix + mean).astype(np.float32) for _ in range(count)]
    return [(x, (x + 0.01 * random.standard_normal(x.shape)).astype(np.float32)) for x in xs]


def reference(samples: list[tuple[Floats, Floats]]) -> Summary:
    """The definitions, in float64."""
    x = np.concatenate([pair[0] for pair in samples]).astype(np.float64)
    hat = np.concatenate([pair[1] for pair in samples]).astype(np.float64)
    centred = hat - hat.mean(axis=0)
    return Summary(
        len(x),
        len(samples),
        x.mean(axis=0)[None],
        hat.mean(axis=0)[None],
        (centred.T @ centred / len(x))[None],
        ((x - hat - (x - hat).mean(axis=0)).T @ centred / len(x))[None],
    )


def assert_close(ours: Summary | None, expected: Summary, scale: float) -> None:
    assert ours is not None
    assert (ours.count, ours.samples) == (expected.count, expected.samples)
    # Products of at most 1,024 rows in float32: the bound in the docstring, of the sum of the terms' magnitudes.
    room = 1024 * 2**-24
    spread = np.sqrt(np.einsum("gkk->gk", expected.centred_gram))
    assert np.all(np.abs(ours.centred_gram - expected.centred_gram) <= room * (spread.max() + scale * 2**-10) ** 2)
    assert np.abs(ours.mean_hat - expected.mean_hat).max() <= 2**-20 * (scale + spread.max())
    assert np.abs(ours.mean - expected.mean).max() <= 2**-20 * (scale + spread.max())
    lost = np.abs(expected.centred_drift).max() + 0.1 * spread.max()
    assert np.abs(ours.centred_drift - expected.centred_drift).max() <= room * spread.max() * lost


@given(st.integers(1, 12), st.sampled_from([1, 3, 40]), st.sampled_from([1, 5, 17]), st.sampled_from([0.0, 100.0]))
@settings(max_examples=30, deadline=None)
def test_moments_are_those_of_all_rows(count: int, rows: int, columns: int, mean: float) -> None:
    samples = pairs(count, rows, columns, mean=mean)
    moments = Moments(Dense(outputs=1, columns=columns))
    for number, (x, x_hat) in enumerate(samples):
        moments.add(x, x_hat, sample=number)
    assert moments.count == count * rows
    assert moments.samples == count
    assert_close(moments.all(), reference(samples), mean)
    fit = [pair for number, pair in enumerate(samples) if number % 5 != 1]
    assert_close(moments.fit(), reference(fit), mean)
    held = moments.held_out()
    expected = [pair for number, pair in enumerate(samples) if number % 5 == 1]
    if not expected:
        assert held is None
        return
    assert held is not None
    assert np.array_equal(held[0][:, 0], np.concatenate([pair[0] for pair in expected]))
    assert np.array_equal(held[1][:, 0], np.concatenate([pair[1] for pair in expected]))


def test_asking_in_between_changes_nothing_and_many_rows_are_flushed() -> None:
    samples = pairs(10, 700, 4)
    asked, plain = (Moments(Dense(outputs=1, columns=4), positions=1000) for _ in range(2))
    for number, (x, x_hat) in enumerate(samples):
        asked.add(x, x_hat, sample=number)
        asked.all()
        plain.add(x, x_hat, sample=number)
    one, other = asked.all(), plain.all()
    assert one is not None
    assert other is not None
    assert one.count == other.count == 7000
    assert np.allclose(one.gram, other.gram, rtol=1e-4, atol=1e-4)
    assert_close(other, reference(samples), 0.0)


def test_raw_moments_follow_from_centred_ones() -> None:
    (x, x_hat), *_ = samples = pairs(1, 50, 3, mean=2.0)
    moments = Moments(Dense(outputs=1, columns=3))
    moments.add(*samples[0], sample=0)
    summary = moments.all()
    assert summary is not None
    x64, hat64 = x.astype(np.float64), x_hat.astype(np.float64)
    assert np.allclose(summary.gram[0], hat64.T @ hat64 / 50, rtol=1e-5)
    assert np.allclose(summary.cross[0], x64.T @ hat64 / 50, rtol=1e-5)
    assert np.allclose(summary.drift[0], (x64 - hat64).T @ hat64 / 50, rtol=1e-3, atol=1e-5)


def test_groups_are_apart_and_the_share_of_positions_is_small() -> None:
    window = Window(3, 1, 1, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), "", (1, 1))
    moments = Moments(window, positions=20)
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    x[:, 1] = 0
    for sample in range(4):
        moments.add(x, x, sample=sample)
    assert 4 * 10 <= moments.count <= 4 * 20
    summary = moments.all()
    assert summary is not None
    assert summary.gram.shape == (3, 9, 9)
    assert not summary.gram[1].any()
    assert not summary.drift.any()
    assert (np.einsum("gkk->gk", summary.gram[[0, 2]]) > 0).all()


def test_memory_for_held_out_rows_is_bounded() -> None:
    moments = Moments(Dense(outputs=1, columns=1 << 12), positions=64)
    x = np.ones((64, 1 << 12), np.float32)
    moments._fit.add = lambda *_: None  # type: ignore[method-assign]  # the products are of no interest here
    for sample in range(120):
        moments.add(x, x, sample=sample)
    held = moments.held_out()
    assert held is not None
    # At most a sixteenth of 2**22 values a sample, until they are full.
    assert 15 << 18 < held[0].size <= 1 << 22
    assert moments.samples == 120


def test_bad_input_is_refused_and_nothing_is_no_moments() -> None:
    moments = Moments(Dense(outputs=1, columns=2))
    assert moments.all() is None
    assert moments.fit() is None
    assert moments.held_out() is None
    moments.add(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), sample=0)
    assert moments.samples == 0
    assert moments.all() is None
    with pytest.raises(ContractError, match="one shape"):
        moments.add(np.zeros((1, 2)), np.zeros((2, 2)), sample=0)
    for bad in (np.nan, np.inf):
        with pytest.raises(DataError, match="sample 3"):
            moments.add(np.zeros((1, 2), np.float32), np.array([[0, bad]], np.float32), sample=3)


@pytest.mark.filterwarnings("error")
def test_inputs_whose_squares_are_no_float32_have_no_moments() -> None:
    moments = Moments(Dense(outputs=1, columns=2))
    rows = np.ones((4, 2), np.float32)
    for sample, scale in enumerate((1.0, LARGEST_INPUT)):
        moments.add(rows * np.float32(scale), rows * np.float32(scale), sample=sample)
    assert moments.all() is not None
    moments.add(rows, rows * np.float32(-2 * LARGEST_INPUT), sample=2)
    assert moments.is_too_large
    assert moments.all() is moments.fit() is None
