from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.compress.histogram import Histogram
from edgewise.compress.quantize import affine, ranges
from edgewise.errors import RecipeError
from edgewise.records.candidate import HistogramMethod

METHODS: tuple[HistogramMethod, ...] = get_args(HistogramMethod)
Values = npt.NDArray[np.float32]


def seen(values: Values) -> tuple[Histogram, float, float]:
    histogram = Histogram()
    histogram.add(values, float(values.min()), float(values.max()))
    return histogram, float(values.min()), float(values.max())


def error(values: Values, low: float, high: float) -> float:
    """The mean squared error of 8-bit integers over `[low, high]` on the values themselves."""
    scale, zero = affine.parameters(low, high, np.uint8)
    back = affine.dequantize_array(affine.quantize_array(values, scale, zero, np.uint8), scale, zero)
    return float(np.square((values - back).astype(np.float64)).mean())


def draw(kind: str, n: int = 20_000) -> Values:
    random = np.random.default_rng(7)
    kinds: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
        "normal": lambda: random.standard_normal(n),
        "relu": lambda: np.maximum(random.standard_normal(n), 0),
        "relu6": lambda: np.clip(random.standard_normal(n) * 4, 0, 6),
        "negative": lambda: -random.exponential(size=n),
        "outlier": lambda: np.append(random.standard_normal(n), 100.0),
        "skewed": lambda: np.where(random.random(n) < 0.01, -20 * random.random(n), random.random(n)),
        "laplace": lambda: random.laplace(size=n),
        "far": lambda: random.standard_normal(n) + 50,
    }
    return kinds[kind]().astype(np.float32)


KINDS = ["normal", "relu", "relu6", "negative", "outlier", "skewed", "laplace", "far"]


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=40)
@given(values=hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e5, 1e5, width=32)))
def test_every_range_holds_zero_and_lies_within_the_extremes(method: HistogramMethod, values: Values) -> None:
    histogram, low, high = seen(values)
    chosen_low, chosen_high = ranges.choose(method, histogram, low, high)
    assert min(low, 0) <= chosen_low <= 0 <= chosen_high <= max(high, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_a_brute_force_search_on_the_values(kind: str) -> None:
    values = draw(kind)
    histogram, low, high = seen(values)
    ours = error(values, *ranges.choose("mse", histogram, low, high))
    ends = np.linspace(0, 1, 41)
    lows, highs = np.unique(min(low, 0.0) * ends), np.unique(max(high, 0.0) * ends)
    best = min(error(values, a, b) for a in lows for b in highs if a < b)
    # The model of the error, step**2 / 12, is an average: with 20,000 values and 256 steps it holds within 5 %.
    assert ours <= 1.05 * best
    assert ours <= 1.001 * error(values, low, high)


def rare(outlier: float) -> tuple[Histogram, float, float]:
    """What is seen of 2e10 normal values and a single `outlier`."""
    normal = draw("normal")
    histogram, low, high = seen(normal)
    histogram.counts *= 10**6
    histogram.merge(seen(np.array([outlier], np.float32))[0])
    return histogram, min(low, outlier), max(high, outlier)


def test_mse_clips_a_rare_outlier_but_not_a_spike_at_the_end() -> None:
    # Rounding over [-4, 100] costs 0.41**2 / 12 a value; clipping costs 96**2 for one value in 2e10.
    _, high = ranges.choose("mse", *rare(100.0))
    assert high < 5
    assert ranges.choose("mse", *seen(draw("relu6"))) == (0.0, 6.0)


def test_mse_searches_both_ends_independently() -> None:
    low, high = ranges.choose("mse", *rare(-100.0))
    assert -5 < low < -2
    assert high == pytest.approx(draw("normal").max(), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_percentile_keeps_its_share(kind: str) -> None:
    values = draw(kind, 100_000)
    histogram, low, high = seen(values)
    chosen_low, chosen_high = ranges.choose("percentile", histogram, low, high)
    outside = ((values < chosen_low) | (values > chosen_high)).sum()
    assert outside <= (1 - ranges.KEPT_SHARE) * len(values) + 1e-6
    # Not wider than the exact quantiles by more than one bin.
    tail = (1 - ranges.KEPT_SHARE) / 2
    exact = values.astype(np.float64)  # numpy 2.2 fails on float32 here
    assert chosen_high <= max(float(np.quantile(exact, 1 - tail, method="higher")), 0.0) + histogram.width
    assert chosen_low >= min(float(np.quantile(exact, tail, method="lower")), 0.0) - histogram.width


def test_percentile_of_few_values_is_everything() -> None:
    values = np.array([-3, 0, 1, 2, 9], np.float32)
    assert ranges.choose("percentile", *seen(values)) == (-3, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_has_the_least_divergence_of_its_thresholds(kind: str) -> None:
    values = draw(kind)
    histogram, low, high = seen(values)
    chosen_low, chosen_high = ranges.choose("entropy", histogram, low, high)
    one_sided = min(low, 0) == 0 or max(high, 0) == 0
    levels = 256 if one_sided else 128
    magnitudes = np.abs(values.astype(np.float64)[values != 0])
    width = histogram.width
    bins = int(np.floor(magnitudes.max() / width)) + 1

    def divergence(end: int) -> float:
        """Kullback-Leibler divergence, from the values, in plain loops."""
        counts = np.histogram(magnitudes, np.arange(bins + 1) * width)[0].astype(float)
        p = counts[:end].copy()
        p[-1] += counts[end:].sum()
        q = np.zeros(end)
        for level in range(levels):
            start, stop = level * end // levels, (level + 1) * end // levels
            filled = counts[start:stop] > 0
            if filled.any():
                q[start:stop][filled] = counts[start:stop].sum() / filled.sum()
        if q.sum() == 0:
            return float("inf")
        p, q = p / p.sum(), q / q.sum()
        return float(sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0))

    chosen = round(max(-chosen_low, chosen_high) / width + 0.5)
    chosen = min(max(chosen, levels), bins)
    candidates = np.unique(np.linspace(levels, bins, 12).astype(int))
    least = min(divergence(int(end)) for end in candidates)
    near = min(divergence(end) for end in range(max(levels, chosen - 1), min(bins, chosen + 1) + 1))
    assert near <= least * (1 + 1e-9) + 1e-9


def test_entropy_clips_an_outlier() -> None:
    _, high = ranges.choose("entropy", *seen(draw("outlier")))
    assert high < 50


@pytest.mark.parametrize("method", METHODS)
def test_zeros_and_nothing(method: HistogramMethod) -> None:
    assert ranges.choose(method, *seen(np.zeros(5, np.float32))) == (0, 0)
    assert ranges.choose(method, Histogram(), 0.0, 0.0) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_keeps_its_value(method: HistogramMethod) -> None:
    low, high = ranges.choose(method, *seen(np.full(9, 4.5, np.float32)))
    assert low == 0
    assert high == pytest.approx(4.5, rel=1e-3)


def test_min_max_clips_nothing() -> None:
    values = draw("outlier")
    assert ranges.choose("min-max", *seen(values)) == (values.min(), values.max())


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(RecipeError, match="`median`"):
        ranges.choose("median", Histogram(), 0.0, 1.0)  # type: ignore[arg-type]  # what is tested


@settings(deadline=None, max_examples=40)
@given(values=hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e5, 1e5, width=32)))
@example(values=np.array([-1.0, 1e-28], np.float32))
@example(values=np.array([-1e-28, 1.0], np.float32))
def test_candidates_start_with_the_widest_and_hold_zero(values: Values) -> None:
    histogram, low, high = seen(values)
    found = ranges.candidates(histogram, low, high)
    assert found[0] == (min(low, 0), max(high, 0))
    assert len(set(found)) == len(found)
    widths = [right - left for left, right in found]
    assert widths == sorted(widths, reverse=True)
    assert all(min(low, 0) <= left <= 0 <= right <= max(high, 0) for left, right in found)
    assert set(found) >= {ranges.choose(method, histogram, low, high) for method in METHODS}


