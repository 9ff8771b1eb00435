from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.compress.unfold import spread, unfolding
from edgewise.errors import ContractError

Floats = npt.NDArray[np.float32]


def reference(operator: str, x: Floats, weight: Floats, **attributes: Any) -> tuple[ir.Node, Floats]:
    """Return the node and its output, as ONNX Runtime computes it without optimizations."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return next(iter(ir.from_proto(model).graph)), session.run(None, {"x": x})[0]


def case(operator: str, x: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> Any:
    inner = ",".join(f"{key}={value}" for key, value in attributes.items())
    return pytest.param(operator, x, weight, attributes, id=f"{operator}-{x}-{weight}-{inner}".replace(" ", ""))


CASES = [
    case("Conv", (2, 3, 7), (4, 3, 3)),
    case("Conv", (2, 4, 9), (6, 2, 3), strides=[2], dilations=[2], group=2, pads=[3, 1]),
    case("Conv", (1, 3, 8, 9), (5, 3, 1, 1)),
    case("Conv", (2, 3, 8, 9), (5, 3, 3, 2), strides=[2, 3], dilations=[1, 2], pads=[0, 1, 2, 1]),
    case("Conv", (2, 6, 7, 5), (12, 2, 3, 3), group=3, pads=[1, 1, 1, 1]),
    case("Conv", (2, 4, 8, 7), (4, 1, 5, 5), group=4, strides=[2, 2], auto_pad="SAME_UPPER"),
    case("Conv", (1, 4, 8, 7), (8, 1, 4, 2), group=4, strides=[2, 1], auto_pad="SAME_LOWER"),
    case("Conv", (1, 2, 8, 7), (3, 2, 2, 3), strides=[3, 2], auto_pad="VALID"),
    case("Conv", (1, 2, 8, 7), (3, 2, 2, 3), strides=[3, 2], auto_pad="NOTSET", pads=[1, 0, 0, 1]),
    case("Conv", (1, 2, 4, 5, 6), (3, 2, 2, 3, 2), strides=[1, 2, 1], pads=[1, 0, 0, 0, 1, 2]),
    case("ConvTranspose", (2, 3, 5), (3, 4, 3)),
    case("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 2), strides=[2, 3], pads=[1, 0, 2, 1], group=2),
    case("ConvTranspose", (1, 3, 4, 4), (3, 2, 2, 2), strides=[2, 2], output_padding=[1, 0]),
    case("ConvTranspose", (1, 3, 4, 4), (3, 2, 3, 3), strides=[2, 2], dilations=[2, 1], pads=[1, 1, 1, 1]),
    case("ConvTranspose", (1, 3, 6, 4), (3, 2, 1, 1), pads=[1, 0, 2, 1]),
    case("ConvTranspose", (1, 2, 3, 3), (2, 2, 2, 2), auto_pad="VALID"),
    case("Gemm", (5, 3), (3, 4)),
    case("Gemm", (5, 3), (4, 3), transB=1),
    case("Gemm", (3, 5), (3, 4), transA=1),
    case("Gemm", (3, 5), (4, 3), transA=1, transB=1),
    case("MatMul", (5, 3), (3, 4)),
    case("MatMul", (2, 2, 5, 3), (3, 4)),
    case("MatMul", (3,), (3, 4)),
]


@pytest.mark.parametrize(("operator", "shape", "weights", "attributes"), CASES)
def test_rows_times_the_matrix_are_the_output(
    operator: str, shape: tuple[int, ...], weights: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal(shape).astype(np.float32)
    weight = random.standard_normal(weights).astype(np.float32)
    node, expected = reference(operator, x, weight, **attributes)
    found = unfolding(node, weight)
    assert not isinstance(found, str)
    total = found.positions(shape)
    # [N, M, ...] to [P, M]: positions are counted in the order of the output, its channels left out.
    axis = 1 if "Conv" in operator else expected.ndim - 1
    flat = np.moveaxis(expected, axis, -1).reshape(-1, expected.shape[axis])
    assert total == len(flat)
    for chosen in (np.arange(total), spread(total, 3, 1)):
        rows = found.rows(x, chosen)
        assert rows.dtype == np.float32
        assert rows.shape == (len(chosen), found.groups, found.columns)
        ours = np.einsum("pgk,grk->pgr", rows.astype(np.float64), found.matrix(weight)).reshape(len(chosen), -1)
        # K products and sums in float32 in the runtime.
        bound = 2**-23 * (found.columns + 1) * float(np.abs(x).max() * np.abs(weight).max()) * found.columns
        assert np.abs(ours - flat[chosen]).max() <= bound


@pytest.mark.parametrize(("operator", "shape", "weights", "attributes"), CASES)
def test_matrices_go_back_into_the_layout(
    operator: str, shape: tuple[int, ...], weights: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    weight = np.arange(np.prod(weights), dtype=np.int8).reshape(weights)
    node, _ = reference(operator, np.ones(shape, np.float32), weight.astype(np.float32), **attributes)
    found = unfolding(node, weight)
    assert not isinstance(found, str)
    matrix = found.matrix(weight)
    assert matrix.shape == (found.groups, found.outputs, found.columns)
    back = found.restore(matrix.astype(np.int8))
    assert back.dtype == np.int8
    assert np.array_equal(back, weight)
    # A number for each input channel, spread over its kernel, belongs to the same weights in both layouts.
    channels = found.columns // found.kernel
    scales = np.random.default_rng(0).random((found.groups, found.outputs, channels)).astype(np.float32)
    shaped = found.restore_blocks(scales)
    assert shaped.ndim == weight.ndim
    assert np.array_equal(found.blocks(shaped), scales)
    ones = np.ones(weights, np.float32)
    assert np.array_equal(found.matrix(ones * shaped), np.repeat(scales, found.kernel, axis=2))


def test_what_is_no_product_of_matrices_is_declined() -> None:
    weight = np.ones((2, 3, 4), np.float32)
    assert unfolding(ir.node("MatMul", []), weight) == "its weights are a stack of matrices"
    for attributes in ({"auto_pad": "SAME_UPPER"}, {"output_shape": [7]}):
        assert isinstance(unfolding(ir.node("ConvTranspose", [], attributes), weight), str)
    with pytest.raises(ContractError, match="Relu"):
        unfolding(ir.node("Relu", []), weight)


def test_positions_are_few_and_move_and_cover_everything() -> None:
    assert spread(5, 7, 3).tolist() == [0, 1, 2, 3, 4]
    assert spread(0, 7, 3).tolist() == []
    seen = set()
    for sample in range(64):
        chosen = spread(12 * 12, 30, sample)
        assert 0 < len(chosen) <= 30
        assert len(set(np.diff(chosen))) == 1
        seen.update(chosen.tolist())
    assert seen == set(range(144))
    # The step shares no factor with the size: all columns of an image are visited.
    assert {int(place) % 12 for place in spread(144, 30, 0)} == set(range(12))
