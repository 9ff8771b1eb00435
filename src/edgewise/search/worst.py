"""The few worst of many items, where only the sum over a set of them can be measured. Knows no model."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence


def worst(
    items: Sequence[str], measure: Callable[[Sequence[Sequence[str]]], Sequence[float]], most: int
) -> dict[str, float]:
    """Return the `most` items with the largest values, largest first, without measuring each of all.

    Sets are halved, the one with the largest sum first: no item of a set is larger than the sum over the set. Exact
    where values are not negative and add up; about `2 most log2(len(items) / most)` measurements.

    Args:
        items: Different names. Neighbours are kept together, so that sets which differ little are halved late.
        measure: Returns the sum over each of the sets that it is given.
        most: How many are wanted, >= 1.
    """
    waiting: list[tuple[float, int, Sequence[str]]] = [(0.0, 0, items)] if items else []
    found: dict[str, float] = {}
    number = 0  # Of equally large sets the one that was made first is halved first.
    while waiting and len(found) < most:
        value, _, whole = heapq.heappop(waiting)
        if len(whole) == 1 and number:
            found[whole[0]] = -value
            continue
        half = (len(whole) + 1) // 2
        parts = [part for part in (whole[:half], whole[half:]) if part]
        for part, summed in zip(parts, measure(parts), strict=True):
            number += 1
            heapq.heappush(waiting, (-summed, number, part))
    return found
