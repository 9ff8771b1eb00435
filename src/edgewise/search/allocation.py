"""Which option each item gets: the cheapest choice within a bound on the summed damage, and its repair by measuring.

A multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, "Knapsack Problems", chapter 11): one option of every
item is taken, costs and damages add up. All answers are read from one front of (cost, damage), which grows item by
item and keeps only what nothing dominates (Nemhauser and Ullmann 1969, "Discrete Dynamic Programming and Capital
Allocation"). Where the front becomes too long it is thinned on a grid of costs, and the error of that is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewise.errors import ContractError

LONGEST_FRONT: Final = 4096
"""Points of a front from which on it is thinned: with 100 items the cost is then known to 2.5 % of its whole span."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to do an item.

    Attributes:
        cost: What it costs, in any unit (microseconds); negative where it saves.
        damage: What it does to the quality, in any unit that adds up over the items.
    """

    cost: float
    damage: float


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """One option for every item.

    Attributes:
        choices: Index of the option of each item.
        cost: Sum of their costs.
        damage: Sum of their damages.
        slack: How much dearer this may be than the best choice, in the unit of the cost; 0 where it is exact.
    """

    choices: tuple[int, ...]
    cost: float
    damage: float
    slack: float


@dataclass(frozen=True)
class Front:
    """All choices that no other one beats in both cost and damage, by rising cost and falling damage.

    Attributes:
        costs: Costs, shape `[F]`.
        damages: Damages, shape `[F]`.
        slack: See `Allocation`.
    """

    costs: npt.NDArray[np.float64]
    damages: npt.NDArray[np.float64]
    slack: float
    _layers: tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], ...]

    def at(self, index: int) -> Allocation:
        """Return the allocation behind one point."""
        choices = []
        state = index
        for parents, options in reversed(self._layers):
            choices.append(int(options[state]))
            state = int(parents[state])
        return Allocation(
            choices=tuple(reversed(choices)),
            cost=float(self.costs[index]),
            damage=float(self.damages[index]),
            slack=self.slack,
        )


def front(items: Sequence[Sequence[Option]], *, longest: int = LONGEST_FRONT) -> Front:
    """Return the front of all choices of one option for each item.

    Exact while it is not longer than `longest`. From then on, of all points in one cell of a grid of costs the one with
    the least damage is kept, which is dearer than any other of the cell by at most the cell's width; so for every
    choice there is a point of the front with no more damage that costs at most `slack` more, where `slack` is that
    width times the number of thinnings. The cheapest point always stays.

    Args:
        items: The options of each item, at least one. Of equally good choices the one with the smaller indices stays.
        longest: Most points.

    Raises:
        ContractError: If an item has no option, or a number is not finite.
    """
    _check(items, longest)
    costs, damages = np.zeros(1), np.zeros(1)
    width = math.fsum(max(o.cost for o in item) - min(o.cost for o in item) for item in items) / max(longest - 1, 1)
    thinned = 0
    layers = []
    for item in items:
        option_costs = np.array([option.cost for option in item])
        option_damages = np.array([option.damage for option in item])
        all_costs = (costs[:, None] + option_costs).reshape(-1)
        all_damages = (damages[:, None] + option_damages).reshape(-1)
        kept = _undominated(all_costs, all_damages)
        if len(kept) > longest:
            kept = _thinned(kept, all_costs, width)
            thinned += 1
        costs, damages = all_costs[kept], all_damages[kept]
        layers.append((kept // len(item), kept % len(item)))
    return Front(costs, damages, thinned * width, tuple(layers))


def cheapest(items: Sequence[Sequence[Option]], bound: float, *, longest: int = LONGEST_FRONT) -> Allocation | None:
    """Return the cheapest choice whose summed damage is at most `bound`, or None if there is none.

    Its cost is at most `slack` above the least possible one. A larger bound never costs more.

    Args:
        items: The options of each item.
        bound: Most damage.
        longest: See `front`.
    """
    found = front(items, longest=longest)
    within = np.flatnonzero(found.damages <= bound)
    return found.at(int(within[0])) if len(within) else None


def least_damage(
    items: Sequence[Sequence[Option]], budget: float, *, longest: int = LONGEST_FRONT
) -> Allocation | None:
    """Return the choice with the least damage whose summed cost is at most `budget`, or None if there is none.

    No choice that costs at most `budget - slack` does less damage. A larger budget never does more damage.

    Args:
        items: The options of each item.
        budget: Most cost.
        longest: See `front`.
    """
    found = front(items, longest=longest)
    within = np.flatnonzero(found.costs <= budget)
    return found.at(int(within[-1])) if len(within) else None


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What repairing by measurements came to.

    Attributes:
        choices: Index of the option of each item.
        cost: Sum of the costs.
        damage: The measured damage of these very choices.
        met: Whether it is within the bound.
        measurements: How often was measured.
    """

    choices: tuple[int, ...]
    cost: float
    damage: float
    met: bool
    measurements: int


