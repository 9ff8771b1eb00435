"""Makes ONNX Runtime artifacts: an ONNX file, which the runtime optimizes when it opens it."""

from __future__ import annotations

import onnx_ir as ir

from edgewise.backends.isolation import refused_nodes
from edgewise.backends.ort import session
from edgewise.backends.ort.integer_weights import wants_float_weights
from edgewise.backends.ports import input_ports, output_ports
from edgewise.backends.protocol import Artifact
from edgewise.backends.serialization import onnx_files
from edgewise.errors import RecipeError
from edgewise.records.candidate import RunOptions
from edgewise.records.findings import Decline


def compile_model(model: ir.Model, options: RunOptions) -> Artifact:
    """Return `model` as an artifact.

    The file holds the graph as it came: what ONNX Runtime makes of it depends on the machine (blocked layouts), so
    it is made where the artifact is opened. Fusions of onnxscript into `com.microsoft` operators were tried and are
    left out: ONNX Runtime finds the same ones by itself.

    Raises:
        RecipeError: If an option cannot be honoured.
        BackendError: If ONNX Runtime refuses the model.
    """
    _check(options)
    artifact = Artifact.of(
        onnx_files(model),
        backend="ort",
        options=options,
        inputs=input_ports(model),
        outputs=output_ports(model),
        float_weights=wants_float_weights(model),
    )
    session.OrtSession(artifact).close()
    return artifact


def why_not(model: ir.Model) -> tuple[Decline, ...]:
    """Return the nodes that ONNX Runtime refuses; one finding for the whole model where none of them is to blame."""
    words = _refusal(model)
    if words is None:
        return ()
    nodes = refused_nodes(model, "ort", _refusal)
    return nodes or (Decline(stage="ort", node="", operator="", reason=words),)


def _refusal(model: ir.Model) -> str | None:
    return session.refusal(onnx_files(model)[session.MODEL_FILE])


def _check(options: RunOptions) -> None:
    if options.precision != "fp32":
        raise RecipeError(
            f"Backend `ort` computes in `fp32` on a CPU. Received precision `{options.precision}`.",
            hint="Backend `openvino` has bf16 on processors with AVX512-BF16 or AMX.",
        )
    if options.threads < 1:
        raise RecipeError(f"The number of threads has to be at least 1. Received {options.threads}.")
