"""ONNX Runtime on the CPU.

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


class OrtBackend:
    """See `edgewise.backends.protocol.Backend`."""

    name: Final = "ort"

    def version(self) -> str:
        """Return the version of onnxruntime, from its metadata: nothing is imported for it."""
        from importlib.metadata import PackageNotFoundError, version

        from edgewise.backends.registry import missing

        try:
            return version("onnxruntime")
        except PackageNotFoundError as error:
            raise missing(self.name, "onnxruntime") from error

    def target(self) -> Target:
        """Return what MLAS, ONNX Runtime's kernel library, does on this processor."""
        from edgewise.backends.ort.target import describe

        return describe(self)

    def precisions(self) -> tuple[str, ...]:
        """Return `fp32`: the CPU provider has no bfloat16 kernels for most operators."""
        return ("fp32",)

    def why_not(self, model: ir.Model) -> tuple[Decline, ...]:
        """Return the nodes that ONNX Runtime cannot run, found by opening sessions without running them."""
        from edgewise.backends.ort.compile import why_not

        return why_not(model)

    def compile(self, model: ir.Model, options: RunOptions) -> Artifact:
        """Return `model` as an ONNX file. ONNX Runtime optimizes when it opens it, for the machine at hand."""
        from edgewise.backends.ort.compile import compile_model

        return compile_model(model, options)

    def open(self, artifact: Artifact) -> Session:
        """Return a session of `artifact`."""
        from edgewise.backends.ort.session import OrtSession

        return OrtSession(artifact)

    def profile(self, artifact: Artifact, feeds: Feeds, repeats: int) -> tuple[LayerCost, ...]:
        """Return the median time of each node as ONNX Runtime executed it, after its fusions."""
        from edgewise.backends.ort.session import profile

        return profile(artifact, feeds, repeats)


BACKEND: Final = OrtBackend()
