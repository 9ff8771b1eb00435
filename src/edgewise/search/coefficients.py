"""How much each item's damage really counts: a search over coefficients, each choice measured as a whole.

Damages that were measured alone add up only roughly: errors of neighbours amplify or hide each other. So each item's
damages are multiplied by a coefficient of its own, the knapsack is solved with those, and what it chooses is measured.
Coefficients that lead to a better whole are kept and changed again. (Frantar and Alistarh 2022, "SPDY: Accurate Pruning
with Speedup Guarantees", section 3.3: a local search over sensitivities, each solved by dynamic programming.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewise.errors import ContractError
from edgewise.search.allocation import Option, least_damage

SPREAD: Final = 1.0
"""Standard deviation of the logarithm by which a coefficient is changed. Empirical: a factor of e either way."""

SHARE: Final = 0.1
"""Share of the coefficients that are changed at a time, as in SPDY."""

LONGEST: Final = 1024
"""Points of a front: the knapsack is solved for every try, and coefficients are no exact numbers."""


@dataclass(frozen=True, kw_only=True)
class Refined:
    """The best choice that was measured.

    Attributes:
        choices: Index of the option of each item.
        cost: Sum of their costs.
        damage: What was measured of all together.
        first: What was measured of the choice that the damages as given lead to.
        measurements: Choices that were measured.
    """

    choices: tuple[int, ...]
    cost: float
    damage: float
    first: float
    measurements: int


def refine(
    items: Sequence[Sequence[Option]],
    budget: float,
    measure: Callable[[tuple[int, ...]], float],
    *,
    tries: int,
    seed: int = 0,
) -> Refined | None:
    """Return the best choice within a budget that a search over coefficients finds, or None if none is within it.

    Args:
        items: The options of each item, with their damages measured alone.
        budget: Most summed cost.
        measure: Gives the damage of a choice as a whole; infinity or NaN for one that is no good.
        tries: Knapsacks that are solved, >= 1; choices that were measured are not measured again.
        seed: Seed of the changes.

    Raises:
        ContractError: If there are no items, or no tries.
    """
    if not items or tries < 1:
        raise ContractError(f"There have to be items and tries. Received {len(items)} and {tries}.")
    plain = least_damage(items, budget, longest=LONGEST)
    if plain is None:
        return None
    generator = np.random.default_rng(seed)
    first = _number(measure(plain.choices))
    measured, best, coefficients = {plain.choices: first}, plain.choices, np.ones(len(items))
    for _ in range(tries - 1):
        tried = _changed(coefficients, generator)
        found = least_damage(_weighted(items, tried), budget, longest=LONGEST)
        if found is None:  # the budget does not depend on the coefficients
            continue
        if found.choices not in measured:
            measured[found.choices] = _number(measure(found.choices))
        if measured[found.choices] < measured[best]:
            best, coefficients = found.choices, tried
    cost = sum(item[choice].cost for item, choice in zip(items, best, strict=True))
    return Refined(choices=best, cost=cost, damage=measured[best], first=first, measurements=len(measured))


def _number(damage: float) -> float:
    return math.inf if math.isnan(damage) else damage


def _changed(coefficients: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return coefficients of which a few, one at least, were multiplied by random factors."""
    count = max(1, round(SHARE * len(coefficients)))
    chosen = generator.choice(len(coefficients), count, replace=False)
    changed = coefficients.copy()
    changed[chosen] *= np.exp(generator.normal(0.0, SPREAD, count))
    return changed


def _weighted(items: Sequence[Sequence[Option]], coefficients: npt.NDArray[np.float64]) -> list[list[Option]]:
    """Return the items with each damage multiplied by its item's coefficient."""
    return [
        [Option(cost=option.cost, damage=float(factor) * option.damage) for option in item]
        for item, factor in zip(items, coefficients, strict=True)
    ]
