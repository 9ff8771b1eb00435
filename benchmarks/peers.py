"""The tools that people use today, each as its own documentation says, at its best settings for this processor."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnx

from edgewise.analysis.facts import port
from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, Session
from edgewise.formats.onnx import to_bytes
from edgewise.formats.registry import load
from edgewise.formats.shapes import fix_shapes
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Feeds


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
    """`onnxruntime.quantization.quantize_static` after its own pre-processing: per channel, uint8 x int8, min-max.

    uint8 activations, because int8 ones are several times slower in ONNX Runtime on x86.
    """

    name = "ONNX Runtime quantize_static"

    def why_not(self) -> str:
        """ONNX Runtime comes with edgewise."""
        return ""

    def quantize(self, model: Path, calibration: Sequence[Feeds], folder: Path) -> Artifact:
        """Quantize with the documented two steps."""
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
            def __init__(self) -> None:
                self._feeds: Iterator[Feeds] = iter(calibration)

            def get_next(self) -> dict[str, Any] | None:
                feeds = next(self._feeds, None)
                return None if feeds is None else dict(feeds)

        prepared, quantized = folder / "prepared.onnx", folder / "quantize_static.onnx"
        quant_pre_process(str(_fixed(model, folder)), str(prepared))
        quantize_static(
            str(prepared),
            str(quantized),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return registry.get("ort").compile(load(quantized), RunOptions())

    def open(self, artifact: Artifact) -> Session:
        """Open an artifact."""
        return _open(artifact)


class Nncf:
    """`nncf.quantize` on the OpenVINO model: mixed preset, its own choice of everything else."""

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
        quantized = nncf.quantize(original, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(calibration))
        path = folder / "nncf.xml"
        openvino.save_model(quantized, path, compress_to_fp16=False)
        graph = load(_fixed(model, folder))
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


def _fixed(model: Path, folder: Path) -> Path:
    """Return the model with batch 1 and inferred shapes, as edgewise and both peers get it."""
    path = folder / "fixed.onnx"
    if not path.exists():
        path.write_bytes(to_bytes(fix_shapes(load(model), {})))
        onnx.checker.check_model(str(path))
    return path


PEERS: tuple[Peer, ...] = (OnnxRuntimeStatic(), Nncf())
