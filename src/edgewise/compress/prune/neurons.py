"""Which units of a group to remove: backward elimination by what all of their readers lose after compensation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.linalg

from edgewise.compress.prune.fit import Stack, Summary
from edgewise.errors import ContractError

Units = npt.NDArray[np.int64]

RIDGE: Final = 1e-3
"""Ridge of the Gram matrices by which units are chosen, relative to the mean of their diagonal (empirical)."""

FREE: Final = 1e-4
"""Share of the readers' energy below which a loss is one of rounding and of the ridge: the units depend on others."""

_TINY: Final = float(np.finfo(np.float64).tiny)

_STEPS: Final = 512
"""Groups of more units lose several in one step, so that there are at most so many steps."""


@dataclass(frozen=True, eq=False)
class Read:
    """What one reader does with the units of a group.

    Attributes:
        weight: Its matrix, shape `[G, R, K]`.
        summary: Moments of its inputs and targets.
        units: Unit of each column, or -1 where it belongs to none and stays, shape `[G, K]`.
    """

    weight: Stack
    summary: Summary
    units: Units


@dataclass(frozen=True, eq=False)
class Energy:
    """What a reader sums over units that nothing can make up for: both operands are activations, or it is not known.

    Attributes:
        gram: Mean product of what each two units add to the sum, shape `[n, n]`. Of `q k^T` with `q_i` and `k_j` that
            is the sum of `(q_id q_ie) (k_jd k_je)` over all places i and j; losing the units U costs the sum over
            U x U.
    """

    gram: Stack


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which units go.

    Attributes:
        order: All units, those that go first in front, shape `[n]`.
        errors: Error after the first `i` of them are gone, relative to the energy of each reader's outputs and summed
            over the readers, shape `[n + 1]`; compensation included. Never falls.
    """

    order: Units
    errors: npt.NDArray[np.float64]

    def removed(self, width: int) -> tuple[int, ...]:
        """Return the units to remove so that `width` are left, in ascending order.

        Raises:
            ContractError: If there are not so many, or none is to be left.
        """
        if not 1 <= width <= len(self.order):
            raise ContractError(f"A width has to be from 1 to {len(self.order)}. Received {width}.")
        return tuple(sorted(int(unit) for unit in self.order[: len(self.order) - width]))

    @property
    def free(self) -> int:
        """How many units go without loss: dead ones, constant ones, equal ones, linearly dependent ones."""
        return int(np.searchsorted(self.errors[1:], FREE, side="right"))


def eliminate(reads: Sequence[Read | Energy], size: int, *, least: int = 1, ridge: float = RIDGE) -> Elimination:
    """Return in which order units go: always the one whose loss costs the readers least, all others having adapted.

    For a reader with the best matrix `V = C S^-1` and `H = S^-1`, both over the columns that are left, losing the
    columns U costs `tr[V_U (H_UU)^-1 V_U^T]` once the others have made up for it; then `V` becomes
    `V - V_U H_UU^-1 H_U:` and `H` becomes `H - H_:U H_UU^-1 H_U:`. Units that carry the same thing merge by themselves:
    one of them costs nothing, and its weights go to the other.

    Args:
        reads: The readers, at least one.
        size: How many units there are.
        least: Fewest units that are going to be left: those are not put in order.
        ridge: Ridge, relative to the mean of each Gram matrix' diagonal, > 0; towards the weights as they are.

    Source: Hassibi and Stork 1993, "Optimal Brain Surgeon", eq. 5; for groups of columns: Kurtic et al. 2022, "The
    Optimal BERT Surgeon" (its scores of blocks); the downdates: Frantar and Alistarh 2022, "Optimal Brain Compression".
    """
    states: list[_State | _Sum] = []
    for read in reads:
        if isinstance(read, Energy):
            states.append(_Sum(read))
        else:
            states.extend(_State(read, group, size, ridge) for group in range(len(read.weight)))
    left = np.ones(size, bool)
    order: list[int] = []
    errors = [0.0]
    many = max(1, size // _STEPS)
    while left.sum() > least:
        costs = sum((state.costs() for state in states), np.zeros(size))
        costs[~left] = np.inf
        count = min(many, int(left.sum()) - least)
        for unit in np.argsort(costs, kind="stable")[:count]:
            # The second of several is dearer than it was: what it costs now is what counts.
            cost = sum(state.remove(int(unit)) for state in states)
            left[unit] = False
            order.append(int(unit))
            errors.append(errors[-1] + max(cost, 0.0))
    rest = np.flatnonzero(left)
    return Elimination(np.array([*order, *rest], np.int64), np.array([*errors, *([np.inf] * len(rest))]))


class _State:
    """One group of one reader while units go."""

    def __init__(self, read: Read, group: int, size: int, ridge: float) -> None:
        summary, weight, units = read.summary, read.weight[group], read.units[group]
        # The energy of all groups: outputs count alike, whichever group makes them.
        self.energy = max(float(summary.energy.sum()), _TINY)
        gram = summary.gram[group]
        level = float(np.trace(gram)) / len(gram)
        counts = np.bincount(units[units >= 0], minlength=size)
        most = int(counts.max(initial=0))
        # Units with fewer columns than others are filled up with columns that nothing depends on.
        columns = len(units)
        self.columns = np.tile(np.arange(columns, columns + most), (size, 1))
        for unit in np.flatnonzero(counts):
            self.columns[unit, : counts[unit]] = np.flatnonzero(units == unit)
        self.has = counts > 0
        whole = columns + most
        self.inverse = np.eye(whole)
        self.inverse[:columns, :columns], added = _inverse(gram, ridge * level if level > 0 else 1.0)
        self.weight = np.zeros((len(weight), whole))
        self.weight[:, :columns] = (summary.cross[group] + added * weight) @ self.inverse[:columns, :columns]

    def costs(self) -> npt.NDArray[np.float64]:
        """Return what each unit costs this reader, shape `[n]`; of units that are gone, anything."""
        if self.columns.shape[1] == 0:
            return np.zeros(len(self.columns))
        if self.columns.shape[1] == 1:
            column = self.columns[:, 0]
            found = np.square(self.weight).sum(axis=0)[column] / np.diagonal(self.inverse)[column]
            return np.asarray(found / self.energy, np.float64)
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        rows = self.weight.T[self.columns]
        found = np.einsum("nkr,nkr->n", rows, np.linalg.solve(blocks, rows))
        return np.asarray(found / self.energy, np.float64)

    def remove(self, unit: int) -> float:
        """Remove a unit and return what it costs."""
        if not self.has[unit]:
            return 0.0
        columns = self.columns[unit]
        block, rows, lost = self.inverse[np.ix_(columns, columns)], self.inverse[columns], self.weight[:, columns]
        factor = np.linalg.solve(block, rows)
        cost = float(np.sum(lost * np.linalg.solve(block, lost.T).T))
        self.weight -= lost @ factor
        self.inverse -= rows.T @ factor
        # Nothing is left of the unit; ones keep the blocks of units that are gone invertible.
        self.weight[:, columns] = 0.0
        self.inverse[columns] = 0.0
        self.inverse[:, columns] = 0.0
        self.inverse[columns, columns] = 1.0
        return cost / self.energy


class _Sum:
    """A sum over units while they go: the loss of U is the sum of the Gram matrix over U x U."""

    def __init__(self, read: Energy) -> None:
        self.gram = read.gram / max(float(read.gram.sum()), float(np.trace(read.gram)), _TINY)
        self.gone = np.zeros(len(read.gram))

    def costs(self) -> npt.NDArray[np.float64]:
        """Return what each unit costs now, shape `[n]`; what is negative makes up for others that went before."""
        return np.asarray(np.diagonal(self.gram) + 2.0 * (self.gram @ self.gone), np.float64)

    def remove(self, unit: int) -> float:
        """Remove a unit and return what it costs."""
        cost = float(self.costs()[unit])
        self.gone[unit] = 1.0
        return cost


def _inverse(gram: npt.NDArray[np.float64], added: float) -> tuple[npt.NDArray[np.float64], float]:
    """Return the inverse of `gram + added * I`, and what was added: more, where rounding left it indefinite."""
    one = np.eye(len(gram))
    while True:
        try:
            lower = scipy.linalg.cho_factor(gram + added * one, lower=True)
        except scipy.linalg.LinAlgError:
            added *= 10.0
        else:
            return np.asarray(scipy.linalg.cho_solve(lower, one), np.float64), added
