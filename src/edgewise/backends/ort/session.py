"""Opens and runs ONNX Runtime artifacts: all that a device carries. The only file that imports onnxruntime.

Every option that changes numbers or threads is set by name, also where it is the runtime's present default:

- `intra_op_num_threads` is `RunOptions.threads`, one operator runs at a time, and threads stop spinning when a run
  ends: left alone they burn a processor for a while after each inference, and disturb what is measured next.
- `session.qdq_matmulnbits_accuracy_level` 1 is float32 activations. The default (4) silently rounds the activations of
  weight-only MatMuls to 8 bits (error .10 instead of .0009, docs/adr).
- The optimizer `WeightBiasQuantization` is off: it rounds the weights of a float Conv or Gemm between a
  DequantizeLinear and a QuantizeLinear to 8 bits with one scale for all channels, though the graph says float
  (measured in 1.32: 28 dB instead of 32 at the outputs of a ResNet, 6 instead of 26 of an EfficientNet).
- `session.x64quantprecision` 0 is the fast 8-bit kernel, which saturates on x86 without VNNI; plans know
  (`Target.exact_product_bits`), and use 7-bit weights there (docs/adr/0010-saturation-is-measured.md).
- `session.disable_quant_qdq` 1 (`ArtifactSpec.float_weights`) lets integer weights of a graph with float activations
  be folded into float ones when the file is opened; left at 0, they are dequantized again in each run, which makes most
  layers slower than float (measured: 10 against 43 us for a depthwise convolution, 59 us against 1.2 ms for a Gemm).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from edgewise.backends.feeds import FeedCheck, numpy_type
from edgewise.backends.protocol import Artifact
from edgewise.backends.registry import missing
from edgewise.backends.words import refused
from edgewise.errors import BackendError, EdgewiseError
from edgewise.records.candidate import RunOptions
from edgewise.records.measurements import LayerCost
from edgewise.records.tensors import Array, Feeds, Outputs, Port

SAYS: Final = "ONNX Runtime"
MODEL_FILE: Final = "model.onnx"
DATA_FILE: Final = "model.onnx.data"

_ERRORS_ONLY = 3  # log severity: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; onnx is not imported here

_NOT_WANTED: Final = ("WeightBiasQuantization",)

_ENTRIES: Final = {
    "session.qdq_matmulnbits_accuracy_level": "1",
    "session.x64quantprecision": "0",
    "session.set_denormal_as_zero": "0",
    "session.force_spinning_stop": "1",
    "mlas.enable_gemm_fastmath_arm64_bfloat16": "0",
}


def runtime() -> ModuleType:
    """Return the module onnxruntime, with its telemetry off.

    Raises:
        BackendMissingError: If it is not installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - heavy, and absent where another backend is used
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise  # it is there, and broken: its own traceback says how
        raise missing("ort", "onnxruntime") from error
    onnxruntime.disable_telemetry_events()
    module: ModuleType = onnxruntime
    return module


class OrtSession:
    """See `edgewise.backends.protocol.Session`.

    `InferenceSession.run` is used rather than I/O binding: for arrays in ordinary memory it is the faster one, and its
    outputs are new arrays.

    Args:
        artifact: What `compile` made.

    Raises:
        BackendMissingError: If onnxruntime is not installed.
        BackendError: If it refuses the artifact.
    """

    def __init__(self, artifact: Artifact) -> None:
        spec = artifact.spec
        self._inputs, self._outputs = spec.inputs, spec.outputs
        self._check = FeedCheck(spec.inputs)
        self._names = [port.name for port in spec.outputs]
        self._by_value = any(port.dtype == "bfloat16" for port in (*spec.inputs, *spec.outputs))
        self._session: Any = _open(artifact, session_options(spec.options, float_weights=spec.float_weights))

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs in order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Outputs in order."""
        return self._outputs

    def run(self, feeds: Feeds) -> Outputs:
        """Run once. The arrays that come back belong to the caller."""
        arrays = self._check.ordered(feeds)
        try:
            if self._by_value:
                return self._run_by_value(arrays)
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except Exception as error:
            raise refused(SAYS, "running the model", error) from error

    def close(self) -> None:
        """Free what the runtime holds."""
        self._session = None

    def _run_by_value(self, arrays: list[Array]) -> Outputs:
        """Run with OrtValues: onnxruntime knows no numpy type for bfloat16. Slower, and rare."""
        values = {}
        make = runtime().OrtValue
        for port, array in zip(self._inputs, arrays, strict=True):
            values[port.name] = (
                make.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
                if port.dtype == "bfloat16"
                else make.ortvalue_from_numpy(array)
            )
        results = self._session.run_with_ort_values(self._names, values)
        return {port.name: _copied(port, value) for port, value in zip(self._outputs, results, strict=True)}


def _copied(port: Port, value: Any) -> Array:
    if port.dtype != "bfloat16":
        return np.array(value.numpy())
    dtype, shape = numpy_type(port.dtype), tuple(value.shape())
    size = int(np.prod(shape)) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size), dtype).reshape(shape).copy()


def session_options(options: RunOptions, *, float_weights: bool = False) -> Any:
    """Return the runtime's own options for ours. `compile` has refused what cannot be honoured."""
    vendor = runtime()
    mine = vendor.SessionOptions()
    mine.intra_op_num_threads = options.threads
    mine.inter_op_num_threads = 1
    mine.execution_mode = vendor.ExecutionMode.ORT_SEQUENTIAL
    mine.log_severity_level = _ERRORS_ONLY
    levels = vendor.GraphOptimizationLevel
    mine.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if options.graph_optimization == "all" else levels.ORT_DISABLE_ALL
    )
    for key, value in {**_ENTRIES, "session.disable_quant_qdq": "1" if float_weights else "0"}.items():
        mine.add_session_config_entry(key, value)
    return mine


