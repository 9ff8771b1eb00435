"""The knapsack against trying everything, and repair against damages that do not add up."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import ContractError
from edgewise.search.allocation import Allocation, Option, cheapest, front, least_damage, repair

# Multiples of 1/8 add up exactly, so that nothing here is a matter of rounding.
eighths = st.integers(-80, 80).map(lambda n: n / 8)
options = st.builds(Option, cost=eighths, damage=st.integers(0, 80).map(lambda n: n / 8))
problems = st.lists(st.lists(options, min_size=1, max_size=3), min_size=0, max_size=5)


def everything(items: list[list[Option]]) -> list[tuple[float, float, tuple[int, ...]]]:
    """Return cost, damage and choices of every choice."""
    found = []
    for choices in itertools.product(*(range(len(item)) for item in items)):
        picked = [item[at] for item, at in zip(items, choices, strict=True)]
        found.append((sum(o.cost for o in picked), sum(o.damage for o in picked), choices))
    return found


def check(items: list[list[Option]], found: Allocation) -> None:
    """Check that an allocation is what it says."""
    picked = [item[at] for item, at in zip(items, found.choices, strict=True)]
    assert found.cost == sum(option.cost for option in picked)
    assert found.damage == sum(option.damage for option in picked)


@given(problems, st.integers(0, 200).map(lambda n: n / 8))
def test_the_cheapest_within_a_bound_is_found(items: list[list[Option]], bound: float) -> None:
    found = cheapest(items, bound)
    costs = [cost for cost, damage, _ in everything(items) if damage <= bound]
    assert (found is None) == (not costs)
    if found is not None:
        check(items, found)
        assert found.slack == 0
        assert found.damage <= bound
        assert found.cost == min(costs)


@given(problems, eighths)
def test_the_least_damage_within_a_budget_is_found(items: list[list[Option]], budget: float) -> None:
    found = least_damage(items, budget)
    damages = [damage for cost, damage, _ in everything(items) if cost <= budget]
    assert (found is None) == (not damages)
    if found is not None:
        check(items, found)
        assert found.cost <= budget
        assert found.damage == min(damages)


@given(problems, st.integers(2, 6), st.integers(0, 200).map(lambda n: n / 8))
def test_a_thinned_front_errs_by_at_most_its_slack(items: list[list[Option]], longest: int, bound: float) -> None:
    allowed = front(items, longest=longest).slack
    span = sum(max(o.cost for o in item) - min(o.cost for o in item) for item in items)
    assert allowed <= len(items) * span / (longest - 1) + 1e-9
    possible = everything(items)
    found = cheapest(items, bound, longest=longest)
    costs = [cost for cost, damage, _ in possible if damage <= bound]
    assert (found is None) == (not costs)
    if found is not None:
        check(items, found)
        # The grid's width is a quotient: a few roundings on numbers up to 50.
        assert min(costs) <= found.cost <= min(costs) + allowed + 1e-9
    budget = sum(min(o.cost for o in item) for item in items) + allowed
    held = least_damage(items, budget, longest=longest)
    assert held is not None
    assert held.cost <= budget
    assert held.damage <= min(
        damage
        for cost, damage, _ in possible
        if cost <= budget - allowed - 1e-9 or cost == min(c for c, _, _ in possible)
    )


@given(problems, st.lists(st.integers(0, 200).map(lambda n: n / 8), min_size=2, max_size=4))
def test_a_larger_bound_never_costs_more(items: list[list[Option]], bounds: list[float]) -> None:
    costs = [found.cost if (found := cheapest(items, bound)) else math.inf for bound in sorted(bounds)]
    assert costs == sorted(costs, reverse=True)


def test_of_equal_choices_the_one_with_smaller_indices_is_taken() -> None:
    same = [Option(cost=1, damage=1), Option(cost=1, damage=1)]
    found = cheapest([same, same, same], 3)
    assert found is not None
    assert found.choices == (0, 0, 0)


def test_a_layer_that_is_faster_in_float_is_float() -> None:
    int8, float32 = Option(cost=0, damage=2), Option(cost=-5, damage=0)
    found = cheapest([[int8, float32], [Option(cost=0, damage=1), Option(cost=7, damage=0)]], math.inf)
    assert found is not None
    assert (found.choices, found.cost, found.damage) == ((1, 0), -5, 1)


def test_a_hundred_layers_are_quick_and_nearly_exact() -> None:
    items = [[Option(cost=0, damage=1 + (7 * i) % 13), Option(cost=1.0 + (5 * i) % 11, damage=0)] for i in range(200)]
    found = cheapest(items, 400)
    assert found is not None
    assert found.damage <= 400
    # The relaxation that may take parts of items is a lower bound: greedily by damage for cost.
    left = sum(item[0].damage for item in items) - 400
    bound = 0.0
    for item in sorted(items, key=lambda item: item[1].cost / item[0].damage):
        part = min(1.0, left / item[0].damage)
        bound, left = bound + part * item[1].cost, left - part * item[0].damage
        if left <= 0:
            break
    assert bound - 1e-9 <= found.cost <= bound + 11 + found.slack


@pytest.mark.parametrize("items", [[[]], [[Option(cost=math.nan, damage=0)]], [[Option(cost=0, damage=math.inf)]]])
def test_what_is_no_problem_is_refused(items: list[list[Option]]) -> None:
    with pytest.raises(ContractError):
        cheapest(items, 1)
    with pytest.raises(ContractError, match="two points"):
        front([], longest=1)


FLOAT_OR_NOT = [[Option(cost=0, damage=d), Option(cost=c, damage=0)] for d, c in [(4, 1), (3, 1), (2, 1), (1, 1)]]


def test_repair_takes_what_gains_most_for_its_cost_until_the_bound_is_met() -> None:
    asked: list[tuple[int, ...]] = []

    def measure(choices: tuple[int, ...]) -> float:
        asked.append(choices)
        return float(sum(item[at].damage for item, at in zip(FLOAT_OR_NOT, choices, strict=True)))

    found = repair(FLOAT_OR_NOT, (0, 0, 0, 0), measure, 3, most=9)
    assert (found.choices, found.cost, found.damage, found.met) == ((1, 1, 0, 0), 2, 3, True)
    assert asked == [(0, 0, 0, 0), (1, 1, 0, 0)]  # both at once: together they are predicted to be enough


def test_repair_trusts_measurements_more_than_predictions() -> None:
    def measure(choices: tuple[int, ...]) -> float:
        return 10.0 - 3.0 * choices[2] - 3.0 * choices[3] - 1.0 * choices[1]

    found = repair(FLOAT_OR_NOT, (0, 0, 0, 0), measure, 5, most=20)
    assert found.met
    assert found.damage <= 5
    assert found.measurements <= 20


def test_a_change_that_does_not_help_is_undone() -> None:
    def measure(choices: tuple[int, ...]) -> float:
        return 5.0 + choices[0] - 2.0 * choices[1] if choices[1] else 5.0 + choices[0]

    found = repair(FLOAT_OR_NOT[:2], (0, 0), measure, 3, most=9)
    assert (found.choices, found.damage, found.met) == ((0, 1), 3, True)


@settings(max_examples=50)
@given(problems, st.integers(0, 60).map(lambda n: n / 8), st.integers(1, 6), st.integers(0, 99))
def test_repair_never_makes_it_worse(items: list[list[Option]], bound: float, most: int, seed: int) -> None:
    calls: list[tuple[int, ...]] = []

    def measure(choices: tuple[int, ...]) -> float:
        calls.append(choices)
        return float((hash((seed, choices)) % 1000) / 100)

    start = tuple(0 for _ in items)
    found = repair(items, start, measure, bound, most=most)
    assert calls[0] == start
    assert found.measurements == len(calls) <= most
    assert found.damage == measure(found.choices) <= measure(start)
    assert found.met == (found.damage <= bound)


def test_repair_refuses_what_it_cannot_start_with() -> None:
    with pytest.raises(ContractError, match="one option of each item"):
        repair(FLOAT_OR_NOT, (0, 0), lambda _: 0.0, 1, most=1)
    with pytest.raises(ContractError, match="one option of each item"):
        repair(FLOAT_OR_NOT, (0, 0, 0, 2), lambda _: 0.0, 1, most=1)
    with pytest.raises(ContractError, match="at least one measurement"):
        repair(FLOAT_OR_NOT, (0, 0, 0, 0), lambda _: 0.0, 1, most=0)


def test_a_thinned_front_says_so() -> None:
    items = [[Option(cost=0, damage=2.0**i), Option(cost=float(i + 1), damage=0)] for i in range(8)]
    exact, thinned = front(items), front(items, longest=4)
    assert exact.slack == 0
    assert len(exact.costs) > 8
    assert len(thinned.costs) <= 5  # one for each cell, and the cheapest
    assert thinned.slack >= 36 / 3  # at least once the width of a cell: the span of all costs in three parts
    assert thinned.costs[0] == exact.costs[0] == 0
    lost = [min(thinned.costs[thinned.damages <= damage]) for damage in exact.damages]
    assert max(lost - exact.costs) > 0  # there is something to be told
