"""Operators that move data act on labels exactly as on data: each is run on the labels by the reference evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgewise.analysis.channel_flow import Flow
from edgewise.analysis.channel_labels import Dims
from edgewise.analysis.channel_rules import apply_rule
from edgewise.analysis.values import with_inferred_shapes

SHAPE = (2, 6, 3, 4)


def moved(
    operator: str, shape: Sequence[int], where: int, *constants: Any, outputs: int = 1, **attributes: Any
) -> tuple[Flow, list[Dims], list[np.ndarray[Any, Any]]]:
    """Return the labels behind one operator, and what it makes of the labels as data."""
    names = [f"y{index}" for index in range(outputs)]
    inputs = ["x", *(f"c{index}" if value is not None else "" for index, value in enumerate(constants))]
    node = helper.make_node(operator, inputs, names, name="node", **attributes)
    given_x = helper.make_tensor_value_info("x", onnx.TensorProto.INT64, shape)
    made = [helper.make_empty_tensor_value_info(name) for name in names]
    held = [numpy_helper.from_array(np.asarray(v), f"c{i}") for i, v in enumerate(constants) if v is not None]
    graph = helper.make_graph([node], "graph", [given_x], made, held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model = with_inferred_shapes(ir.from_proto(proto))
    flow = Flow()
    labels = flow.joined.fresh(shape[where])
    dims = tuple(labels if at == where else None for at in range(len(shape)))
    flow.dims[model.graph.inputs[0]] = dims
    apply_rule(flow, next(iter(model.graph)))
    lying = [1] * len(shape)
    lying[where] = -1
    data = np.ascontiguousarray(np.broadcast_to(labels.reshape(lying), shape))
    found = [flow.dims[value] for value in model.graph.outputs]
    if min((int(np.min(value)) for value in constants if value is not None), default=0) < 0 and operator == "Pad":
        return flow, found, []  # the reference evaluator takes nothing away
    return flow, found, ReferenceEvaluator(proto).run(None, {"x": data})


def assert_same(flow: Flow, dims: Dims, data: np.ndarray[Any, Any]) -> None:
    """Check that every element has, up to joins, the label of its position."""
    (axis,) = [at for at, labels in enumerate(dims) if labels is not None]
    labels = dims[axis]
    assert labels is not None
    rows = np.moveaxis(data, axis, 0).reshape(data.shape[axis], -1)
    for label, row in zip(labels, rows, strict=True):
        assert {flow.joined.root(int(one)) for one in row} == {flow.joined.root(int(label))}


MOVES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Transpose", [], {"perm": [1, 3, 0, 2]}),
    ("Transpose", [], {}),
    ("Flatten", [], {"axis": 1}),
    ("Reshape", [np.array([2, -1])], {}),
    ("Reshape", [np.array([12, 12])], {}),
    ("Reshape", [np.array([1, 2, 6, 1, 12])], {}),
    ("Unsqueeze", [np.array([0, 3])], {}),
    ("Slice", [np.array([1]), np.array([5]), np.array([1])], {}),
    ("Slice", [np.array([-1]), np.array([-100]), np.array([1]), np.array([-2])], {}),
    ("Slice", [np.array([0]), np.array([2**62])], {}),
    ("Gather", [np.array([5, 0, -2])], {"axis": 1}),
    ("Gather", [np.array(1)], {"axis": 2}),
    ("Tile", [np.array([1, 2, 1, 3])], {}),
    ("Expand", [np.array([3, 2, 6, 3, 4])], {}),
    ("SpaceToDepth", [], {"blocksize": 1}),
]


@pytest.mark.parametrize(("operator", "constants", "attributes"), MOVES)
@pytest.mark.parametrize("axis", [0, 1])
def test_labels_move_as_data_does(operator: str, constants: list[Any], attributes: dict[str, Any], axis: int) -> None:
    if operator == "Gather" and axis == 0:
        constants = [np.array([1, 0])]
        attributes = {"axis": 0}
    flow, dims, data = moved(operator, SHAPE, axis, *constants, **attributes)
    assert_same(flow, dims[0], data[0])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_a_reshape_joins_no_more_than_it_has_to(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    total = int(np.prod(shape))
    first = data.draw(st.sampled_from([number for number in range(1, total + 1) if total % number == 0]))
    flow, dims, made = moved("Reshape", shape, axis, np.array([first, total // first]))
    if all(labels is None for labels in dims[0]):
        assert total == 1 or shape[axis] == 1 or made[0].size == 1
        return
    assert_same(flow, dims[0], made[0])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_joins_what_becomes_one_channel(mode: str) -> None:
    flow, dims, data = moved("DepthToSpace", (1, 12, 2, 2), 1, blocksize=2, mode=mode)
    assert_same(flow, dims[0], data[0])
    assert len(set(flow.joined.roots(np.arange(12)).tolist())) == 3


def test_parts_of_a_split_have_their_own_labels() -> None:
    flow, dims, data = moved("Split", SHAPE, 1, np.array([2, 1, 3]), outputs=3, axis=1)
    for one, made in zip(dims[::2], data[::2], strict=True):
        assert_same(flow, one, made)
    held = [flow.joined.why_pinned(label) for label in range(6)]
    assert held == [None, None, "`node` (Split) leaves one of them alone", None, None, None]


@pytest.mark.parametrize(
    ("operator", "constants", "attributes", "reason"),
    [
        ("Gather", [np.array([[0, 1]])], {"axis": 1}, "`node` takes them by number"),
        ("Pad", [np.array([0, -1, 0, 0, 0, 0, 0, 0])], {}, "`node` puts others beside them"),
        ("Pad", [np.array([0, 1, 0, 0, 0, 0, 0, 0])], {"mode": "reflect"}, "`node` puts others beside them"),
    ],
)
def test_what_cannot_be_followed_is_pinned(
    operator: str, constants: list[Any], attributes: dict[str, Any], reason: str
) -> None:
    flow, _, _ = moved(operator, SHAPE, 1, *constants, **attributes)
    assert flow.joined.why_pinned(flow.joined.root(0)) == reason


def test_padding_of_places_leaves_channels_alone() -> None:
    _, dims, _ = moved("Pad", SHAPE, 1, np.array([0, 0, 1, 0, 0, 0, 0, 2]))
    assert [None if labels is None else labels.tolist() for labels in dims[0]] == [None, list(range(6)), None, None]


def test_padded_channels_are_followed_and_the_new_ones_stay() -> None:
    flow, dims, _ = moved("Pad", SHAPE, 1, np.array([0, 1, 0, 0, 0, 2, 0, 0]))
    labels = dims[0][1]
    assert labels is not None
    assert labels[1:7].tolist() == list(range(6))
    held = [flow.joined.why_pinned(flow.joined.root(int(one))) for one in labels]
    assert held == ["`node` adds them"] + [None] * 6 + ["`node` adds them"] * 2


def test_a_split_into_parts_of_unknown_sizes_holds_its_input() -> None:
    value = ir.Value(name="x", shape=ir.Shape(SHAPE))
    node = ir.node("Split", [value], {"axis": 1, "num_outputs": 2}, num_outputs=2, name="node")
    flow = Flow()
    flow.dims[value] = (None, flow.joined.fresh(6), None, None)
    apply_rule(flow, node)
    assert flow.joined.why_pinned(0) == "`node` (Split) has a shape that is not known in full"
