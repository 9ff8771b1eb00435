"""Pruning single weights of a whole model: what is zero, what makes up for it, and what stays dense and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.compress.gram import Moments
from edgewise.compress.nodes import constant
from edgewise.compress.prune.weight_layers import Layer, layer_of
from edgewise.compress.prune.weight_sequence import PrunedWeights, prune_weights
from edgewise.compress.prune.weights import Blocks, KeptOfEvery, Pattern, Unstructured
from edgewise.compress.runner import Opener
from edgewise.errors import DataError, RecipeError
from edgewise.records.tensors import Array, Feeds, Run
from edgewise.testing.graphs import GraphBuilder

MakeRun = Callable[[ir.Model], Run]

PATTERNS: list[Pattern] = [Unstructured(), KeptOfEvery(2, 4), Blocks(1, 4), Blocks(4, 1)]


def opener(make_run: MakeRun) -> Opener:
    @contextmanager
    def open_model(model: ir.Model) -> Iterator[Run]:
        yield make_run(model)

    return open_model


def net(seed: int = 3) -> ir.Model:
    """Return a Conv, a depthwise one, a ConvTranspose with a bias, a MatMul and a Gemm with a bias."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        made: Array = (draw.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))).astype(np.float32)
        return made

    b = GraphBuilder("mixed")
    b.input("x", [1, 8, 8, 8])
    one = b.node("Relu", b.node("Conv", "x", b.constant(normal(16, 8, 3, 3))))
    two = b.node("Relu", b.node("Conv", one, b.constant(normal(16, 1, 3, 3)), group=16))
    three = b.node("Relu", b.node("ConvTranspose", two, b.constant(normal(16, 12, 2, 2)), b.constant(normal(12))))
    flat = b.node("Flatten", b.node("GlobalAveragePool", three))
    four = b.node("Relu", b.node("MatMul", flat, b.constant(normal(12, 16))))
    b.output(b.node("Gemm", four, b.constant(normal(5, 16)), b.constant(normal(5)), transB=1), "y")
    return b.build()


def samples(count: int, seed: int = 0, shape: tuple[int, ...] = (8, 8, 8)) -> list[Feeds]:
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((shape[0], shape[0])).astype(np.float32)
    return [{"x": np.tensordot(mixing, draw.standard_normal(shape).astype(np.float32), 1)[None]} for _ in range(count)]


def noise(model: ir.Model, pruned: ir.Model, make_run: MakeRun) -> float:
    """Return the squared error relative to the squared output, on samples that nothing was fitted to."""
    run, other = make_run(model), make_run(pruned)
    outputs = [(run(feed)["y"], other(feed)["y"]) for feed in samples(60, seed=77)]
    return float(sum(np.sum((a - b) ** 2) for a, b in outputs) / sum(np.sum(a**2) for a, _ in outputs))


def weights(model: ir.Model) -> dict[str, Array]:
    found = {}
    for node in model.graph:
        if node.op_type in {"Conv", "ConvTranspose", "MatMul", "Gemm"}:
            array = constant(node.inputs[1])
            assert array is not None
            found[node.op_type + str(array.shape)] = array
    return found


def magnitude_pruned(model: ir.Model, like: ir.Model) -> ir.Model:
    """Return `model` with as many zeros in each layer as `like` has, where the magnitudes are smallest."""
    copy = model.clone()
    for node, other in zip(copy.graph, like.graph, strict=True):
        if node.op_type in {"Conv", "ConvTranspose", "MatMul", "Gemm"}:
            weight, pruned = constant(node.inputs[1]), constant(other.inputs[1])
            assert weight is not None
            assert pruned is not None
            array = weight.copy()
            array.reshape(-1)[np.argsort(np.abs(weight), axis=None)[: np.count_nonzero(pruned == 0)]] = 0
            value = node.inputs[1]
            assert value is not None
            value.const_value = ir.tensor(array)
    return copy


def test_zeros_are_made_up_for(ort_run: MakeRun) -> None:
    model = net()
    before = {name: array.copy() for name, array in weights(model).items()}
    found = prune_weights(model, 0.5, Unstructured(), opener(ort_run), samples(60))
    assert all(np.array_equal(array, before[name]) for name, array in weights(model).items())
    zeros = sum(layer.zeros for layer in found.layers)
    total = sum(array.size for array in before.values())
    assert zeros == pytest.approx(0.5 * total, abs=0.06 * total)  # layers of which less than 5 % would go are dense
    assert zeros == sum(int(np.sum(array == 0)) for array in weights(found.model).values())
    plain = magnitude_pruned(model, found.model)
    assert noise(model, found.model, ort_run) < 0.5 * noise(model, plain, ort_run)
    for layer in found.layers:
        assert layer.error is not None
        assert layer.magnitude_error is not None
        assert 0 <= layer.error < 1
    # Conv got a bias that it had not; nothing that nobody reads is left.
    assert all(len(node.inputs) == 3 for node in found.model.graph if node.op_type in {"Conv", "Gemm"})
    assert all(list(value.uses()) for value in found.model.graph.initializers.values())


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.words)
def test_every_pattern_gives_a_model_that_runs(pattern: Pattern, ort_run: MakeRun) -> None:
    model = net()
    found = prune_weights(model, 0.5, pattern, opener(ort_run), samples(40))
    assert noise(model, found.model, ort_run) < 0.6
    reasons = {decline.operator + decline.node: decline.reason for decline in found.declines}
    if pattern in {KeptOfEvery(2, 4), Blocks(1, 4)}:
        assert any("its 1 input channels are no multiple of 4" in reason for reason in reasons.values())
    first = weights(found.model)["Conv(16, 8, 3, 3)"]
    if isinstance(pattern, KeptOfEvery):
        assert (np.count_nonzero(first.reshape(16, 2, 4, 3, 3), axis=2) <= 2).all()


