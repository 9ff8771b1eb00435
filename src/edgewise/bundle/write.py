"""Writing a bundle, so that at every moment the folder holds the old one, the new one, or none; never half of one.

Every file but the manifest has a name that ends in the hash of its contents, so new files lie beside old ones without
touching them. They are made in a temporary folder inside the target (one file system, so that moving is atomic) and
moved into place; then the manifest replaces the old one in a single step; then the old one's files are removed. A
process that dies in between leaves files that no manifest names; the next write removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import edgewise
from edgewise.backends import registry
from edgewise.backends.protocol import Artifact
from edgewise.bundle.manifest import MANIFEST_FILE, MODELS_FOLDER, LadderRung, Manifest, Timing, seal, unseal
from edgewise.bundle.vectors import Vectors, expected_outputs, tolerances
from edgewise.errors import ContractError, OutputError
from edgewise.records.candidate import Candidate
from edgewise.records.certificate import Certificate, SyntheticCheck
from edgewise.records.machine import Machine
from edgewise.records.tensors import Array, Feeds
from edgewise.samples.preprocessing import Preprocessing

_TEMPORARY: Final = ".bundle-tmp-"


@dataclass(frozen=True, kw_only=True)
class NewRung:
    """One way to run the model, to be written.

    Attributes:
        candidate: What was done and how it is run; its name becomes the rung's.
        artifact: Its files.
        certificate: What was proven of it; None for the untouched model.
        certified: Whether it is within the bound asked for.
        timing: How fast it was, or None.
        product_bits: See `LadderRung`.
        check: See `LadderRung`.
    """

    candidate: Candidate
    artifact: Artifact
    certificate: Certificate | None
    certified: bool
    timing: Timing | None
    product_bits: int | None = None
    check: SyntheticCheck | None = None


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What holds for every rung; see `Manifest`."""

    model: str
    machine: Machine
    created: str
    preprocessing: Preprocessing | None = None
    state: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None


