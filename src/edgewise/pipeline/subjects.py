"""A model file or a bundle, as something that can be opened, timed and scored: what `bench`, `eval` and `diff` take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, Session
from edgewise.bundle.manifest import MANIFEST_FILE
from edgewise.bundle.read import Bundle
from edgewise.errors import RecipeError
from edgewise.pipeline.inputs import load_model
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Port
from edgewise.samples.preprocessing import Preprocessing


@dataclass(frozen=True)
class Subject:
    """A model that is ready to run.

    Attributes:
        name: What the user named, and how it is run.
        artifact: Its artifact.
        preprocessing: What a bundle does to each sample, or None.
        state: What a bundle feeds back, by output name.
    """

    name: str
    artifact: Artifact
    preprocessing: Preprocessing | None
    state: Mapping[str, str]

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Its inputs."""
        return self.artifact.spec.inputs

    def open(self) -> Session:
        """Open it."""
        return registry.get(self.artifact.spec.backend).open(self.artifact)


def is_bundle(path: Path) -> bool:
    """Return whether `path` is a bundle rather than a model file."""
    return path.is_dir() and (path / MANIFEST_FILE).exists()


def open_subject(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int | None, ...]],
    backend: str = "ort",
    options: RunOptions | None = None,
    rung: str | None = None,
) -> Subject:
    """Return a model file or a bundle, ready to run.

    Args:
        path: The file or folder.
        shapes: Shapes of a model's dynamic inputs; a bundle has its own.
        backend: Where a model file is run; a bundle decides for itself.
        options: How a model file is run.
        rung: Name of the rung of a bundle; None for its default.

    Raises:
        ModelError: If the model cannot be read.
        BundleError: If the bundle is damaged.
        RecipeError: If a rung is named for a model file, or does not exist.
    """
    if is_bundle(path):
        bundle = Bundle.load(path)
        chosen = bundle.rung(rung)
        return Subject(
            name=f"{path.name}: {chosen.name}",
            artifact=bundle.artifact(rung),
            preprocessing=bundle.manifest.preprocessing,
            state=bundle.manifest.state,
        )
    if rung is not None:
        raise RecipeError(f"`--rung` is for bundles, but `{path}` is a model file.")
    model = load_model(path, shapes)
    artifact = registry.get(backend).compile(model.fixed, options or RunOptions())
    return Subject(name=f"{path.name}: {backend}", artifact=artifact, preprocessing=None, state={})
