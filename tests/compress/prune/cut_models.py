"""What the tests of cutting share: couplings written by hand, models of a few nodes, and a comparison by zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgewise.analysis.coupling import Axis, Coupling, Group
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut import cut
from edgewise.passes.contract import interface
from edgewise.records.tensors import Outputs
from edgewise.testing.graphs import GraphBuilder, random_feeds


def axis(value: str, number: int, units: Sequence[int]) -> Axis:
    return Axis(value, number, np.asarray(units, np.int64))


def coupling(size: int, *axes: Axis, name: str = "g") -> Coupling:
    return Coupling((Group(name, size, axes, (), ("maker",)),), ())


def run(model: ir.Model) -> Outputs:
    """Return the outputs of ONNX Runtime, its optimizations off: the reference evaluator has no negative pads."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(random_feeds(model))), strict=True))


def shape(model: ir.Model, name: str) -> tuple[int, ...]:
    value = ir.convenience.create_value_mapping(model.graph)[name]
    assert value.shape is not None
    return tuple(size for size in value.shape if isinstance(size, int))


def node(model: ir.Model, name: str) -> ir.Node:
    return next(found for found in model.graph if found.name == name)


def held(model: ir.Model, name: str, slot: int) -> list[int]:
    array = constant(node(model, name).inputs[slot])
    assert array is not None
    return [int(item) for item in array.reshape(-1)]


def parts(operator: str, *constants: str, outputs: int = 1, **attributes: Any) -> GraphBuilder:
    """Return x [2, 3] @ a [3, 6] through `operator`, whose outputs are not yet read."""
    b = GraphBuilder("parts")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.nodes(operator, "make_out", *constants, outputs=outputs, name="op", **attributes)
    return b


def read(b: GraphBuilder, value: str, *size: int, name: str = "y") -> None:
    b.output(b.node("MatMul", value, b.weight(*size, name=f"c_{name}"), name=f"read_{name}"), name)


MADE = (("a", 1), ("make_out", 1))


def made(units: Sequence[int] = range(6)) -> list[Axis]:
    return [axis(name, k, units) for name, k in MADE]


def agrees(model: ir.Model, removed: dict[str, list[int]], groups: Coupling) -> ir.Model:
    """Cut, and compare with the model in which the rows of the weights `c_` are zero."""
    after = cut(model, removed, groups)
    assert interface(after) == interface(model)
    reference = model.clone()
    for group in groups.groups:
        for one in group.axes:
            if one.value.startswith("c_"):
                value = reference.graph.initializers[one.value]
                array = constant(value)
                assert array is not None
                rows = [position for position, unit in enumerate(one.units) if unit in removed.get(group.name, [])]
                array = np.array(array)
                np.moveaxis(array, one.axis, 0)[rows] = 0
                value.const_value = ir.tensor(array)
    expected, got = run(reference), run(after)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)
    return after


def int64(*numbers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


def read_conv(b: GraphBuilder, value: str, channels: int, size: int) -> None:
    b.output(b.node("Conv", value, b.weight(2, channels, 1, 1, name="c_y"), name="read_y"), "y", (1, 2, size, size))
