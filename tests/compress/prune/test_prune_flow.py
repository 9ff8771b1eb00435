"""Bounds and dominators of values, read off small graphs."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.compress.prune.flow import Flow, bounds
from edgewise.testing.graphs import GraphBuilder
from edgewise.testing.random_graphs import random_network


def value_of(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("Relu", (0.0, math.inf)),
        ("Sigmoid", (0.0, 1.0)),
        ("Softmax", (0.0, 1.0)),
        ("Tanh", (-math.inf, math.inf)),
        ("Identity", (-1.0, 2.0)),
        ("GlobalAveragePool", (-1.0, 2.0)),
    ],
)
def test_bounds_follow_what_an_operator_does(operator: str, expected: tuple[float, float]) -> None:
    b = GraphBuilder("one")
    x = b.input("x", (1, 2, 4, 4))
    if operator in {"Identity", "GlobalAveragePool"}:
        x = b.node("Clip", x, b.constant(np.float32(-1)), b.constant(np.float32(2)))
    size = 1 if operator == "GlobalAveragePool" else 4
    b.output(b.node(operator, x), "y", (1, 2, size, size))
    assert bounds(value_of(b.build(), "y")) == expected


def test_bounds_of_sums_and_clips_are_those_of_their_operands() -> None:
    b = GraphBuilder("sum")
    x = b.input("x", (1, 4))
    first = b.node("Clip", x, b.constant(np.float32(-1)), b.constant(np.float32(2)))
    total = b.node("Add", first, b.node("Sigmoid", x), name="total")
    b.output(b.node("Clip", total, b.constant(np.float32(0)), b.constant(np.float32(9)), name="last"), "y", (1, 4))
    model = b.build()
    assert bounds(value_of(model, "total_out")) == (-1.0, 3.0)
    assert bounds(value_of(model, "y")) == (0.0, 3.0)


@given(seed=st.integers(0, 2**16))
def test_without_a_dominator_a_value_cannot_be_reached(seed: int) -> None:
    model = random_network(seed, steps=6)
    flow = Flow(model.graph)
    for node in model.graph:
        above = set(flow.dominators(node.outputs[0]))
        for value in _ancestors(node.outputs[0]):
            if not flow.is_fixed(value) and not flow.is_fixed(node.outputs[0]):
                assert (value in above) != _is_reached(node.outputs[0], value)


def _ancestors(value: ir.Value) -> set[ir.Value]:
    found, left = set[ir.Value](), [value]
    while left:
        node = left.pop().producer()
        more = [one for one in (node.inputs if node is not None else []) if one is not None and one not in found]
        found.update(more)
        left += more
    return found


def _is_reached(value: ir.Value, without: ir.Value) -> bool:
    """Return whether an input of the graph leads to `value` on a path that avoids `without`."""
    seen, left = {value}, [value]
    while left:
        one = left.pop()
        if one.is_graph_input():
            return True
        node = one.producer()
        for given_value in node.inputs if node is not None else []:
            if given_value is not None and given_value is not without and given_value not in seen:
                seen.add(given_value)
                left.append(given_value)
    return False
