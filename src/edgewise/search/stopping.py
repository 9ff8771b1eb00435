"""When to stop: a time budget over the stages that remain, and candidates that can no longer win."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.errors import ContractError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Something that may still be done.

    Attributes:
        seconds: Estimated cost; infinite where nothing is known and nothing may be risked.
        required: Whether the result is of no use without it, such as certifying the rungs and writing the bundle.
    """

    seconds: float
    required: bool = False

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ContractError(f"The cost of a stage has to be at least 0 seconds. Received {self.seconds}.")


def affordable(elapsed: float, budget: float, stages: Sequence[Stage], *, caution: float = 1.25) -> tuple[int, ...]:
    """Return which of the remaining stages to run: all that are required, and of the others those that fit.

    What is required is set aside first, at its estimated cost times `caution`, so that an optional stage is never paid
    for with the result. Optional stages are taken in their order, each if it fits by the same reckoning; one that does
    not fit does not keep a cheaper one after it from running.

    Args:
        elapsed: Seconds spent so far.
        budget: Seconds allowed in all; infinite for no limit.
        stages: What remains, in the order in which it would run.
        caution: Factor on each estimate, >= 1.

    Returns:
        Indices into `stages`, rising. Required ones are there even when the budget is spent.
    """
    if not caution >= 1:
        raise ContractError(f"Caution has to be a factor of at least 1. Received {caution}.")
    left = budget - elapsed - caution * math.fsum(stage.seconds for stage in stages if stage.required)
    taken = []
    for index, stage in enumerate(stages):
        if stage.required:
            taken.append(index)
        elif math.isinf(budget) or caution * stage.seconds <= left:
            taken.append(index)
            left -= caution * stage.seconds
    return tuple(taken)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is known of a candidate while it is being measured; less is better.

    Attributes:
        cost_low: Optimistic bound of its cost: it is surely no cheaper.
        cost_high: Pessimistic bound: it is surely no dearer.
        drop_low: Optimistic bound of its drop.
        drop_high: Pessimistic bound.
    """

    cost_low: float
    cost_high: float
    drop_low: float
    drop_high: float

    def __post_init__(self) -> None:
        if not (self.cost_low <= self.cost_high and self.drop_low <= self.drop_high):
            raise ContractError(f"Bounds of a candidate have to be in order. Received {self}.")


def survivors(standings: Sequence[Standing], *, max_drop: float) -> tuple[int, ...]:
    """Return the candidates that may still win: successive rejection by optimistic bounds.

    A candidate is out if even its optimistic drop exceeds `max_drop`, or if another one is surely at least as good in
    both and better in one: its pessimistic bounds against the optimistic ones. The one that rejects is never
    rejected by the one it rejects, so at least one feasible candidate survives whenever there is one.

    Args:
        standings: What is known of each candidate.
        max_drop: The drop allowed.

    Returns:
        Indices into `standings`, rising.
    """
    feasible = [index for index, standing in enumerate(standings) if standing.drop_low <= max_drop]
    return tuple(
        index
        for index in feasible
        if not any(_beats(standings[other], standings[index]) for other in feasible if other != index)
    )


def _beats(sure: Standing, hopeful: Standing) -> bool:
    no_worse = sure.cost_high <= hopeful.cost_low and sure.drop_high <= hopeful.drop_low
    return no_worse and (sure.cost_high < hopeful.cost_low or sure.drop_high < hopeful.drop_low)
