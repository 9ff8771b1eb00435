"""Opening a bundle: all of this package that a device needs."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Self

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, Session
from edgewise.bundle.manifest import MANIFEST_FILE, LadderRung, Manifest, unseal
from edgewise.bundle.vectors import Vectors
from edgewise.errors import BundleError, RecipeError


class Bundle:
    """A bundle on disk.

        session = Bundle.load("out").session()
        outputs = session.run({"input": array})

    Files are checked against their hashes when they are opened, not before: loading costs what the manifest costs.

    Args:
        folder: Where it lies.
        manifest: What it says about itself.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the bundle in the folder `path`.

        Raises:
            BundleError: If there is none, or its manifest is damaged, was changed, or is newer than this edgewise.
        """
        folder = Path(path)
        file = folder / MANIFEST_FILE
        refuse_links(folder, MANIFEST_FILE)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise BundleError(
                f"`{folder}` has to be the folder of a bundle, with a readable `{MANIFEST_FILE}`, but: "
                f"{error.strerror}.",
                hint="`edgewise optimize` makes bundles; a run that was interrupted has none yet.",
            ) from error
        return cls(folder, unseal(data, file))

    @property
    def rungs(self) -> tuple[str, ...]:
        """Names of the ways to run it, in the order of the ladder."""
        return tuple(rung.name for rung in self.manifest.ladder)

    def rung(self, which: str | int | None = None) -> LadderRung:
        """Return one way to run it: by name, by position in the ladder, or the default.

        Raises:
            RecipeError: If there is none of that name or position.
        """
        ladder = self.manifest.ladder
        if which is None:
            return ladder[self.manifest.default]
        if isinstance(which, int) and 0 <= which < len(ladder):
            return ladder[which]
        for rung in ladder:
            if rung.name == which:
                return rung
        raise RecipeError(
            f"A rung has to be one of {', '.join(f'`{name}`' for name in self.rungs)}, or a number below "
            f"{len(ladder)}. Received `{which}`.",
            hint="Leave it out for the bundle's default.",
        )

    def artifact(self, which: str | int | None = None) -> Artifact:
        """Return the files of a rung, checked against their hashes.

        Raises:
            RecipeError: If there is no such rung.
            BundleError: If a file is missing, was changed, or is a symbolic link.
        """
        rung = self.rung(which)
        for name in rung.artifact.files:
            refuse_links(self.folder, f"{rung.folder}/{name}")
        return Artifact.read(self.folder / rung.folder, rung.artifact)

    def session(self, which: str | int | None = None) -> Session:
        """Return a rung, opened and ready to run.

        Raises:
            RecipeError: If there is no such rung.
            BundleError: If a file is missing, was changed, or is a symbolic link; or for an unknown backend.
            BackendMissingError: If its runtime is not installed.
            BackendError: If its runtime refuses it.
        """
        rung = self.rung(which)
        if rung.artifact.backend not in registry.BACKENDS:
            raise BundleError(
                f"Rung `{rung.name}` has to run on a backend that this edgewise has. Received "
                f"`{rung.artifact.backend}`.",
                hint="A newer edgewise may have it: pip install --upgrade edgewise",
            )
        artifact = self.artifact(which)
        return registry.get(rung.artifact.backend).open(artifact)

    def vectors(self) -> Vectors:
        """Return the test vectors, checked against their hash.

        Raises:
            BundleError: If they were left out or are missing, were changed, or do not fit the ladder.
        """
        name = self.manifest.vectors
        if not name:
            raise BundleError(
                f"`{self.folder}` has to hold test vectors, but packing left them out.",
                hint="Pack the bundle again without `--without-vectors`.",
            )
        path = self.folder / name
        refuse_links(self.folder, name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(
                f"`{path}` has to be readable, but: {error.strerror}.",
                hint="The bundle is incomplete; copy it again or make it again with `edgewise optimize`.",
            ) from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name]:
            raise BundleError(
                f"`{path}` has to be as it was written, but it was changed or truncated since.",
                hint="Copy the bundle again or make it again with `edgewise optimize`.",
            )
        try:
            return Vectors.unpack(data)
        except ValueError as error:
            raise BundleError(f"`{path}` has to hold test vectors, but: {error}.") from error


def refuse_links(folder: Path, name: str) -> None:
    """Refuse a name that leads through a symbolic link: it may point anywhere on the machine.

    Raises:
        BundleError: If a part of the way from `folder` to `name` is one.
    """
    path = folder
    for part in PurePosixPath(name).parts:
        path /= part
        if path.is_symlink():
            raise BundleError(
                f"A bundle has to consist of files. `{path}` is a symbolic link.",
                hint="Copy the bundle with its links resolved, for example with `cp -rL`.",
            )
