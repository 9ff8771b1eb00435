from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.errors import ModelError
from edgewise.formats.onnx import load, to_bytes
from edgewise.formats.opset import MINIMUM_OPSET, raise_opset
from edgewise.formats.shapes import fix_shapes
from edgewise.records.tensors import Array

FLOAT = TensorProto.FLOAT
node = helper.make_node


def _model(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str], constants: dict[str, Any], opset: int
) -> ir.Model:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def _run(model: ir.Model, feeds: dict[str, Array] | None = None) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    if feeds is None:
        feeds = {
            port.name: random.standard_normal([size if isinstance(size, int) else 2 for size in port.shape], np.float32)
            for port in session.get_inputs()
        }
    results: list[Array] = session.run(None, feeds)
    return results


def _random(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _branches(operator: str, **attributes: Any) -> list[onnx.NodeProto]:
    def branch(name: str, sign: str) -> onnx.GraphProto:
        nodes = [node(sign, ["x"], [f"{name}_h"]), node(operator, [f"{name}_h"], [name], **attributes)]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, FLOAT, None)])

    return [node("If", ["c"], ["y"], then_branch=branch("a", "Neg"), else_branch=branch("b", "Relu"))]


C3 = np.array([1, 2, 3], np.float32)
HALF_WIDTH = np.array([1, 1, 2, 0.5], np.float32)
OLD_MODELS: dict[str, Callable[[], ir.Model]] = {
    "upsample 7 nearest": lambda: _model(
        [node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 3.0])], [1, 2, 4, 4], {}, 7
    ),
    "upsample 9 nearest 1.5": lambda: _model(
        [node("Upsample", ["x", "s"], ["y"])], [1, 2, 4, 4], {"s": np.array([1, 1, 1.5, 2.5], np.float32)}, 9
    ),
    "upsample 9 linear": lambda: _model(
        [node("Upsample", ["x", "s"], ["y"], mode="linear")], [1, 2, 4, 4], {"s": np.array([1, 1, 2, 2], np.float32)}, 9
    ),
    "resize 10 linear": lambda: _model(
        [node("Resize", ["x", "s"], ["y"], mode="linear")], [1, 2, 4, 6], {"s": HALF_WIDTH}, 10
    ),
    "softmax 7": lambda: _model([node("Softmax", ["x"], ["y"], axis=1)], ["n", 3, 4], {}, 7),
    "softmax 11 in a branch": lambda: _model(_branches("Softmax", axis=1), [2, 3, 4], {"c": np.array(True)}, 11),
    "reduce 13 in a branch": lambda: _model(_branches("ReduceMean", axes=[1]), [2, 3], {"c": np.array(False)}, 13),
    "dropout 7": lambda: _model([node("Dropout", ["x"], ["y"], ratio=0.5)], [2, 3], {}, 7),
    "slice 7": lambda: _model([node("Slice", ["x"], ["y"], axes=[1], starts=[1], ends=[3])], [2, 4], {}, 7),
    "clip 7": lambda: _model([node("Clip", ["x"], ["y"], min=0.0, max=0.5)], [2, 4], {}, 7),
    "pad 7": lambda: _model([node("Pad", ["x"], ["y"], pads=[0, 1, 0, 2], value=0.5)], [2, 4], {}, 7),
    "split 7": lambda: _model([node("Split", ["x"], ["y", "z"], axis=1, split=[1, 3])], [2, 4], {}, 7),
    "squeeze 7": lambda: _model(
        [node("Unsqueeze", ["x"], ["a"], axes=[0]), node("Squeeze", ["a"], ["y"], axes=[0])], [2, 4], {}, 7
    ),
    "reduce sum 7": lambda: _model([node("ReduceSum", ["x"], ["y"], axes=[1], keepdims=0)], [2, 4], {}, 7),
    "top k 7": lambda: _model([node("TopK", ["x"], ["y", "i"], k=2, axis=1)], [2, 4], {}, 7),
    "batch normalization 7": lambda: _model(
        [node("BatchNormalization", ["x", "s", "s", "m", "s"], ["y"])], [2, 3, 4], {"s": C3, "m": C3 - 1}, 7
    ),
    "convolution 7": lambda: _model(
        [node("Conv", ["x", "w", "b"], ["y"])], [1, 8, 6, 6], {"w": _random(32, 8, 3, 3), "b": _random(32)}, 7
    ),
    "gru 7": lambda: _model(
        [node("GRU", ["x", "w", "r", "b"], ["y"], hidden_size=3, linear_before_reset=1)],
        [5, 1, 4], {"w": _random(1, 9, 4), "r": _random(1, 9, 3), "b": _random(1, 18)}, 7,
    ),
    "quantize 10": lambda: _model(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        [2, 4], {"s": np.float32(0.1), "z": np.uint8(128)}, 10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", [MINIMUM_OPSET, 20])
@pytest.mark.parametrize("name", OLD_MODELS)
def test_the_function_stays_the_same(name: str, target: int) -> None:
    model = OLD_MODELS[name]()
    raised = raise_opset(model, target)
    assert raised.opset_imports[""] == target
    for before, after in zip(_run(model), _run(raised), strict=True):
        # Every operator does the same arithmetic in both versions, in the same runtime: not a bit may differ.
        np.testing.assert_array_equal(after, before)


def test_a_model_that_is_new_enough_is_returned_as_it_is() -> None:
    model = _model([node("Relu", ["x"], ["y"])], [2, 4], {}, 21)
    assert raise_opset(model) is model


def test_the_model_is_not_changed_and_weights_are_shared() -> None:
    model = OLD_MODELS["convolution 7"]()
    before = to_bytes(model)
    raised = raise_opset(model)
    assert to_bytes(model) == before
    assert raised.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert raised.graph.initializers["b"].const_value is model.graph.initializers["b"].const_value
    assert [value.name for value in raised.graph.inputs] == ["x"]


def test_the_ir_version_follows() -> None:
    model = _model([node("Relu", ["x"], ["y"])], [2, 4], {}, 9)
    model.ir_version = 4
    assert raise_opset(model, 17).ir_version == 8
    assert raise_opset(model, 21).ir_version == 10


def test_open_dimensions_keep_their_names() -> None:
    raised = raise_opset(OLD_MODELS["softmax 7"]())
    assert raised.graph.inputs[0].shape == ir.Shape(["n", 3, 4])
    assert raised.graph.outputs[0].shape is None


def test_foreign_operators_are_left_alone() -> None:
    model = _model(
        [node("Gelu", ["x"], ["h"], domain="com.microsoft"), node("ReduceMean", ["h"], ["y"], axes=[1])], [2, 4], {}, 13
    )
    model.opset_imports["com.microsoft"] = 1
    raised = raise_opset(model, 18)
    assert [(n.domain, n.op_type) for n in raised.graph if n.op_type != "Constant"] == [
        ("com.microsoft", "Gelu"), ("", "ReduceMean"),
    ]  # fmt: skip
    np.testing.assert_array_equal(_run(raised)[0], _run(model)[0])


@pytest.mark.parametrize("scales", [[1, 1, 0.5, 0.5], [1, 1, 2, 0.5]])
def test_shrinking_to_the_nearest_pixel_before_opset_11_is_declined(scales: list[float]) -> None:
    model = _model([node("Resize", ["x", "s"], ["y"], name="r")], [1, 2, 4, 4], {"s": np.array(scales, np.float32)}, 10)
    with pytest.raises(ModelError, match="Node `r`"):
        raise_opset(model)


def test_what_the_converter_refuses_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise onnx.version_converter.ConvertError("no adapter for Foo")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(ModelError, match=r"from opset 7 to 17.*no adapter for Foo"):
        raise_opset(OLD_MODELS["clip 7"]())


def test_a_result_that_is_not_valid_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        proto.opset_import[0].version = version
        return proto

    monkeypatch.setattr(onnx.version_converter, "convert_version", forgetful)
    with pytest.raises(ModelError, match="Unrecognized attribute"):
        raise_opset(OLD_MODELS["clip 7"]())


ZOO = Path(os.environ.get("EDGEWISE_ZOO", Path(__file__).parents[2].parent / "shared" / "zoo"))
ZOO_SHAPES: dict[str, dict[str, tuple[int | None, ...]]] = {
    "ppocrv4_mobile_rec": {"x": (1, 3, 48, 96)},
    "silero_vad": {"input": (1, 576), "state": (2, 1, 128)},
}


@pytest.mark.slow
@pytest.mark.skipif(not ZOO.is_dir(), reason=f"the model zoo is not at {ZOO}")
@pytest.mark.parametrize("path", sorted(ZOO.glob("*/*.onnx")), ids=lambda path: path.stem)
def test_real_models_keep_their_outputs(path: Path) -> None:
    model = load(path)
    raised = raise_opset(model)
    shapes = ZOO_SHAPES.get(path.stem, {})
    before, after = fix_shapes(model, shapes), fix_shapes(raised, shapes)
    random = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        str(value.name): np.array(16000)
        if value.name == "sr"
        else random.standard_normal(value.shape.numpy(), np.float32)
        for value in before.graph.inputs
        if value.shape is not None
    }
    for old, new in zip(_run(before, feeds), _run(after, feeds), strict=True):
        np.testing.assert_array_equal(new, old)
    open_values = [
        value.name
        for n in after.graph
        for value in n.outputs
        if n.op_type not in {"If", "Loop"} and (value.shape is None or not value.shape.is_static())
    ]
    if path.stem != "silero_vad" and "loop" not in path.stem:
        assert [name for name in open_values if name] == []
