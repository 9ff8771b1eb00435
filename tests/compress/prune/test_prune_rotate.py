"""Another basis for queries and keys: the same function, ranks that come out, and what stands in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.analysis.coupling import Axis, Group, Reader, couple
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.options import options, stitch
from edgewise.compress.prune.readers import seen
from edgewise.compress.prune.rotate import Makers, makers_of, principal_basis, rotated
from edgewise.compress.prune.sequence import prune_neurons
from edgewise.compress.runner import Opener
from edgewise.records.tensors import Feeds, Run
from edgewise.testing.graphs import GraphBuilder

MakeRun = Callable[[ir.Model], Run]

WIDTH, PLACES = 6, 9


def attention(*, rank: int = WIDTH, between: str = "", heads: int = 1) -> ir.Model:
    """Return an attention whose queries and keys have products of some rank, with an operator between, possibly."""
    draw = np.random.default_rng(3)
    b = GraphBuilder("attention", seed=4)
    x = b.input("x", [1, PLACES, 8])

    def split(name: str, order: list[int]) -> str:
        weight = draw.standard_normal((8, heads, WIDTH)) / 3
        if name == "q":
            weight = weight @ draw.standard_normal((WIDTH, rank)) @ draw.standard_normal((rank, WIDTH)) / rank
        made = b.node("MatMul", x, b.constant(weight.reshape(8, -1).astype(np.float32), f"{name}_w"), name=name)
        bias = 0.2 * draw.standard_normal(heads * WIDTH) if rank == WIDTH else np.zeros(heads * WIDTH)
        made = b.node("Add", made, b.constant(bias.astype(np.float32), f"{name}_b"), name=f"{name}_add")
        if between and name == "q":
            made = b.node(between, made)
        shaped = b.node("Reshape", made, b.constant(np.array([1, PLACES, heads, WIDTH]), f"{name}_shape"))
        return b.node("Transpose", shaped, perm=order)

    q, k, v = split("q", [0, 2, 1, 3]), split("k", [0, 2, 3, 1]), split("v", [0, 2, 1, 3])
    scores = b.node("Mul", b.node("MatMul", q, k, name="scores"), b.constant(np.float32(0.5)))
    mixed = b.node("Transpose", b.node("MatMul", b.node("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    flat = b.node("Reshape", mixed, b.constant(np.array([1, PLACES, heads * WIDTH]), "flat_shape"))
    b.output(b.node("MatMul", flat, b.weight(heads * WIDTH, 4), name="out"), "y")
    return b.build()


def group_of(model: ir.Model) -> Group:
    return next(group for group in couple(model).groups if group.readers[0].node == "scores")


def samples(count: int, seed: int = 0) -> list[Feeds]:
    draw = np.random.default_rng(seed)
    return [{"x": draw.standard_normal((1, PLACES, 8)).astype(np.float32)} for _ in range(count)]


def opener(make_run: MakeRun) -> Opener:
    @contextmanager
    def open_model(model: ir.Model) -> Iterator[Run]:
        yield make_run(model)

    return open_model


def differ(model: ir.Model, other: ir.Model, make_run: MakeRun) -> float:
    one, two = make_run(model), make_run(other)
    wanted = np.stack([one(feed)["y"] for feed in samples(30, 1)])
    found = np.stack([two(feed)["y"] for feed in samples(30, 1)])
    return float(np.square(wanted - found).mean() / wanted.var())


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_basis_changes_nothing_and_the_first_units_are_the_best(seed: int, width: int, kept: int) -> None:
    draw = np.random.default_rng(seed)
    q, k = draw.standard_normal((40, width)), draw.standard_normal((30, width))
    basis = principal_basis((q.T @ q / 40)[None], (k.T @ k / 30)[None])
    q_new, k_new = q @ basis.left[0], k @ basis.right[0]
    np.testing.assert_allclose(q_new @ k_new.T, q @ k.T, atol=1e-9)
    kept = min(kept, width)
    left = q_new[:, :kept] @ k_new[:, :kept].T
    singular = np.linalg.svd(q @ k.T, compute_uv=False)
    # Eckart and Young: no matrix of that rank comes nearer.
    assert np.square(q @ k.T - left).sum() == pytest.approx(np.square(singular[kept:]).sum(), abs=1e-8)
    assert basis.strengths[0, kept:].sum() == pytest.approx(np.square(singular[kept:]).sum() / 1200, abs=1e-9)


def test_a_model_in_another_basis_is_the_same_function(ort_run: MakeRun) -> None:
    model = attention()
    group = group_of(model)
    (one,) = seen(model, [group], opener(ort_run), samples(20))
    assert set(one.basis) == {"q_w", "q_b", "k_w", "k_b"}
    copy = model.clone()
    for name, values in one.basis.items():
        assert np.abs(values - np.asarray(constant(model.graph.initializers[name]))).max() > 0.01
        copy.graph.initializers[name].const_value = ir.tensor(values, name=name)
    # A few dozen float32 products; the basis amplifies rounding a thousandfold at most, squared here.
    assert differ(model, copy, ort_run) < 1e-8


def test_products_of_low_rank_lose_nothing(ort_run: MakeRun) -> None:
    model = attention(rank=2)
    group = group_of(model)
    assert group.size == WIDTH
    made = prune_neurons(model, couple(model), {group.name: 2}, opener(ort_run), samples(30))
    assert differ(model, made.model, ort_run) < 1e-6
    assert differ(model, cut(model, {group.name: range(4)}, couple(model)), ort_run) > 1e-3
    chosen = options(model, couple(model), {group.name: [2]}, opener(ort_run), samples(30))[group.name]
    # Eigenvalues are raised to 1e-6 of the largest, in four units.
    assert chosen[0].error < 1e-5
    assert differ(model, stitch(model, couple(model), chosen), ort_run) < 1e-6
    assert made.declines == ()


def test_behind_a_nonlinear_operator_units_stay_and_go_by_their_energy(ort_run: MakeRun) -> None:
    model = attention(between="Relu")
    group = group_of(model)
    sources = [str(value.name) for value in next(node for node in model.graph if node.name == "scores").inputs if value]
    assert makers_of(model, group, sources) == "Relu stands between its weights and the product"
    (one,) = seen(model, [group], opener(ort_run), samples(10))
    assert one.basis == {}
    made = prune_neurons(model, couple(model), {group.name: 5}, opener(ort_run), samples(10))
    assert [decline.node for decline in made.declines] == ["scores"]
    assert "it has no weights that could" in made.declines[0].reason
    gone = made.removed[group.name]
    others = [unit for unit in range(WIDTH) if unit not in gone]
    tried = [differ(model, cut(model, {group.name: [unit]}, couple(model)), ort_run) for unit in others]
    assert differ(model, cut(model, made.removed, couple(model)), ort_run) <= np.median(tried)


def test_each_head_gets_its_own_basis() -> None:
    model = attention(heads=2)
    units = np.tile(np.arange(WIDTH), 2)
    makers = Makers((Axis("q_w", 1, units), Axis("q_b", 0, units)), (Axis("k_w", 1, units), Axis("k_b", 0, units)), 2)
    same = principal_basis(np.tile(np.eye(WIDTH), (2, 1, 1)), np.tile(np.eye(WIDTH), (2, 1, 1)))
    same.left[1] *= 2.0
    made = rotated(model, makers, same)["q_w"]
    old = np.asarray(constant(model.graph.initializers["q_w"])).reshape(8, 2, WIDTH)
    expected = np.einsum("ihd,hde->ihe", old, same.left)
    np.testing.assert_allclose(made.reshape(8, 2, WIDTH), expected, rtol=1e-5, atol=1e-6)


def test_heads_of_several_are_found_in_the_weights() -> None:
    model = attention(heads=2)
    units = np.tile(np.arange(WIDTH), 2)
    named = [("q_w", 1), ("q_b", 0), ("k_w", 1), ("k_b", 0)]
    axes = tuple(Axis(name, axis, units) for name, axis in named)
    scores = next(node for node in model.graph if node.name == "scores")
    sources = [str(value.name) for value in scores.inputs if value is not None]
    group = Group("q_out", WIDTH, axes, (Reader("scores", 0, 3, None), Reader("scores", 1, 2, None)), ("q", "k"))
    makers = makers_of(model, group, sources)
    assert isinstance(makers, Makers)
    assert makers.heads == 2
    assert [axis.value for axis in (*makers.left, *makers.right)] == ["q_b", "q_w", "k_b", "k_w"]
