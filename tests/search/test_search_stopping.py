"""Budgets and rejection."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ContractError
from edgewise.search.stopping import Stage, Standing, affordable, survivors

_STAGES = st.lists(st.builds(Stage, seconds=st.floats(0, 50), required=st.booleans()), max_size=8)


def test_what_is_required_is_set_aside_first() -> None:
    stages = [Stage(seconds=30), Stage(seconds=8), Stage(seconds=40, required=True)]
    assert affordable(40, 100, stages, caution=1.0) == (1, 2)
    assert affordable(25, 100, stages, caution=1.0) == (0, 2)
    assert affordable(200, 100, stages, caution=1.0) == (2,)


def test_estimates_are_taken_with_caution() -> None:
    assert affordable(0, 10, [Stage(seconds=9)], caution=1.0) == (0,)
    assert affordable(0, 10, [Stage(seconds=9)]) == ()


def test_without_a_limit_everything_is_done() -> None:
    assert affordable(1e6, math.inf, [Stage(seconds=math.inf), Stage(seconds=1)]) == (0, 1)
    assert affordable(0, 10, [Stage(seconds=math.inf)]) == ()


@given(stages=_STAGES, elapsed=st.floats(0, 100), budget=st.floats(0, 200), caution=st.floats(1, 2))
def test_a_budget_is_kept_and_never_costs_what_is_required(
    stages: list[Stage], elapsed: float, budget: float, caution: float
) -> None:
    taken = affordable(elapsed, budget, stages, caution=caution)
    required = {index for index, stage in enumerate(stages) if stage.required}
    assert required <= set(taken)
    assert list(taken) == sorted(set(taken))
    if set(taken) > required and any(stages[index].seconds > 0 for index in set(taken) - required):
        total = elapsed + caution * sum(stages[index].seconds for index in taken)
        assert total <= budget + 1e-9 * (1 + budget)
    more = affordable(elapsed, budget + 1000 * caution, stages, caution=caution)
    assert len(more) >= len(taken)


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_an_impossible_cost_is_declined(seconds: float) -> None:
    with pytest.raises(ContractError, match="at least 0 seconds"):
        Stage(seconds=seconds)


def test_a_careless_factor_is_declined() -> None:
    with pytest.raises(ContractError, match=r"at least 1\. Received 0\.5"):
        affordable(0, 1, [], caution=0.5)


def _standing(cost: tuple[float, float], drop: tuple[float, float]) -> Standing:
    return Standing(cost_low=cost[0], cost_high=cost[1], drop_low=drop[0], drop_high=drop[1])


def test_only_what_cannot_win_is_rejected() -> None:
    standings = [
        _standing((1, 2), (0.0, 0.001)),
        _standing((3, 4), (0.002, 0.01)),  # surely slower and worse than the first
        _standing((3, 4), (0.0, 0.01)),  # may be as good
        _standing((0.5, 0.6), (0.02, 0.03)),  # fast, but surely not allowed
    ]
    assert survivors(standings, max_drop=0.01) == (0, 2)


def test_an_infeasible_candidate_rejects_nobody() -> None:
    assert survivors([_standing((1, 1), (0.5, 0.5)), _standing((2, 2), (0.6, 0.6))], max_drop=0.55) == (0,)
    assert survivors([_standing((1, 1), (0.5, 0.5)), _standing((2, 2), (0.6, 0.6))], max_drop=0.4) == ()


def test_equal_candidates_both_survive() -> None:
    assert survivors([_standing((1, 1), (0, 0))] * 2, max_drop=0) == (0, 1)


def test_bounds_out_of_order_are_declined() -> None:
    with pytest.raises(ContractError, match="in order"):
        _standing((2, 1), (0, 0))


_INTERVAL = st.tuples(st.integers(0, 8), st.integers(0, 4)).map(lambda pair: (float(pair[0]), float(pair[0] + pair[1])))


@given(standings=st.lists(st.builds(_standing, _INTERVAL, _INTERVAL), max_size=12), max_drop=st.integers(0, 8))
def test_the_true_winner_survives_wherever_it_lies_in_its_bounds(standings: list[Standing], max_drop: int) -> None:
    kept = survivors(standings, max_drop=max_drop)
    assert bool(kept) == any(standing.drop_low <= max_drop for standing in standings)
    for cost, drop in (("cost_low", "drop_low"), ("cost_high", "drop_high"), ("cost_low", "drop_high")):
        feasible = [index for index, standing in enumerate(standings) if getattr(standing, drop) <= max_drop]
        if feasible:
            best = min(getattr(standings[index], cost) for index in feasible)
            assert any(getattr(standings[index], cost) == best for index in feasible if index in kept)
