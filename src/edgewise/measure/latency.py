"""Latency of several candidates, taken in turns, so that whatever the machine does meets all of them alike.

One process a candidate; every round gives each of them one slice of time, in an order that is drawn anew for every
other round and run backwards in between. A drift of the machine's speed then favours neither of a pair: within a
round it is as likely to come first as second. This is what makes the interval of `ratio` hold (its docstring).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgewise.errors import BackendError, ContractError, EdgewiseError, RecipeError
from edgewise.measure.machine import choose_cores
from edgewise.measure.messages import Loaded, Times
from edgewise.measure.process import WORKER_COMMAND, Entry, WorkerProcess, feeds_file
from edgewise.records.measurements import Latency, Ratio
from edgewise.records.tensors import Feeds

SHORTEST_SLICE_NS: Final = 5_000_000
LONGEST_SLICE_NS: Final = 100_000_000
"""Slices: long against a context switch (microseconds), short against drifts of the clock (seconds). Empirical."""

UNTIMED_SHARE: Final = 0.1
"""Share of a slice that runs first without being timed, because the caches hold what the one before left."""

WAITING_SHARE: Final = 0.1
"""A process that waits uses less than this share of a core: waking up for a turn takes about 0.02."""

SHORTEST_WAIT_NS: Final = 1_000_000
"""A wait that is shorter than this says nothing about that share."""

WAITS: Final = 5
"""Waits of which the median is taken: where a hypervisor stops the machine, a single one shows what nobody used."""

WARM_UP_SHARE: Final = 0.2
"""At most this share of the time budget goes into warming up."""


def measure_group(
    entries: Sequence[Entry],
    feeds: Sequence[Feeds],
    *,
    budget_s: float,
    min_rounds: int = 12,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    command: Sequence[str] = WORKER_COMMAND,
) -> list[Latency | EdgewiseError]:
    """Measure candidates against each other.

    All results have the same number of rounds, so that any two of them can be given to `ratio`. Workers are ended on
    every way out, Ctrl-C included.

    Args:
        entries: The candidates. The same artifact may come twice, to see the noise.
        feeds: Samples that every candidate runs on in rotation; a few suffice.
        budget_s: Seconds for the whole group, starting the processes left out. Exceeded where `min_rounds` need more.
        min_rounds: Rounds at least; 6 are the least of which a 95 % interval can be made.
        seed: Seed of the order.
        clock: Nanoseconds, for the budget alone; workers time their runs themselves.
        command: How a worker is started.

    Returns:
        For each entry its latency, or the error with which it failed (the others go on without it): what its backend
        raised, or `BackendError` if the process died, is stuck, or computes while it is not its turn.

    Raises:
        RecipeError: If `budget_s` or `min_rounds` is out of range.
        ContractError: If there are no samples.
    """
    if not budget_s > 0 or min_rounds < 1:
        raise RecipeError(
            f"Latency needs a time budget above 0 and at least one round. Received {budget_s=}, {min_rounds=}."
        )
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(feeds_file(feeds))
        group = [_Member(entry) for entry in entries]
        for member in group:
            member.start(stack, path, command)
        limit_ns = int(budget_s * 1e9 * WARM_UP_SHARE / max(1, len(group)))
        started = clock()
        for member in _alive(group):
            member.warm(limit_ns)
        left_ns = budget_s * 1e9 - (clock() - started)
        slice_ns = _slice_ns(left_ns, turns=len(group) * 2 * min_rounds)
        orders = _orders(len(group), random.Random(seed))  # noqa: S311 - an order, not a secret
        rounds = 0
        while _alive(group) and (rounds < min_rounds or clock() - started < budget_s * 1e9):
            for position in next(orders):
                group[position].turn(slice_ns)
            rounds += 1
        return [member.result() for member in group]


def ratio(reference: Latency, candidate: Latency, confidence: float = 0.95) -> Ratio:
    """Return how many times faster `candidate` is than `reference`, from the same rounds of one `measure_group`.

    The interval is that of the sign test for the median of the rounds' log-ratios (David and Nagaraja, "Order
    Statistics", 3rd ed., 7.1): between two order statistics, with the coverage of a binomial at 1/2, whatever the
    distribution. It needs each round to be above the true ratio with probability 1/2 independently of the others. In
    a round, the logarithm is the true one plus the change of the machine's speed between two turns, whose sign the
    random order makes a fair coin; so drifts and steps of the speed are no obstacle, as long as they hit all
    candidates by the same factor.

    Args:
        reference: Latency of what would be replaced.
        candidate: Latency of what would replace it.
        confidence: Two-sided level, in (0, 1).

    Raises:
        ContractError: If the two are not from the same rounds.
        RecipeError: If there are too few rounds for an interval of this level.
    """
    rounds = len(reference.rounds_us)
    if rounds != len(candidate.rounds_us):
        raise ContractError(
            f"A ratio has to be of two latencies from the same rounds. Received {rounds} and "
            f"{len(candidate.rounds_us)} rounds."
        )
    rank = _rank(rounds, confidence)
    logs = sorted(
        math.log(before / after) for before, after in zip(reference.rounds_us, candidate.rounds_us, strict=True)
    )
    return Ratio(
        value=math.exp(statistics.median(logs)),
        low=math.exp(logs[rank - 1]),
        high=math.exp(logs[rounds - rank]),
        confidence=confidence,
        rounds=rounds,
    )


def summarise(rounds: Sequence[Sequence[int]], *, threads: int, pinned: bool) -> Latency:
    """Return the latency of timed rounds.

    Quantiles are durations that occurred (inverse of the empirical distribution), not interpolated ones.

    Args:
        rounds: Durations in nanoseconds of each round, none empty.
        threads: Threads that one inference used.
        pinned: Whether the worker stayed on its cores.
    """
    runs = np.sort(np.concatenate([np.asarray(durations, np.int64) for durations in rounds])) / 1e3
    quantiles = np.quantile(runs, np.linspace(0.0, 1.0, 101), method="inverted_cdf")
    return Latency(
        median_us=float(np.median(runs)),
        p90_us=float(quantiles[90]),
        p99_us=float(quantiles[99]),
        max_us=float(runs[-1]),
        runs=len(runs),
        rounds_us=tuple(statistics.median(durations) / 1e3 for durations in rounds),
        quantiles_us=tuple(map(float, quantiles)),
        threads=threads,
        pinned=pinned,
    )


def empty_call_us(runs: int = 1000) -> float:
    """Return the median time of calling a function that does nothing: nothing that computes can be faster."""

    def nothing(feeds: Feeds) -> Feeds:
        return feeds

    durations = []
    for _ in range(runs):
        begin = time.perf_counter_ns()
        nothing({})
        durations.append(time.perf_counter_ns() - begin)
    return statistics.median(durations) / 1e3


class _Member:
    """One candidate of a group: its worker, its rounds, and its error once it has one."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.error: EdgewiseError | None = None
        self._worker: WorkerProcess | None = None
        self._loaded: Loaded | None = None
        self._median_ns = 0.0
        self._waiting_shares: list[float] = []
        self._rounds: list[tuple[int, ...]] = []

    def start(self, stack: contextlib.ExitStack, feeds: Path, command: Sequence[str]) -> None:
        """Start the worker and let it load; one after the other, so that no load disturbs another."""
        cores = choose_cores(self.entry.spec.options.threads)
        with self._guarded():
            self._worker = stack.enter_context(WorkerProcess(self.entry, feeds, cores=cores, command=command))
            self._loaded = self._worker.load()

    def warm(self, limit_ns: int) -> None:
        """Let the worker warm up."""
        if self._worker is not None and self.error is None:
            with self._guarded():
                self._median_ns = self._worker.warm(limit_ns=limit_ns).median_ns

    def turn(self, slice_ns: int) -> None:
        """Give the worker one slice of time."""
        if self._worker is None or self.error is not None:
            return
        # A run that outlasts the slice does not notice what the caches held; its time is better spent on a timed run.
        untimed_ns = int(slice_ns * UNTIMED_SHARE) if self._median_ns < slice_ns else 0
        with self._guarded():
            times = self._worker.turn(slice_ns=slice_ns - untimed_ns, untimed_ns=untimed_ns)
            self._refuse_spinning(times)
            self._rounds.append(times.durations_ns)

    def result(self) -> Latency | EdgewiseError:
        """Return the latency or the error."""
        if self.error is not None:
            return self.error
        pinned = self._loaded is not None and self._loaded.pinned
        return summarise(self._rounds, threads=self.entry.spec.options.threads, pinned=pinned)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except EdgewiseError as error:
            self.error = error
            if self._worker is not None:
                self._worker.close()

    def _refuse_spinning(self, times: Times) -> None:
        if times.waited_ns >= SHORTEST_WAIT_NS:
            self._waiting_shares.append(times.waiting_used_ns / times.waited_ns)
        if len(self._waiting_shares) >= WAITS and (share := statistics.median(self._waiting_shares)) >= WAITING_SHARE:
            raise BackendError(
                f"`{self.entry.name}` has to rest while it is not its turn, but its threads use "
                f"{share:.0%} of a core: it would slow down the others.",
                hint="The backend's session has to stop its threads from spinning between runs.",
            )


