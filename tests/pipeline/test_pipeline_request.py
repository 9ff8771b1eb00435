"""Requests that cannot be meant are refused, each with its option's name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgewise.errors import RecipeError
from edgewise.pipeline.request import DataRequest, Effort, Goal, Request, check


def request(**parts: Any) -> Request:
    return Request(model=Path("m"), out=Path("o"), **{"data": DataRequest(samples="s"), **parts})


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_the_drop_lies_between_0_and_1(value: float) -> None:
    with pytest.raises(RecipeError, match="`--max-drop` has to be above 0 and below 100 %") as caught:
        check(request(goal=Goal(max_drop=value)))
    assert "1%" in str(caught.value.hint)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_the_budget_is_positive(value: float) -> None:
    with pytest.raises(RecipeError, match="`--budget` has to be positive"):
        check(request(effort=Effort(budget_s=value)))


@pytest.mark.parametrize(("value", "words"), [((), "none"), ((0,), "0"), ((1, -2), "1, -2")])
def test_threads_are_at_least_1(value: tuple[int, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=f"`--threads` has to be 1 or more. Received {words}"):
        check(request(effort=Effort(threads=value)))


@pytest.mark.parametrize("value", [0.0, -5.0, math.nan])
def test_limits_are_positive(value: float) -> None:
    with pytest.raises(RecipeError, match="`--max-latency` has to be positive"):
        check(request(goal=Goal(max_latency_us=value)))
    if not math.isnan(value):
        with pytest.raises(RecipeError, match="`--max-size` has to be positive"):
            check(request(goal=Goal(max_size_bytes=int(value))))


@pytest.mark.parametrize("given", [{"select": "a"}, {"certify": "a"}])
def test_select_and_certify_come_together(given: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="have to be given together"):
        check(request(data=DataRequest(samples="s", **given)))  # type: ignore[arg-type]


def test_what_can_be_meant_passes() -> None:
    goal = Goal(max_drop=0.03, max_latency_us=5.0, max_size_bytes=1)
    data = DataRequest(samples="s", select="a", certify="b")
    check(request(goal=goal, data=data, effort=Effort(budget_s=math.inf, threads=(1, 2))))
