"""The seam between graphs and runtimes: `Backend.compile` makes an `Artifact`, `Backend.open` a `Session` of it.

Compiling needs the graph; opening needs only the artifact and the runtime's own package, because it is all that a
device carries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgewise.errors import BundleError
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import Record
from edgewise.records.findings import Decline
from edgewise.records.measurements import LayerCost
from edgewise.records.tensors import Feeds, Outputs, Port

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgewise.analysis.target import Target


class ArtifactSpec(Record, frozen=True, kw_only=True):
    """What must be known of an artifact to open it; stored beside its files.

    Attributes:
        backend: Name of the backend that opens it.
        options: How it is run.
        inputs: Inputs in order.
        outputs: Outputs in order.
        files: SHA-256 of every file, by name relative to the artifact's folder.
        float_weights: Whether integer weights are to become float ones once, when the artifact is opened, rather than
            in each run. `compile` decides: it knows the graph.
    """

    backend: str
    options: RunOptions
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: dict[str, str]
    float_weights: bool = False


@dataclass(frozen=True)
class Artifact:
    """Bytes for one runtime and one target.

    Attributes:
        spec: What must be known to open it.
        files: Contents by relative file name.
    """

    spec: ArtifactSpec
    files: Mapping[str, bytes]

    @classmethod
    def of(
        cls,
        files: Mapping[str, bytes],
        *,
        backend: str,
        options: RunOptions,
        inputs: tuple[Port, ...],
        outputs: tuple[Port, ...],
        float_weights: bool = False,
    ) -> Artifact:
        """Return the artifact that consists of `files`."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
        spec = ArtifactSpec(
            backend=backend,
            options=options,
            inputs=inputs,
            outputs=outputs,
            files=hashes,
            float_weights=float_weights,
        )
        return cls(spec, dict(files))

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(len(data) for data in self.files.values())

    def write(self, folder: Path) -> None:
        """Write every file into `folder`, which is created. The spec is not written: its keeper stores it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    @classmethod
    def read(cls, folder: Path, spec: ArtifactSpec) -> Artifact:
        """Return the artifact in `folder`.

        Raises:
            BundleError: If a file is missing or its hash is not the recorded one.
        """
        files = {}
        for name, expected in spec.files.items():
            try:
                data = (folder / name).read_bytes()
            except OSError as error:
                raise BundleError(
                    f"`{folder / name}` has to be readable, but: {error.strerror}.",
                    hint="The bundle is incomplete; copy it again or make it again with `edgewise optimize`.",
                ) from error
            if hashlib.sha256(data).hexdigest() != expected:
                raise BundleError(
                    f"`{folder / name}` has to have the hash {expected[:12]}... that was recorded when it was made, "
                    f"but it was changed or truncated since.",
                    hint="Copy the bundle again or make it again with `edgewise optimize`.",
                )
            files[name] = data
        return cls(spec, files)


class Session(Protocol):
    """An opened artifact, ready to run. One thread at a time."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs in order."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Outputs in order."""

    def run(self, feeds: Feeds) -> Outputs:
        """Run once. The arrays that come back belong to the caller.

        Args:
            feeds: One C-contiguous array of the port's type for every input.

        Raises:
            DataError: If a name, type or shape does not fit.
            BackendError: If the runtime fails.
        """

    def close(self) -> None:
        """Free what the runtime holds. Running afterwards is an error of the caller."""


class Backend(Protocol):
    """One runtime. Its module `edgewise.backends.NAME` has one instance of it, named `BACKEND`."""

    @property
    def name(self) -> str:
        """The key in the registry."""

    def version(self) -> str:
        """Return the version of the runtime's package.

        Raises:
            BackendMissingError: If it is not installed; the hint has the command that installs it.
        """

    def target(self) -> Target:
        """Return what this backend's 8-bit kernels do on this machine."""

    def precisions(self) -> tuple[str, ...]:
        """Return the values of `RunOptions.precision` that this backend honours on this machine."""

    def why_not(self, model: ir.Model) -> tuple[Decline, ...]:
        """Return the nodes that this backend cannot run, each with the reason; empty when it can run all."""

    def compile(self, model: ir.Model, options: RunOptions) -> Artifact:
        """Return `model` in this backend's form. The model is not changed.

        Raises:
            RecipeError: If an option cannot be honoured; it is never replaced by another one.
            BackendError: If the runtime refuses the model.
        """

    def open(self, artifact: Artifact) -> Session:
        """Return a session of an artifact that this backend compiled.

        Raises:
            BackendMissingError: If the runtime is not installed.
            BackendError: If it refuses the artifact.
        """

    def profile(self, artifact: Artifact, feeds: Feeds, repeats: int) -> tuple[LayerCost, ...]:
        """Return the measured time of each layer as the runtime executed it (`macs` and bytes 0 where unknown).

        An empty tuple says that the runtime gives no times.
        """
