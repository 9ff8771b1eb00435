"""How well a network can do without a region: the scores against what a model without it really gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.compress.prune.layers import drop, replace
from edgewise.compress.prune.recoverability import Recoverability, recoverability
from edgewise.compress.prune.regions import Region, find_regions
from edgewise.compress.prune.stand_in import Linear
from edgewise.compress.runner import Opener
from edgewise.errors import ContractError, DataError
from edgewise.passes.apply import optimize
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, conv_net, depthwise_net, random_feeds, transformer_block


@pytest.fixture
def opener(ort_run: object) -> Opener:
    """Return an opener of models in ONNX Runtime."""

    @contextmanager
    def opened(model: ir.Model) -> Iterator[Run]:
        assert callable(ort_run)
        yield ort_run(model)

    return opened


def branches(model: ir.Model) -> list[Region]:
    return [region for region in find_regions(model).found if region.kind == "branch"]


def feeds_of(model: ir.Model, count: int) -> list[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    return [random_feeds(model, seed=seed) for seed in range(count)]


def idle_net() -> ir.Model:
    """Return a net with a branch that adds almost nothing, and one that turns everything round."""
    b = GraphBuilder("idle")
    x = b.node("MatMul", b.input("x", (4, 6)), b.weight(6, 6), name="stem")
    small = b.node("MatMul", x, b.constant(1e-3 * np.eye(6, dtype=np.float32)[::-1].copy()), name="small")
    x = b.node("Add", x, small, name="idle")
    large = b.node("MatMul", x, b.constant(3 * np.eye(6, dtype=np.float32)[::-1].copy()), name="large")
    x = b.node("Add", x, large, name="busy")
    b.output(b.node("MatMul", b.node("Tanh", x), b.weight(6, 3), name="head"), "y", (4, 3))
    return b.build()


def scored(model: ir.Model, regions: list[Region], opener: Opener, count: int = 20) -> dict[str, Recoverability]:
    return {one.region: one for one in recoverability(model, regions, opener, feeds_of(model, count))}


def test_a_branch_that_does_little_or_only_what_is_linear_can_be_made_up_for(opener: Opener) -> None:
    model = idle_net()
    found = scored(model, branches(model), opener)
    idle, busy = found["idle_out"].stand_ins, found["busy_out"].stand_ins
    assert idle is not None
    assert busy is not None
    assert idle.drop is not None
    assert busy.drop is not None
    assert idle.drop < 1e-5
    assert busy.drop > 0.1
    # A linear branch has an exact linear stand-in.
    assert busy.linear.error < 1e-6
    # The layers behind are `large`, directly, and `head`, behind Tanh.
    assert found["idle_out"].readers_before is not None
    assert found["busy_out"].readers_before is not None
    assert found["idle_out"].readers_before < 1e-4 < found["busy_out"].readers_before


def test_a_layer_with_one_row_has_no_error_with_its_best_bias(opener: Opener) -> None:
    model, _ = optimize(conv_net())
    region = branches(model)[0]
    result = scored(model, [region], opener, 1)[region.name]
    with opener(model) as run, opener(drop(model, region)) as run_dropped:
        feeds = random_feeds(model)
        right, left = run(feeds)["scores"], run_dropped(feeds)["scores"]
    # The head is the layer behind, one row: its best bias puts everything right.
    assert result.readers_before == 0.0
    assert np.abs(right - left).max() > 0
    assert result.stand_ins is not None
    assert result.stand_ins.drop is not None
    assert result.stand_ins.drop > 0


@pytest.mark.parametrize("standard", [True, False])
def test_layers_behind_a_normalization_are_found(standard: bool, opener: Opener) -> None:
    model, _ = optimize(transformer_block(standard=standard))
    found = scored(model, branches(model), opener)
    first, last = found["residual1_out"], found["out"]
    assert first.readers is not None
    assert first.readers_before is not None
    assert first.readers < first.readers_before
    # Behind the output there is no layer.
    assert (last.readers, last.readers_before) == (None, None)


def test_readers_see_what_a_model_without_the_region_gives_them(opener: Opener) -> None:
    b = GraphBuilder("relus")
    x = b.input("x", (64, 4))
    y = b.node("Add", x, b.node("MatMul", x, b.weight(4, 4), name="branch"), name="add")
    y = b.node("Sigmoid", b.node("Relu", y, name="relu"), name="sigmoid")
    weight = b.weight(4, 3, name="head_weight")
    b.output(b.node("MatMul", y, weight, name="head"), "y", (64, 3))
    model = b.build()
    region = branches(model)[0]
    assert region.keeps_activation
    result = scored(model, [region], opener, 5)[region.name]
    held = random_feeds(model, seed=1)
    with opener(model) as run, opener(drop(model, region)) as run_dropped:
        right, left = run(held)["y"], run_dropped(held)["y"]
        whole = np.concatenate([run(feed)["y"] for feed in feeds_of(model, 5)]).var(axis=0).sum()
    rest = (right - left) - (right - left).mean(axis=0)
    assert result.readers_before == pytest.approx(float((rest**2).mean(axis=0).sum() / whole), rel=1e-3)


def test_one_pass_and_many_give_the_same(opener: Opener) -> None:
    model, _ = optimize(depthwise_net())
    regions = [region for region in find_regions(model).found if region.channels is not None]
    feeds = feeds_of(model, 30)
    once = recoverability(model, regions, opener, feeds)
    often = recoverability(model, regions, opener, feeds, memory_bytes=1)
    assert [one.region for one in once] == [one.region for one in often] == [region.name for region in regions]
    for one, other in zip(once, often, strict=True):
        # Fused kernels round otherwise where more values are outputs.
        assert one.readers == (None if other.readers is None else pytest.approx(other.readers, rel=1e-3, abs=1e-6))
        assert (one.stand_ins is None) == (other.stand_ins is None)
        if one.stand_ins is not None and other.stand_ins is not None:
            assert one.stand_ins.linear.error == pytest.approx(other.stand_ins.linear.error, rel=1e-3, abs=1e-6)


def test_a_mapping_has_a_linear_stand_in_with_steps(opener: Opener) -> None:
    b = GraphBuilder("down")
    x = b.input("x", (2, 4, 9, 9))
    y = b.node("Conv", x, b.weight(6, 4, 1, 1), b.weight(6, fan_in=4), strides=[2, 2], name="first")
    b.output(b.node("Conv", y, b.weight(6, 6, 3, 3), pads=[1] * 4, name="second"), "y", (2, 6, 5, 5))
    model = b.build()
    y_of = next(one for one in find_regions(model).found if one.exit == "y" and one.entry == "x")
    found = scored(model, [y_of], opener, 10)["y" if y_of.name == "y" else y_of.name]
    assert found.readers is None
    assert found.stand_ins is not None
    stand_in = found.stand_ins.linear.stand_in
    assert isinstance(stand_in, Linear)
    assert stand_in.matrix.shape == (6, 4)
    result = replace(model, y_of, stand_in)
    assert [node.op_type for node in result.graph if node.op_type != "Identity"] == ["Conv"]


def test_no_sample_a_bad_one_and_another_models_region_are_refused(opener: Opener) -> None:
    model = idle_net()
    regions = branches(model)
    with pytest.raises(DataError, match="at least one sample"):
        recoverability(model, regions, opener, [])
    with pytest.raises(DataError, match="makes NaN or an infinity"):
        recoverability(model, regions, opener, [{"x": np.full((4, 6), np.nan, np.float32)}])
    with pytest.raises(ContractError, match="belongs to one graph"):
        recoverability(conv_net(), regions, opener, feeds_of(model, 1))
    assert recoverability(model, [], opener, feeds_of(model, 1)) == ()
