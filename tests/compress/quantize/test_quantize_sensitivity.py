"""Distances between outputs against their definitions, and the damage of single nodes against the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from edgewise.analysis.target import Target
from edgewise.compress.quantize import sensitivity
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.plan import observed_tensors, plan
from edgewise.compress.quantize.restore import quantized_nodes
from edgewise.compress.quantize.sensitivity import (
    additivity,
    cosine_distance,
    damages,
    decisions,
    divergence,
    log_softmax,
    noise_to_signal,
    recognise,
    sensitivities,
)
from edgewise.compress.runner import Opener
from edgewise.compress.statistics import collect, observe
from edgewise.errors import ContractError, DataError, ModelError
from edgewise.records.candidate import Quantize
from edgewise.records.tensors import Feeds, Run
from edgewise.testing.graphs import GraphBuilder, conv_net, random_feeds

MakeRun = Callable[[ir.Model], Run]
Floats = npt.NDArray[np.float64]

rows = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-30, 30), min_size=n, max_size=n), st.lists(st.floats(-30, 30), min_size=n, max_size=n)
    )
)


def opener(make_run: MakeRun) -> Opener:
    @contextmanager
    def opened(model: ir.Model) -> Iterator[Run]:
        yield make_run(model)

    return opened


@given(rows)
def test_the_divergence_is_that_of_its_definition(pair: tuple[list[float], list[float]]) -> None:
    first, second = (np.array(x) for x in pair)
    p, q = softmax(first), softmax(second)
    expected = float(np.sum(rel_entr(p, q)))
    # Differences of logarithms up to 60 in float64, weights that sum to 1.
    assert divergence(first, second, "logits") == pytest.approx(expected, abs=1e-12)
    assert np.allclose(np.exp(log_softmax(first)), p, atol=1e-14)
    if q.min() > 1e-8 and p.min() > 1e-8:
        assert divergence(p, q, "probabilities") == pytest.approx(expected, abs=1e-7)
    assert divergence(first, first, "logits") == 0


def test_a_shift_of_all_scores_is_no_divergence_and_large_scores_do_not_overflow() -> None:
    scores = np.array([1e4, 1e4 - 3, -1e4], np.float32)
    assert divergence(scores, scores + np.float32(500), "logits") == 0
    assert math.isfinite(divergence(scores, scores[::-1], "logits"))


def test_probabilities_that_integers_made_zero_are_finite_and_need_not_sum_to_one() -> None:
    p = np.array([0.5, 0.4999, 0.0001])
    assert divergence(p, np.array([0.5, 0.5, 0.0]), "probabilities") < 0.002
    assert divergence(p, 0.9 * p, "probabilities") == pytest.approx(0, abs=1e-8)


def test_independent_probabilities_add_up() -> None:
    p, q = np.array([0.5, 0.2]), np.array([0.25, 0.2])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(p, q, "independent") == pytest.approx(expected)


@given(rows)
def test_noise_and_angle(pair: tuple[list[float], list[float]]) -> None:
    a, b = (np.array(x) for x in pair)
    assert noise_to_signal(a, b) == pytest.approx((float(np.sum((a - b) ** 2)), float(np.sum(a**2))))
    if np.linalg.norm(a) > 1e-3 and np.linalg.norm(b) > 1e-3:
        expected = 1 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))
        assert cosine_distance(a, b) == pytest.approx(expected, abs=1e-9)
    assert cosine_distance(np.zeros(3), np.zeros(3)) == 0
    assert cosine_distance(np.zeros(3), np.ones(3)) == 1


def test_infinities_of_a_mask_count_for_nothing() -> None:
    masked = np.array([1.0, -np.inf, 2.0])
    assert noise_to_signal(masked, np.array([1.0, -np.inf, 3.0])) == (1.0, 5.0)
    finite = np.array([1.0, 3.0])
    with np.errstate(all="raise", under="ignore"):
        found = divergence(masked, np.array([1.0, -np.inf, 3.0]), "logits")
        assert found == pytest.approx(divergence(np.array([1.0, 2.0]), finite, "logits"))
        assert divergence(np.array([1.0, np.inf]), np.array([1.0, np.inf]), "logits") == 0
        assert divergence(np.full(2, -np.inf), np.full(2, -np.inf), "logits") == 0


SOFT = softmax(np.random.default_rng(0).standard_normal((4, 1, 5)), axis=-1).astype(np.float32)


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (list(SOFT), "probabilities"),
        (list(SOFT.reshape(1, 4, 5)), "probabilities"),
        ([np.array([[0.2, 0.8]]), np.array([[0.4, 0.9]])], "independent"),
        ([np.array([[0.2]])], "independent"),
        ([np.array([[1.0, 0.0]]), np.array([[3.0, -1.0]])], "logits"),  # the first alone sums to 1
        ([np.array([3.0, -1.0])], "logits"),
        ([np.array([[3.0]])], "numbers"),
        ([np.ones((1, 4, 8, 8))], "numbers"),
        ([np.array([[1, 2]])], "numbers"),
        ([np.ones((1, 0))], "numbers"),
    ],
)
def test_what_an_output_holds_is_recognised(outputs: list[Floats], kind: str) -> None:
    assert recognise(outputs) == kind


def test_decisions() -> None:
    assert decisions(np.array([[0.1, 0.9]]), "probabilities").tolist() == [1]
    assert decisions(np.array([[0.1, 0.9]]), "independent").tolist() == [[False, True]]


def scaled(weight: float) -> ir.Model:
    b = GraphBuilder("scaled")
    x = b.input("x", (1, 4))
    b.output(b.node("Mul", x, b.constant(np.float32(weight)), name="mul"), "y", (1, 4))
    return b.build()


def feeds_of(count: int) -> list[Feeds]:
    draw = np.random.default_rng(1)
    return [{"x": draw.standard_normal((1, 4)).astype(np.float32)} for _ in range(count)]


def test_variants_are_compared_in_their_order(ort_run: MakeRun) -> None:
    seen: list[str] = []
    equal, double, turned = sensitivities(
        scaled(1),
        {"equal": lambda: scaled(1), "double": lambda: scaled(2), "turned": lambda: scaled(-1)},
        opener(ort_run),
        feeds_of(7),
        progress=seen.append,
    )
    assert seen == ["equal", "double", "turned"]
    assert (equal.node, equal.kl, equal.nsr, equal.flips, equal.sqnr_db, equal.n) == ("equal", 0, 0, 0, None, 7)
    assert (double.nsr, double.sqnr_db, double.flips) == (1, 0, 0)
    assert double.kl is not None
    assert double.kl > 0
    assert double.cosine == pytest.approx(0, abs=1e-7)
    assert turned.flips == 7
    assert turned.cosine == pytest.approx(2)
    assert turned.damage == turned.kl


def test_outputs_that_are_no_scores_are_measured_by_noise(ort_run: MakeRun) -> None:
    (found,) = sensitivities(
        scaled(1), {"v": lambda: scaled(1.1)}, opener(ort_run), feeds_of(3), kinds={"y": "numbers"}
    )
    assert found.kl is None
    assert found.flips is None
    assert found.damage == found.nsr == pytest.approx(0.01, rel=1e-5)


def test_outputs_too_large_to_keep_are_made_again(ort_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"a": lambda: scaled(1.5), "b": lambda: scaled(0.5)}
    kept = sensitivities(scaled(1), variants, opener(ort_run), feeds_of(5))
    monkeypatch.setattr(sensitivity, "CACHE_BYTES", 40)
    assert sensitivities(scaled(1), variants, opener(ort_run), feeds_of(5)) == kept


def test_what_cannot_be_compared_is_refused(ort_run: MakeRun) -> None:
    b = GraphBuilder("other")
    b.output(b.node("Neg", b.input("x", (1, 4))), "z", (1, 4))
    other = b.build()
    with pytest.raises(ContractError, match="`y`"):
        sensitivities(scaled(1), {"other": lambda: other}, opener(ort_run), feeds_of(1))
    with pytest.raises(ModelError, match=r"`inf`.*sample 0"):
        sensitivities(scaled(1), {"inf": lambda: scaled(np.inf)}, opener(ort_run), feeds_of(1))
    with pytest.raises(DataError, match="at least one sample"):
        sensitivities(scaled(1), {}, opener(ort_run), [])
    b = GraphBuilder("decided")
    b.output(b.node("ArgMax", b.input("x", (1, 4))), "best", dtype="int64")
    decided = b.build()
    with pytest.raises(ModelError, match=r"hold real numbers.*`best` are whole numbers"):
        sensitivities(decided, {}, opener(ort_run), feeds_of(1))
    with pytest.raises(DataError, match="sample 1 makes NaN"):
        sensitivities(scaled(1), {}, opener(ort_run), [*feeds_of(1), {"x": np.full((1, 4), np.nan, np.float32)}])


def test_additivity() -> None:
    assert additivity(2.0, [1.0, 0.5]).error == -0.25
    assert additivity(0.0, []).error == 0
    assert additivity(0.0, [1.0]).error is None


def test_single_damages_add_up_to_about_the_whole(gives_float: Target, ort_run: MakeRun) -> None:
    model = conv_net()
    feeds = [random_feeds(model, seed=seed) for seed in range(40)]
    names = observed_tensors(model, gives_float)
    statistics = collect(ort_run(observe(model, names)), feeds, names)
    result = apply(model, plan(model, statistics, gives_float, Quantize(ranges="min-max")))
    found = damages(result, model, opener(ort_run), feeds)
    assert tuple(one.node for one in found.alone) == quantized_nodes(result)
    assert tuple(one.node for one in found.without) == quantized_nodes(result)
    assert found.floor.damage == 0  # everything restored is the reference
    assert found.whole.damage > 0
    assert all(one.damage > 0 for one in found.alone)
    # Second order in errors that are nearly independent: cross terms of 40 samples stay well below half.
    assert found.additivity.error is not None
    assert abs(found.additivity.error) < 0.5
    assert found.additivity.summed == pytest.approx(sum(one.damage for one in found.alone))
    assert min(one.damage for one in found.without) < found.whole.damage
    assert damages(result, model, opener(ort_run), feeds) == found
    one = quantized_nodes(result)[:1]
    part = damages(result, model, opener(ort_run), feeds, nodes=one)
    assert part.without == found.without[:1]
    assert part.floor == msgspec.structs.replace(found.without[0], node="floor")
    with pytest.raises(ContractError, match="`nobody`"):
        damages(result, model, opener(ort_run), feeds, nodes=["nobody"])