def test_each_layer_sees_what_the_pruned_ones_before_it_make(ort_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    add = Moments.add

    def spy(self: Moments, x: Array, x_hat: Array, *, sample: int) -> None:
        seen.append(not np.array_equal(x, x_hat))
        add(self, x, x_hat, sample=sample)

    monkeypatch.setattr(Moments, "add", spy)
    found = prune_weights(net(), 0.5, Unstructured(), opener(ort_run), samples(4))
    # One pass over the float model for all five layers; then the first sees the input itself, and the others do not.
    assert seen == [False] * 4 * 5 + [False] * 4 + [True] * 4 * (len(found.layers) - 1)


def test_what_stays_dense_says_why(ort_run: MakeRun) -> None:
    draw = np.random.default_rng(0)
    b = GraphBuilder("refusals")
    b.input("x", [1, 8, 8, 8])
    shared = b.constant(draw.standard_normal((8, 8, 1, 1)).astype(np.float32))
    one = b.node("Conv", "x", shared)
    two = b.node("Conv", b.node("Relu", one), shared)
    rest = b.node("Conv", two, b.constant(draw.standard_normal((8, 8, 3, 3)).astype(np.float32)))
    b.output(rest, "y")
    model = b.build()
    kept = next(node for node in model.graph if node.outputs[0].name == "y")
    found = prune_weights(
        model, 0.5, Unstructured(), opener(ort_run), samples(4), keep={kept.name or kept.outputs[0].name or ""}
    )
    assert found.layers == ()
    reasons = [decline.reason for decline in found.declines]
    assert [("are read elsewhere, too" in one, "kept dense, as asked for" in one) for one in reasons] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert {decline.stage for decline in found.declines} == {"prune_weights"}
    assert noise_free(model, found, ort_run)


def noise_free(model: ir.Model, found: PrunedWeights, make_run: MakeRun) -> bool:
    feed = samples(1)[0]
    return bool(np.array_equal(make_run(model)(feed)["y"], make_run(found.model)(feed)["y"]))


def test_few_samples_are_said_and_do_no_harm(ort_run: MakeRun) -> None:
    model = net()
    found = prune_weights(model, 0.3, Unstructured(), opener(ort_run), samples(1))
    reasons = [decline.reason for decline in found.declines if "fitted cautiously" in decline.reason]
    assert any("1 samples gave 1 rows for its 12 inputs, and 12 samples would give enough" in one for one in reasons)
    assert noise(model, found.model, ort_run) < 0.6
    assert all(layer.error is None for layer in found.layers)


def test_layers_with_few_rows_are_not_taken_for_redundant() -> None:
    draw = np.random.default_rng(0)
    b = GraphBuilder("wide")
    b.input("x", [1, 64])
    one = b.node("Relu", b.node("MatMul", "x", b.constant(draw.standard_normal((64, 64)).astype(np.float32) / 8)))
    b.output(b.node("MatMul", one, b.constant(draw.standard_normal((64, 64)).astype(np.float32) / 8)), "y")
    model = b.build()
    wide = layer_of(next(iter(model.graph)), Unstructured())
    assert isinstance(wide, Layer)
    found = []
    for count in (8, 4000):
        moments = wide.moments()
        for sample in range(count):
            x = draw.standard_normal((1, 64)).astype(np.float32)
            moments.add(x, x, sample=sample)
        summary = moments.all()
        assert summary is not None
        found.append(float(np.median(wide.scores(summary))))
    # Undamped, the inverse of a matrix of rank 8 would make most of them a hundredth.
    assert 0.3 < found[0] / found[1] < 3


def test_no_samples_leave_magnitudes(ort_run: MakeRun) -> None:
    found = prune_weights(net(), 0.3, Unstructured(), opener(ort_run), [])
    assert found.layers
    assert all("no sample gave it an input" in one.reason for one in found.declines if "smallest" in one.reason)
    before, after = weights(net()), weights(found.model)
    for name, array in after.items():
        assert np.array_equal(array[array != 0], before[name][array != 0])


def test_nothing_asked_for_is_nothing_done(ort_run: MakeRun) -> None:
    model = net()
    found = prune_weights(model, 0.0, Unstructured(), opener(ort_run), samples(30))
    assert noise(model, found.model, ort_run) < 1e-10
    assert all(layer.zeros == 0 for layer in found.layers)


@pytest.mark.parametrize("sparsity", [-0.1, 0.96, float("nan")])
def test_shares_out_of_range_are_refused(sparsity: float, ort_run: MakeRun) -> None:
    with pytest.raises(RecipeError, match=r"At least 0 and at most 0\.95"):
        prune_weights(net(), sparsity, Unstructured(), opener(ort_run), samples(1))


def test_samples_that_make_no_numbers_are_refused(ort_run: MakeRun) -> None:
    bad: list[Feeds] = [{"x": np.full((1, 8, 8, 8), np.nan, np.float32)}]
    with pytest.raises(DataError, match="has to be finite"):
        prune_weights(net(), 0.5, Unstructured(), opener(ort_run), bad)
