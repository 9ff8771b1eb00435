from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from edgewise.search.worst import worst


class Sums:
    """Measures sums, and counts how many."""

    def __init__(self, values: Sequence[int]) -> None:
        self.values = {f"item {index}": value for index, value in enumerate(values)}
        self.measured = 0

    def __call__(self, sets: Sequence[Sequence[str]]) -> list[float]:
        self.measured += len(sets)
        return [float(sum(self.values[name] for name in one)) for one in sets]


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 10))
def test_the_largest_values_are_found_in_order(values: list[int], most: int) -> None:
    sums = Sums(values)
    found = worst(list(sums.values), sums, most)
    assert list(found.values()) == sorted(values, reverse=True)[:most]
    assert all(sums.values[name] == value for name, value in found.items())


def test_few_of_many_take_few_measurements() -> None:
    values = [1] * 256
    values[17] = values[200] = 10_000
    sums = Sums(values)
    assert list(worst(list(sums.values), sums, 2)) == ["item 17", "item 200"]
    assert sums.measured <= 2 * 2 * 8


def test_nothing_is_measured_where_there_is_nothing() -> None:
    sums = Sums([])
    assert worst([], sums, 3) == {}
    assert sums.measured == 0