def write(
    folder: Path, ladder: Sequence[NewRung], *, default: int, contract: Contract, vectors: Sequence[Feeds]
) -> Manifest:
    """Write a bundle into `folder`, in place of the one that may be there. Other files in it stay.

    Every rung is opened and run on `vectors` to record what it answers.

    Args:
        folder: Created where it does not exist.
        ladder: Ways to run the model, the untouched one first, then safest first; at least one.
        default: Index of the one to run.
        contract: What holds for all of them.
        vectors: Feeds to test with, at least one; a few suffice.

    Returns:
        The manifest as it was written.

    Raises:
        OutputError: If the folder cannot be written or is full; a bundle that was there is still there.
        ContractError: If the rungs do not fit together.
        BackendError: If a runtime fails on the vectors.
    """
    _check(ladder, default, vectors)
    manifest, packed = _describe(ladder, default, contract, vectors)
    sealed = seal(manifest)
    unseal(sealed, folder / MANIFEST_FILE)  # what cannot be read must not be written
    files = {f"{rung.folder}/{name}": data for rung, new in _pairs(manifest, ladder) for name, data in _files(new)}
    files[manifest.vectors] = packed
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(folder.glob(f"{_TEMPORARY}*"))
        staging = folder / f"{_TEMPORARY}{os.getpid()}"
        try:
            _stage(staging, files, sealed)
            _publish(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # what stays is waste, not damage
            _remove_others(folder, manifest)
    except OSError as error:
        raise OutputError(
            f"`{folder}` has to be writable and to have room for the bundle, but: {error.strerror or error}.",
            hint="Free some space, or choose another directory with `--out`.",
        ) from error
    return manifest


def _check(ladder: Sequence[NewRung], default: int, vectors: Sequence[Feeds]) -> None:
    if not ladder or not 0 <= default < len(ladder):
        raise ContractError(f"A bundle has to have a default among its rungs. Received {default} of {len(ladder)}.")
    if not vectors:
        raise ContractError("A bundle has to have at least one test vector. Received none.")
    first = ladder[0].artifact.spec
    for rung in ladder:
        spec = rung.artifact.spec
        if (spec.inputs, spec.outputs) != (first.inputs, first.outputs):
            raise ContractError(
                f"All rungs of a bundle have to have the same inputs and outputs. `{rung.candidate.name}` differs "
                f"from `{ladder[0].candidate.name}`."
            )


def _describe(
    ladder: Sequence[NewRung], default: int, contract: Contract, feeds: Sequence[Feeds]
) -> tuple[Manifest, bytes]:
    """Return the manifest, and the packed test vectors that it has the hash of."""
    rungs, answers = [], []
    for new in ladder:
        session = registry.get(new.artifact.spec.backend).open(new.artifact)
        try:
            expected = expected_outputs(session.run, feeds)
            tolerance = tolerances(session.run, feeds, expected, new.candidate)
        finally:
            session.close()
        answers.append(expected)
        rungs.append(
            LadderRung(
                name=new.candidate.name,
                folder=_folder(new),
                candidate=new.candidate,
                artifact=new.artifact.spec,
                certificate=new.certificate,
                certified=new.certified,
                timing=new.timing,
                tolerance=tolerance,
                product_bits=new.product_bits,
                check=new.check,
            )
        )
    inputs: tuple[dict[str, Array], ...] = tuple(dict(feed) for feed in feeds)
    packed = Vectors(inputs, tuple(answers)).pack()
    digest = hashlib.sha256(packed).hexdigest()
    name = f"{MODELS_FOLDER}/vectors-{digest[:8]}.npz"
    spec = ladder[0].artifact.spec
    manifest = Manifest(
        edgewise=edgewise.__version__,
        created=contract.created,
        model=contract.model,
        inputs=spec.inputs,
        outputs=spec.outputs,
        preprocessing=contract.preprocessing,
        state=dict(contract.state),
        classes=contract.classes,
        machine=contract.machine,
        ladder=tuple(rungs),
        default=default,
        vectors=name,
        files={name: digest},
    )
    return manifest, packed


def _folder(rung: NewRung) -> str:
    """Return a folder for the rung's files. Rungs with the same files, which differ in options alone, share one."""
    files = rung.artifact.spec.files
    digest = hashlib.sha256("\n".join(f"{name} {files[name]}" for name in sorted(files)).encode()).hexdigest()
    return f"{MODELS_FOLDER}/{re.sub(r'[^a-z0-9]+', '-', rung.artifact.spec.backend.lower())}-{digest[:8]}"


def _pairs(manifest: Manifest, ladder: Sequence[NewRung]) -> zip[tuple[LadderRung, NewRung]]:
    return zip(manifest.ladder, ladder, strict=True)


def _files(rung: NewRung) -> list[tuple[str, bytes]]:
    return list(rung.artifact.files.items())


def _stage(staging: Path, files: Mapping[str, bytes], manifest: bytes) -> None:
    for name, data in {**files, MANIFEST_FILE: manifest}.items():
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    for path in (*(staging / MODELS_FOLDER).iterdir(), staging / MODELS_FOLDER):
        _sync_folder(path)


def _publish(staging: Path, folder: Path) -> None:
    models = folder / MODELS_FOLDER
    models.mkdir(exist_ok=True)
    for path in sorted((staging / MODELS_FOLDER).iterdir()):
        place = models / path.name
        if place.is_dir() and not place.is_symlink():
            # The same name is the same contents, unless they were damaged: file by file, each replaced in one step.
            for file in path.iterdir():
                file.replace(place / file.name)
        else:
            path.replace(place)
    _sync_folder(models)
    (staging / MANIFEST_FILE).replace(folder / MANIFEST_FILE)
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable; Windows has no way to and does not need one."""
    if os.name == "nt" or not path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_OURS: Final = re.compile(r"(vectors-[0-9a-f]{8}\.npz|[a-z0-9-]+-[0-9a-f]{8})")


def _remove_others(folder: Path, manifest: Manifest) -> None:
    """Remove what earlier bundles left in the models' folder; names that are none of ours stay."""
    named = {*manifest.files, *(rung.folder for rung in manifest.ladder)}
    _remove(
        path
        for path in list((folder / MODELS_FOLDER).iterdir())
        if f"{MODELS_FOLDER}/{path.name}" not in named and _OURS.fullmatch(path.name)
    )


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
