"""The tools that people use today, each as its own documentation says, at its best settings for this processor."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import onnx
import onnx_ir as ir

from edgewise.analysis.facts import port
from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, Session
from edgewise.formats.onnx import to_bytes
from edgewise.formats.registry import load
from edgewise.formats.shapes import fix_shapes
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Feeds

CALIBRATION_BYTES: Final = 2 << 30
"""What the activations that ONNX Runtime's histograms are made of may take at a time."""


class Peer(Protocol):
    """One tool."""

    name: str

    def why_not(self) -> str:
        """Return why it cannot be measured here; empty where it can."""

    def quantize(self, model: Path, calibration: Sequence[Feeds], folder: Path) -> Artifact:
        """Return the quantized model, ready to be timed by the same workers as ours."""

    def open(self, artifact: Artifact) -> Session:
        """Open an artifact."""


def _open(artifact: Artifact) -> Session:
    return registry.get(artifact.spec.backend).open(artifact)


class OnnxRuntimeStatic:
    """`onnxruntime.quantization.quantize_static` after its own pre-processing: per channel, uint8 x int8.

    uint8 activations, because int8 ones are several times slower in ONNX Runtime on x86; 7-bit weights where the
    processor's 8-bit products saturate, as its documentation says. Percentile and entropy have the settings that
    `quantize_static` gives them by itself: both tails together 0.001 %, 128 bins. Their calibrators keep every
    activation of every sample; `CalibStridedMinMax` has them merge their histograms in between.

    Args:
        method: How it chooses the ranges of activations: a name of its `CalibrationMethod`.

    Attributes:
        file_name: What `quantize` calls the QDQ model that it leaves in its folder.
    """

    def __init__(self, method: str = "MinMax") -> None:
        self.name = "ONNX Runtime quantize_static" + ("" if method == "MinMax" else f" {method.lower()}")
        self.file_name = f"quantize_static_{method}.onnx"
        self._method = method

    def why_not(self) -> str:
        """ONNX Runtime comes with edgewise."""
        return ""

    def quantize(self, model: Path, calibration: Sequence[Feeds], folder: Path) -> Artifact:
        """Quantize with the documented two steps."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared, quantized = folder / "prepared.onnx", folder / self.file_name
        if not prepared.exists():
            quant_pre_process(str(_fixed(model, folder)), str(prepared))
        options = {}
        if self._method != "MinMax":
            options["CalibStridedMinMax"] = samples_at_once(len(calibration), _activation_bytes(prepared))
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                str(prepared),
                str(quantized),
                _reader(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=registry.get("ort").target().exact_product_bits < 8,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[self._method],
                extra_options=options,
            )
        return registry.get("ort").compile(load(quantized), RunOptions())

    def open(self, artifact: Artifact) -> Session:
        """Open an artifact."""
        return _open(artifact)


def samples_at_once(count: int, activation_bytes: int) -> int:
    """Return the largest divisor of `count` so many samples of which fit into `CALIBRATION_BYTES`; at least 1."""
    fitting = max(1, CALIBRATION_BYTES // max(1, activation_bytes))
    return max(part for part in range(1, count + 1) if count % part == 0 and part <= fitting)


def _activation_bytes(path: Path) -> int:
    """Return the bytes of all float32 tensors between the nodes of a model with inferred shapes, for one sample."""
    return sum(
        4 * math.prod(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        for value in onnx.load(str(path), load_external_data=False).graph.value_info
    )


def _reader(calibration: Sequence[Feeds]) -> Any:
    """Return the samples as ONNX Runtime's calibration wants them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._feeds: Iterator[Feeds] = iter(calibration)

        def __len__(self) -> int:
            return len(calibration)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._feeds = iter(calibration[start_index:end_index])

        def get_next(self) -> dict[str, Any] | None:
            feeds = next(self._feeds, None)
            return None if feeds is None else dict(feeds)

    return Reader()


class Nncf:
    """`nncf.quantize` on the OpenVINO model: mixed preset, its own choice of everything else.

    Models with attention are declared as transformers, as its documentation asks for.
    """

    name = "NNCF in OpenVINO"

    def why_not(self) -> str:
        """Say what is not installed."""
        missing = [name for name in ("nncf", "openvino") if importlib.util.find_spec(name) is None]
        return f"{' and '.join(missing)} not installed (make bench brings it)" if missing else ""

    def quantize(self, model: Path, calibration: Sequence[Feeds], folder: Path) -> Artifact:
        """Quantize with its defaults; the calibration set's size is that of the samples."""
        registry.get("openvino").version()  # switches OpenVINO's telemetry off before it is imported
        import nncf
        import openvino

        logging.getLogger("nncf").setLevel(logging.ERROR)
        core = openvino.Core()
        original = core.read_model(_fixed(model, folder))
        dataset = nncf.Dataset(list(calibration), dict)
        graph = load(_fixed(model, folder))
        quantized = nncf.quantize(
            original,
            dataset,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            model_type=nncf.ModelType.TRANSFORMER if has_attention(graph) else None,
        )
        path = folder / "nncf.xml"
        openvino.save_model(quantized, path, compress_to_fp16=False)
        return Artifact.of(
            {"model.xml": path.read_bytes(), "model.bin": path.with_suffix(".bin").read_bytes()},
            backend="openvino",
            options=RunOptions(),
            inputs=tuple(port(value) for value in graph.graph.inputs),
            outputs=tuple(port(value) for value in graph.graph.outputs),
        )

    def open(self, artifact: Artifact) -> Session:
        """Open an artifact."""
        return _open(artifact)


def has_attention(model: ir.Model) -> bool:
    """Return whether two activations are multiplied as matrices, which convolutional and recurrent models never do."""
    return any(
        node.op_type in {"MatMul", "Einsum"}
        and all(value is not None and value.producer() is not None for value in node.inputs)
        for node in model.graph
    )


def _fixed(model: Path, folder: Path) -> Path:
    """Return the model with batch 1 and inferred shapes, as edgewise and both peers get it."""
    path = folder / "fixed.onnx"
    if not path.exists():
        path.write_bytes(to_bytes(fix_shapes(load(model), {})))
        onnx.checker.check_model(str(path))
    return path


PEERS: tuple[Peer, ...] = (OnnxRuntimeStatic(), Nncf())
RIVALS: tuple[Peer, ...] = (
    OnnxRuntimeStatic(),
    OnnxRuntimeStatic("Percentile"),
    OnnxRuntimeStatic("Entropy"),
    Nncf(),
)
"""The peers with every way of ONNX Runtime to choose ranges."""
