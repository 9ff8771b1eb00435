"""Opens and runs OpenVINO artifacts: all that a device carries. The only file that imports openvino.

Every property that changes numbers or threads is set by name, because OpenVINO otherwise chooses by processor: it
takes bfloat16 where that exists, and rounds the activations of some MatMuls to 8 bits.

OpenVINO computes float64 in float32 and int64 in int32, whatever is asked for.

OpenVINO's Python package posts usage data and writes into the home folder on import unless `CI` is set. The package
`openvino_telemetry` does that, and openvino works without it: it is made unimportable before openvino is imported.
"""

from __future__ import annotations

import functools
import statistics
import sys
from types import ModuleType
from typing import Any, Final

import numpy as np

from edgewise.backends.feeds import FeedCheck, numpy_type
from edgewise.backends.protocol import Artifact
from edgewise.backends.registry import missing
from edgewise.backends.words import refused
from edgewise.records.candidate import RunOptions
from edgewise.records.measurements import LayerCost
from edgewise.records.tensors import Array, Feeds, Outputs, Port

SAYS: Final = "OpenVINO"
GRAPH_FILE: Final = "model.xml"
WEIGHTS_FILE: Final = "model.bin"

MADE_UP: Final = "openvino:"
"""What the names begin with that `compile` gives to layers that stand for no node of the user's graph."""

SNIPPETS: Final = ["edgewise", "snippets"]
"""Where the model file says how OpenVINO's code generator is to be used: not at all, or as OpenVINO likes."""

DISABLE: Final = "DISABLE"

_DEVICE: Final = "CPU"
_HINTS: Final = {"fp32": "f32", "bf16": "bf16"}


def runtime() -> ModuleType:
    """Return the module openvino, with its telemetry off.

    Raises:
        BackendMissingError: If it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is Python's "cannot be imported"
    try:
        import openvino  # noqa: PLC0415 - heavy, and absent where another backend is used
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise  # it is there, and broken: its own traceback says how
        raise missing("openvino", "openvino") from error
    module: ModuleType = openvino
    return module


@functools.cache
def core() -> Any:
    """Return this process's OpenVINO core. Nothing is cached on disk: `CACHE_DIR` is empty."""
    made = runtime().Core()
    made.set_property({"CACHE_DIR": ""})
    return made


def capabilities() -> frozenset[str]:
    """Return what OpenVINO says that this processor's kernels can do: `FP32`, `BF16`, `INT8` ..."""
    return frozenset(core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))


def properties(options: RunOptions) -> dict[str, Any]:
    """Return OpenVINO's properties for our options. `compile` has refused what cannot be honoured.

    Threads are not pinned by OpenVINO: whoever starts the process decides where it runs, and pinning there would be
    overruled (measuring pins its workers).
    """
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
        "EXECUTION_MODE_HINT": "PERFORMANCE",  # the precision is said above; ACCURACY would forbid bf16
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "KV_CACHE_PRECISION": _HINTS[options.precision],
        "CPU_DENORMALS_OPTIMIZATION": False,
        "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 1.0,
    }


