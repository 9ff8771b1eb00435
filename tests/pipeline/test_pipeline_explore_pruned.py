"""How far the best candidate is pruned: more and more, until what is left loses too much or the time ends."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgewise.pipeline import explore
from edgewise.records.candidate import Candidate, Fuse, Prune, Quantize, RunOptions
from edgewise.search.ladder import Point

BEST = Candidate(steps=(Fuse(), Quantize()), backend="ort", options=RunOptions())


class Book:
    """Stands for the account of all candidates: those with a goal in time below `limit` lose too much."""

    def __init__(self, limit: float, best: Candidate | None = BEST, recovers: float = 0.0) -> None:
        self.limit, self.found, self.recovers = limit, best, recovers
        self.notes: list[str] = []
        self.rejected: dict[Candidate, str] = {}
        self.examined: list[Candidate] = []

    def best(self) -> Candidate | None:
        return self.found

    def reserve_s(self) -> float:
        return 10.0

    def add(self, _timings: object) -> None:
        pass

    def reject(self, candidate: Candidate, reason: str) -> None:
        self.rejected[candidate] = reason

    def may_win(self, _candidate: Candidate) -> bool:
        return True

    def examine(self, candidate: Candidate) -> None:
        self.examined.append(candidate)

    def is_within(self, candidate: Candidate) -> bool:
        step = candidate.pruned
        assert step is not None
        return step.time >= self.limit - (self.recovers if step.recovered else 0)


Search = Callable[..., list[Prune]]


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    def run(
        book: Book, *, left: float = 600.0, costs: float = 0.0, torch: bool = False, failure: str = ""
    ) -> list[Prune]:
        clock = [left]

        def build_all(_job: object, candidates: list[Candidate]) -> dict[Candidate, str]:
            clock[0] -= costs
            return dict.fromkeys(candidates, failure) if failure else {}

        class Deadline:
            @property
            def left_s(self) -> float:
                return clock[0]

        monkeypatch.setattr(explore, "build_all", build_all)
        monkeypatch.setattr(explore, "time_all", lambda *_: {})
        monkeypatch.setattr(explore, "find_spec", lambda _: object() if torch else None)
        job: Any = SimpleNamespace(deadline=Deadline(), request=SimpleNamespace(effort=SimpleNamespace(budget_s=600.0)))
        tried = explore._prune_the_best(job, book, BEST)  # type: ignore[arg-type]  # stands for an account
        assert all(one.steps[0] == Fuse() and one.steps[2] == Quantize() for one in tried)
        return [one.pruned for one in tried if one.pruned is not None]

    return run


def test_more_and_more_goes_until_too_much_is_lost(search: Search) -> None:
    book = Book(limit=0.6)
    assert search(book) == [Prune(time=0.85), Prune(time=0.7), Prune(time=0.55)]
    assert len(book.examined) == 3
    assert book.notes == []


def test_what_lost_too_much_is_trained_once_where_that_can_be_done(search: Search) -> None:
    last = Prune(time=0.55, recovered=True)
    assert search(Book(limit=0.6), torch=True)[-1] == last
    assert search(Book(limit=0.6, recovers=0.1), torch=True)[-1] == last


def test_everything_may_go_where_nothing_is_lost(search: Search) -> None:
    assert [step.time for step in search(Book(limit=0.0), torch=True)] == list(explore.PRUNED_TIMES)


def test_nothing_is_pruned_where_nothing_was_within_the_bound(search: Search) -> None:
    assert search(Book(limit=0.0, best=None)) == []


def test_a_model_that_cannot_be_pruned_is_said_once(search: Search) -> None:
    book = Book(limit=0.0)
    assert len(search(book, failure="Nothing of this model can be pruned")) == 1
    assert list(book.rejected.values()) == ["it could not be built: Nothing of this model can be pruned"]


@pytest.mark.parametrize(("left", "costs", "count"), [(100.0, 0.0, 0), (600.0, 250.0, 2), (161.0, 0.0, 4)])
def test_the_budget_ends_it_in_time(search: Search, left: float, costs: float, count: int) -> None:
    book = Book(limit=0.0)
    assert len(search(book, left=left, costs=costs)) == count
    assert len(book.notes) == (count < 4)


def ladder_of(points: dict[Candidate, Point]) -> list[str]:
    """Return the rungs that an account with these candidates gives."""
    book = explore._Book.__new__(explore._Book)
    book._estimates = dict.fromkeys(points)  # type: ignore[assignment]  # what they hold is not read
    setattr(book, "_point", points.__getitem__)  # noqa: B010  a method is replaced
    return [candidate.name for candidate in book.ladder()]


def point(cost: float, drop: float, reach: float = 0.01) -> Point:
    return Point(cost=cost, cost_low=0.99 * cost, cost_high=1.01 * cost, drop=drop, reach=reach, asked=0.01)


PLAIN = Candidate(steps=(Fuse(), Quantize()), backend="ort", options=RunOptions())
OTHER = Candidate(steps=(Fuse(), Quantize()), backend="openvino", options=RunOptions())
PRUNED = Candidate(steps=(Fuse(), Prune(time=0.8), Quantize()), backend="openvino", options=RunOptions())
FURTHER = Candidate(steps=(Fuse(), Prune(time=0.7), Quantize()), backend="openvino", options=RunOptions())


def test_a_lucky_pruned_candidate_does_not_take_the_place_of_a_whole_one() -> None:
    # By its drop alone, `PRUNED` would come first and leave no place for the faster of the whole ones.
    points = {PLAIN: point(0.4, -0.004), OTHER: point(0.33, 0.0), PRUNED: point(0.28, -0.005)}
    assert ladder_of(points) == ["ort int8-mse", "openvino int8-mse", "openvino pruned80 int8-mse"]


def test_pruned_candidates_have_to_be_faster_and_within_reach() -> None:
    slow = {OTHER: point(0.33, 0.0), PRUNED: point(0.328, 0.0)}
    assert ladder_of(slow) == ["openvino int8-mse"]
    risky = {OTHER: point(0.33, 0.0), PRUNED: point(0.28, 0.02)}
    assert ladder_of(risky) == ["openvino int8-mse"]
    both = {OTHER: point(0.33, 0.0), PRUNED: point(0.28, 0.001), FURTHER: point(0.25, 0.004)}
    assert ladder_of(both) == ["openvino int8-mse", "openvino pruned80 int8-mse", "openvino pruned70 int8-mse"]


def test_the_ladder_is_never_longer_than_what_is_tested() -> None:
    points = {OTHER: point(0.33, 0.0)}
    for index in range(6):
        step = Quantize(extra_time=0.01 * (index + 1))
        whole = Candidate(steps=(Fuse(), step), backend="ort", options=RunOptions())
        points[whole] = point(0.9 - 0.08 * index, -0.01 + 0.001 * index)
        cut = Candidate(steps=(Fuse(), Prune(time=0.9 - 0.1 * index)), backend="ort", options=RunOptions())
        points[cut] = point(0.3 - 0.03 * index, 0.001 * index)
    found = ladder_of(points)
    assert len(found) == 4
    assert "pruned" in found[-1]
    assert "openvino int8-mse" in found
    assert ladder_of({}) == []
