"""The ONNX reference evaluator: slow, and the judge of the others.

Nothing here but `BACKEND`, whose methods import what they need, as in the other backends.
"""

# ruff: noqa: PLC0415 - see above: imports inside methods are this file's purpose

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgewise.analysis.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgewise.backends.protocol import Artifact, Session
    from edgewise.records.candidate import RunOptions
    from edgewise.records.findings import Decline
    from edgewise.records.measurements import LayerCost
    from edgewise.records.tensors import Feeds


class ReferenceBackend:
    """See `edgewise.backends.protocol.Backend`."""

    name: Final = "reference"

    def version(self) -> str:
        """Return the version of onnx, from its metadata: nothing is imported for it."""
        from importlib.metadata import PackageNotFoundError, version

        from edgewise.backends.registry import missing

        try:
            return version("onnx")
        except PackageNotFoundError as error:
            raise missing(self.name, "onnx") from error

    def target(self) -> Target:
        """Return a target without 8-bit kernels: the evaluator dequantizes and computes in float."""
        return Target(
            backend=self.name,
            activation_type="uint8",
            exact_product_bits=8,
            quantized_operators=frozenset(),
            same_range_operators=frozenset(),
            float_types=("float32",),
            width_steps=1,
        )

    def precisions(self) -> tuple[str, ...]:
        """Return `fp32`."""
        return ("fp32",)

    def why_not(self, model: ir.Model) -> tuple[Decline, ...]:
        """Return the nodes that the evaluator has no implementation for, or only an incomplete one."""
        from edgewise.backends.reference.compile import why_not

        return why_not(model)

    def compile(self, model: ir.Model, options: RunOptions) -> Artifact:
        """Return `model` as an ONNX file."""
        from edgewise.backends.reference.compile import compile_model

        return compile_model(model, options)

    def open(self, artifact: Artifact) -> Session:
        """Return a session of `artifact`."""
        from edgewise.backends.reference.session import ReferenceSession

        return ReferenceSession(artifact)

    def profile(self, artifact: Artifact, feeds: Feeds, repeats: int) -> tuple[LayerCost, ...]:
        """Return nothing: the time of Python code says nothing about a device."""
        del artifact, feeds, repeats
        return ()


BACKEND: Final = ReferenceBackend()