class OpenVinoSession:
    """See `edgewise.backends.protocol.Session`.

    Inputs are handed over without a copy where they are writeable (OpenVINO wraps no others); outputs are views of
    OpenVINO's memory and are copied.

    Args:
        artifact: What `compile` made.
        profiled: Whether `layer_times` will be asked for; it slows each run down.

    Raises:
        BackendMissingError: If openvino is not installed.
        BackendError: If it refuses the artifact.
    """

    def __init__(self, artifact: Artifact, *, profiled: bool = False) -> None:
        spec = artifact.spec
        self._inputs, self._outputs = spec.inputs, spec.outputs
        self._check = FeedCheck(spec.inputs)
        model = _read(artifact)
        self._user_names = _user_names(model) if profiled else frozenset()
        self._compiled = _compiled(model, {**properties(spec.options), "PERF_COUNT": profiled})
        self._request = self._compiled.create_infer_request()
        self._tensor, self._bfloat16 = runtime().Tensor, runtime().Type.bf16
        self._of_bits = tuple(port.dtype == "bfloat16" for port in spec.inputs)
        self._slots = _slots(self._compiled, spec.inputs)
        self._readers = [(port.name, _view_type(port)) for port in spec.outputs]

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
        request, wrap = self._request, self._wrap
        try:
            for index, slot in self._slots:
                request.set_input_tensor(slot, wrap(index, arrays[index]))
            request.infer()
            outputs = {}
            for index, (name, dtype) in enumerate(self._readers):
                view = request.get_output_tensor(index).data
                outputs[name] = view.copy() if dtype is None else view.view(dtype).copy()
        except Exception as error:
            raise refused(SAYS, "running the model", error) from error
        return outputs

    def close(self) -> None:
        """Free what the runtime holds."""
        self._request = self._compiled = None

    def layer_times(self) -> list[tuple[str, str, float]]:
        """Return name, type and microseconds of each layer that the last run executed; the session is `profiled`."""
        return [
            (layer.node_name, layer.node_type, layer.real_time.total_seconds() * 1e6)
            for layer in self._request.get_profiling_info()
            if layer.status == layer.Status.EXECUTED
        ]

    def original_names(self) -> dict[str, str]:
        """Return the name of the user's node for each executed layer that stands for one."""
        names = {}
        for layer in self._compiled.get_runtime_model().get_ordered_ops():
            about = layer.get_rt_info()
            originals = about["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in about else []
            known = [name for name in originals if name in self._user_names]
            if known:
                names[layer.get_friendly_name()] = known[-1]
        return names

    def _wrap(self, index: int, array: Array) -> Any:
        """Return a tensor over `array`; OpenVINO knows no numpy type for bfloat16, so its bits are handed in."""
        if self._of_bits[index]:
            return self._tensor(array.view(np.uint16), array.shape, self._bfloat16)
        return self._tensor(array, array.flags.writeable)


def _view_type(port: Port) -> np.dtype[np.generic] | None:
    return numpy_type(port.dtype) if port.dtype == "bfloat16" else None


def _read(artifact: Artifact) -> Any:
    try:
        return core().read_model(artifact.files[GRAPH_FILE], artifact.files[WEIGHTS_FILE])
    except Exception as error:
        raise refused(SAYS, "opening the model", error) from error


def _compiled(model: Any, settings: dict[str, Any]) -> Any:
    try:
        if model.has_rt_info(SNIPPETS):
            settings = {**settings, "SNIPPETS_MODE": model.get_rt_info(SNIPPETS).astype(str)}
        return core().compile_model(model, _DEVICE, settings)
    except Exception as error:
        raise refused(SAYS, "opening the model", error) from error


def profile(artifact: Artifact, feeds: Feeds, repeats: int) -> tuple[LayerCost, ...]:
    """Return the median time over `repeats` runs of each layer that OpenVINO executed, in their order.

    A layer bears the name of the graph's node that it stands for, the last one where several were fused; a layer that
    OpenVINO put in (a Reorder) bears OpenVINO's name.
    """
    session = OpenVinoSession(artifact, profiled=True)
    times: dict[str, tuple[str, list[float]]] = {}
    for turn in range(repeats + 1):
        session.run(feeds)
        if turn == 0 and repeats > 0:
            continue  # the first run allocates
        for name, kind, microseconds in session.layer_times():
            times.setdefault(name, (kind, []))[1].append(microseconds)
    names = session.original_names()
    return tuple(
        LayerCost(
            node=names.get(name, name),
            operator=kind,
            macs=0,
            weight_bytes=0,
            activation_bytes=0,
            time_us=statistics.median(values),
        )
        for name, (kind, values) in times.items()
    )


def _slots(compiled: Any, ports: tuple[Port, ...]) -> tuple[tuple[int, int], ...]:
    """Return the position among our ports and among OpenVINO's of each input; it drops inputs that nothing reads."""
    found = {name: slot for slot, port in enumerate(compiled.inputs) for name in port.get_names()}
    return tuple((index, found[port.name]) for index, port in enumerate(ports) if port.name in found)


def _user_names(model: Any) -> frozenset[str]:
    names = (layer.get_friendly_name() for layer in model.get_ordered_ops())
    return frozenset(name for name in names if not name.startswith(MADE_UP))
