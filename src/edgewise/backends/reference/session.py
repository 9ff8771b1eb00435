"""Runs ONNX files in the reference evaluator of onnx: numpy, operator by operator. The only file that imports it."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

import numpy as np

from edgewise.backends.feeds import FeedCheck, numpy_type
from edgewise.backends.protocol import Artifact
from edgewise.backends.registry import missing
from edgewise.backends.words import refused
from edgewise.records.tensors import Array, Feeds, Outputs, Port

SAYS: Final = "The ONNX reference evaluator"
MODEL_FILE: Final = "model.onnx"

_FIRST_DEQUANTIZE = 19
"""The evaluator has no DequantizeLinear of an earlier operator set (onnx 1.23, `reference/ops/_op_list.py`)."""

_FIRST_BATCH_NORM = 14
"""Earlier ones run in training mode whenever the model has a momentum, which is the default (same version,
`reference/ops/op_batch_normalization.py`). With one output, the specification says inference."""


def runtime() -> ModuleType:
    """Return the module `onnx.reference`.

    Raises:
        BackendMissingError: If onnx is not installed.
    """
    try:
        import onnx.reference  # noqa: PLC0415 - heavy, and absent on devices
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise  # it is there, and broken: its own traceback says how
        raise missing("reference", "onnx") from error
    module: ModuleType = onnx.reference
    return module


class ReferenceSession:
    """See `edgewise.backends.protocol.Session`.

    Args:
        artifact: What `compile` made.

    Raises:
        BackendMissingError: If onnx is not installed.
        BackendError: If the evaluator refuses the model.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._inputs, self._outputs = artifact.spec.inputs, artifact.spec.outputs
        self._check = FeedCheck(self._inputs)
        self._types = [numpy_type(port.dtype) for port in self._outputs]
        self._evaluator: Any = evaluator(artifact.files[MODEL_FILE])

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
        self._check.ordered(feeds)
        names = [port.name for port in self._outputs]
        try:
            results = self._evaluator.run(names, {name: np.array(array) for name, array in feeds.items()})
        except Exception as error:
            raise refused(SAYS, "running the model", error) from error
        # Copies: an output may be a weight, or the same array as another output.
        return {
            name: np.array(result, dtype=dtype) for name, result, dtype in zip(names, results, self._types, strict=True)
        }

    def close(self) -> None:
        """Free what the evaluator holds."""
        self._evaluator = None


def evaluator(model: bytes) -> Any:
    """Return an evaluator of the ONNX file `model`.

    Raises:
        BackendError: If the file is damaged, or an operator has no implementation.
    """
    reference = runtime()
    try:
        import onnx  # noqa: PLC0415 - as above

        proto = onnx.load_from_string(model)
        opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
        return reference.ReferenceEvaluator(proto, new_ops=_corrections(opset))
    except Exception as error:
        raise refused(SAYS, "opening the model", error) from error


def _corrections(opset: int | None) -> list[type] | None:
    """Return implementations that replace the evaluator's own for models of operator set `opset`."""
    from onnx.reference.op_run import OpRun  # noqa: PLC0415 - as above
    from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_23  # noqa: PLC0415 - as above

    if opset is None:
        return None
    made: list[type] = []
    if opset < _FIRST_DEQUANTIZE:
        # A later one does what 10 and 13 did; the attributes that it adds keep their defaults.
        made.append(type("DequantizeLinear", (DequantizeLinear_23,), {"op_domain": ""}))
    if opset < _FIRST_BATCH_NORM:
        made.append(type("BatchNormalization", (OpRun,), {"op_domain": "", "_run": _normalize}))
    return made or None


def _normalize(  # the evaluator passes attributes by keyword, inputs in order
    _: object, x: Array, *parameters: Array, epsilon: float = 1e-5, **__: object
) -> tuple[Array]:
    """Return `((x - mean) / sqrt(variance + epsilon)) * scale + bias` over axis 1 of `x`."""
    scale, bias, mean, variance = (array.reshape(-1, *[1] * (x.ndim - 2)) for array in parameters)
    return (np.asarray(scale * (x - mean) / np.sqrt(variance + epsilon) + bias, dtype=x.dtype),)
