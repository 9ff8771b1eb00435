"""What variants cost in time, each against the same base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.errors import BackendError
from edgewise.pipeline import layer_times
from edgewise.pipeline.layer_times import FEWEST_ROUNDS, MOST_ROUNDS, SECONDS, extra_times
from edgewise.records.candidate import RunOptions
from edgewise.testing.graphs import mlp, random_feeds

FEED = {"x": np.zeros((1, 16), np.float32)}


@dataclass
class Sessions:
    """Sessions that take as long as a test says, on a clock that stands still otherwise.

    Attributes:
        seconds: What a run of each model takes, given how often that model ran before.
        refused: Index of the model that no session can be opened of.
        failing: Index of the model whose session fails at its third run.
    """

    seconds: list[Callable[[int], float]]
    refused: int | None = None
    failing: int | None = None
    now: float = 0.0
    ran: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    options: list[RunOptions] = field(default_factory=list)
    opened: int = 0

    def open(self, _backend: str, _model: ir.Model, options: RunOptions) -> Any:
        """Stand for opening one model after the other."""
        index, self.opened = self.opened, self.opened + 1
        if index == self.refused:
            raise BackendError("no")
        self.options.append(options)
        return _Session(self, index)

    def measured(self, monkeypatch: pytest.MonkeyPatch, options: RunOptions | None = None) -> list[float]:
        """Return what `extra_times` gives for these sessions."""
        monkeypatch.setattr(layer_times, "_open", self.open)
        variants = [mlp()] * (len(self.seconds) - 1)
        return extra_times("ort", mlp(), variants, options or RunOptions(), FEED, clock=lambda: self.now)


@dataclass
class _Session:
    of: Sessions
    index: int

    def run(self, feeds: Any) -> None:
        assert feeds is FEED
        count = self.of.ran.count(self.index)
        if self.index == self.of.failing and count == 2:
            raise BackendError("failed")
        self.of.now += self.of.seconds[self.index](count)
        self.of.ran.append(self.index)

    def close(self) -> None:
        self.of.closed.append(self.index)


def steady(seconds: float) -> Callable[[int], float]:
    return lambda _count: seconds


def test_the_share_of_the_bases_time_that_a_variant_takes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions([steady(0.010), steady(0.011), steady(0.008)])
    assert sessions.measured(monkeypatch, RunOptions(threads=2)) == pytest.approx([0.1, -0.2])
    assert sessions.options == [RunOptions(threads=2)] * 3


def test_the_order_moves_on_so_that_each_is_first_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions([steady(0.010)] * 3)
    sessions.measured(monkeypatch)
    rounds = np.array(sessions.ran[6:]).reshape(-1, 3)  # behind two runs of each, which warm up
    assert rounds[:4].tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    assert np.ptp(np.bincount(rounds[:, 0])) <= 1


def test_what_disturbs_a_few_rounds_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions([steady(0.010), lambda count: 10.0 if count in {4, 7, 9} else 0.012])
    assert sessions.measured(monkeypatch) == pytest.approx([0.2])


def test_what_slows_the_machine_down_meets_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock rate halves after ten rounds."""
    sessions = Sessions([lambda count: 0.01 if count < 12 else 0.02, lambda count: 0.011 if count < 12 else 0.022])
    assert sessions.measured(monkeypatch) == pytest.approx([0.1])


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(1.0, FEWEST_ROUNDS), (1e-6, MOST_ROUNDS), (0.0, MOST_ROUNDS), (0.01, round(SECONDS / 0.01))],
)
def test_the_number_of_rounds_follows_the_time_of_one(
    seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Sessions([steady(seconds), steady(seconds)])
    assert sessions.measured(monkeypatch) == pytest.approx([0.0])
    assert len(sessions.ran) / 2 - 2 == pytest.approx(rounds, abs=1)  # the clock's sums are rounded


def test_sessions_are_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions([steady(0.01)] * 3)
    sessions.measured(monkeypatch)
    assert sorted(sessions.closed) == [0, 1, 2]


def test_sessions_are_closed_where_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions([steady(0.01)] * 3, refused=2)
    with pytest.raises(BackendError, match="no"):
        sessions.measured(monkeypatch)
    assert sorted(sessions.closed) == [0, 1]


def test_sessions_are_closed_where_a_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions([steady(0.01)] * 3, failing=1)
    with pytest.raises(BackendError, match="failed"):
        sessions.measured(monkeypatch)
    assert sorted(sessions.closed) == [0, 1, 2]


def test_a_larger_model_takes_longer_in_a_real_runtime() -> None:
    """A hundred times the multiply-accumulates: no noise of a machine hides that."""
    small, large = mlp(features=64, hidden=64), mlp(features=64, hidden=64 * 100)
    (extra,) = extra_times("ort", small, [large], RunOptions(), random_feeds(small))
    assert extra > 0.5


def test_without_variants_there_is_nothing_to_tell() -> None:
    assert extra_times("ort", mlp(), [], RunOptions(), random_feeds(mlp())) == []
