"""Graphs opened in the runtime that judges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.backends.ort.session import OrtSession
from edgewise.errors import BackendError
from edgewise.pipeline.judge import JUDGE, open_judge, opened
from edgewise.records.candidate import RunOptions
from edgewise.testing.graphs import conv_net, custom_operator_net, random_feeds


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """Return the options of every session that was opened; a closed one adds None."""
    found: list[Any] = []
    opening, closing = OrtSession.__init__, OrtSession.close

    def opens(self: OrtSession, artifact: Any) -> None:
        found.append(artifact.spec.options)
        opening(self, artifact)

    def closes(self: OrtSession) -> None:
        found.append(None)
        closing(self)

    monkeypatch.setattr(OrtSession, "__init__", opens)
    monkeypatch.setattr(OrtSession, "close", closes)
    return found


def test_the_judge_runs_a_graph_as_it_is_written(options: list[RunOptions | None]) -> None:
    model = conv_net()
    session = open_judge(model)
    assert session.run(random_feeds(model))["scores"].shape == (1, 10)
    session.close()
    assert options[-2:] == [JUDGE, None]
    assert JUDGE.graph_optimization == "off"


def test_many_samples_run_with_the_runtimes_optimizations_and_the_session_is_closed(
    options: list[RunOptions | None],
) -> None:
    model = conv_net()
    with opened(model) as run:
        run(random_feeds(model))
        assert options[-1] == RunOptions(graph_optimization="all")
    assert options[-1] is None


def test_a_session_is_closed_where_what_is_done_with_it_fails(options: list[RunOptions | None]) -> None:
    def fails() -> None:
        with opened(conv_net()):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert options[-1] is None


def test_both_give_the_same_numbers() -> None:
    """The optimizations fold the batch normalizations, each a rounding of float32; a dozen layers behind each other."""
    model, session = conv_net(), open_judge(conv_net())
    feeds = random_feeds(model)
    with opened(model) as run:
        np.testing.assert_allclose(run(feeds)["scores"], session.run(feeds)["scores"], rtol=1e-4, atol=1e-5)
    session.close()


def test_what_the_judge_cannot_run_is_refused() -> None:
    with pytest.raises(BackendError):
        open_judge(custom_operator_net())
    with pytest.raises(BackendError), opened(custom_operator_net()):
        pass