def _open(artifact: Artifact, options: Any) -> Any:
    vendor = runtime()
    data = artifact.files.get(DATA_FILE)
    if data is not None:
        options.add_external_initializers_from_files_in_memory([DATA_FILE], [data], [len(data)])
    try:
        return vendor.InferenceSession(
            artifact.files[MODEL_FILE],
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_NOT_WANTED,
        )
    except Exception as error:
        raise refused(SAYS, "opening the model", error) from error


def refusal(model: bytes) -> str | None:
    """Return ONNX Runtime's words where it cannot open the ONNX file `model`, or None where it can."""
    artifact = Artifact.of({MODEL_FILE: model}, backend="ort", options=RunOptions(), inputs=(), outputs=())
    try:
        with _silence():
            _open(artifact, session_options(RunOptions(graph_optimization="off")))
    except EdgewiseError as error:
        return error.message.split("In its own words: ")[-1]
    return None


def profile(artifact: Artifact, feeds: Feeds, repeats: int) -> tuple[LayerCost, ...]:
    """Return the median time over `repeats` runs of each node that ONNX Runtime executed, in their order.

    Names and operators are those after its fusions. Nodes inside an `If` or `Loop` are part of that node.

    Raises:
        BackendError: If it fails, or its file of times cannot be written or read.
    """
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        options = session_options(artifact.spec.options, float_weights=artifact.spec.float_weights)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _open(artifact, options)
        FeedCheck(artifact.spec.inputs).ordered(feeds)
        try:
            for _ in range(repeats + 1):  # the first run allocates: it is left out below
                session.run(None, dict(feeds))
        except Exception as error:
            raise refused(SAYS, "profiling the model", error) from error
        try:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            # ONNX Runtime does not say when its file could not be written to the end.
            raise BackendError(
                f"ONNX Runtime has to write its profile to the end, but it cannot be read: {error}.",
                hint="The disk of temporary files may be full: free some space, or name another with TMPDIR.",
            ) from error
    times: dict[tuple[str, str], list[float]] = {}
    for name, operator, duration in _outermost(events):
        times.setdefault((name, operator), []).append(duration)
    return tuple(
        LayerCost(
            node=name,
            operator=operator,
            macs=0,
            weight_bytes=0,
            activation_bytes=0,
            time_us=statistics.median(durations[1:] or durations),
        )
        for (name, operator), durations in times.items()
    )


def _outermost(events: list[dict[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """Yield name, operator and microseconds of the node events that no other node event contains."""
    suffix = "_kernel_time"
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(suffix)]
    end = -1.0
    for event in sorted(nodes, key=lambda node: (node["ts"], -node["dur"])):
        if event["ts"] + event["dur"] <= end and event["ts"] < end:
            continue
        end = max(end, event["ts"] + event["dur"])
        yield event["name"].removesuffix(suffix), event["args"]["op_name"], float(event["dur"])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep a refusal that is asked for on purpose off standard error."""
    vendor = runtime()
    vendor.set_default_logger_severity(4)
    try:
        yield
    finally:
        vendor.set_default_logger_severity(_ERRORS_ONLY)
