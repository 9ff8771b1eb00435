"""Which candidates go to the certify split, and in which order.

The certify samples are opened once, for at most four rungs that are fixed before, and the rungs are tested in that
order until the first failure. So the order must put first what is most likely to pass: the smallest expected drop.
And a rung must be worth its place: it may stop those after it, so it is taken only if it is clearly faster than the
rung before, and only if its expected drop leaves a real chance to pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgewise.errors import ContractError
from edgewise.search.pareto import front

MOST_RUNGS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Point:
    """What the select split and the clock say about one candidate.

    Attributes:
        cost: Its latency, in any unit.
        cost_low: Lower end of the latency's interval.
        cost_high: Upper end.
        drop: Estimated drop on the select split.
        reach: The drop at or below which a candidate like this one is likely to be certified: the bound asked for,
            less what the certify split's size costs (`max_drop` minus the half-width to be expected).
        asked: The bound asked for: a candidate whose true drop is above it is not wanted, however many samples there
            are.
    """

    cost: float
    cost_low: float
    cost_high: float
    drop: float
    reach: float
    asked: float

    def __post_init__(self) -> None:
        if not (self.cost > 0 and self.cost_low <= self.cost <= self.cost_high):
            raise ContractError(
                f"A cost has to be above 0 and in its interval. Received {self.cost} in {self.cost_low} to "
                f"{self.cost_high}."
            )


def pick(points: Sequence[Point], *, most: int = MOST_RUNGS, reserve: bool = True) -> tuple[int, ...]:
    """Return the rungs, safest first: at most `most` candidates by rising expected drop, each clearly faster.

    1. Only the Pareto front of (cost, drop) is considered: beside a rung that is both faster and safer, another
       one serves nobody.
    2. Only candidates within reach are considered. If none is and `reserve` is set, one is tried all the same, since
       a failed test costs nothing: the untouched model remains. It is the fastest whose drop is at most what was asked
       for, because that is the one for which more samples would be worth having, or `--accept-uncertified`; and the
       safest if there is none such.
    3. By rising drop, a candidate is taken if the upper end of its cost lies below the lower end of the cost of the
       rung before: a gain that its own interval doubts is not worth a test.
    4. If more than `most` remain, the fastest is kept, since it is what the user asked for, and the safest, since the
       sequence must not stop at once; the places between go to those that divide the way between them most evenly in
       cost, by ratio.

    Args:
        points: All candidates. The untouched model is none of them: it needs no test.
        most: Most rungs.
        reserve: Whether to return one where none is within reach.

    Returns:
        Indices into `points`, by strictly rising drop and strictly falling cost.
    """
    if most < 1:
        raise ContractError(f"A ladder has to have room for at least one rung. Received {most}.")
    # The front runs from the cheapest to the safest.
    by_safety = tuple(reversed(front([(point.cost, point.drop) for point in points])))
    near = [index for index in by_safety if points[index].drop <= points[index].reach]
    if not near:
        wanted = tuple(index for index in by_safety if points[index].drop <= points[index].asked)
        return (wanted[-1:] or by_safety[:1]) if reserve else ()
    chosen = near[:1]
    for index in near[1:]:
        if points[index].cost_high < points[chosen[-1]].cost_low:
            chosen.append(index)
    return tuple(_thin(chosen, points, most))


def _thin(chosen: Sequence[int], points: Sequence[Point], most: int) -> list[int]:
    """Drop rungs until `most` are left, each time the one whose neighbours lie closest together in cost."""
    kept = list(chosen)
    if most == 1:
        return kept[-1:]
    while len(kept) > most:
        gaps = [points[kept[at - 1]].cost / points[kept[at + 1]].cost for at in range(1, len(kept) - 1)]
        del kept[1 + gaps.index(min(gaps))]
    return kept
