from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgewise.errors import ModelError, RecipeError
from edgewise.formats.shapes import dynamic_dimensions, fix_shapes, infer_shapes, parse_shape, require_static
from edgewise.records.tensors import Array


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str | None] | None],
    output: Sequence[int | str | None] | None,
    constants: dict[str, Array] | None = None,
) -> ir.Model:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def _shape(model: ir.Model, name: str) -> list[int | str | None]:
    value = ir.convenience.create_value_mapping(model.graph)[name]
    assert value.shape is not None
    return [size if isinstance(size, int) else size.value for size in value.shape]


def _conv(channels: int = 256) -> ir.Model:
    """A convolution with a weight that is larger than what travels to the inference."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    weight = np.zeros((channels, 3, 3, 3), np.float32)
    return _model(nodes, {"x": ["n", 3, "h", "w"]}, ["n", channels, "oh", "ow"], {"w": weight})


def test_the_first_dimension_is_taken_for_the_batch() -> None:
    found = dynamic_dimensions(_conv())
    assert [(d.input, d.axis, d.name, d.is_batch) for d in found] == [
        ("x", 0, "n", True), ("x", 2, "h", False), ("x", 3, "w", False),
    ]  # fmt: skip


def test_a_dimension_of_the_same_name_is_the_batch_elsewhere_too() -> None:
    model = _model([helper.make_node("Add", ["x", "s"], ["y"])], {"x": ["n", 4], "s": [1, "n"]}, None)
    assert [d.is_batch for d in dynamic_dimensions(model)] == [True, True]


def test_an_input_of_unknown_rank_is_refused() -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {"x": None}, None)
    with pytest.raises(ModelError, match="`x` has none"):
        dynamic_dimensions(model)


def test_shapes_are_fixed_and_inferred_on_a_copy() -> None:
    model = _conv()
    fixed = fix_shapes(model, {"x": (1, 3, 10, 12)})
    assert _shape(fixed, "x") == [1, 3, 10, 12]
    assert _shape(fixed, "h") == [1, 256, 8, 10]
    assert _shape(fixed, "y") == [1, 256, 8, 10]
    assert _shape(model, "x") == ["n", 3, "h", "w"]
    assert fixed.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert [value.name for value in fixed.graph.inputs] == ["x"]


def test_none_keeps_a_dimension_open() -> None:
    fixed = fix_shapes(_conv(), {"x": (1, 3, 10, None)})
    assert _shape(fixed, "h")[:3] == [1, 256, 8]
    assert isinstance(_shape(fixed, "h")[3], str | None)


@pytest.mark.parametrize(("batch", "expected"), [(1, 1), (4, 4), (None, "n")])
def test_the_batch(batch: int | None, expected: int | str) -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, ["n", 4])
    fixed = fix_shapes(model, {}, batch=batch)
    assert _shape(fixed, "x") == _shape(fixed, "y") == [expected, 4]


def test_a_batch_that_is_given_wins() -> None:
    assert _shape(fix_shapes(_conv(), {"x": (2, 3, 8, 8)}), "y") == [2, 256, 6, 6]


def test_a_batch_without_name_is_fixed() -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {"x": [None, 4]}, [None, 4])
    assert _shape(fix_shapes(model, {}), "y") == [1, 4]


def test_a_named_dimension_gets_one_size_everywhere() -> None:
    model = _model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["n", "t"], "z": ["n", "t"]}, None)
    assert _shape(fix_shapes(model, {"x": (1, 7)}), "z") == [1, 7]
    with pytest.raises(RecipeError, match=r"`t` has to have one size.*7 and 8"):
        fix_shapes(model, {"x": (1, 7), "z": (1, 8)})


def test_a_batch_of_one_in_a_reshape_survives() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    model = _model(nodes, {"x": ["n", 2, 6]}, None, {"s": np.array([1, 12], np.int64)})
    assert _shape(fix_shapes(model, {}), "y") == [1, 12]


def test_shapes_computed_from_shapes_are_resolved() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axes": np.array([0]), "minus": np.array([-1])}
    model = _model(nodes, {"x": ["n", 3, 5]}, ["n", "q"], constants)
    assert _shape(fix_shapes(model, {}), "y") == [1, 15]


def test_stale_shapes_in_the_file_are_forgotten() -> None:
    model = _conv()
    value = ir.convenience.create_value_mapping(model.graph)["h"]
    value.shape = ir.Shape([7, 256, 1, 1])
    assert _shape(fix_shapes(model, {"x": (1, 3, 5, 5)}), "h") == [1, 256, 3, 3]


def test_a_stale_shape_is_forgotten_even_where_none_can_be_inferred() -> None:
    nodes = [helper.make_node("Squeeze", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    model = _model(nodes, {"x": ["n", "m"]}, ["m"])
    value = ir.convenience.create_value_mapping(model.graph)["h"]
    value.shape = ir.Shape([7])
    fixed = ir.convenience.create_value_mapping(fix_shapes(model, {}).graph)["h"]
    assert fixed.shape is None or not fixed.shape.is_static()


def test_the_batch_by_its_name_is_fixed_in_other_places() -> None:
    model = _model([helper.make_node("Add", ["x", "s"], ["y"])], {"x": ["n", 4], "s": [4, "n"]}, None)
    assert _shape(fix_shapes(model, {}), "s") == [4, 1]


def test_shapes_inside_of_branches_are_inferred() -> None:
    def branch(name: str) -> onnx.GraphProto:
        nodes = [helper.make_node("Relu", ["x"], [f"{name}_h"]), helper.make_node("Neg", [f"{name}_h"], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    fixed = fix_shapes(_model([choice], {"x": ["n", 4]}, None, {"c": np.array(True)}), {})
    inner = next(iter(fixed.graph)).attributes["then_branch"].as_graph()
    assert inner.outputs[0].shape == ir.Shape([1, 4])
    assert _shape(fixed, "y") == [1, 4]


def test_outputs_of_foreign_operators_keep_what_the_file_says() -> None:
    node = helper.make_node("Odd", ["x"], ["h"], domain="com.microsoft")
    model = _model([node, helper.make_node("Relu", ["h"], ["y"])], {"x": ["n", 4]}, ["n", 4])
    model.opset_imports["com.microsoft"] = 1
    value = ir.convenience.create_value_mapping(model.graph)["h"]
    value.shape, value.dtype = ir.Shape([1, 4]), ir.DataType.FLOAT
    fixed = fix_shapes(model, {})
    assert _shape(fixed, "h") == [1, 4]
    assert _shape(fixed, "y") == [1, 4]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"z": (1,)}, "name an input.*`z`.*`x`"),
        ({"x": (1, 3, 8)}, r"\[n, 3, h, w\].*\[1, 3, 8\]"),
        ({"x": (1, 4, 8, 8)}, r"\[n, 3, h, w\].*\[1, 4, 8, 8\]"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        fix_shapes(_conv(), dict(shapes))


def test_a_shape_that_an_operator_cannot_take() -> None:
    model = _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", "k"]}, None, {"w": np.zeros((4, 4), "f4")}
    )
    assert _shape(fix_shapes(model, {"x": (1, 4)}), "y") == [1, 4]
    with pytest.raises(RecipeError, match=r"operators have to fit.*MatMul"):
        fix_shapes(model, {"x": (1, 5)})


def test_open_dimensions_are_asked_for_with_the_option_to_give() -> None:
    with pytest.raises(RecipeError, match=r"`x` \[n, 3, h, w\]") as caught:
        require_static(_conv(), {})
    assert "--shape x=1,3,H,W" in (caught.value.hint or "")


def test_what_is_decided_is_not_asked_for() -> None:
    require_static(_conv(), {"x": (1, 3, 8, None)})
    model = _model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["n", "t"], "z": ["n", "t"]}, None)
    require_static(model, {"x": (1, 7)})
    with pytest.raises(RecipeError, match="`z`"):
        require_static(model, {"x": (1, None)})


def test_strict_inference_names_the_trouble() -> None:
    model = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 4]}, None, {"w": np.zeros((5, 5), "f4")})
    with pytest.raises(RecipeError, match="MatMul"):
        infer_shapes(model, strict=True)
    infer_shapes(model)


@given(st.lists(st.none() | st.integers(1, 10**6), min_size=1, max_size=6), st.sampled_from([",", "x"]))
def test_a_written_shape_comes_back(shape: list[int | None], separator: str) -> None:
    text = separator.join("?" if size is None else str(size) for size in shape)
    assert parse_shape(f"my=input={text}") == ("my=input", tuple(shape))


def test_an_input_without_dimensions() -> None:
    assert parse_shape("sr=") == ("sr", ())


@pytest.mark.parametrize("text", ["x", "=1,2", "x=1,,2", "x=0,3", "x=-1", "x=1.5", "x=a", "x=1,2,", "x=?,b", "x=٣"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="NAME=D1"):
        parse_shape(text)
