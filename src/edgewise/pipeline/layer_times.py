"""What variants of one model cost in time, each against the same base: measured in this process, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.backends import registry
from edgewise.backends.protocol import Session
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Feeds

SECONDS: Final = 0.25
"""For each variant. Differences of one per cent of a model that takes a millisecond then stand out of the noise."""

FEWEST_ROUNDS: Final = 15
MOST_ROUNDS: Final = 300

Clock = Callable[[], float]


def extra_times(
    backend: str,
    base: ir.Model,
    variants: Sequence[ir.Model],
    options: RunOptions,
    feed: Feeds,
    *,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """Return for each variant the time that it takes more than the base, as a share of the base's; negative for less.

    In each round all run once, in an order that moves on, so that what disturbs the machine meets all alike; the median
    over the rounds of the ratio to the base of the same round is returned. No process of its own for each variant:
    these are proposals, and whole candidates are measured again (`measure/latency.py`).

    Args:
        backend: Where they run.
        base: What each is compared with.
        variants: The models.
        options: How all are run.
        feed: The input.
        clock: Gives seconds.

    Raises:
        BackendError: If the backend refuses a model.
    """
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(_open(backend, model, options))) for model in (base, *variants)]
        began = clock()
        for session in sessions:
            session.run(feed)
            session.run(feed)
        once = max((clock() - began) / 2, 1e-9)
        rounds = int(np.clip(SECONDS * len(sessions) / once, FEWEST_ROUNDS, MOST_ROUNDS))
        seconds = np.array([_round(sessions, feed, first, clock) for first in range(rounds)])
    ratios = seconds[:, 1:] / seconds[:, :1]
    return [float(share) - 1 for share in np.median(ratios, axis=0)]


def _open(backend: str, model: ir.Model, options: RunOptions) -> Session:
    runtime = registry.get(backend)
    return runtime.open(runtime.compile(model, options))


def _round(sessions: Sequence[Session], feed: Feeds, first: int, clock: Clock) -> list[float]:
    """Return the seconds of each session, run once, beginning with another one each time."""
    seconds = [0.0] * len(sessions)
    for step in range(len(sessions)):
        index = (first + step) % len(sessions)
        began = clock()
        sessions[index].run(feed)
        seconds[index] = max(clock() - began, 1e-9)
    return seconds
