"""Pruning one group after the other: what it keeps, what it makes up for, what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.coupling import Axis, Coupling, Group, Reader
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.sequence import prune_neurons
from edgewise.compress.runner import Opener
from edgewise.errors import RecipeError
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
