from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.compress.histogram import BINS, Histogram

values_strategy = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
)


def histogram_of(*parts: npt.NDArray[np.float32]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part, float(part.min()), float(part.max()))
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return (a.first, a.exponent, a.zeros, a.counts.tolist()) == (b.first, b.exponent, b.zeros, b.counts.tolist())


@given(values_strategy)
def test_each_value_is_counted_in_the_bin_that_holds_it(values: npt.NDArray[np.float32]) -> None:
    histogram = histogram_of(values)
    # In float64: a product of a float32 and a power of two within its range is exact.
    bins = np.floor(values.astype(np.float64) / histogram.width).astype(int) - histogram.first
    assert histogram.counts.tolist() == np.bincount(bins, minlength=len(histogram.counts)).tolist()
    assert histogram.zeros == int((values == 0).sum())
    assert len(histogram.counts) <= BINS


@given(st.lists(values_strategy, min_size=1, max_size=4))
def test_neither_order_nor_grouping_matters(parts: list[npt.NDArray[np.float32]]) -> None:
    together = histogram_of(np.concatenate(parts))
    assert same(histogram_of(*parts), together)
    assert same(histogram_of(*reversed(parts)), together)
    merged = Histogram()
    for part in parts:
        merged.merge(histogram_of(part))
    assert same(merged, together)


@given(values_strategy.filter(lambda values: bool(np.abs(values).max() > 1e-20)))
def test_a_width_is_a_small_share_of_the_range(values: npt.NDArray[np.float32]) -> None:
    histogram = histogram_of(values)
    spread = max(float(values.max()), 0.0) - min(float(values.min()), 0.0)
    assert histogram.width <= spread / (BINS / 2 - 2)


def test_zero_is_an_edge_of_the_bins() -> None:
    histogram = histogram_of(np.array([5.0, 6.0], np.float32))
    assert 0.0 in histogram.edges


def test_a_constant_tensor_far_from_zero_is_counted() -> None:
    histogram = histogram_of(np.full(7, 3e7, np.float32))
    assert histogram.count == 7
    assert histogram.edges[-2] <= 3e7 < histogram.edges[-1]


def test_merging_an_empty_histogram_changes_nothing_and_leaves_the_other_alone() -> None:
    histogram, other = histogram_of(np.array([1.0, 2.0], np.float32)), histogram_of(np.array([900.0], np.float32))
    before, others = histogram.copy(), other.copy()
    histogram.merge(Histogram())
    assert same(histogram, before)
    histogram.merge(other)
    assert same(other, others)
    assert histogram.count == 3
