"""What a bundle says about itself: `manifest.json`, sealed with its own hash.

The file is `{"schema": 1, "sha256": "...", "manifest": {...}}`. The hash is of the bytes of the inner object as they
lie in the file, so that a later edgewise with more fields still accepts it, and a file that was edited or cut off is
refused. It protects against accidents and careless edits, not against somebody who also recomputes the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from edgewise.backends.protocol import ArtifactSpec
from edgewise.errors import BundleError, RecipeError
from edgewise.records.candidate import Candidate
from edgewise.records.certificate import Certificate, SyntheticCheck
from edgewise.records.codec import Record, decode, encode, indent
from edgewise.records.machine import Machine
from edgewise.records.measurements import Ratio
from edgewise.records.tensors import Port
from edgewise.samples.preprocessing import Preprocessing

SCHEMA: Final = 1
MANIFEST_FILE: Final = "manifest.json"
MODELS_FOLDER: Final = "models"

_AGAIN: Final = "Copy the bundle again or make it again with `edgewise optimize`."


class Timing(Record, frozen=True, kw_only=True):
    """How fast a rung was where the bundle was made.

    Attributes:
        median_us: Median time of one inference in microseconds.
        p99_us: 99 % quantile.
        speedup: Against the untouched model, or None where it was not measured.
    """

    median_us: float
    p99_us: float
    speedup: Ratio | None


class LadderRung(Record, frozen=True, kw_only=True):
    """One way to run the model.

    Attributes:
        name: Its name, unique in the bundle.
        folder: Folder of its files, relative to the bundle, with `/`.
        candidate: What was done to the model and how it is run.
        artifact: What must be known to open it, with the hashes of its files.
        certificate: What was proven of it; None for the untouched model, which loses nothing.
        certified: Whether it is within the bound asked for.
        check: What was seen of it on synthetic samples, where there were no others; None elsewhere.
        timing: How fast it was, or None where it was not measured.
        tolerance: For each output, the largest difference from the test vectors that arithmetic explains
            (`vectors.tolerances`), in the output's own unit.
        product_bits: Bits of its widest weights that meet 8-bit activations (`analysis.integers`), 0 if there are none,
            or None where it was not recorded.
    """

    name: str
    folder: str
    candidate: Candidate
    artifact: ArtifactSpec
    certificate: Certificate | None
    certified: bool
    timing: Timing | None
    tolerance: dict[str, float]
    product_bits: int | None = None
    check: SyntheticCheck | None = None


class Manifest(Record, frozen=True, kw_only=True):
    """Everything about a bundle but its weights.

    Attributes:
        edgewise: Version that made it.
        created: When, in UTC, ISO 8601.
        model: Name of the user's model.
        inputs: Inputs in order.
        outputs: Outputs in order.
        preprocessing: What is done to each sample first, or None.
        state: Outputs that are fed back, each with the input that takes it.
        classes: Names of the classes in order, or None.
        machine: Where it was made, and where its accuracy was proven.
        ladder: Ways to run it, the untouched model first, then safest first.
        default: Index into `ladder` of the one to run.
        vectors: File with the test vectors, relative to the bundle; empty where packing left them out.
        files: SHA-256 of every other file that belongs to no rung, by name relative to the bundle.
        left_out: Names of the rungs that packing left out, in the order of their ladder.
    """

    edgewise: str
    created: str
    model: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    preprocessing: Preprocessing | None
    state: dict[str, str]
    classes: tuple[str, ...] | None
    machine: Machine
    ladder: tuple[LadderRung, ...]
    default: int
    vectors: str
    files: dict[str, str]
    left_out: tuple[str, ...] = ()


class _Version(msgspec.Struct):
    schema: int


class _Sealed(Record, frozen=True, kw_only=True):
    schema: int
    sha256: str
    manifest: msgspec.Raw


def seal(manifest: Manifest) -> bytes:
    """Return the contents of the file that holds `manifest`."""
    inner = indent(encode(manifest))
    digest = hashlib.sha256(inner).hexdigest()
    return b'{\n"schema": %d,\n"sha256": "%s",\n"manifest": %s\n}\n' % (SCHEMA, digest.encode(), inner)


def unseal(data: bytes, path: Path) -> Manifest:
    """Return the manifest in `data`.

    Args:
        data: Contents of a manifest file.
        path: Where they come from, for messages.

    Raises:
        BundleError: If it is damaged, was changed, is newer than this edgewise, or points out of the bundle.
    """
    try:
        schema = decode(data, _Version).schema
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"`{path}` has to be a bundle's manifest, but: {error}.", hint=_AGAIN) from error
    if schema > SCHEMA:
        raise BundleError(
            f"`{path}` has to be of schema {SCHEMA} or older. Received schema {schema}.",
            hint="A newer edgewise made it: pip install --upgrade edgewise",
        )
    try:
        sealed = decode(data, _Sealed)
        _check_seal(sealed, path)
        manifest = decode(bytes(sealed.manifest), Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"`{path}` has to be a bundle's manifest, but: {error}.", hint=_AGAIN) from error
    except RecipeError as error:  # a field that checks itself, such as the pre-processing
        raise BundleError(f"`{path}`: {error.message}", hint=_AGAIN) from error
    if (problem := _problem(manifest)) is not None:
        raise BundleError(f"`{path}` {problem}.", hint=_AGAIN)
    return manifest


def _check_seal(sealed: _Sealed, path: Path) -> None:
    if hashlib.sha256(bytes(sealed.manifest)).hexdigest() != sealed.sha256:
        raise BundleError(f"`{path}` has to be as it was written, but it was changed since.", hint=_AGAIN)


def _problem(manifest: Manifest) -> str | None:
    """Return what does not hold together in `manifest`, as the rest of a sentence, or None."""
    if not 0 <= manifest.default < len(manifest.ladder):
        return f"has to have its default among {len(manifest.ladder)} rungs. Received {manifest.default}"
    if len({rung.name for rung in manifest.ladder}) != len(manifest.ladder):
        return "has to give each rung a name of its own"
    if manifest.vectors and manifest.vectors not in manifest.files:
        return f"has to have the hash of `{manifest.vectors}`"
    for name in _names(manifest):
        if not _is_inside(name):
            return f"has to name files inside the bundle. Received `{name}`"
    return None


def _names(manifest: Manifest) -> Iterator[str]:
    yield from manifest.files
    for rung in manifest.ladder:
        yield rung.folder
        yield from rung.artifact.files


def _is_inside(name: str) -> bool:
    """Return whether a relative name stays where it is put, on every operating system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not any(character in name for character in "\\:\0")
    )
