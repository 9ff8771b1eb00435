"""The Pareto front of candidates."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.errors import ContractError


def front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Return the indices of the points that no other point dominates, by rising cost.

    A point dominates another if it is no worse in both cost and loss and better in one. Of equal points the first is
    kept. A point with an infinite coordinate is allowed, one with NaN is not: it compares with nothing.

    Args:
        points: `(cost, loss)` of each candidate; less is better in both.

    Returns:
        Indices into `points`. Along them the cost rises and the loss falls, both strictly.

    Raises:
        ContractError: If a coordinate is NaN.
    """
    if any(cost != cost or loss != loss for cost, loss in points):  # noqa: PLR0124 - only NaN differs from itself
        raise ContractError("Points of a Pareto front have to be numbers. Received NaN.")
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (*points[index], index)):
        if not kept or points[index][1] < points[kept[-1]][1]:
            kept.append(index)
    return tuple(kept)
