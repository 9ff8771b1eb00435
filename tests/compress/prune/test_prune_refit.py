"""Layers fitted anew behind what was taken out: how much comes back, what stays as it is, and what cannot be fitted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.coupling import couple
from edgewise.compress.prune.layers import drop
from edgewise.compress.prune.options import Option, stitch
from edgewise.compress.prune.refit import made_up_for, refit_readers
from edgewise.compress.prune.regions import Region, find_regions
from edgewise.compress.runner import Opener
from edgewise.errors import DataError
from edgewise.passes.apply import optimize
from edgewise.records.tensors import Array, Run
from edgewise.testing.graphs import GraphBuilder, conv_net, random_feeds, transformer_block


@pytest.fixture
def opener(ort_run: object) -> Opener:
    """Return an opener of models in ONNX Runtime."""

    @contextmanager
    def opened(model: ir.Model) -> Iterator[Run]:
        assert callable(ort_run)
        yield ort_run(model)

    return opened


def region_of(model: ir.Model, exit_name: str) -> Region:
    return next(one for one in find_regions(model).found if (one.kind, one.exit) == ("branch", exit_name))


def feeds_of(model: ir.Model, count: int) -> list[dict[str, Array]]:
    return [random_feeds(model, seed=seed) for seed in range(count)]


def distance(one: ir.Model, other: ir.Model, opener: Opener, name: str) -> float:
    """Return the relative error of `one` on samples that nothing was fitted to."""
    with opener(one) as run, opener(other) as run_other:
        pairs = [(run(feed)[name], run_other(feed)[name]) for feed in feeds_of(one, 60)[40:]]
    left, right = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
    return float(((left - right) ** 2).mean() / ((right - right.mean(axis=0)) ** 2).mean())


def linear_net(*, bias: bool = True, shared: bool = False) -> ir.Model:
    """Return x + A x, then two products: what the branch adds can be put into the first of them exactly."""
    b = GraphBuilder("linear")
    x = b.input("x", (16, 4))
    y = b.node("Add", x, b.node("MatMul", x, b.weight(4, 4), name="branch"), name="add")
    square = b.weight(4, 4, name="square")
    y = b.node("Gemm", y, square, *([b.weight(4, fan_in=4)] if bias else []), name="first")
    y = b.node("MatMul", b.node("Tanh", y), square if shared else b.weight(4, 4), name="second")
    b.output(y, "y", (16, 4))
    return b.build()


@pytest.mark.parametrize("bias", [True, False])
def test_what_a_linear_branch_adds_goes_into_the_layer_behind(bias: bool, opener: Opener) -> None:
    model = linear_net(bias=bias)
    dropped = drop(model, region_of(model, "add_out"))
    result = refit_readers(dropped, model, opener, feeds_of(model, 40))
    assert list(result.errors) == ["first", "second"]
    assert distance(dropped, model, opener, "y") > 0.05
    # The smallest ridge is 1e-5 of the inputs' variance.
    assert distance(result.model, model, opener, "y") < 1e-6


def test_layers_that_get_what_they_got_before_stay_as_they_are(opener: Opener) -> None:
    model, _ = optimize(transformer_block(standard=True))
    dropped = drop(model, region_of(model, "out"))
    assert refit_readers(dropped, model, opener, feeds_of(model, 4)).errors == {}
    first = drop(model, region_of(model, "residual1_out"))
    given = {name: value.const_value for name, value in first.graph.initializers.items()}
    result = refit_readers(first, model, opener, feeds_of(model, 40))
    assert list(result.errors) == ["mlp1_matmul", "mlp2_matmul"]
    for name, value in first.graph.initializers.items():
        assert value.const_value is given[name]
    assert distance(result.model, model, opener, "out") < distance(first, model, opener, "out")


def test_the_first_layer_that_joins_the_shortcut_puts_back_what_flowed_past(opener: Opener) -> None:
    b = GraphBuilder("blocks")
    x = b.input("x", (16, 4))
    first = b.node("Add", x, b.node("MatMul", x, b.weight(4, 4), name="gone"), name="first")
    hidden = b.node("MatMul", first, b.weight(4, 16), name="up")
    both = b.node("Concat", hidden, b.node("Relu", hidden), axis=1, name="both")
    b.output(b.node("Add", first, b.node("MatMul", both, b.weight(32, 4), name="down"), name="second"), "y", (16, 4))
    model = b.build()
    dropped = drop(model, region_of(model, "first_out"))
    result = refit_readers(dropped, model, opener, feeds_of(model, 40))
    # `down` sees all of x through `up`: x A, which the shortcut lost, is a linear map of that.
    assert distance(result.model, model, opener, "y") < 1e-4
    assert distance(dropped, model, opener, "y") > 0.05


def test_only_the_layers_that_were_named_are_fitted(opener: Opener) -> None:
    model = linear_net()
    dropped = drop(model, region_of(model, "add_out"))
    result = refit_readers(dropped, model, opener, feeds_of(model, 10), names=["second"])
    assert list(result.errors) == ["second"]
    left = result.model.graph.initializers["square"]
    assert left.const_value is model.graph.initializers["square"].const_value


def test_shared_weights_stay_with_a_reason(opener: Opener) -> None:
    model = linear_net(shared=True)
    dropped = drop(model, region_of(model, "add_out"))
    result = refit_readers(dropped, model, opener, feeds_of(model, 10))
    assert result.errors == {}
    assert [(one.node, one.reason) for one in result.declines] == [
        ("first", "it keeps its weights: another node reads its weights as well"),
        ("second", "it keeps its weights: another node reads its weights as well"),
    ]


def test_layers_that_the_model_did_not_have_before_are_declined(opener: Opener) -> None:
    model = linear_net()
    other = drop(model, region_of(model, "add_out"))
    result = refit_readers(model, other, opener, feeds_of(model, 10))
    assert ("branch", "it keeps its weights: the model had no such layer before") in [
        (one.node, one.reason) for one in result.declines
    ]


def test_no_samples_are_refused(opener: Opener) -> None:
    model = conv_net()
    with pytest.raises(DataError, match="at least one sample"):
        refit_readers(model, model, opener, [])


def test_constants_that_make_up_for_a_region_fit_before_it_goes(opener: Opener) -> None:
    model = linear_net()
    region = region_of(model, "add_out")
    constants = made_up_for(model, region, opener, feeds_of(model, 40), layers=1)
    square = next(node for node in model.graph if node.name == "first").inputs
    assert set(constants) == {str(value.name) for value in square[1:] if value is not None}
    option = Option(group=region.name, width=0, removed=(), constants=constants, error=0.0)
    stitched = drop(stitch(model, couple(model), [option]), region)
    assert distance(stitched, model, opener, "y") < 1e-6
    # Only constants that the model has are given back: where a layer has no bias, its weights alone.
    bare = linear_net(bias=False)
    assert len(made_up_for(bare, region_of(bare, "add_out"), opener, feeds_of(bare, 40), layers=1)) == 1


def test_so_many_layers_behind_a_region_make_up_for_it(opener: Opener) -> None:
    b = GraphBuilder("bent")
    x = b.input("x", (16, 4))
    y = b.node("Add", x, b.node("Tanh", b.node("MatMul", x, b.weight(4, 4), name="branch")), name="add")
    y = b.node("Tanh", b.node("Gemm", y, b.weight(4, 4), b.weight(4, fan_in=4), name="first"))
    b.output(b.node("Gemm", y, b.weight(4, 4), b.weight(4, fan_in=4), name="second"), "y", (16, 4))
    model = b.build()
    region = region_of(model, "add_out")
    one, two = (made_up_for(model, region, opener, feeds_of(model, 40), layers=count) for count in (1, 2))
    assert (len(one), len(two)) == (2, 4)
    assert set(one) < set(two)