def repair(
    items: Sequence[Sequence[Option]],
    choices: Sequence[int],
    measure: Callable[[tuple[int, ...]], float],
    bound: float,
    *,
    most: int,
) -> Repair:
    """Change options until the measured damage is within `bound`: greedily, the most gain for its cost first.

    Predicted damages need not add up, so each round measures what is there, and takes as many changes as are predicted
    to close the gap to the bound; what was predicted is scaled by what earlier rounds really gained. A round after
    which the damage is not smaller is undone and tried again with half of its changes; a single change that does not
    help is not tried again.

    Args:
        items: The options of each item, with the predicted damages.
        choices: Where to start: index of the option of each item.
        measure: Returns the real damage of a choice; called at most `most` times.
        bound: Most damage.
        most: Most measurements, >= 1.

    Returns:
        The first choice within the bound, or the one with the least measured damage if there is none.

    Raises:
        ContractError: If a choice is no option of its item, a number is not finite, or `most` is below 1.
    """
    _check(items, LONGEST_FRONT)
    if len(choices) != len(items) or any(not 0 <= at < len(item) for at, item in zip(choices, items, strict=True)):
        raise ContractError(f"A repair has to start with one option of each item. Received {tuple(choices)}.")
    if most < 1:
        raise ContractError(f"A repair needs at least one measurement. Received {most=}.")
    return _Repairer(items, tuple(choices), measure, bound, most).run()


_Change = tuple[int, int]
"""An item and the option that it is to get."""


class _Repairer:
    """The state of one call of `repair`."""

    def __init__(
        self,
        items: Sequence[Sequence[Option]],
        choices: tuple[int, ...],
        measure: Callable[[tuple[int, ...]], float],
        bound: float,
        most: int,
    ) -> None:
        self.items = items
        self.choices = choices
        self.measure = measure
        self.bound = bound
        self.most = most
        self.useless: set[_Change] = set()
        self.trust = 1.0
        self.measurements = 0

    def run(self) -> Repair:
        damage = self._measured(self.choices)
        while damage > self.bound and self.measurements < self.most:
            batch = self._batch(damage - self.bound)
            if not batch:
                break
            damage = self._round(batch, damage)
        return Repair(
            choices=self.choices,
            cost=math.fsum(item[at].cost for item, at in zip(self.items, self.choices, strict=True)),
            damage=damage,
            met=damage <= self.bound,
            measurements=self.measurements,
        )

    def _round(self, batch: list[_Change], damage: float) -> float:
        """Apply the changes, or as many of them as help, and return the damage after that."""
        while batch and self.measurements < self.most:
            tried = list(self.choices)
            for item, option in batch:
                tried[item] = option
            found = self._measured(tuple(tried))
            if found < damage:
                predicted = math.fsum(self._gain(change) for change in batch)
                self.trust = (damage - found) / predicted
                self.choices = tuple(tried)
                return found
            if len(batch) == 1:
                self.useless.add(batch[0])
            batch = batch[: len(batch) // 2]
        return damage

    def _batch(self, gap: float) -> list[_Change]:
        """Return the changes, best first, whose predicted gains close the gap; at most one for each item."""
        changes = [
            (item, option)
            for item, options in enumerate(self.items)
            for option in range(len(options))
            if (item, option) not in self.useless and self._gain((item, option)) > 0
        ]
        changes.sort(key=lambda change: (*self._rank(change), change))
        taken: dict[int, int] = {}
        closed = 0.0
        for item, option in changes:
            if closed >= gap:
                break
            if item not in taken:
                taken[item] = option
                closed += self.trust * self._gain((item, option))
        return list(taken.items())

    def _rank(self, change: _Change) -> tuple[int, float]:
        """Return what is smaller for the better change: those that cost nothing first, then by gain for the cost."""
        price = self.items[change[0]][change[1]].cost - self.items[change[0]][self.choices[change[0]]].cost
        gain = self._gain(change)
        return (0, -gain) if price <= 0 else (1, -gain / price)

    def _gain(self, change: _Change) -> float:
        item, option = change
        return self.items[item][self.choices[item]].damage - self.items[item][option].damage

    def _measured(self, choices: tuple[int, ...]) -> float:
        self.measurements += 1
        return self.measure(choices)


def _check(items: Sequence[Sequence[Option]], longest: int) -> None:
    if longest < 2:
        raise ContractError(f"A front has to have room for at least two points. Received {longest}.")
    for index, item in enumerate(items):
        if not item:
            raise ContractError(f"Every item has to have an option, but item {index} has none.")
        for option in item:
            if not (math.isfinite(option.cost) and math.isfinite(option.damage)):
                raise ContractError(f"Costs and damages have to be finite. Received {option} for item {index}.")


def _undominated(costs: npt.NDArray[np.float64], damages: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the indices of the points that no other beats, by rising cost; of equal ones the first."""
    order = np.lexsort((damages, costs))  # stable: equal points stay in the order of their choices
    best = np.minimum.accumulate(damages[order])
    first = np.ones(len(order), bool)
    first[1:] = damages[order][1:] < best[:-1]
    kept: npt.NDArray[np.int64] = order[first]
    return kept


def _thinned(kept: npt.NDArray[np.int64], costs: npt.NDArray[np.float64], width: float) -> npt.NDArray[np.int64]:
    """Return the last, hence least damaging, point of each cell of the grid, and the cheapest one."""
    cells = np.floor((costs[kept] - costs[kept[0]]) / width)
    last = np.append(np.diff(cells) > 0, True)
    last[0] = True
    thinned: npt.NDArray[np.int64] = kept[last]
    return thinned
