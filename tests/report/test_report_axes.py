from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.report.axes import Scale, log_ticks, padded, padded_log, tick_labels, ticks

FINITE = st.floats(min_value=-1e300, max_value=1e300)
POSITIVE = st.floats(min_value=1e-6, max_value=1e12)


def test_a_linear_scale_maps_ends_and_middle() -> None:
    scale = Scale(2.0, 6.0, 100.0, 0.0)
    assert [scale.at(value) for value in (2.0, 4.0, 6.0)] == [100.0, 50.0, 0.0]


def test_a_log_scale_puts_equal_ratios_equally_far_apart() -> None:
    scale = Scale(1.0, 100.0, 0.0, 200.0, log=True)
    assert scale.at(10.0) == pytest.approx(100.0, abs=1e-12)


def test_what_lies_outside_sits_on_the_end() -> None:
    scale = Scale(1.0, 2.0, 10.0, 20.0)
    assert scale.at(-5.0) == 10.0
    assert scale.at(math.inf) == 20.0


@given(st.lists(FINITE, max_size=8), FINITE)
def test_a_padded_range_gives_every_value_a_place_inside(values: list[float], other: float) -> None:
    low, high = padded([*values, other])
    scale = Scale(low, high, 0.0, 100.0)
    for value in (*values, other):
        assert low <= value <= high
        assert 0.0 <= scale.at(value) <= 100.0


@given(st.lists(POSITIVE, min_size=1, max_size=8))
def test_a_padded_log_range_holds_every_value(values: list[float]) -> None:
    low, high = padded_log(values)
    assert 0 < low < min(values) <= max(values) < high


def test_degenerate_ranges() -> None:
    assert padded([]) == (0.0, 1.0)
    assert padded([math.nan, math.inf]) == (0.0, 1.0)
    assert padded([0.0, 0.0]) == (-1.0, 1.0)
    assert padded([5.0]) == (4.5, 5.5)
    assert padded_log([]) == (1.0, 10.0)
    assert padded_log([-1.0, 0.0]) == (1.0, 10.0)


def test_ticks_are_round() -> None:
    assert ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.91, 0.953, 5) == [0.91, 0.92, 0.93, 0.94, 0.95]
    assert ticks(-0.3, 0.3, 3) == [-0.2, 0.0, 0.2]
    assert math.copysign(1.0, ticks(-0.3, 0.3, 3)[1]) == 1.0
    assert ticks(3.0, 3.0) == [3.0]
    assert ticks(math.nan, 3.0) == []


@given(FINITE, st.floats(min_value=1e-3, max_value=1e6), st.integers(min_value=2, max_value=9))
def test_ticks_are_few_and_inside(low: float, span: float, wanted: int) -> None:
    high = low + span
    if not high > low or span < 1e-9 * abs(low):
        return
    found = ticks(low, high, wanted)
    assert len(found) <= wanted + 2
    # Half a step of the rounding that keeps 0.30000000000000004 away.
    assert all(low - span * 1e-6 <= tick <= high + span * 1e-6 for tick in found)


def test_log_ticks() -> None:
    assert log_ticks(1.1, 4.2, 5) == [2.0, 3.0, 4.0]
    assert log_ticks(0.9, 110.0, 7) == [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0]
    assert len(log_ticks(1e-3, 1e12, 5)) <= 7


def test_tick_labels_have_the_decimals_that_they_need() -> None:
    assert tick_labels([0.91, 0.92], 100) == ["91", "92"]
    assert tick_labels([1000.0, 1500.0], 1e-3) == ["1.0", "1.5"]
    assert tick_labels([-0.5, 0.0]) == ["\N{MINUS SIGN}0.5", "0.0"]
    assert tick_labels([0.0]) == ["0"]
    assert tick_labels([]) == []
    assert tick_labels([2e9]) == ["2e+09"]
