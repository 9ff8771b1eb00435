"""Pruning one group after the other: what it keeps, what it makes up for, what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.coupling import Axis, Coupling, Group, Reader, couple
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.sequence import prune_neurons
from edgewise.compress.runner import Opener
from edgewise.compress.statistics import observe
from edgewise.errors import DataError, RecipeError
from edgewise.records.tensors import Feeds, Run
from edgewise.testing.graphs import GraphBuilder

MakeRun = Callable[[ir.Model], Run]


def residual_net(*, biases: bool = True, equal: bool = False) -> ir.Model:
    """Return two residual blocks of two convolutions each, and a classifier; inner channels may be pairs."""
    draw = np.random.default_rng(7)

    def conv(b: GraphBuilder, x: str, inputs: int, outputs: int, name: str, *, twice: bool = False) -> str:
        weight = (draw.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)).astype(np.float32)
        bias = (0.3 * draw.standard_normal(outputs)).astype(np.float32)
        if twice:
            weight[outputs // 2 :], bias[outputs // 2 :] = weight[: outputs // 2], bias[: outputs // 2]
        operands = [b.constant(weight, f"{name}_w"), *([b.constant(bias, f"{name}_b")] if biases else [])]
        return b.node("Conv", x, *operands, name=name, pads=[1, 1, 1, 1])

    b = GraphBuilder("residual")
    x = b.node("Relu", conv(b, b.input("x", [1, 3, 8, 8]), 3, 6, "stem"), name="stem_relu")
    for block in ("a", "b"):
        inner = b.node("Relu", conv(b, x, 6, 8, f"{block}1", twice=equal), name=f"{block}_relu")
        x = b.node(
            "Relu", b.node("Add", conv(b, inner, 8, 6, f"{block}2"), x, name=f"{block}_add"), name=f"{block}_end"
        )
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    weight = draw.standard_normal((6, 4)).astype(np.float32)
    b.output(b.node("MatMul", pooled, b.constant(weight, "head_w"), name="head"), "y")
    return b.build()


def inner_groups(*, biases: bool = True) -> Coupling:
    units = np.arange(8)

    def group(block: str) -> Group:
        axes = [(f"{block}1_w", 0), (f"{block}1_out", 1), (f"{block}_relu_out", 1), (f"{block}2_w", 1)]
        axes += [(f"{block}1_b", 0)] if biases else []
        made = tuple(Axis(value, axis, units) for value, axis in axes)
        return Group(f"{block}1_out", 8, made, (Reader(f"{block}2", 0, 1, 1),), (f"{block}1",))

    return Coupling((group("a"), group("b")), ())


def samples(count: int, seed: int = 0) -> list[Feeds]:
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((3, 3)).astype(np.float32)
    smooth = [np.repeat(np.repeat(draw.standard_normal((3, 4, 4)), 2, 1), 2, 2) for _ in range(count)]
    return [{"x": np.einsum("ij,jhw->ihw", mixing, one).astype(np.float32)[None]} for one in smooth]


def opener(make_run: MakeRun) -> Opener:
    @contextmanager
    def open_model(model: ir.Model) -> Iterator[Run]:
        yield make_run(model)

    return open_model


def differ(model: ir.Model, other: ir.Model, make_run: MakeRun) -> float:
    """Return the relative mean square of the difference of the outputs on fresh samples."""
    feeds = samples(40, seed=1)
    one, two = make_run(model), make_run(other)
    wanted, found = np.stack([one(feed)["y"] for feed in feeds]), np.stack([two(feed)["y"] for feed in feeds])
    return float(np.square(wanted - found).mean() / wanted.var())


def test_equal_channels_merge_without_loss(ort_run: MakeRun) -> None:
    model = residual_net(equal=True)
    made = prune_neurons(model, inner_groups(), {"a1_out": 4, "b1_out": 4}, opener(ort_run), samples(60))
    assert {name: len(units) for name, units in made.removed.items()} == {"a1_out": 4, "b1_out": 4}
    for units in made.removed.values():
        assert sorted(unit % 4 for unit in units) == [0, 1, 2, 3]
    # Ridges down to 1e-5 of the mean diagonal, toward weights that are off by as much as they are large.
    assert differ(model, made.model, ort_run) < 1e-5
    assert max(made.errors.values()) < 1e-5


@pytest.mark.parametrize("biases", [True, False])
def test_what_is_lost_is_made_up_for(ort_run: MakeRun, *, biases: bool) -> None:
    model, coupling = residual_net(biases=biases), inner_groups(biases=biases)
    made = prune_neurons(model, coupling, {"a1_out": 5, "b1_out": 4}, opener(ort_run), samples(80))
    plain = cut(model, made.removed, coupling)
    assert differ(model, made.model, ort_run) < 0.4 * differ(model, plain, ort_run)
    widths = {node.name: constant(node.inputs[1]).shape[0] for node in made.model.graph if node.op_type == "Conv"}  # type: ignore[union-attr]
    assert widths == {"stem": 6, "a1": 5, "a2": 6, "b1": 4, "b2": 6}


def test_without_anything_to_remove_the_model_stays(ort_run: MakeRun) -> None:
    model = residual_net()
    made = prune_neurons(model, inner_groups(), {"a1_out": 8}, opener(ort_run), samples(5))
    assert made.removed == {}
    assert differ(model, made.model, ort_run) == 0.0
    assert [node.op_type for node in made.model.graph] == [node.op_type for node in model.graph]


def test_the_given_model_is_not_changed(ort_run: MakeRun) -> None:
    model = residual_net()
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    prune_neurons(model, inner_groups(), {"a1_out": 4}, opener(ort_run), samples(20))
    after = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])


@pytest.mark.parametrize(
    ("widths", "message"),
    [({"nothing": 3}, "Received `nothing`"), ({"a1_out": 0}, "1 to 8 can be left. Received 0"), ({"a1_out": 9}, "9")],
)
def test_widths_that_are_none_are_refused(widths: dict[str, int], message: str, ort_run: MakeRun) -> None:
    with pytest.raises(RecipeError, match=message):
        prune_neurons(residual_net(), inner_groups(), widths, opener(ort_run), samples(2))


def test_a_group_that_many_places_read_is_chosen_for_all_of_them(ort_run: MakeRun) -> None:
    model = residual_net()
    coupling = couple(model)
    stream = next(group for group in coupling.groups if len(group.readers) > 2)
    made = prune_neurons(model, coupling, {stream.name: 4}, opener(ort_run), samples(80))
    assert len(made.removed[stream.name]) == 2
    assert differ(model, made.model, ort_run) < 0.5 * differ(model, cut(model, made.removed, coupling), ort_run)


def test_what_is_lost_on_a_shortcut_is_made_up_for_behind_it(ort_run: MakeRun) -> None:
    # Seen from the first block, the second one's sum is wrong by what the first one lost.
    model, coupling = residual_net(), inner_groups()
    feeds = samples(80)
    made = prune_neurons(model, coupling, {"a1_out": 3}, opener(ort_run), feeds)
    stopped = cut(model, made.removed, coupling)
    nodes = {node.name: node for node in made.model.graph}
    for node in stopped.graph:
        if node.name == "a2":
            for slot in (1, 2):
                old, new = node.inputs[slot], nodes["a2"].inputs[slot]
                assert old is not None
                assert new is not None
                old.const_value = new.const_value
    assert differ(model, made.model, ort_run) < 0.9 * differ(model, stopped, ort_run)


def test_hidden_units_of_a_recurrent_layer_go(ort_run: MakeRun) -> None:
    draw = np.random.default_rng(4)
    b = GraphBuilder("lstm", seed=3)
    x = b.input("x", [5, 1, 4])
    parts = [b.weight(1, 24, 4, fan_in=4), b.weight(1, 24, 6, fan_in=6), b.weight(1, 48, fan_in=4)]
    states = b.node("Squeeze", b.node("LSTM", x, *parts, name="one", hidden_size=6), b.constant(np.array([1])))
    parts = [b.weight(1, 12, 6, fan_in=6), b.weight(1, 12, 3, fan_in=3), b.weight(1, 24, fan_in=4)]
    last = b.node("LSTM", states, *parts, name="two", hidden_size=3)
    b.output(last, "y")
    model = b.build()
    coupling = couple(model)
    group = next(group for group in coupling.groups if group.makers == ("one",))
    feeds = [{"x": draw.standard_normal((5, 1, 4)).astype(np.float32)} for _ in range(80)]
    made = prune_neurons(model, coupling, {group.name: 4}, opener(ort_run), feeds[:60])
    assert [(one.node, one.operator) for one in made.declines] == [("one", "LSTM")]
    assert "its recurrent weights stay" in made.declines[0].reason
    plain = cut(model, made.removed, coupling)

    def lost(other: ir.Model) -> float:
        runs = ort_run(model), ort_run(other)
        return float(np.mean([np.square(runs[0](feed)["y"] - runs[1](feed)["y"]).mean() for feed in feeds[60:]]))

    assert lost(made.model) < 0.8 * lost(plain)
    pairs = itertools.combinations(range(6), 2)
    assert lost(plain) <= np.median([lost(cut(model, {group.name: pair}, coupling)) for pair in pairs])


def test_too_few_samples_are_named_with_the_number_needed(ort_run: MakeRun) -> None:
    b = GraphBuilder("wide", seed=2)
    x = b.node("Relu", b.node("MatMul", b.input("x", [1, 8]), b.weight(8, 40), name="one"), name="relu")
    b.output(b.node("MatMul", x, b.weight(40, 3), name="two"), "y")
    model = b.build()
    draw = np.random.default_rng(1)
    feeds = [{"x": draw.standard_normal((1, 8)).astype(np.float32)} for _ in range(10)]
    made = prune_neurons(model, couple(model), {"one_out": 30}, opener(ort_run), feeds)
    (decline,) = made.declines
    assert (decline.node, decline.operator) == ("two", "MatMul")
    assert "fitted to 10 rows, and its 30 inputs need 60, that is 60 samples" in decline.reason
    more = [{"x": draw.standard_normal((1, 8)).astype(np.float32)} for _ in range(60)]
    assert prune_neurons(model, couple(model), {"one_out": 30}, opener(ort_run), more).declines == ()


def test_a_reader_that_cannot_be_fitted_is_named(ort_run: MakeRun) -> None:
    b = GraphBuilder("shared", seed=2)
    shared = b.weight(6, 6, name="twice")
    x = b.node("Relu", b.node("MatMul", b.input("x", [4, 5]), b.weight(5, 6, name="w"), name="one"), name="relu")
    first = b.node("MatMul", x, shared, name="two")
    b.output(b.node("Add", first, b.node("MatMul", x, shared, name="three")), "y")
    model = b.build()
    units = np.arange(6)
    axes = tuple(Axis(name, axis, units) for name, axis in [("w", 1), ("one_out", 1), ("relu_out", 1), ("twice", 0)])
    group = Group("one_out", 6, axes, (Reader("two", 0, 1, 1), Reader("three", 0, 1, 1)), ("one",))
    draw = np.random.default_rng(1)
    feeds = [{"x": draw.standard_normal((4, 5)).astype(np.float32)} for _ in range(20)]
    made = prune_neurons(model, Coupling((group,), ()), {"one_out": 4}, opener(ort_run), feeds)
    assert [decline.node for decline in made.declines] == ["two", "three"]
    assert "another node reads its weights `twice` as well" in made.declines[0].reason
    energy = np.mean(
        [np.square(ort_run(observe(model, ["relu_out"]))(feed)["relu_out"]).sum(axis=0) for feed in feeds], 0
    )
    assert made.removed["one_out"] == tuple(sorted(np.argsort(energy)[:2]))


def test_samples_that_are_none_are_refused(ort_run: MakeRun) -> None:
    with pytest.raises(DataError, match="at least one sample"):
        prune_neurons(residual_net(), inner_groups(), {"a1_out": 4}, opener(ort_run), [])
    broken = [{"x": np.full((1, 3, 8, 8), np.nan, np.float32)}]
    with pytest.raises(DataError, match="calibration sample 0 makes NaN"):
        prune_neurons(residual_net(), inner_groups(), {"a1_out": 4}, opener(ort_run), broken)
