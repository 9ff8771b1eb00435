"""OpenVINO on the CPU.

Nothing here but `BACKEND`, whose methods import what they need: a device opens artifacts and must not pay for, or
even have, what compiling takes (onnx_ir).
"""

# ruff: noqa: PLC0415 - see above: imports inside methods are this file's purpose

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgewise.analysis.target import Target
    from edgewise.backends.protocol import Artifact, Session
    from edgewise.records.candidate import RunOptions
    from edgewise.records.findings import Decline
    from edgewise.records.measurements import LayerCost
    from edgewise.records.tensors import Feeds


class OpenVinoBackend:
    """See `edgewise.backends.protocol.Backend`."""

    name: Final = "openvino"

    def version(self) -> str:
        """Return the version of openvino, from its metadata: nothing is imported for it."""
        from importlib.metadata import PackageNotFoundError, version

        from edgewise.backends.registry import missing

        try:
            return version("openvino")
        except PackageNotFoundError as error:
            raise missing(self.name, "openvino") from error

    def target(self) -> Target:
        """Return what oneDNN, OpenVINO's kernel library, does on this processor."""
        from edgewise.backends.openvino.target import describe

        return describe(self)

    def precisions(self) -> tuple[str, ...]:
        """Return `fp32`, and `bf16` where the processor multiplies it in hardware.

        Both the processor and OpenVINO are asked: OpenVINO alone also takes the hint where it can only emulate.
        """
        from edgewise.backends.openvino.session import capabilities
        from edgewise.backends.processor import features, has_bfloat16

        return ("fp32", "bf16") if has_bfloat16(features()) and "BF16" in capabilities() else ("fp32",)

    def why_not(self, model: ir.Model) -> tuple[Decline, ...]:
        """Return the nodes that OpenVINO cannot convert or compile."""
        from edgewise.backends.openvino.compile import why_not

        return why_not(model)

    def compile(self, model: ir.Model, options: RunOptions) -> Artifact:
        """Return `model` as OpenVINO IR, so that the device needs no conversion from ONNX."""
        from edgewise.backends.openvino.compile import compile_model

        return compile_model(model, options, precisions=self.precisions())

    def open(self, artifact: Artifact) -> Session:
        """Return a session of `artifact`."""
        from edgewise.backends.openvino.session import OpenVinoSession

        return OpenVinoSession(artifact)

    def profile(self, artifact: Artifact, feeds: Feeds, repeats: int) -> tuple[LayerCost, ...]:
        """Return the median time of each layer as OpenVINO executed it, after its fusions."""
        from edgewise.backends.openvino.session import profile

        return profile(artifact, feeds, repeats)


BACKEND: Final = OpenVinoBackend()
