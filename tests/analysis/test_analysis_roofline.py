"""The roofline: the longer of two times, and the sum over layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.analysis.roofline import PeakRates, layers_lower_bound_us, lower_bound_us
from edgewise.records.measurements import LayerCost

RATES = PeakRates(macs_per_us=100.0, bytes_per_us=10.0)


def layer(macs: int, weight_bytes: int, activation_bytes: int) -> LayerCost:
    return LayerCost(node="n", operator="Conv", macs=macs, weight_bytes=weight_bytes, activation_bytes=activation_bytes)


@pytest.mark.parametrize(("macs", "moved", "expected"), [(1000, 10, 10.0), (10, 1000, 100.0), (0, 0, 0.0)])
def test_the_longer_of_arithmetic_and_memory(macs: int, moved: int, expected: float) -> None:
    assert lower_bound_us(macs, moved, RATES) == expected


def test_layers_add_up() -> None:
    assert layers_lower_bound_us([layer(1000, 5, 5), layer(0, 10, 20)], RATES) == 10.0 + 3.0


@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * 3), max_size=8))
def test_one_layer_after_another_is_never_faster_than_all_at_once(sizes: list[tuple[int, int, int]]) -> None:
    layers = [layer(*size) for size in sizes]
    together = lower_bound_us(
        sum(one.macs for one in layers), sum(one.weight_bytes + one.activation_bytes for one in layers), RATES
    )
    assert layers_lower_bound_us(layers, RATES) >= together * (1 - 1e-12)
