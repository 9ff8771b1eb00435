from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.errors import ModelError, OutputError, ResourceError
from edgewise.formats import onnx as onnx_format
from edgewise.formats import weightless
from edgewise.formats.onnx import check_weights, foreign_operators, load, save, to_bytes
from edgewise.formats.shapes import fix_shapes
from edgewise.records.tensors import Array

FLOAT = TensorProto.FLOAT


def _proto(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array] | None = None,
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    also_inputs: bool = False,
) -> onnx.ModelProto:
    """Return a model from `x` [1, 4] to `y` [1, 4]."""
    inputs = [helper.make_tensor_value_info("x", FLOAT, [1, 4])]
    initializers = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    if also_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers]
    outputs = [helper.make_tensor_value_info("y", FLOAT, [1, 4])]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def _matmul(weight: Array, **more: Any) -> onnx.ModelProto:
    return _proto([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": weight}, **more)


def _write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def _external(folder: Path, weight: Array, location: str = "m.data") -> Path:
    """Write a model whose weight lies in a second file."""
    proto = _matmul(weight)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location=location, size_threshold=0)
    return folder / "m.onnx"


def _run(data: bytes, x: Array) -> Array:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"x": x})[0]
    return result


X = np.arange(4, dtype=np.float32).reshape(1, 4)
# Small whole numbers, so that every sum is exact in whatever order it is taken.
W = np.random.default_rng(0).integers(-4, 5, (4, 4)).astype(np.float32)


def test_weights_come_back_as_they_are(tmp_path: Path) -> None:
    model = load(_write(tmp_path / "m.onnx", _matmul(W)))
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), W)  # type: ignore[union-attr]  # set


@pytest.mark.parametrize("opset", [7, 9, 13, 17, 20, 23, onnx.defs.onnx_opset_version()])
def test_every_opset_from_7_on_is_read(tmp_path: Path, opset: int) -> None:
    model = load(_write(tmp_path / "m.onnx", _matmul(W, opset=opset)))
    assert model.opset_imports[""] == opset


@pytest.mark.parametrize(("opset", "hint"), [(6, "newer"), (1000, "older")])
def test_other_opsets_are_refused(tmp_path: Path, opset: int, hint: str) -> None:
    with pytest.raises(ModelError, match=str(opset)) as caught:
        load(_write(tmp_path / "m.onnx", _matmul(W, opset=opset)))
    assert hint in (caught.value.hint or "")


def test_a_model_without_opset_is_refused(tmp_path: Path) -> None:
    proto = _matmul(W)
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="which version"):
        load(_write(tmp_path / "m.onnx", proto))


def test_a_model_without_graph_is_refused(tmp_path: Path) -> None:
    proto = _matmul(W)
    proto.ClearField("graph")
    with pytest.raises(ModelError, match="holds none"):
        load(_write(tmp_path / "m.onnx", proto))


def test_a_model_without_outputs_is_refused(tmp_path: Path) -> None:
    proto = _matmul(W)
    del proto.graph.output[:]
    with pytest.raises(ModelError, match="has to have an output"):
        load(_write(tmp_path / "m.onnx", proto))


def test_sparse_weights_are_refused_by_name(tmp_path: Path) -> None:
    proto = _matmul(W)
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    with pytest.raises(ModelError, match="`s`"):
        load(_write(tmp_path / "m.onnx", proto))


def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    proto = _proto([helper.make_node("Frobnicate", ["x"], ["y"], name="odd")])
    with pytest.raises(ModelError, match=r"`Frobnicate` \(node `odd`\)"):
        load(_write(tmp_path / "m.onnx", proto))


def test_an_operator_newer_than_the_opset_is_unknown(tmp_path: Path) -> None:
    proto = _proto([helper.make_node("Gelu", ["x"], ["y"])], opset=17)
    with pytest.raises(ModelError, match="`Gelu`"):
        load(_write(tmp_path / "m.onnx", proto))


def test_an_unknown_operator_in_a_subgraph_is_found(tmp_path: Path) -> None:
    def branch(operator: str, name: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["x"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, FLOAT, [1, 4])])

    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu", "a"), else_branch=branch("Huh", "b"))
    with pytest.raises(ModelError, match="`Huh`"):
        load(_write(tmp_path / "m.onnx", _proto([choice], {"c": np.array(True)})))


def test_custom_domains_are_refused_and_listed(tmp_path: Path) -> None:
    nodes = [helper.make_node("A", ["x"], ["h"], domain="my.ops"), helper.make_node("B", ["h"], ["y"], domain="my.ops")]
    with pytest.raises(ModelError, match=r"`my\.ops::A`.*`my\.ops::B`"):
        load(_write(tmp_path / "m.onnx", _proto(nodes, domains=["my.ops"])))


def test_operators_of_onnx_runtime_are_let_in_and_listed(tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], name="g", domain="com.microsoft")
    proto = _proto([node], domains=["com.microsoft"])
    (decline,) = foreign_operators(load(_write(tmp_path / "m.onnx", proto)))
    assert (decline.node, decline.operator) == ("g", "com.microsoft::Gelu")
    assert "not an operator of the ONNX standard" in decline.reason


