from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgewise.errors import ModelError
from edgewise.formats import registry


def _model_bytes() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return data


def test_onnx_is_recognised_by_content_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.tflite"
    path.write_bytes(_model_bytes())
    assert [node.op_type for node in registry.load(path).graph] == ["Relu"]


def _zip(path: Path, member: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"0" * 10)


@pytest.mark.parametrize(
    ("data", "says", "cure"),
    [
        (b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite", "--tflite"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "--keras"),
        (b"\x80\x02\x8a\x0alF" + bytes(40), "PyTorch", "torch.onnx.export"),
        (b"\x93NUMPY\x01\x00", "NumPy array", "--data"),
        (b'<?xml version="1.0"?>\n<net name="m" version="11">', "OpenVINO", "ONNX model from which"),
        (b"\x18\x00\x00\x00ORTM" + bytes(8), "ONNX Runtime", "ONNX model from which"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "git lfs pull"),
        (b"\x0a\x03\x0a\x01a" * 3, "TensorFlow graph", "--graphdef"),
    ],
)
def test_files_of_others_are_named_and_the_cure_given(tmp_path: Path, data: bytes, says: str, cure: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        registry.load(path)
    assert says in caught.value.message
    assert cure in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("member", "says"), [("config.json", "Keras archive"), ("archive/data.pkl", "PyTorch"), ("model.json", "PyTorch")]
)
def test_zip_archives_are_told_apart_by_their_members(tmp_path: Path, member: str, says: str) -> None:
    path = tmp_path / "model.bin"
    _zip(path, member)
    with pytest.raises(ModelError, match=says):
        registry.load(path)


def test_a_file_of_samples_given_as_the_model_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ModelError, match="samples rather than a model"):
        registry.load(path)


def test_names_decide_only_where_content_does_not(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(b"\x0a\x03net\xa2\x06\x05hello")
    with pytest.raises(ModelError, match="Caffe"):
        registry.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has to exist.*none\.onnx"):
        registry.load(tmp_path / "none.onnx")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ModelError, match="is empty"):
        registry.load(tmp_path / "m.onnx")


def test_a_folder_and_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ModelError, match="is a folder") as caught:
        registry.load(tmp_path)
    assert "a.onnx" in (caught.value.hint or "")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        registry.load(tmp_path)
    assert "no `.onnx` file" in (caught.value.hint or "")


def test_a_saved_model_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(ModelError, match="SavedModel"):
        registry.load(tmp_path)


@pytest.mark.parametrize("data", [b"hello world", b"{}", bytes(64), b"\xff" * 64, b"\x00"])
def test_anything_else_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="does not begin like one"):
        registry.load(tmp_path / "m.onnx")


def test_every_prefix_of_a_model_is_refused(tmp_path: Path) -> None:
    data = _model_bytes()
    path = tmp_path / "m.onnx"
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        try:
            model = registry.load(path)
        except ModelError:
            continue
        # What follows the graph is the opset alone: cut off exactly there, the file would have none.
        raise AssertionError((length, model))


def test_a_truncated_model_is_called_truncated(tmp_path: Path) -> None:
    data = _model_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="ends in the middle"):
        registry.load(path)


def test_a_damaged_model_is_called_damaged(tmp_path: Path) -> None:
    # An ONNX frame (ir_version, graph, opset) around a graph that is no graph.
    data = b"\x08\x08" + b"\x3a\x04\xff\xff\xff\xff" + b"\x42\x02\x10\x11"
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="cannot be decoded"):
        registry.load(path)
