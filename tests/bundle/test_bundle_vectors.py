"""Test vectors: kept to the bit, compared without excuses, with tolerances that follow the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.bundle.vectors import COARSE_UNIT, FLOAT_UNIT, MARGIN, Vectors, difference, tolerances
from edgewise.records.candidate import Candidate, Fuse, Precision, Quantize, RunOptions, Step
from edgewise.records.tensors import Array, Feeds, Outputs

FLOATS = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-(2.0**99), 2.0**99, width=32)
)


def candidate(*steps: Step, precision: Precision = "fp32") -> Candidate:
    return Candidate(steps=steps, backend="ort", options=RunOptions(precision=precision))


def test_vectors_survive_packing() -> None:
    vectors = Vectors(
        feeds=({"a b": np.arange(3.0), "out 0": np.array(True)}, {"a b": np.zeros(0), "out 0": np.array(False)}),
        expected=(({"y z": np.ones((2, 2), np.int8)}, {"y z": np.zeros((2, 2), np.int8)}),) * 2,
    )
    back = Vectors.unpack(vectors.pack())
    for mine, other in ((vectors.feeds, back.feeds), *zip(vectors.expected, back.expected, strict=True)):
        assert [list(arrays) for arrays in mine] == [list(arrays) for arrays in other]
        for one, two in zip(mine, other, strict=True):
            for name in one:
                assert one[name].dtype == two[name].dtype
                np.testing.assert_array_equal(one[name], two[name])
    assert vectors.pack() == back.pack()


@given(FLOATS)
def test_an_array_does_not_differ_from_itself(array: Array) -> None:
    assert difference(array, array.copy()) == 0.0


@given(FLOATS, st.floats(2.0**-20, 2.0**100, width=32), st.data())
def test_the_largest_difference_is_found(array: Array, step: float, data: st.DataObject) -> None:
    other = array.astype(np.float64)
    position = data.draw(st.tuples(*(st.integers(0, size - 1) for size in array.shape)))
    other[position] += step
    found = difference(array.astype(np.float64), other)
    # One rounding of the sum and one of the difference, both relative to the larger value.
    assert abs(found - step) <= 2.0**-52 * 2 * (abs(float(array[position])) + step)


@pytest.mark.parametrize(
    ("expected", "received", "apart"),
    [
        (np.array([1.0, np.nan]), np.array([1.5, np.nan]), 0.5),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), math.inf),
        (np.array([np.inf]), np.array([np.inf]), 0.0),
        (np.array([np.inf]), np.array([-np.inf]), math.inf),
        (np.array([1.0]), np.array([np.inf]), math.inf),
        (np.array([0.0]), np.array([-0.0]), 0.0),
        (np.array([1.0]), np.array([[1.0]]), math.inf),
        (np.array([1.0], np.float32), np.array([1.0]), math.inf),
        (np.array([3], np.int64), np.array([5], np.int64), 2.0),
        (np.array([True]), np.array([False]), 1.0),
        (np.array(["a"]), np.array(["b"]), math.inf),
        (np.array(["a"]), np.array(["a"]), 0.0),
        (np.zeros(0), np.zeros(0), 0.0),
    ],
)
def test_differences_at_the_edges(expected: Array, received: Array, apart: float) -> None:
    assert difference(expected, received) == apart


def linear(factor: float):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a local function
    def run(feeds: Feeds) -> Outputs:
        return {"y": feeds["x"] * np.float32(factor), "best": np.asarray(feeds["x"].argmax())}

    return run


def tolerance_of(factor: float, what: Candidate, x: Array) -> dict[str, float]:
    run, feeds = linear(factor), [{"x": x}]
    return tolerances(run, feeds, [run(feed) for feed in feeds], what)


@pytest.mark.parametrize(
    ("what", "unit"),
    [
        (candidate(), FLOAT_UNIT),
        (candidate(Fuse()), FLOAT_UNIT),
        (candidate(Fuse(), Quantize()), COARSE_UNIT),
        (candidate(precision="bf16"), COARSE_UNIT),
    ],
)
def test_a_linear_model_passes_the_change_on(what: Candidate, unit: float) -> None:
    x = np.linspace(0.5, 1, 64, dtype=np.float32)
    found = tolerance_of(8, what, x)
    # The largest input is 1 and the factor 8: neither more than 8 units come out nor, by the floor, less.
    assert 8 * unit * MARGIN <= found["y"] <= 8 * unit * MARGIN * (1 + 2**-3)
    assert found["best"] == 0.0


def test_an_ill_conditioned_model_gets_more() -> None:
    def run(feeds: Feeds) -> Outputs:
        return {"y": (feeds["x"] - np.float32(1)) * np.float32(1e4)}

    feeds = [{"x": np.full(16, 1.0001, np.float32)}]
    found = tolerances(run, feeds, [run(feed) for feed in feeds], candidate())
    # The output is about 1; a change of the input comes out 10,000 times as large.
    assert found["y"] > 5000 * FLOAT_UNIT * MARGIN


def test_exact_inputs_stay_exact() -> None:
    seen: list[Array] = []

    def run(feeds: Feeds) -> Outputs:
        seen.append(feeds["x"])
        return {"y": feeds["x"].astype(np.float32)}

    feeds = [{"x": np.arange(8, dtype=np.uint8)}]
    tolerances(run, feeds, [run(feeds[0])], candidate(Quantize()))
    assert all(np.array_equal(array, feeds[0]["x"]) for array in seen)


def test_tolerances_are_finite_whatever_comes_out() -> None:
    def run(feeds: Feeds) -> Outputs:
        return {"y": np.array([np.inf, np.nan, feeds["x"][0]], np.float32)}

    feeds = [{"x": np.ones(1, np.float32)}]
    found = tolerances(run, feeds, [run(feeds[0])], candidate())
    assert 0 < found["y"] < 1e-4


def test_inputs_without_dimensions_keep_none() -> None:
    """`numpy.ascontiguousarray` gives them one, which a session refuses."""
    shapes = set()

    def run(feeds: Feeds) -> Outputs:
        shapes.add(feeds["x"].shape)
        return {"y": np.asarray(feeds["x"])}

    feed = {"x": np.float32(3) * np.ones((), np.float32)}
    tolerances(run, [feed], [{"y": feed["x"]}], candidate())
    assert shapes == {()}
