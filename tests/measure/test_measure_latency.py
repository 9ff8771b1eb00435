"""Turns, and what is concluded from them."""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.backends import registry
from edgewise.errors import BackendError, BackendMissingError, ContractError, RecipeError
from edgewise.measure import latency
from edgewise.measure.latency import empty_call_us, measure_group, ratio, summarise
from edgewise.measure.messages import Times
from edgewise.measure.process import Entry
from edgewise.records.candidate import RunOptions
from edgewise.records.measurements import Latency
from edgewise.records.tensors import Array
from edgewise.testing import graphs

Make = Callable[..., Entry]
Samples = list[dict[str, Array]]


def of_rounds(rounds_us: Sequence[float]) -> Latency:
    return Latency(
        median_us=1, p90_us=1, p99_us=1, max_us=1, runs=1, rounds_us=tuple(rounds_us), quantiles_us=(), threads=1,
        pinned=True,
    )  # fmt: skip


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - an order, not a secret


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def test_a_group_is_measured_in_the_same_rounds(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    before = children()
    entries = [fake_entry("slow", busy_us=3000), fake_entry("fast", busy_us=1000)]
    slow, fast = measure_group(entries, feeds, budget_s=0.3, min_rounds=6, command=fake_command)
    assert isinstance(slow, Latency)
    assert isinstance(fast, Latency)
    assert len(slow.rounds_us) == len(fast.rounds_us) >= 6
    # The fake computes for as long as it is told, so it cannot be faster, whatever else the machine does.
    assert slow.quantiles_us[0] >= 3000
    assert fast.quantiles_us[0] >= 1000
    assert slow.runs >= len(slow.rounds_us)
    assert ratio(slow, fast).value > 1.5
    assert children() <= before


def test_a_candidate_that_dies_leaves_the_others_running(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    entries = [
        fake_entry("never-starts", exit_at_run=1),
        fake_entry("good", busy_us=500),
        fake_entry("dies", busy_us=5000, exit_at_run=10),
    ]
    first, good, dies = measure_group(entries, feeds, budget_s=0.2, min_rounds=7, command=fake_command)
    assert isinstance(good, Latency)
    assert len(good.rounds_us) >= 7
    for error, name in ((first, "never-starts"), (dies, "dies")):
        assert isinstance(error, BackendError)
        assert f"`{name}`" in error.message


@pytest.mark.parametrize(
    ("waits_us", "spins"),
    [
        ([(50_000, 5000)] * 5, True),
        ([(50_000, 4900)] * 50, False),
        ([(50_000, 5000)] * 4, False),  # too few to tell
        ([(900, 900)] * 50, False),  # too short to tell
        ([(50_000, 50_000)] * 2 + [(50_000, 0)] * 3, False),  # the machine stood still twice
        ([(0, 0)] * 5, False),
    ],
)
def test_who_computes_out_of_turn_is_out(fake_entry: Make, waits_us: list[tuple[int, int]], spins: bool) -> None:
    member = latency._Member(fake_entry("a"))
    with member._guarded():
        for waited, used in waits_us:
            times = Times(durations_ns=(1,), runs=1, peak_bytes=0, waited_ns=waited * 1000, waiting_used_ns=used * 1000)
            member._refuse_spinning(times)
    assert isinstance(member.error, BackendError) is spins
    if spins:
        assert "`a` has to rest while it is not its turn" in str(member.error)


def test_nobody_left_ends_the_group(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    (error,) = measure_group([fake_entry("a", exit_at_run=1)], feeds, budget_s=100, command=fake_command)
    assert isinstance(error, BackendError)
    assert measure_group([], feeds, budget_s=100, command=fake_command) == []


def test_an_interruption_ends_all_workers(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    before = children()
    readings = itertools.count()

    def interrupted_clock() -> int:
        if next(readings) == 4:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        measure_group(
            [fake_entry("a"), fake_entry("b")], feeds, budget_s=1, min_rounds=1, clock=interrupted_clock,
            command=fake_command,
        )  # fmt: skip
    assert children() <= before


def test_the_budget_is_the_injected_clocks(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    seconds = itertools.count()
    (result,) = measure_group(
        [fake_entry("a")], feeds, budget_s=20, min_rounds=1, clock=lambda: next(seconds) * 10**9, command=fake_command
    )
    assert isinstance(result, Latency)
    # Readings: at the start, after warming up, then one after each round but the first: 20 s are over in round 19.
    assert len(result.rounds_us) == 19


@pytest.mark.parametrize(("budget_s", "min_rounds"), [(0.0, 6), (-1.0, 6), (float("nan"), 6), (1.0, 0)])
def test_a_budget_of_nothing_is_refused(budget_s: float, min_rounds: int, feeds: Samples) -> None:
    with pytest.raises(RecipeError, match="budget"):
        measure_group([], feeds, budget_s=budget_s, min_rounds=min_rounds)


def test_no_samples_are_refused(fake_entry: Make) -> None:
    with pytest.raises(ContractError, match="at least one sample"):
        measure_group([fake_entry("a")], [], budget_s=1)


def test_each_comes_first_as_often_as_second() -> None:
    orders: Iterator[list[int]] = latency._orders(4, seeded(3))
    taken = [next(orders) for _ in range(40)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in taken)
    for one, other in itertools.combinations(range(4), 2):
        assert sum(order.index(one) < order.index(other) for order in taken) == 20
    again = latency._orders(4, seeded(3))
    assert taken == [next(again) for _ in range(40)]
    assert len({tuple(order) for order in taken}) > 10


def test_a_slice_stays_within_its_limits() -> None:
    assert latency._slice_ns(1e9, turns=20) == 50_000_000
    assert latency._slice_ns(1e9, turns=10**6) == latency.SHORTEST_SLICE_NS
    assert latency._slice_ns(-5.0, turns=1) == latency.SHORTEST_SLICE_NS
    assert latency._slice_ns(1e12, turns=1) == latency.LONGEST_SLICE_NS


def test_a_summary_is_made_of_durations_that_occurred() -> None:
    rounds = [[3000, 1000, 2000], [4000, 100_000]]
    result = summarise(rounds, threads=2, pinned=False)
    assert result.runs == 5
    assert result.median_us == 3.0
    assert result.rounds_us == (2.0, 52.0)
    assert result.max_us == result.p99_us == result.quantiles_us[100] == 100.0
    assert result.p90_us == 100.0
    assert len(result.quantiles_us) == 101
    assert set(result.quantiles_us) == {1.0, 2.0, 3.0, 4.0, 100.0}
    assert result.quantiles_us[0] == 1.0
    assert (result.threads, result.pinned) == (2, False)


def test_the_90th_of_100_runs_is_the_90th() -> None:
    result = summarise([[1000 * (i + 1) for i in range(100)]], threads=1, pinned=True)
    assert result.p90_us == 90.0
    assert result.p99_us == 99.0


def test_a_ratio_is_paired_by_round() -> None:
    speeds = [1, 7, 2, 9, 3, 5]
    result = ratio(of_rounds([300 * s for s in speeds]), of_rounds([100 * s for s in speeds]))
    assert result.value == pytest.approx(3, rel=1e-12)  # a handful of roundings of logarithms below 7
    assert result.low == pytest.approx(3, rel=1e-12)
    assert result.high == pytest.approx(3, rel=1e-12)
    assert (result.rounds, result.confidence) == (6, 0.95)


def test_ranks_are_those_of_the_published_table() -> None:
    # Order statistics that enclose the median at 95 % (Conover, Practical Nonparametric Statistics, 3.2; the sign
    # test's critical values): none below 6 values, then the 1st, ... 2nd from 9, 3rd from 12, 6th of 20, 40th of 100.
    ranks = {6: 1, 8: 1, 9: 2, 11: 2, 12: 3, 15: 4, 17: 5, 20: 6, 25: 8, 50: 18, 100: 40}
    assert {n: latency._rank(n, 0.95) for n in ranks} == ranks


@given(rounds=st.integers(1, 400), confidence=st.floats(0.5, 0.999))
def test_the_rank_is_the_largest_that_keeps_the_level(rounds: int, confidence: float) -> None:
    def coverage(rank: int, of: int = rounds) -> float:
        outside: int = 2 * sum(math.comb(of, k) for k in range(rank))
        return 1 - float(outside / 2**of)

    try:
        rank = latency._rank(rounds, confidence)
    except RecipeError as error:
        needed = int(str(error).split("at least ")[1].split()[0])
        assert rounds < needed
        assert coverage(1, of=needed) >= confidence - 1e-12
        assert coverage(1, of=needed - 1) < confidence + 1e-12
        return
    # One rounding each in `1 - confidence` and in the division.
    assert coverage(rank) >= confidence - 1e-12
    assert 2 * rank > rounds - 2 or coverage(rank + 1) < confidence + 1e-12


def test_too_few_rounds_are_refused_with_the_number_needed() -> None:
    five = of_rounds([1.0] * 5)
    with pytest.raises(RecipeError, match=r"at least 6 rounds\. Received 5"):
        ratio(five, five)
    with pytest.raises(RecipeError, match="between 0 and 1"):
        ratio(five, five, confidence=1.0)


def test_other_rounds_are_refused() -> None:
    with pytest.raises(ContractError, match="6 and 7 rounds"):
        ratio(of_rounds([1.0] * 6), of_rounds([1.0] * 7))


def simulated_rounds(draw: np.random.Generator, rounds: int, gain: float, *, shuffled: bool) -> Iterator[Latency]:
    """Yield two latencies as a machine would give them whose speed drifts, jumps and hiccups."""
    turns = 2 * rounds
    speed = np.exp(
        np.linspace(0, 0.5 * draw.standard_normal(), turns)  # it gets steadily warmer
        + np.cumsum(0.02 * draw.standard_normal(turns))  # it wanders
        + 0.3 * (np.arange(turns) > draw.integers(turns))  # somebody arrives
        + 0.2 * (draw.random(turns) < 0.1)  # hiccups
        + 0.005 * draw.standard_cauchy(turns).clip(-50, 50)  # heavy tails of any size
    )
    orders = latency._orders(2, seeded(int(draw.integers(2**31))))
    times: list[list[float]] = [[], []]
    for round_ in range(rounds):
        for turn, position in enumerate(next(orders) if shuffled else [0, 1]):
            times[position].append(speed[2 * round_ + turn] * (100.0 if position == 0 else 100.0 / gain))
    yield from map(of_rounds, times)


def coverage(*, shuffled: bool, resamplings: int = 2000, rounds: int = 24, gain: float = 1.3) -> float:
    draw = np.random.default_rng(5)
    hits = 0
    for _ in range(resamplings):
        reference, candidate = simulated_rounds(draw, rounds, gain, shuffled=shuffled)
        result = ratio(reference, candidate)
        hits += result.low <= gain <= result.high
    return hits / resamplings


def test_the_interval_covers_the_truth_while_the_machine_drifts() -> None:
    # Three standard deviations of a binomial at 0.95 in 2,000 resamplings.
    assert coverage(shuffled=True) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_without_the_random_order_it_would_not() -> None:
    assert coverage(shuffled=False) < 0.93


def test_an_empty_call_takes_less_than_a_millisecond() -> None:
    assert 0 < empty_call_us() < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="counts open file descriptors in /proc")
def test_nothing_stays_open(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    def run() -> int:
        entries = [fake_entry("a"), fake_entry("b", exit_at_run=1)]
        measure_group(entries, feeds, budget_s=0.01, min_rounds=1, command=fake_command)
        return len(list(Path("/proc/self/fd").iterdir()))

    assert run() == run()


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_real_runtimes_rest_while_others_run(tmp_path: Path, backend: str) -> None:
    try:
        registry.get(backend).version()
    except BackendMissingError as error:
        pytest.skip(str(error))
    model = graphs.conv_net()
    artifact = registry.get(backend).compile(model, RunOptions(threads=2))
    artifact.write(tmp_path)
    entry = Entry("two threads", tmp_path, artifact.spec)
    results = measure_group([entry, entry], [graphs.random_feeds(model)], budget_s=0.3, min_rounds=6)
    for result in results:  # an error would say that its threads spin
        assert isinstance(result, Latency)
        assert result.threads == 2
