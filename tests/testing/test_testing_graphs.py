"""Each small model is valid, seeded, and computes what its docstring says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from edgewise.records.tensors import Array
from edgewise.testing import graphs

MODELS: dict[str, Callable[[], ir.Model]] = {
    "conv": graphs.conv_net,
    "conv-dynamic": lambda: graphs.conv_net(batch="batch"),
    "depthwise": graphs.depthwise_net,
    "mlp": graphs.mlp,
    "transformer": graphs.transformer_block,
    "transformer-standard": lambda: graphs.transformer_block(standard=True, batch="batch"),
    "lstm": graphs.lstm_net,
    "if": graphs.branching_net,
    "recurrent": graphs.recurrent_cell,
    "two-inputs": lambda: graphs.two_input_net(batch="batch"),
    "constant": graphs.constant_output_net,
    "half": graphs.half_weights_net,
    # The reference evaluator knows no DequantizeLinear before opset 19.
    "q-conv": lambda: graphs.quantized_conv(opset=19),
    "q-gemm": lambda: graphs.quantized_gemm(activation="int8", opset=19),
}


def evaluate(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    return list(ReferenceEvaluator(ir.to_proto(model)).run(None, feeds))


@pytest.mark.parametrize("name", MODELS)
def test_each_model_runs_with_the_shapes_that_it_declares(name: str) -> None:
    model = MODELS[name]()
    results = evaluate(model, graphs.random_feeds(model, dynamic=3))
    assert len(results) == len(model.graph.outputs)
    for value, result in zip(model.graph.outputs, results, strict=True):
        assert value.shape is not None
        assert result.shape == tuple(size if isinstance(size, int) else 3 for size in value.shape)
        assert np.isfinite(result).all()


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_seeded(name: str) -> None:
    first, second = (ir.to_proto(MODELS[name]()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_another_seed_gives_other_weights() -> None:
    feeds = graphs.random_feeds(graphs.mlp())
    assert not np.allclose(evaluate(graphs.mlp(seed=0), feeds)[0], evaluate(graphs.mlp(seed=1), feeds)[0])


def test_both_spellings_of_the_transformer_are_one_function() -> None:
    written_out, standard = graphs.transformer_block(), graphs.transformer_block(standard=True)
    feeds = graphs.random_feeds(standard)
    # 64 terms in the longest sum, about ten layers in a row, values of order one.
    np.testing.assert_allclose(evaluate(written_out, feeds)[0], evaluate(standard, feeds)[0], atol=64 * 10 * 6e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_if_takes_both_branches(sign: int) -> None:
    x = sign * np.arange(1, 9, dtype=np.float32).reshape(1, 8)
    (result,) = evaluate(graphs.branching_net(), {"x": x})
    np.testing.assert_array_equal(result, 2 * x if sign > 0 else x - 1)


def test_quantized_results_lie_on_the_grid_and_do_not_saturate() -> None:
    model = graphs.quantized_conv(opset=19)
    (result,) = evaluate(model, graphs.random_feeds(model))
    np.testing.assert_array_equal(result * 16, np.round(result * 16))
    assert np.abs(result).max() < 127 / 16
    assert np.unique(result).size > 16


def test_feeds_follow_type_and_dynamic_size() -> None:
    b = graphs.GraphBuilder("types")
    b.input("flags", ("n",), "bool")
    picked = b.node("Where", "flags", b.input("ids", ("n",), "int64"), b.constant(np.int64(7)))
    b.output(picked, "y", ("n",), "int64")
    feeds = graphs.random_feeds(b.build(), dynamic=5)
    assert feeds["flags"].dtype == np.bool_
    assert feeds["ids"].dtype == np.int64
    assert feeds["flags"].shape == feeds["ids"].shape == (5,)


def test_the_checker_refuses_a_wrong_graph() -> None:
    b = graphs.GraphBuilder("wrong")
    b.output(b.node("Conv", b.input("x", (1, 3, 4, 4)), name="no_weight"), "y")
    with pytest.raises(onnx.checker.ValidationError):
        b.build()


def test_the_custom_operator_is_kept() -> None:
    assert [node.op_type for node in graphs.custom_operator_net().graph] == ["Relu", "Frobnicate", "Relu"]