def test_standard_models_have_no_foreign_operators(tmp_path: Path) -> None:
    assert foreign_operators(load(_write(tmp_path / "m.onnx", _matmul(W)))) == ()


def test_functions_of_the_model_are_inlined(tmp_path: Path) -> None:
    double = helper.make_function(
        "my.ops", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    proto = _proto([helper.make_node("Double", ["x"], ["y"], domain="my.ops")], domains=["my.ops"], functions=[double])
    model = load(_write(tmp_path / "m.onnx", proto))
    assert [node.op_type for node in model.graph] == ["Add"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_array_equal(_run(to_bytes(model), X), 2 * X)


def test_initializers_that_are_inputs_become_initializers_only(tmp_path: Path) -> None:
    constants = {"w": W, "b": np.ones(4, np.float32)}
    proto = _proto([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], constants, opset=9, also_inputs=True)
    proto.ir_version = 3
    path = _write(tmp_path / "m.onnx", proto)
    before = path.read_bytes()
    model = load(path)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version >= 4
    onnx.checker.check_model(onnx.load_from_string(to_bytes(model)))
    np.testing.assert_array_equal(_run(to_bytes(model), X), _run(before, X))
    assert path.read_bytes() == before


def test_a_graph_out_of_order_is_put_in_order(tmp_path: Path) -> None:
    proto = _proto([helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Relu", ["x"], ["h"])])
    model = load(_write(tmp_path / "m.onnx", proto))
    assert [node.outputs[0].name for node in model.graph] == ["h", "y"]


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Also one without a name, which is called by its output, from one that is named like that output."""
    values = ["x", "a", "b", "c", "d", "y"]
    names = ["n", "n", "c", "", "n_2"]
    nodes = [helper.make_node("Relu", [values[k]], [values[k + 1]], name=name) for k, name in enumerate(names)]
    model = load(_write(tmp_path / "m.onnx", _proto(nodes)))
    assert [onnx_format.node_name(node) for node in model.graph] == ["n", "n_3", "c", "d", "n_2"]
    names[2] = "d"
    for node, name in zip(nodes, names, strict=True):
        node.name = name
    model = load(_write(tmp_path / "m.onnx", _proto(nodes)))
    assert [onnx_format.node_name(node) for node in model.graph] == ["n", "n_3", "d", "d_2", "n_2"]
    assert np.array_equal(_run(to_bytes(model), X), X)


def test_a_value_that_nothing_computes_is_named(tmp_path: Path) -> None:
    proto = _proto([helper.make_node("Add", ["x", "ghost"], ["y"], name="add")])
    with pytest.raises(ModelError, match="node `add` reads `ghost`"):
        load(_write(tmp_path / "m.onnx", proto))


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    with pytest.raises(ModelError, match="cycle"):
        load(_write(tmp_path / "m.onnx", _proto(nodes)))


def test_attributes_that_an_operator_does_not_have_are_refused_in_onnxs_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Unrecognized attribute"):
        load(_write(tmp_path / "m.onnx", _proto([helper.make_node("Relu", ["x"], ["y"], slope=1)])))


def test_external_weights_are_mapped_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weightless, "_LARGE_BYTES", 0)
    model = load(_external(tmp_path, W))
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None
    np.testing.assert_array_equal(tensor.numpy(), W)


def test_a_model_of_fixed_shapes_has_its_external_weights_mapped_and_names_no_file(tmp_path: Path) -> None:
    """Passes and runtimes serialize it, and a message does not say which folder the name of a file belongs to."""
    fixed = fix_shapes(load(_external(tmp_path, W)), {})
    tensor = fixed.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), W)
    assert not tensor.numpy().flags.owndata
    onnx.checker.check_model(ir.to_proto(fixed))


def test_external_weights_are_found_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _external(tmp_path, W)
    monkeypatch.chdir(tmp_path)
    model = load(Path("m.onnx"))
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(_run(to_bytes(model), X), X @ W)


def test_missing_external_data_names_file_and_tensor(tmp_path: Path) -> None:
    path = _external(tmp_path, W)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"`w` in `m\.data`, which cannot be read"):
        load(path)


def test_short_external_data_names_file_and_tensor(tmp_path: Path) -> None:
    path = _external(tmp_path, W)
    os.truncate(tmp_path / "m.data", W.nbytes - 1)
    with pytest.raises(ModelError, match=r"`w` in `m\.data`, bytes 0 to 64, but that file has only 63"):
        load(path)


def test_an_external_entry_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path = _external(tmp_path, W)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = "8"
    with pytest.raises(ModelError, match="too short"):
        load(_write(path, proto))


@pytest.mark.parametrize("location", ["../secret.data", "/etc/hostname"])
def test_external_data_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.data").write_bytes(bytes(1000))
    path = _external(folder, W)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    with pytest.raises(ModelError, match="outside of it"):
        load(_write(path, proto))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = _external(folder, W)
    (folder / "m.data").rename(tmp_path / "elsewhere.data")
    (folder / "m.data").symlink_to(tmp_path / "elsewhere.data")
    with pytest.raises(ModelError, match="outside of it"):
        load(path)


def test_hard_linked_external_data_are_refused_with_the_cure(tmp_path: Path) -> None:
    path = _external(tmp_path, W)
    (tmp_path / "other").hardlink_to(tmp_path / "m.data")
    with pytest.raises(ModelError, match="hard links") as caught:
        load(path)
    assert "Copy" in (caught.value.hint or "")


def test_nan_in_a_weight_is_counted(tmp_path: Path) -> None:
    weight = W.copy()
    weight[0, :3] = np.nan
    with pytest.raises(ModelError, match=r"`w` \[4, 4\] has 3 of 16 values that are NaN"):
        check_weights(load(_write(tmp_path / "m.onnx", _matmul(weight))))


def test_infinity_in_a_weight_is_counted(tmp_path: Path) -> None:
    weight = W.copy()
    weight[1, 1] = -np.inf
    with pytest.raises(ModelError, match="1 of 16 values that are infinite"):
        check_weights(load(_write(tmp_path / "m.onnx", _matmul(weight))))


def test_nan_in_external_float16_weights_is_found(tmp_path: Path) -> None:
    weight = np.ones((4, 4), np.float16)
    weight[3, 3] = np.nan
    proto = _proto(
        [helper.make_node("Cast", ["w"], ["c"], to=FLOAT), helper.make_node("MatMul", ["x", "c"], ["y"])], {"w": weight}
    )
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(ModelError, match="`w`"):
        check_weights(load(tmp_path / "m.onnx"))


def test_infinite_masks_and_bounds_are_legitimate(tmp_path: Path) -> None:
    mask = np.array([[0, 0, -np.inf, -np.inf]], np.float32)
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["h"]),
        helper.make_node("Clip", ["h", "low", "high"], ["y"]),
    ]
    bounds = {"mask": mask, "low": np.float32(-np.inf) * np.ones((), np.float32), "high": np.array(np.inf, np.float32)}
    check_weights(load(_write(tmp_path / "m.onnx", _proto(nodes, bounds))))


def test_constants_in_nodes_are_checked_too(tmp_path: Path) -> None:
    weight = W.copy()
    weight[0, 0] = np.inf
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight), name="k")
    proto = _proto([constant, helper.make_node("MatMul", ["x", "w"], ["y"])])
    with pytest.raises(ModelError, match="`k`"):
        check_weights(load(_write(tmp_path / "m.onnx", proto)))


def test_non_finite_values_are_counted_across_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_format, "_CHUNK", 3)
    weight = np.full((4, 4), np.nan, np.float32)
    with pytest.raises(ModelError, match="16 of 16"):
        check_weights(load(_write(tmp_path / "m.onnx", _matmul(weight))))


def test_a_file_beyond_the_limit_of_protobuf_names_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "m.onnx", _matmul(W))
    monkeypatch.setattr(onnx_format, "_PROTOBUF_LIMIT_BYTES", 50)
    with pytest.raises(ModelError, match="2 GiB") as caught:
        load(path)
    assert "external" in (caught.value.hint or "")


def test_saving_and_loading_keeps_the_function(tmp_path: Path) -> None:
    model = load(_external(tmp_path, W))
    save(model, tmp_path / "copy.onnx")
    assert not (tmp_path / "copy.onnx.data").exists()
    np.testing.assert_array_equal(_run((tmp_path / "copy.onnx").read_bytes(), X), X @ W)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)


def test_large_weights_are_saved_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = _proto(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "big"], ["t"]),
         helper.make_node("ReduceMean", ["t"], ["y"], axes=[0], keepdims=1)],
        {"w": W, "big": np.ones((100, 4), np.float32)},
    )  # fmt: skip
    model = load(_write(tmp_path / "m.onnx", proto))
    monkeypatch.setattr(onnx_format, "_EXTERNAL_FROM_BYTES", 100)
    save(model, tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx.data").stat().st_size == 1600
    again = load(tmp_path / "copy.onnx")
    np.testing.assert_allclose(_run(to_bytes(again), X), X @ W, rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.onnx", "copy.onnx.data", "m.onnx"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    model = load(_write(tmp_path / "m.onnx", _matmul(W)))
    with pytest.raises(OutputError, match="nowhere"):
        save(model, tmp_path / "nowhere" / "m.onnx")


def test_too_large_for_one_file_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(_write(tmp_path / "m.onnx", _matmul(W)))

    def fail(_: object) -> None:
        raise ValueError("exceeds maximum protobuf size")

    monkeypatch.setattr(ir, "to_proto", fail)
    with pytest.raises(ResourceError, match="2 GiB"):
        to_bytes(model)


def test_an_output_without_shape_is_let_in(tmp_path: Path) -> None:
    proto = _matmul(W)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert load(_write(tmp_path / "m.onnx", proto)).graph.outputs[0].shape is None
