"""The ladder: its rule, one clause a test, and what always holds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ContractError
from edgewise.search.ladder import Point, pick


def _point(cost: float, drop: float, *, spread: float = 0.01, reach: float = 0.01, asked: float = 0.01) -> Point:
    return Point(
        cost=cost, cost_low=cost * (1 - spread), cost_high=cost * (1 + spread), drop=drop, reach=reach, asked=asked
    )


def test_safest_first_each_clearly_faster() -> None:
    points = [_point(2.0, 0.005), _point(8.0, -0.001), _point(7.95, 0.0), _point(4.0, 0.002), _point(5.0, 0.004)]
    # 2 overlaps the interval of 1; 4 is slower and worse than 3.
    assert pick(points) == (1, 3, 0)


def test_what_is_out_of_reach_is_left_out() -> None:
    assert pick([_point(8.0, 0.0), _point(4.0, 0.02)]) == (0,)


def test_the_fastest_that_loses_little_enough_is_tried_where_none_is_in_reach() -> None:
    # Few samples: a bound of a point cannot be shown, whatever the drop. The one within a point that is fastest is
    # worth more samples; the one that loses two points is not, and the safest gains least.
    points = [_point(2.0, 0.02), _point(3.0, 0.009), _point(4.0, 0.0)]
    few = [replace(point, reach=-0.01) for point in points]
    assert pick(few) == (1,)
    assert pick(few, reserve=False) == ()


def test_the_safest_is_tried_where_all_lose_too_much() -> None:
    points = [_point(2.0, 0.05), _point(4.0, 0.03)]
    assert pick(points) == (1,)
    assert pick(points, reserve=False) == ()
    assert pick([]) == ()


def test_too_many_are_thinned_evenly_and_keep_both_ends() -> None:
    points = [_point(cost, drop / 1000) for drop, cost in enumerate((64.0, 32.0, 30.0, 16.0, 8.0, 4.0))]
    assert pick(points, most=4) == (0, 3, 4, 5)
    assert pick(points, most=2) == (0, 5)
    assert pick(points, most=1) == (5,)


@pytest.mark.parametrize(("cost", "low", "high"), [(1.0, 1.1, 2.0), (1.0, 0.5, 0.9), (0.0, 0.0, 1.0)])
def test_a_cost_outside_its_interval_is_declined(cost: float, low: float, high: float) -> None:
    with pytest.raises(ContractError, match="in its interval"):
        Point(cost=cost, cost_low=low, cost_high=high, drop=0, reach=1, asked=1)


def test_no_room_is_declined() -> None:
    with pytest.raises(ContractError, match="at least one rung"):
        pick([], most=0)


@given(
    points=st.lists(
        st.builds(_point, st.floats(0.1, 100), st.floats(-0.02, 0.05), spread=st.floats(0, 0.3)), max_size=20
    ),
    most=st.integers(1, 5),
)
def test_a_ladder_rises_in_drop_and_falls_in_cost(points: list[Point], most: int) -> None:
    rungs = [points[index] for index in pick(points, most=most)]
    assert len(rungs) <= most
    assert bool(rungs) == bool(points)
    for safer, faster in pairwise(rungs):
        assert safer.drop < faster.drop <= faster.reach
        assert faster.cost_high < safer.cost_low
    if rungs and most > 1:
        assert rungs[0].drop == min(point.drop for point in points)