def _alive(group: Sequence[_Member]) -> list[_Member]:
    return [member for member in group if member.error is None]


def _slice_ns(left_ns: float, *, turns: int) -> int:
    """Return the length of a slice with which `turns` turns fit into the time left."""
    return int(min(LONGEST_SLICE_NS, max(SHORTEST_SLICE_NS, left_ns / max(1, turns))))


def _orders(n: int, draw: random.Random) -> Iterator[list[int]]:
    """Yield an order for each round: a random one, then the same backwards.

    Not a rotation: there `b` follows `a` in all rounds but one of `n`, and a steady drift counts against `b`.
    """
    while True:
        order = list(range(n))
        draw.shuffle(order)
        yield order
        yield order[::-1]


def _rank(rounds: int, confidence: float) -> int:
    """Return the largest k such that the k-th smallest and k-th largest of `rounds` values enclose the median.

    Both tails together, 2 P(Binomial(rounds, 1/2) < k), must not exceed `1 - confidence`.
    """
    if not 0 < confidence < 1:
        raise RecipeError(f"A confidence level has to be between 0 and 1. Received {confidence}.")
    allowed = (1 - confidence) / 2 * 2**rounds
    rank, tail = 0, 1
    while tail <= allowed and 2 * (rank + 1) <= rounds:
        rank += 1
        tail += math.comb(rounds, rank)
    if rank == 0:
        needed = next(n for n in itertools.count(1) if (1 - confidence) / 2 * 2**n >= 1)
        raise RecipeError(
            f"An interval at {confidence:.0%} has to be made of at least {needed} rounds. Received {rounds}.",
            hint="Give the measurement more rounds (`min_rounds`).",
        )
    return rank
