"""Units that can go without loss: what is found, what is not, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.coupling import Axis, Coupling, Group, Reader
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.dead import dead
from edgewise.testing.graphs import GraphBuilder
from edgewise.testing.pass_kit import assert_same_function

CHANNELS = 6


def chain(
    kernel: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    bias: Sequence[float],
    *steps: Callable[[GraphBuilder, str], str],
    reader: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None = None,
) -> tuple[ir.Model, Coupling]:
    """Return Conv, steps that keep the shape, Conv; one group of the channels between."""
    b = GraphBuilder("chain")
    shift = b.constant(np.array(bias, np.float32), name="bias")
    value = b.node("Conv", b.input("x", (1, 2, 4, 4)), b.constant(kernel, name="a"), shift, name="make")
    names = [value, *(value := step(b, value) for step in steps)]
    if reader is None:
        reader = np.random.default_rng(1).standard_normal((3, CHANNELS, 3, 3)).astype(np.float32)
    b.output(b.node("Conv", value, b.constant(reader, name="c"), name="read", pads=[1] * 4), "y", (1, 3, 4, 4))
    model = b.build()
    every = np.arange(CHANNELS)
    axes = [Axis("a", 0, every), Axis("bias", 0, every), Axis("c", 1, every)]
    axes += [Axis(name, 1, every) for name in names]
    shapes = {name: tuple(weights.shape or ()) for name, weights in model.graph.initializers.items()}
    axes += [
        Axis(name, shape.index(CHANNELS), every)
        for name, shape in shapes.items()
        if name not in {"a", "bias", "c"} and CHANNELS in shape
    ]
    group = Group("make_out", CHANNELS, tuple(axes), (Reader("read", 0, 1, 1),), ("make",))
    return model, Coupling((group,), ())


def kernel(*zeros: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    values = np.random.default_rng(0).standard_normal((CHANNELS, 2, 1, 1)).astype(np.float32)
    values[list(zeros)] = 0
    return values


def relu(b: GraphBuilder, value: str) -> str:
    return b.node("Relu", value)


def times(*factors: float) -> Callable[[GraphBuilder, str], str]:
    return lambda b, value: b.node("Mul", value, b.constant(np.array(factors, np.float32).reshape(-1, 1, 1)))


def batch_norm(
    scale: Sequence[float], shift: Sequence[float], mean: Sequence[float]
) -> Callable[[GraphBuilder, str], str]:
    def step(b: GraphBuilder, value: str) -> str:
        parameters = [b.constant(np.array(one, np.float32)) for one in (scale, shift, mean, [1.0] * CHANNELS)]
        return b.node("BatchNormalization", value, *parameters)

    return step


def step(operator: str, **attributes: Any) -> Callable[[GraphBuilder, str], str]:
    return lambda b, value: b.node(operator, value, **attributes)


def clip(low: float, high: float) -> Callable[[GraphBuilder, str], str]:
    return lambda b, value: b.node("Clip", value, *(b.constant(np.float32(end)) for end in (low, high)))


def depthwise(b: GraphBuilder, value: str) -> str:
    weight = np.full((CHANNELS, 1, 3, 3), -1, np.float32)
    return b.node("Conv", value, b.constant(weight), group=CHANNELS, pads=[1] * 4)


def doubled(b: GraphBuilder, value: str) -> str:
    return b.node("Add", value, value)


NOTHING = [0.0] * CHANNELS
ONES = [1.0] * CHANNELS


@pytest.mark.parametrize(
    ("zeros", "bias", "steps", "expected"),
    [
        ([1, 4], NOTHING, [], (1, 4)),
        ([1, 4], NOTHING, [relu], (1, 4)),
        ([1, 4], [0, 0.5, 0, 0, -0.5, 0], [relu], (4,)),
        ([1, 4], [0, 0.5, 0, 0, -0.5, 0], [], ()),
        ([1], NOTHING, [step("Sigmoid")], ()),
        ([1], NOTHING, [step("Tanh"), doubled, depthwise, step("AveragePool", kernel_shape=[1, 1])], (1,)),
        ([], NOTHING, [times(1, 0, 1, 1, 0, 1)], (1, 4)),
        ([], NOTHING, [batch_norm([1, 0, 0, 1, 1, 1], [0, 0, 0.5, 0, 0, 0], ONES)], (1,)),
        ([1], NOTHING, [batch_norm(ONES, NOTHING, NOTHING)], (1,)),
        ([1], NOTHING, [batch_norm(ONES, NOTHING, ONES)], ()),
        ([1], NOTHING, [batch_norm(ONES, NOTHING, ONES), relu], (1,)),
        ([1], [0, -4, 0, 0, 0, 0], [step("HardSwish")], (1,)),
        ([1], [0, -2, 0, 0, 0, 0], [step("HardSwish")], ()),
        ([1], [0, -2, 0, 0, 0, 0], [clip(0, 6)], (1,)),
        ([1], [0, -2, 0, 0, 0, 0], [clip(-1, 6)], ()),
        # What is never negative and then multiplied by negative numbers alone never leaves a second Relu.
        ([], NOTHING, [relu, depthwise, relu], (0, 1, 2, 3, 4)),
    ],
)
def test_units_that_are_always_zero(
    zeros: list[int],
    bias: list[float],
    steps: list[Callable[[GraphBuilder, str], str]],
    expected: tuple[int, ...],
) -> None:
    model, coupling = chain(kernel(*zeros), bias, *steps)
    found = dead(model, coupling)
    assert found == ({"make_out": expected} if expected else {})
    assert_same_function(model, cut(model, found, coupling))


def test_units_that_nothing_reads() -> None:
    weights = np.random.default_rng(2).standard_normal((3, CHANNELS, 3, 3)).astype(np.float32)
    weights[:, [0, 5]] = 0
    weights[1:, 2] = 0
    model, coupling = chain(kernel(), ONES, relu, reader=weights)
    found = dead(model, coupling)
    assert found == {"make_out": (0, 5)}
    assert_same_function(model, cut(model, found, coupling))


def test_a_range_that_touches_zero_but_for_rounding_is_not_zero() -> None:
    """A Sigmoid is at most 1, and one less rounding to either side of zero is nothing to build on."""
    model, coupling = chain(kernel(), NOTHING, step("Sigmoid"), _shifted(-1.5), relu)
    assert dead(model, coupling) == {"make_out": (0, 1, 2, 3, 4)}
    model, coupling = chain(kernel(), NOTHING, step("Sigmoid"), _shifted(-1.0), relu)
    assert dead(model, coupling) == {}


def _shifted(amount: float) -> Callable[[GraphBuilder, str], str]:
    return lambda b, value: b.node("Add", value, b.constant(np.full((CHANNELS, 1, 1), amount, np.float32)))


def test_hidden_units_that_neither_themselves_nor_others_read() -> None:
    b = GraphBuilder("hidden")
    recurrent = np.random.default_rng(0).standard_normal((1, 9, 3)).astype(np.float32)
    last = np.ones((3, 2), np.float32)
    recurrent[:, :, [0, 1]] = 0
    last[[1, 2]] = 0
    weights = [b.weight(1, 9, 2, name="w"), b.constant(recurrent, name="r")]
    b.nodes("GRU", b.input("x", (4, 1, 2)), *weights, outputs=2, name="gru", hidden_size=3)
    value = b.node("Squeeze", "gru_out1", b.constant(np.array([0])), name="last")
    b.output(b.node("MatMul", value, b.constant(last, name="c"), name="read"), "y", (1, 2))
    gates, units = np.tile(np.arange(3), 3), np.arange(3)
    places = [("w", 1, gates), ("r", 1, gates), ("r", 2, units), ("gru_out", 3, units), ("gru_out1", 2, units)]
    axes = [Axis(*place) for place in [*places, ("last_out", 1, units), ("c", 0, units)]]
    group = Group("gru_out", 3, tuple(axes), (Reader("gru", 5, 2, 2), Reader("read", 0, 1, 1)), ("gru",))
    coupling = Coupling((group,), ())
    model = b.build()
    assert dead(model, coupling) == {"gru_out": (1,)}
    assert_same_function(model, cut(model, {"gru_out": (1,)}, coupling))


def test_products_of_activations() -> None:
    """Queries that are zero make their keys worthless."""
    b = GraphBuilder("scores")
    query = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    query[:, 2] = 0
    x = b.input("x", (5, 3))
    b.node("MatMul", x, b.constant(query, name="q"), name="query")
    b.node("Transpose", b.node("MatMul", x, b.weight(3, 4, name="k"), name="key"), perm=[1, 0], name="turned")
    b.output(b.node("MatMul", "query_out", "turned_out", name="read"), "y", (5, 5))
    units = np.arange(4)
    places = [("q", 1), ("k", 1), ("query_out", 1), ("key_out", 1), ("turned_out", 0)]
    axes = tuple(Axis(name, axis, units) for name, axis in places)
    readers = (Reader("read", 0, 1, None), Reader("read", 1, 0, None))
    coupling = Coupling((Group("query_out", 4, axes, readers, ("query", "key")),), ())
    assert dead(b.build(), coupling) == {"query_out": (2,)}


def test_something_of_every_part_stays() -> None:
    model, coupling = chain(kernel(0, 1, 2, 3, 4, 5), NOTHING)
    assert dead(model, coupling) == {"make_out": (0, 1, 2, 3, 4)}
