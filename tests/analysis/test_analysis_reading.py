"""How inputs are read: the axes are found whatever the layout, with what stands behind the first layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.reading import Reading, compared_with, reading, table_rows
from edgewise.testing.graphs import GraphBuilder, conv_net, lstm_net


def read(model: ir.Model, position: int = 0) -> Reading | None:
    value = model.graph.inputs[position]
    assert value.shape is not None
    return reading(value, tuple(int(str(size)) for size in value.shape))


def convolved(b: GraphBuilder, value: str, channels: int, *window: int, **attributes: Any) -> str:
    return b.node(
        "Conv", value, b.weight(6, channels, *window, name="w"), b.constant(np.ones(6, np.float32)), **attributes
    )


def finished(b: GraphBuilder, value: str) -> ir.Model:
    b.output(value, "y")
    return b.build()


def test_channels_first() -> None:
    found = read(conv_net())
    assert found is not None
    assert np.array_equal(found.places, np.arange(3 * 16 * 16).reshape(3, 16, 16))
    assert found.normalization is not None
    assert found.normalization.weights.shape[1] == 3
    assert found.scale.tolist() == [1, 1, 1]


def test_channels_last_scaled_and_padded() -> None:
    b = GraphBuilder("nhwc")
    x = b.input("x", (1, 6, 5, 3))
    shifted = b.node("Sub", x, b.constant(np.array([1, 2, 3], np.float32)))
    scaled = b.node("Div", shifted, b.constant(np.float32(4)))
    moved = b.node("Transpose", scaled, perm=[0, 3, 1, 2])
    padded = b.node("Pad", moved, b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
    found = read(finished(b, b.batch_norm(convolved(b, padded, 3, 3, 3, dilations=[2, 1]), 6, name="bn")))
    assert found is not None
    assert np.array_equal(found.places, np.arange(90).reshape(6, 5, 3).transpose(2, 0, 1))
    assert found.scale.tolist() == [0.25] * 3
    assert found.offset.tolist() == [-0.25, -0.5, -0.75]
    assert found.normalization is not None
    assert found.normalization.weights.shape == (6, 3, 5, 3)  # two dilated steps are four apart
    assert not found.normalization.weights[:, :, 1::2].any()
    assert found.normalization.bias.tolist() == [1] * 6


def test_a_window_that_is_reshaped_to_one_channel() -> None:
    b = GraphBuilder("window")
    shaped = b.node("Reshape", b.input("x", (1, 12)), b.constant(np.array([0, 1, -1], np.int64)))
    found = read(finished(b, convolved(b, shaped, 1, 3)))
    assert found is not None
    assert found.places.tolist() == [list(range(12))]
    assert found.layer is not None
    assert found.normalization is None


def test_groups_read_their_own_channels() -> None:
    b = GraphBuilder("groups")
    found = read(finished(b, convolved(b, b.input("x", (1, 4, 8)), 2, 3, group=2)))
    assert found is not None
    assert found.layer is not None
    reads = (found.layer[0] != 0).any(axis=2)
    assert reads.tolist() == [[True, True, False, False]] * 3 + [[False, False, True, True]] * 3


def test_a_product_with_a_bias_behind_it() -> None:
    b = GraphBuilder("product")
    product = b.node("MatMul", b.input("x", (1, 7)), b.weight(7, 6))
    found = read(finished(b, b.batch_norm(b.node("Add", product, b.constant(np.full(6, 2.0, np.float32))), 6)))
    assert found is not None
    assert found.places.shape == (7,)
    assert found.normalization is not None
    assert found.normalization.weights.shape == (6, 7)
    assert found.normalization.bias.tolist() == [2] * 6


def test_normalization_of_the_input_itself() -> None:
    b = GraphBuilder("direct")
    found = read(finished(b, b.batch_norm(b.input("x", (1, 3, 4, 4)), 3, name="first")))
    assert found is not None
    assert found.normalization is not None
    assert np.array_equal(found.normalization.weights.reshape(3, 3), np.eye(3))


def test_recurrent_cells_have_features_last_and_time_first() -> None:
    found = read(lstm_net())
    assert found is not None
    assert sorted(found.places.shape) == [5, 6]
    assert found.places.shape[0] == 5


def test_what_reads_element_by_element_tells_nothing() -> None:
    b = GraphBuilder("plain")
    assert read(finished(b, b.node("Sigmoid", b.input("x", (1, 3, 4, 4))))) is None


@pytest.mark.parametrize("how", ["scaled by the input itself", "divides a constant", "scaled by 0"])
def test_scalings_that_cannot_be_undone_end_the_path(how: str) -> None:
    b = GraphBuilder("scaled")
    x = b.input("x", (1, 3, 4, 4))
    if how == "divides a constant":
        scaled = b.node("Div", b.constant(np.float32(1)), x)
    else:
        scaled = b.node("Mul", x, x if how.endswith("itself") else b.constant(np.float32(0)))
    assert read(finished(b, convolved(b, scaled, 3, 3, 3))) is None


def test_tables_and_comparisons() -> None:
    b = GraphBuilder("text")
    tokens, kinds, rate = (b.input(name, shape, "int64") for name, shape in (("t", (1, 4)), ("k", (1, 4)), ("r", ())))
    big = b.node("Gather", b.weight(50, 8), b.node("Unsqueeze", tokens, b.constant(np.array([0], np.int64))))
    small = b.node("Gather", b.weight(2, 8), kinds)
    same = b.node("Cast", b.node("Equal", rate, b.constant(np.int64(16000))), to=1)
    b.output(b.node("Mul", b.node("Add", big, small), same), "y")
    first, second, third = b.build().graph.inputs
    assert [table_rows(value) for value in (first, second, third)] == [50, 2, None]
    assert compared_with(third) == (16000.0,)
    assert compared_with(first) == ()
