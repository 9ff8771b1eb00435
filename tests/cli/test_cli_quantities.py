"""Numbers with units."""

from __future__ import annotations

import pytest

from edgewise.cli.quantities import fraction, microseconds, pairs, seconds, size_bytes
from edgewise.errors import RecipeError


@pytest.mark.parametrize(("text", "value"), [("90s", 90.0), ("10m", 600.0), ("1h", 3600.0), (" 1.5 min ", 90.0)])
def test_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(("text", "value"), [("800us", 800.0), ("5ms", 5000.0), ("0.5 s", 5e5), ("3µs", 3.0)])
def test_microseconds(text: str, value: float) -> None:
    assert microseconds(text) == value


@pytest.mark.parametrize(("text", "value"), [("900kB", 900_000), ("2MB", 2_000_000), ("1MiB", 1 << 20), ("7b", 7)])
def test_size_bytes(text: str, value: int) -> None:
    assert size_bytes(text) == value


@pytest.mark.parametrize("text", ["10", "m", "10 parsecs", "", "-5m", "nan m"])
def test_a_number_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="number with one of the units"):
        seconds(text)


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), (" 2.5 % ", 0.025)])
def test_fraction(text: str, value: float) -> None:
    assert fraction(text) == pytest.approx(value, rel=1e-15)


def test_a_fraction_that_is_no_number_is_refused() -> None:
    with pytest.raises(RecipeError, match="a number or a percentage"):
        fraction("one")


@pytest.mark.parametrize("text", ["0", "1", "-1%", "100%", "nan", "inf"])
def test_a_fraction_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="above 0 and below 100 %"):
        fraction(text)


def test_pairs() -> None:
    assert pairs(["h1=h0", " c1 = c0 "], "--state") == {"h1": "h0", "c1": "c0"}


@pytest.mark.parametrize("text", ["h1", "h1=", "=h0"])
def test_half_a_pair_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="OUTPUT=INPUT"):
        pairs([text], "--state")


def test_a_pair_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="twice"):
        pairs(["a=b", "a=c"], "--state")
