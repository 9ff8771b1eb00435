"""The front, by its definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ContractError
from edgewise.search.pareto import front

_POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(-3, 3).map(float)), max_size=25)


@given(points=_POINTS)
def test_the_front_is_what_no_other_point_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(index: int) -> bool:
        cost, loss = points[index]
        return any(
            (c <= cost and x <= loss and (c, x) != (cost, loss)) or ((c, x) == (cost, loss) and other < index)
            for other, (c, x) in enumerate(points)
        )

    kept = front(points)
    assert set(kept) == {index for index in range(len(points)) if not dominated(index)}
    costs, losses = [points[index][0] for index in kept], [points[index][1] for index in kept]
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)


def test_infinite_coordinates_compare() -> None:
    assert front([(math.inf, 0.0), (1.0, math.inf), (2.0, math.inf)]) == (1, 0)


def test_nan_is_declined() -> None:
    with pytest.raises(ContractError, match="Received NaN"):
        front([(1.0, math.nan)])
