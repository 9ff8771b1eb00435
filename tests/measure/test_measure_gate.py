"""Never a regression: the decisions at their edges."""

from __future__ import annotations

import pytest

from edgewise.measure.gate import LARGEST_GAIN, faster, smaller, why_implausible
from edgewise.records.measurements import Latency, Ratio


def interval(low: float, value: float, high: float) -> Ratio:
    return Ratio(value=value, low=low, high=high, confidence=0.95, rounds=20)


def taking(median_us: float, threads: int = 1) -> Latency:
    return Latency(
        median_us=median_us,
        p90_us=median_us,
        p99_us=median_us,
        max_us=median_us,
        runs=100,
        rounds_us=(),
        quantiles_us=(),
        threads=threads,
        pinned=True,
    )


@pytest.mark.parametrize(
    ("low", "value", "high", "accepted", "word"),
    [
        (1.01, 1.5, 2.0, True, "1.50 times as fast"),
        (1.0, 1.5, 2.0, False, "not shown"),
        (0.9, 1.2, 1.5, False, "not shown"),
        (0.5, 0.6, 0.99, False, "slower"),
        (0.5, 0.9, 1.0, False, "not shown"),
    ],
)
def test_faster_needs_the_whole_interval_above_one(
    low: float, value: float, high: float, accepted: bool, word: str
) -> None:
    verdict = faster(interval(low, value, high))
    assert verdict.accepted is accepted
    assert not verdict.suspicious
    assert word in verdict.reason


def test_smaller_needs_to_be_smaller() -> None:
    assert not smaller(interval(1.1, 1.2, 1.3), size_bytes=10, reference_bytes=10).accepted
    assert smaller(interval(1.1, 1.2, 1.3), size_bytes=9, reference_bytes=10).accepted


@pytest.mark.parametrize(("low", "accepted"), [(0.96, True), (0.95, False), (0.5, False), (1.2, True)])
def test_smaller_needs_to_be_shown_as_fast(low: float, accepted: bool) -> None:
    # 1 / 1.05 = 0.952: below it, the interval allows more than 5 % more time.
    assert smaller(interval(low, 1.2, 1.3), size_bytes=5, reference_bytes=10).accepted is accepted


def test_what_cannot_be_is_never_accepted() -> None:
    for verdict in (
        faster(interval(99, 100, 101), implausible="too good"),
        smaller(interval(99, 100, 101), size_bytes=1, reference_bytes=2, implausible="too good"),
    ):
        assert (verdict.accepted, verdict.suspicious, verdict.reason) == (False, True, "too good")


def test_a_gain_beyond_arithmetic_is_implausible() -> None:
    def asked(gain: float, threads: int = 1) -> str | None:
        return why_implausible(interval(gain, gain, gain), taking(1e6), taking(1e6 / gain, threads), empty_call_us=0.1)

    assert asked(LARGEST_GAIN) is None
    assert "beyond what arithmetic allows" in str(asked(LARGEST_GAIN + 1))
    assert asked(LARGEST_GAIN + 1, threads=2) is None
    assert asked(0.001) is None


def test_faster_than_an_empty_call_is_implausible() -> None:
    ratio = interval(2, 2, 2)
    assert "does nothing" in str(why_implausible(ratio, taking(0.2), taking(0.1), empty_call_us=0.1))
    assert why_implausible(ratio, taking(0.4), taking(0.2), empty_call_us=0.1) is None


def test_faster_than_its_products_is_implausible() -> None:
    def asked(median_us: float) -> str | None:
        return why_implausible(
            interval(2, 2, 2), taking(1000), taking(median_us), empty_call_us=0.1, macs=10**6, macs_per_second=1e10
        )

    assert "products" in str(asked(99.0))
    assert asked(101.0) is None
