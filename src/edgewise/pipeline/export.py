"""A bundle's model in a format that other tools read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgewise.backends import registry
from edgewise.bundle.read import Bundle
from edgewise.errors import BackendError, BundleError, ModelError, OutputError, RecipeError
from edgewise.formats.registry import load
from edgewise.pipeline.deliver import SOURCES, Source
from edgewise.records.candidate import RunOptions
from edgewise.records.store import Store

FORMATS: Final = {"onnx": "ort", "openvino": "openvino"}
"""Formats that can be written, each with the backend whose artifact it is."""


def export(folder: Path, *, to: str, out: Path, rung: str | None = None) -> tuple[Path, ...]:
    """Write the model of a bundle's rung, and return the files.

    Args:
        folder: The bundle.
        to: `onnx` (standard QDQ ONNX) or `openvino` (IR: .xml and .bin).
        out: File to write; its ending is replaced for formats of several files.
        rung: Name of the rung; None for the default.

    Raises:
        RecipeError: If the format or the rung does not exist.
        ModelError: If the format's runtime refuses the graph.
        BundleError: If the bundle is damaged, or the graph behind the rung is not there any more.
        OutputError: If the files cannot be written, or one exists.
    """
    if to not in FORMATS:
        raise RecipeError(
            f"`--to` has to be one of {', '.join(f'`{name}`' for name in FORMATS)}. Received `{to}`.",
            hint="ONNX is what most other tools read.",
        )
    bundle = Bundle.load(folder)
    artifact = bundle.artifact(rung)
    if to == "onnx":
        path = graph_file(bundle, rung)
        files = {path.name: path.read_bytes()} if artifact.spec.backend != FORMATS[to] else artifact.files
    elif artifact.spec.backend == FORMATS[to]:
        files = artifact.files
    else:
        # The precision of the arithmetic belongs to a run, not to the graph: fp32 writes the graph as it is.
        try:
            files = registry.get(FORMATS[to]).compile(load(graph_file(bundle, rung)), RunOptions()).files
        except BackendError as error:
            raise ModelError(error.message, hint="`--to onnx` writes every rung; `--rung` chooses another.") from error
    return _write(files, out)


def graph_file(bundle: Bundle, rung: str | None = None) -> Path:
    """Return the ONNX file of a rung, checked against the hash in the run's records.

    Args:
        bundle: The bundle, in the directory that the main job wrote.
        rung: Name of the rung; None for the default.

    Raises:
        BundleError: If it is not there any more, or was changed.
    """
    chosen = bundle.rung(rung)
    if chosen.artifact.backend == FORMATS["onnx"]:
        return bundle.folder / chosen.folder / next(iter(chosen.artifact.files))
    hint = "Export from the directory that `edgewise optimize` wrote; a packed copy holds what the device needs only."
    records = bundle.folder / "run.sqlite"
    if not records.exists():
        raise BundleError(f"The graph behind `{chosen.name}` is not in `{bundle.folder}`.", hint=hint)
    with Store(records, writable=False) as store:
        source = store.get("source", chosen.name, Source)
    path = bundle.folder / SOURCES / (source.file if source is not None else "")
    if source is None or not path.is_file():
        raise BundleError(f"The graph behind `{chosen.name}` is not in `{bundle.folder}`.", hint=hint)
    if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise BundleError(f"`{path}` was changed since it was made.", hint="Make the bundle again.")
    return path


def _write(files: Mapping[str, bytes], out: Path) -> tuple[Path, ...]:
    names = {name: out.with_suffix(Path(name).suffix) for name in files}
    for path in names.values():
        if path.exists():
            raise OutputError(f"`{path}` exists.", hint="Choose another file with `--out`, or remove it.")
    written = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for name, path in names.items():
            written.append(path)
            path.write_bytes(files[name])
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise OutputError(
            f"`{out}` has to be writable, but: {error.strerror}.", hint="Choose another file with `--out`."
        ) from error
    return tuple(written)
