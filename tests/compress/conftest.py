"""What the compress tests share: targets, and runs of a model in the runtimes that are installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgewise.analysis.target import Target
from edgewise.records.tensors import Feeds, Outputs, Run

MOVES = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Resize", "Pad", "Split"}
)
WORK = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool", "Concat"})

MakeRun = Callable[[ir.Model], Run]


def _bytes(model: ir.Model) -> bytes:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def _ort(model: ir.Model) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_bytes(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> Outputs:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


def _openvino(model: ir.Model) -> Run:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # refuses an import
    openvino = importlib.import_module("openvino")
    names = [str(output.name) for output in model.graph.outputs]
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(_bytes(model)), "CPU", options)

    def run(feeds: Feeds) -> Outputs:
        results = compiled(dict(feeds))
        return {name: results[index] for index, name in enumerate(names)}

    return run


@pytest.fixture
def ort_run() -> MakeRun:
    """Return a function that opens a checked model in ONNX Runtime."""
    return _ort


@pytest.fixture(params=["ort", "openvino"])
def any_run(request: pytest.FixtureRequest) -> MakeRun:
    """Return a function that opens a checked model, once for every runtime that is installed."""
    if request.param == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    return {"ort": _ort, "openvino": _openvino}[request.param]


@pytest.fixture
def needs_output_pairs() -> Target:
    """Return a target like ONNX Runtime: a Conv is 8-bit only with a Q/DQ pair behind it."""
    return Target(
        backend="strict",
        activation_type="uint8",
        exact_product_bits=8,
        quantized_operators=WORK | MOVES,
        same_range_operators=MOVES | {"Concat"},
        float_types=("float32",),
        width_steps=16,
        float_output_operators=frozenset({"MatMul", "Gemm"}),
    )


@pytest.fixture
def gives_float() -> Target:
    """Return a target like OpenVINO: every 8-bit kernel can give float32."""
    return Target(
        backend="free",
        activation_type="uint8",
        exact_product_bits=8,
        quantized_operators=WORK | MOVES,
        same_range_operators=MOVES | {"Concat"},
        float_types=("float32",),
        width_steps=16,
        float_output_operators=WORK,
    )
