"""The bounds hold for sums in any order, and are not so wide that they hold for anything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.backends.feeds import numpy_type
from edgewise.testing import tolerance


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_two_orders_of_one_sum_stay_within_the_bound(terms: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((2, terms)).astype(np.float32)
    forwards = backwards = np.float32(0)
    for index in range(terms):
        forwards = np.float32(forwards + a[index] * b[index])
        backwards = np.float32(backwards + a[-1 - index] * b[-1 - index])
    bound = tolerance.sum_of_products(np.array(np.abs(a) @ np.abs(b)), terms)
    assert abs(float(forwards) - float(backwards)) <= bound


@given(st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_rounding_the_factors_to_bfloat16_stays_within_its_bound(terms: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((2, terms)).astype(np.float32)
    bfloat16 = numpy_type("bfloat16")
    rounded = [array.astype(bfloat16).astype(np.float32) for array in (a, b)]
    result = np.asarray(rounded[0] @ rounded[1]).astype(bfloat16).astype(np.float64)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    magnitude = np.array(np.abs(a) @ np.abs(b))
    assert abs(result - exact) <= tolerance.sum_of_products(magnitude, terms, inputs="bfloat16")


def test_an_error_of_one_percent_is_far_outside() -> None:
    assert tolerance.sum_of_products(np.array(1.0), 1000) < 0.001
    assert tolerance.approximated(np.array(1.0)) < 1e-6


def test_unit_roundoff_is_half_the_gap_above_one() -> None:
    for name in ("float64", "float32", "float16"):
        assert tolerance.UNIT_ROUNDOFF[name] == np.finfo(name).eps / 2


def test_gamma_grows_slightly_faster_than_its_terms() -> None:
    assert tolerance.gamma(10, 2.0**-24) == pytest.approx(10 * 2.0**-24, rel=1e-6)
    assert tolerance.gamma(10, 2.0**-24) > 10 * 2.0**-24


@pytest.mark.parametrize("scale", [0.5, 1e-3])
def test_two_steps_are_too_many(scale: float) -> None:
    assert scale < tolerance.one_step(scale) < 2 * scale