def test_candidates_clip_either_end_alone() -> None:
    found = ranges.candidates(*seen(draw("normal")))
    low, high = found[0]
    assert {(low / 2, high), (low, high / 2), (low / 2, high / 2)} <= set(found)
    assert ranges.candidates(*seen(np.zeros(3, np.float32))) == ((0, 0),)
    assert ranges.candidates(Histogram(), 0.0, 0.0) == ((0, 0),)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chosen", [(-1.0, 1.0), (0.0, 2.0), (-0.5, 0.0), (0.0, 0.0), (-1e3, 1e3)])
def test_the_error_by_clipping_is_that_of_the_values(kind: str, chosen: ranges.Range) -> None:
    values = draw(kind)
    histogram, _, _ = seen(values)
    beyond = values.astype(np.float64) - np.clip(values.astype(np.float64), *chosen)
    exact = float(np.square(beyond).mean())
    found = ranges.clipping_error(histogram, chosen)
    # A value is known up to a width w towards zero: |e - w|^2 >= e^2 - 2 w e.
    assert exact - 2 * histogram.width * float(np.abs(beyond).mean()) - 1e-12 <= found <= exact + 1e-12
    assert ranges.clipping_error(Histogram(), chosen) == 0.0


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu"])
def test_more_levels_clip_less(kind: str) -> None:
    histogram, low, high = seen(draw(kind))
    few, many = (ranges.choose("mse", histogram, low, high, levels) for levels in (16, 65536))
    assert few[1] < 0.9 * high
    assert many[1] > 0.98 * high
    assert ranges.choose("entropy", histogram, low, high, 65536) == (min(low, 0), high)
