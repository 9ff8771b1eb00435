"""A part of a bundle: some of its rungs, with or without test vectors, under a manifest that says what is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from edgewise.bundle.manifest import MODELS_FOLDER, Manifest
from edgewise.bundle.read import Bundle
from edgewise.bundle.vectors import Vectors
from edgewise.errors import RecipeError


def part(bundle: Bundle, *, rungs: Sequence[str] | None, vectors: bool) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest of a part of `bundle`, and the contents of its files that the bundle does not have.

    The default stays the default; where it is left out, the first of the rungs that stay takes its place.

    Args:
        bundle: The bundle.
        rungs: Names of the rungs that stay, at least one; None for all of them.
        vectors: Whether the test vectors stay: those of the rungs that do.

    Raises:
        RecipeError: If there is no rung of such a name, or none is named.
        BundleError: If test vectors have to be read and are damaged.
    """
    whole = bundle.manifest
    if rungs is not None and not rungs:
        raise RecipeError("At least one rung has to be packed. Received none.")
    names = {bundle.rung(name).name for name in rungs} if rungs is not None else set(bundle.rungs)
    places = [place for place, rung in enumerate(whole.ladder) if rung.name in names]
    files, contents = dict(whole.files), dict[str, bytes]()
    name = whole.vectors if vectors else ""
    if whole.vectors and not name:
        del files[whole.vectors]
    elif name and len(places) < len(whole.ladder):
        found = bundle.vectors()
        data = Vectors(found.feeds, tuple(found.expected[place] for place in places)).pack()
        digest = hashlib.sha256(data).hexdigest()
        del files[name]
        name = f"{MODELS_FOLDER}/vectors-{digest[:8]}.npz"
        files[name], contents[name] = digest, data
    manifest = msgspec.structs.replace(
        whole,
        ladder=tuple(whole.ladder[place] for place in places),
        default=places.index(whole.default) if whole.default in places else 0,
        vectors=name,
        files=files,
        left_out=(*whole.left_out, *(rung.name for rung in whole.ladder if rung.name not in names)),
    )
    return manifest, contents
