"""Equalized models: the same function, ranges that agree, and the reasons where nothing is done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.compress.quantize.channel_groups import find_groups, largest_weights, magnitudes, observed_tensors
from edgewise.compress.quantize.equalize import (
    LEAST_SHARE,
    activation_factors,
    equalize,
    nearest_powers_of_two,
    weight_factors,
)
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.errors import RecipeError
from edgewise.passes.contract import check, signature
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, depthwise_net, quantized_conv, random_feeds

MakeRun = Callable[[ir.Model], Run]

positive = hnp.arrays(np.float64, 5, elements=st.floats(1e-6, 1e6))


def uneven(*, dead: bool = False) -> ir.Model:
    """Return Conv, Relu, depthwise Conv, Relu, Conv with channels of very different ranges."""
    b = GraphBuilder("uneven")
    spread = np.exp2(np.arange(8) - 4).astype(np.float32)
    random = np.random.default_rng(0)
    first = random.standard_normal((8, 3, 1, 1)).astype(np.float32) * spread[:, None, None, None]
    bias = np.abs(random.standard_normal(8)).astype(np.float32) * spread
    if dead:
        first[3], bias[3] = 0, 0
    value = b.node("Conv", b.input("x", (1, 3, 6, 6)), b.constant(first), b.constant(bias), name="first")
    value = b.node("Conv", b.node("Relu", value), b.weight(8, 1, 3, 3), b.weight(8), name="depthwise", group=8)
    b.output(b.node("Conv", b.node("Relu", value), b.weight(4, 8, 1, 1), name="last"), "y")
    return b.build()


def seen(model: ir.Model, make_run: MakeRun) -> Statistics:
    names = observed_tensors(model)
    feeds = [random_feeds(model, seed=seed) for seed in range(4)]
    return collect(make_run(observe(model, names)), feeds, names)


@pytest.mark.parametrize("powers_of_two", [True, False])
@pytest.mark.parametrize("by", ["weights", "activations"])
def test_the_function_stays(by: str, powers_of_two: bool, any_run: MakeRun, ort_run: MakeRun) -> None:
    model = uneven()
    before = signature(model)
    statistics = seen(model, ort_run) if by == "activations" else None
    result, findings = equalize(model, statistics, powers_of_two=powers_of_two)
    check("equalize", model, result)
    assert [change.node for change in findings.changes] == ["first", "depthwise"]
    assert signature(model) == before
    feeds = random_feeds(model, seed=9)
    expected, got = any_run(model)(feeds)["y"], any_run(result)(feeds)["y"]
    if powers_of_two:
        assert np.array_equal(expected, got)
        return
    # Twice: each constant is rounded at most once a sweep and three layers sum up to 9, 9 and 8 products, biases
    # included. Magnitudes are those of the net with absolute weights and inputs.
    bound = 2 * (40 + 27) * 2.0**-24 * _magnitude(model, ort_run, feeds)
    assert (np.abs(expected - got) <= bound).all()
    assert not np.array_equal(expected, got)


def _magnitude(
    model: ir.Model, make_run: MakeRun, feeds: dict[str, npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    absolute = model.clone()
    for value in absolute.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(np.abs(value.const_value.numpy()), name=value.name)
    return np.asarray(make_run(absolute)({name: np.abs(array) for name, array in feeds.items()})["y"])


def test_weights_have_the_same_ranges_on_both_sides_afterwards() -> None:
    result, _ = equalize(uneven())
    for group in find_groups(result)[0]:
        rows, columns = largest_weights(group.writers, group.size), largest_weights(group.readers, group.size)
        assert np.abs(np.log2(rows / columns)).max() <= 2 * 2**-8 + 1e-6


def test_activations_have_the_ranges_that_were_asked_for(ort_run: MakeRun) -> None:
    model = uneven()
    before = [magnitudes(group, seen(model, ort_run)) for group in find_groups(model)[0]]
    result, _ = equalize(model, seen(model, ort_run), strength=1.0)
    after = [magnitudes(group, seen(result, ort_run)) for group in find_groups(result)[0]]
    for old, new in zip(before, after, strict=True):
        assert old is not None
        assert new is not None
        assert new.max() == pytest.approx(old.max(), rel=1e-5)
        reached = old / old.max() >= LEAST_SHARE
        assert np.allclose(new[reached], new.max(), rtol=1e-5)


def test_strength_zero_changes_nothing(ort_run: MakeRun) -> None:
    model = uneven()
    result, findings = equalize(model, seen(model, ort_run), strength=0.0)
    assert findings.changes == []
    assert signature(result) == signature(model)


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_dead_channels_keep_their_scale(by: str, ort_run: MakeRun) -> None:
    model = uneven(dead=True)
    result, _ = equalize(model, seen(model, ort_run) if by == "activations" else None)
    first = result.graph.initializers
    feeds = random_feeds(model)
    assert np.isfinite(ort_run(result)(feeds)["y"]).all()
    assert all(
        np.isfinite(value.const_value.numpy()).all() for value in first.values() if value.const_value is not None
    )
    assert largest_weights(find_groups(result)[0][0].writers, 8)[3] == 0


def test_clip_and_outputs_are_declined_with_the_reason() -> None:
    _, findings = equalize(depthwise_net())
    assert findings.changes == []
    reasons = {decline.node: decline.reason for decline in findings.declines}
    assert "BatchNormalization" in reasons["expand_conv"]
    assert reasons["head"] == "`scores` is an output of the model"
    assert {decline.stage for decline in findings.declines} == {"equalize"}


def test_channels_that_were_not_observed_are_declined() -> None:
    result, findings = equalize(uneven(), Statistics({}, 1))
    assert findings.changes == []
    assert [one.reason for one in findings.declines if "observed" in one.reason] == [
        "its channels were not observed"
    ] * 2
    assert np.array_equal(largest_weights(find_groups(result)[0][0].readers, 8), _columns())


def _columns() -> npt.NDArray[np.float64]:
    return largest_weights(find_groups(uneven())[0][0].readers, 8)


def test_constants_that_would_leave_float32_are_declined(ort_run: MakeRun) -> None:
    b = GraphBuilder("extreme")
    # The second channel is small and would be enlarged; what reads it is float32's smallest normal number already.
    first = b.constant(np.array([[1e10, 1e-8], [1e10, 1e-8]], np.float32))
    last = b.constant(np.array([[1e10], [np.finfo(np.float32).tiny]], np.float32))
    b.output(b.node("Gemm", b.node("Gemm", b.input("x", (1, 2)), first, name="first"), last), "y")
    model = b.build()
    result, findings = equalize(model, seen(model, ort_run))
    (decline,) = [one for one in findings.declines if one.node == "first"]
    assert "would leave the range of float32" in decline.reason
    assert signature(result) == signature(model)


def test_quantized_models_are_left_alone() -> None:
    model = quantized_conv()
    result, findings = equalize(model)
    assert findings.changes == []
    assert signature(result) == signature(model)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_an_error(strength: float) -> None:
    with pytest.raises(RecipeError, match="between 0 and 1"):
        equalize(uneven(), strength=strength)


@given(positive, positive)
def test_weight_factors_give_both_sides_the_geometric_mean(
    rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> None:
    factors = weight_factors(rows, columns)
    assert np.allclose(rows / factors, np.sqrt(rows * columns), rtol=1e-12)
    assert np.allclose(columns * factors, np.sqrt(rows * columns), rtol=1e-12)


@given(hnp.arrays(np.float64, 5, elements=st.floats(0, 1e6)), st.floats(0, 1))
def test_activation_factors_never_widen_the_tensor(ranges: npt.NDArray[np.float64], strength: float) -> None:
    factors = activation_factors(ranges, strength)
    assert (factors >= LEAST_SHARE**strength * (1 - 1e-12)).all()
    assert (factors <= 1).all()
    assert (factors[ranges == 0] == 1).all()
    assert (ranges / factors <= ranges.max() * (1 + 1e-12)).all()
    order = np.argsort(ranges, kind="stable")
    assert (np.diff((ranges / factors)[order]) >= -1e-9 * ranges.max()).all()


def test_dead_channels_have_factor_one() -> None:
    assert weight_factors(np.array([0.0, 4.0, 2.0]), np.array([1.0, 0.0, 2.0])).tolist() == [1, 1, 1]
    assert activation_factors(np.zeros(2), 0.5).tolist() == [1, 1]


@given(positive)
def test_powers_of_two_are_within_half_an_octave(factors: npt.NDArray[np.float64]) -> None:
    rounded = nearest_powers_of_two(factors)
    assert (np.frexp(rounded)[0] == 0.5).all()
    assert np.abs(np.log2(rounded / factors)).max() <= 0.5 + 1e-12
