from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.report import quantities as q

X, MINUS = q.TIMES, q.MINUS


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1.00"),
        (9.996, "10.0"),
        (99.97, "100"),
        (0.09996, "0.100"),
        (0.5, "0.500"),
        (-4.217, f"{MINUS}4.22"),
        (12345.6, "12,346"),
        (0.00001234, f"1.23e{MINUS}5"),
        (1.5e9, "1.50e9"),
        (math.nan, "not a finite number"),
        (math.inf, "not a finite number"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert q.significant(value) == text


@given(st.floats(min_value=1e-3, max_value=9e6))
def test_significant_is_within_half_a_unit_of_the_third_digit(value: float) -> None:
    shown = float(q.significant(value).replace(",", ""))
    assert abs(shown - value) <= 0.5 * 10.0 ** (math.floor(math.log10(value)) - 2) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(0.0, "0 µs"), (853.2, "853 µs"), (999.6, "1.00 ms"), (4211.0, "4.21 ms"), (1.52e6, "1.52 s"), (7.2e7, "72.0 s")],
)
def test_duration(microseconds: float, text: str) -> None:
    assert q.duration(microseconds) == text


@pytest.mark.parametrize("function", [q.duration, q.energy, q.ratio, q.share, q.wall_clock])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_said(function: object, value: float) -> None:
    assert callable(function)
    assert "not a finite number" in function(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.52, "0.52 s"),
        (9.6, "9.6 s"),
        (45.2, "45 s"),
        (59.7, "1 min 0 s"),
        (192.4, "3 min 12 s"),
        (7500.0, "2 h 5 min"),
    ],
)
def test_wall_clock(seconds: float, text: str) -> None:
    assert q.wall_clock(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (999_600, "1.00 MB"),
        (3_412_881, "3.41 MB"),
    ],
)
def test_size(number: int, text: str) -> None:
    assert q.size(number) == text


@pytest.mark.parametrize(("joules", "text"), [(0.00321, "3.21 mJ"), (2.5e-6, "2.50 µJ"), (1.25, "1.25 J")])
def test_energy(joules: float, text: str) -> None:
    assert q.energy(joules) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.414, f"2.41{X}"), (9.996, f"10.0{X}"), (124.0, f"124{X}"), (0.87, f"0.87{X}")]
)
def test_ratio(value: float, text: str) -> None:
    assert q.ratio(value) == text


@pytest.mark.parametrize(
    ("value", "rounding", "text"),
    [
        (0.0061874, "up", "0.62 points"),
        (0.0062, "up", "0.62 points"),  # not 0.63: the shortest decimal is what is rounded
        (0.010001, "up", "1.01 points"),  # never shown as the 1 point that it does not keep
        (0.01, "up", "1 point"),
        (-0.0021293, "down", f"{MINUS}0.22 points"),
        (-0.0021293, "up", f"{MINUS}0.21 points"),
        (-0.00001, "up", "0 points"),
        (0.002029, "nearest", "0.2 points"),
    ],
)
def test_drop(value: float, rounding: str, text: str) -> None:
    assert q.drop(value, unit="points", rounding=rounding) == text


@given(st.floats(min_value=-1, max_value=1))
def test_bounds_never_promise_more_than_was_proven(value: float) -> None:
    def read(rounding: str) -> float:
        return float(q.drop(value, unit="%", rounding=rounding).removesuffix(" %").replace(MINUS, "-")) / 100

    room = 1e-12
    assert read("down") - room <= value <= read("up") + room
    assert read("up") - read("down") <= 0.0001 + room


def test_counts_and_words() -> None:
    assert q.count(12345) == "12,345"
    assert q.amount(125_485_696) == "125 M"
    assert q.plural(1, "node") == "1 node"
    assert q.plural(0, "node") == "0 nodes"
    assert q.confidence(0.95) == "95 %"
    assert q.confidence(0.999) == "99.9 %"
    assert q.share(0.94361) == "94.36 %"
