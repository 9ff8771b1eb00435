from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ContractError
from edgewise.search.allocation import Option, least_damage
from edgewise.search.coefficients import refine

Items = list[list[Option]]


def items_of(costs: list[list[float]], damages: list[list[float]]) -> Items:
    return [
        [Option(cost=cost, damage=damage) for cost, damage in zip(*one, strict=True)]
        for one in zip(costs, damages, strict=True)
    ]


numbers = st.floats(0, 10)
drawn = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3), min_size=1, max_size=5)


@given(drawn, st.floats(0, 30), st.integers(0, 5))
def test_never_worse_than_the_knapsack_and_within_the_budget(
    given_items: list[list[tuple[float, float]]], budget: float, seed: int
) -> None:
    items = [[Option(cost=cost, damage=damage) for cost, damage in item] for item in given_items]
    factors = np.random.default_rng(seed).uniform(0.1, 10, len(items))

    def measure(choices: tuple[int, ...]) -> float:
        return math.fsum(factors[i] * items[i][choice].damage for i, choice in enumerate(choices))

    plain = least_damage(items, budget)
    found = refine(items, budget, measure, tries=10, seed=seed)
    assert (found is None) == (plain is None)
    if found is not None and plain is not None:
        assert found.cost <= budget
        assert found.damage == measure(found.choices)
        assert found.damage <= found.first == measure(plain.choices)
        assert 1 <= found.measurements <= 10


def test_wrong_damages_are_found_out() -> None:
    # Alone, the first item seems harmless; together with the rest it does a hundred times the damage.
    items = items_of([[0, -1]] * 6, [[0.0, 0.1]] + [[0.0, 0.2]] * 5)
    measured: list[tuple[int, ...]] = []

    def measure(choices: tuple[int, ...]) -> float:
        measured.append(choices)
        return 10.0 * choices[0] + 0.2 * sum(choices[1:])

    found = refine(items, -3, measure, tries=60)
    assert found is not None
    assert found.first > 10
    assert found.choices[0] == 0
    assert found.damage == pytest.approx(0.6)
    assert len(measured) == len(set(measured)) == found.measurements


def test_a_model_that_gives_nan_is_never_chosen_over_one_that_does_not() -> None:
    items = items_of([[0, -1], [0, -1]], [[0, 0.1], [0, 0.2]])
    found = refine(items, -1, lambda choices: math.nan if choices[0] else 1.0, tries=40)
    assert found is not None
    assert (found.choices, found.damage, found.first) == ((0, 1), 1.0, math.inf)


def test_one_seed_gives_one_result() -> None:
    generator = np.random.default_rng(0)
    items = [[Option(cost=-c, damage=c * d) for c in range(4)] for d in generator.uniform(1, 2, 8)]

    def measure(choices: tuple[int, ...]) -> float:
        return float(sum(choice**2 * (index % 3) for index, choice in enumerate(choices)))

    assert refine(items, -9, measure, tries=20, seed=3) == refine(items, -9, measure, tries=20, seed=3)


def test_nothing_to_choose_is_refused() -> None:
    with pytest.raises(ContractError, match="Received 0 and 3"):
        refine([], 0, lambda _: 0.0, tries=3)
    with pytest.raises(ContractError, match="Received 1 and 0"):
        refine(items_of([[0]], [[0]]), 0, lambda _: 0.0, tries=0)
