"""Every tool that quantizes, under one name each: edgewise in each backend, and its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, Session
from edgewise.errors import EdgewiseError
from edgewise.pipeline.library import quantize
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Feeds
from peers.quantizers import RIVALS, Peer
from zoo_models import Subject

BACKENDS: Final = ("ort", "openvino")
"""Backends that edgewise quantizes for here."""


class ToolError(Exception):
    """A tool could not quantize a model; the message says which and why."""


def ours(backend: str, scheme: str = "w8a8") -> str:
    """Return the name of edgewise in a backend, as the rows have it."""
    return f"edgewise {scheme} in {backend}"


def open_session(artifact: Artifact) -> Session:
    """Open an artifact in its backend."""
    return registry.get(artifact.spec.backend).open(artifact)


def graph_of(model: ir.Model, samples: Sequence[Feeds], scheme: str, backend: str, **options: Any) -> ir.Model:
    """Return what `edgewise.quantize` makes.

    Raises:
        ToolError: If it refuses or fails.
    """
    try:
        return quantize(model, samples, scheme, backend=backend, **options)
    except EdgewiseError as error:
        raise ToolError(f"{ours(backend, scheme)}: {error.message}") from error
    except Exception as error:  # a fault of ours is a row that is missed, and costs no other row
        raise ToolError(f"{ours(backend, scheme)}: {type(error).__name__}: {str(error)[:200]}") from error


def artifact_of(
    subject: Subject, samples: Sequence[Feeds], backend: str, scheme: str = "w8a8", **options: Any
) -> Artifact:
    """Return what `edgewise.quantize` makes, compiled for the backend.

    Raises:
        ToolError: If edgewise or the backend refuses.
    """
    graph = graph_of(subject.model, samples, scheme, backend, **options)
    try:
        return registry.get(backend).compile(graph, RunOptions())
    except EdgewiseError as error:
        raise ToolError(f"{ours(backend, scheme)}: {error.message}") from error


def rival_artifact(rival: Peer, subject: Subject, samples: Sequence[Feeds], folder: Path) -> Artifact:
    """Return what a rival makes.

    Raises:
        ToolError: If it is not installed, or fails.
    """
    reason = rival.why_not()
    if reason:
        raise ToolError(f"{rival.name}: {reason}")
    try:
        return rival.quantize(subject.path, samples, folder)
    except Exception as error:  # what another tool raises is its result here
        raise ToolError(f"{rival.name}: {type(error).__name__}: {str(error)[:200]}") from error


def ready_backends() -> tuple[str, ...]:
    """Return those of `BACKENDS` that are installed."""
    return tuple(name for name in BACKENDS if name in registry.ready())


def rival_names() -> tuple[str, ...]:
    """Return the names of the rivals."""
    return tuple(rival.name for rival in RIVALS)
