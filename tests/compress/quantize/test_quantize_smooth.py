"""Smoothed transformers: the same function, outliers moved into weights, and the reasons where nothing is done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.compress.quantize.smooth import observed_tensors, smooth, smoothing_factors
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.errors import RecipeError
from edgewise.passes.contract import check, signature
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, random_feeds, transformer_block
from edgewise.testing.tolerance import gamma

MakeRun = Callable[[ir.Model], Run]

WIDTH = 8


def normed(*, post: bool = False, rms: bool = False, output: bool = False) -> ir.Model:
    """Return a LayerNormalization with an outlier channel, three matrices that read it, and their sum `y`.

    Args:
        post: Whether the normalized tensor is added to the sum, as in post-norm transformers.
        rms: Whether it is a product with a vector instead.
        output: Whether it is an output of the model.
    """
    b = GraphBuilder("normed")
    gamma_values = np.ones(WIDTH, np.float32)
    gamma_values[2] = 50
    x, factors = b.input("x", (4, WIDTH)), b.constant(gamma_values)
    if rms:
        root = b.node("Sqrt", b.node("ReduceMean", b.node("Mul", x, x), axes=[-1]))
        norm = b.node("Mul", b.node("Div", x, root), factors, name="norm")
    else:
        norm = b.node("LayerNormalization", x, factors, b.weight(WIDTH), name="norm")
    query, key = (b.node("MatMul", norm, b.weight(WIDTH, WIDTH)) for _ in range(2))
    content = b.node(
        "Gemm", b.node("Reshape", norm, b.constant(np.array([4, WIDTH], np.int64))), b.weight(WIDTH, WIDTH)
    )
    total = b.node("Add", b.node("Mul", query, key), content)
    if post:
        total = b.node("LayerNormalization", b.node("Add", norm, total), b.weight(WIDTH), name="next")
    b.output(total, "y")
    if output:
        b.output(norm, "normed")
    return b.build()


def seen(model: ir.Model, make_run: MakeRun, *, branch: bool = False) -> Statistics:
    names = observed_tensors(model, branch=branch)
    feeds = [random_feeds(model, seed=seed) for seed in range(4)]
    return collect(make_run(observe(model, names)), feeds, names)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("post", [False, True])
def test_with_powers_of_two_every_bit_stays(rms: bool, post: bool, any_run: MakeRun, ort_run: MakeRun) -> None:
    if rms and post:
        return  # branches are made behind LayerNormalization alone
    model = normed(rms=rms, post=post)
    before = signature(model)
    result, findings = smooth(model, seen(model, ort_run, branch=post), powers_of_two=True, branch=post)
    check("smooth", model, result)
    assert signature(model) == before
    assert [change.node for change in findings.changes] == ["norm"]
    feeds = random_feeds(model, seed=9)
    assert np.array_equal(any_run(model)(feeds)["y"], any_run(result)(feeds)["y"])


def test_the_outlier_moves_into_the_weights(ort_run: MakeRun) -> None:
    model = normed()
    result, findings = smooth(model, seen(model, ort_run))
    assert findings.declines == []
    before, after = (next(iter(seen(one, ort_run).tensors.values())) for one in (model, result))
    assert before.high / np.median(before.channel_high) > 20
    assert after.high / np.median(after.channel_high) < 8
    feeds = random_feeds(model, seed=3)
    expected, got = ort_run(model)(feeds)["y"], ort_run(result)(feeds)["y"]
    # Gamma, beta and the weights are rounded once more, sums have 8 terms; a product of two such sums, and an addition.
    scale = np.abs(expected).max() + 50.0**2 * WIDTH
    assert np.abs(expected - got).max() <= 2 * gamma(2 * (WIDTH + 4) + 1, 2.0**-24) * scale


def test_a_whole_block_keeps_its_function(ort_run: MakeRun) -> None:
    model = transformer_block(standard=True)
    result, findings = smooth(model, seen(model, ort_run), alpha=1.0, powers_of_two=True)
    assert [change.node for change in findings.changes] == ["norm1", "norm2"]
    feeds = random_feeds(model, seed=3)
    assert np.array_equal(ort_run(model)(feeds)["out"], ort_run(result)(feeds)["out"])


def test_a_residual_sum_is_declined_or_gets_a_product(ort_run: MakeRun) -> None:
    model = normed(post=True)
    result, findings = smooth(model, seen(model, ort_run))
    assert findings.changes == []
    (decline,) = [one for one in findings.declines if one.node == "norm"]
    assert decline.reason == "`next` normalizes over the channels"
    assert signature(result) == signature(model)
    branched, findings = smooth(model, seen(model, ort_run, branch=True), branch=True)
    assert len(branched.graph) == len(model.graph) + 1
    assert [one.node for one in findings.declines] == ["next"]


def test_a_product_that_gets_no_factors_is_taken_back() -> None:
    model = normed(post=True)
    result, findings = smooth(model, Statistics({}, 1), branch=True)
    assert findings.changes == []
    assert "its channels were not observed" in [one.reason for one in findings.declines]
    assert signature(result) == signature(model)


@pytest.mark.parametrize("branch", [False, True])
def test_outputs_of_the_model_are_declined(branch: bool, ort_run: MakeRun) -> None:
    model = normed(output=True)
    result, findings = smooth(model, seen(model, ort_run, branch=branch), branch=branch)
    assert findings.declines[0].reason == "`normed` is an output of the model"
    assert signature(result) == signature(model)


@pytest.mark.parametrize("alpha", [-0.5, 1.5, float("nan")])
def test_an_alpha_out_of_range_is_an_error(alpha: float) -> None:
    with pytest.raises(RecipeError, match="between 0 and 1"):
        smooth(normed(), Statistics({}, 1), alpha=alpha)


@given(
    hnp.arrays(np.float64, 4, elements=st.floats(1e-6, 1e6)),
    hnp.arrays(np.float64, 4, elements=st.floats(1e-6, 1e6)),
    st.floats(0, 1),
)
def test_factors_are_those_of_the_paper_but_for_a_common_one(
    activations: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], alpha: float
) -> None:
    factors = smoothing_factors(activations, weights, alpha)
    ratio = factors / (activations**alpha / weights ** (1 - alpha))
    assert np.allclose(ratio, ratio[0], rtol=1e-9)
    assert np.prod(factors) == pytest.approx(1.0, rel=1e-9)


def test_dead_channels_have_factor_one() -> None:
    factors = smoothing_factors(np.array([0.0, 2.0, 8.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0]), 1.0)
    assert factors.tolist() == [1.0, 0.5, 2.0, 1.0]
    assert smoothing_factors(np.zeros(2), np.ones(2), 0.5).tolist() == [1, 1]
