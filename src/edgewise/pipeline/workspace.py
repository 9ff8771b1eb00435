"""The directory of a run: who may use it, and what lies where.

out/manifest.json, models/, vectors.npz    the bundle (written last)
out/report.html                            the report
out/run.sqlite                             every record; the run resumes from it
out/work/                                  compiled candidates; removed when the run has finished

While a run is at work, the directory itself is locked.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgewise.errors import BackendMissingError, DataError, ModelError, OutputError, RecipeError
from edgewise.records.codec import Record
from edgewise.records.store import Store

if sys.platform != "win32":  # Windows has no fcntl; two runs at once are then not noticed
    import fcntl

RECORDS = "run.sqlite"

TIMED = "timing"
"""Stage of the first records that cost time to make again."""

OURS = ("manifest.json", "models", "report.html", "sources", "work", ".bundle-tmp-*", ".report.html-*", RECORDS)
"""What edgewise itself puts into the directory of a run. The records are removed last: they tell that it is one."""


class RunKey(Record, frozen=True, kw_only=True):
    """What decides about every measurement of a run: the same key resumes, another one is another run."""

    sha256: str


class Workspace:
    """The directory of one run, opened and locked by `open_workspace`."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder
        self.store = store

    @property
    def work(self) -> Path:
        """Where compiled candidates lie until the run has finished."""
        return self.folder / "work"

    def tidy(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.work, ignore_errors=True)


@contextmanager
def open_workspace(folder: Path, key: str, *, overwrite: bool) -> Iterator[Workspace]:
    """Open `folder` for the run `key`; resume it where it was begun before.

    A run whose model, samples, options or backend turn out to be of no use before anything was timed leaves nothing
    behind: the next one in this directory has another key, and would be refused for the sake of records that nobody
    wants.

    Raises:
        OutputError: If it cannot be written, is in use, or holds something else and `overwrite` is not given.
    """
    created = not folder.exists()
    _create(folder)
    with _locked(folder):
        # A folder named `work` or `models` may be anybody's; only the records make it ours to overwrite or remove.
        held = sorted(path.name for path in folder.iterdir())
        if held and not (folder / RECORDS).exists():
            raise OutputError(
                f"The output directory `{folder}` has to be empty or an earlier run, but it holds `{held[0]}`.",
                hint="Choose another directory with `--out`.",
            )
        store = _matching_store(folder, key, overwrite=overwrite)
        useless = False
        try:
            yield Workspace(folder, store)
        except (ModelError, DataError, RecipeError, BackendMissingError):
            useless = store.count(TIMED) == 0
            raise
        finally:
            store.close()
            if useless:
                clear(folder)
                if created:
                    folder.rmdir()


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"The output directory `{folder}` has to be writable, but: {error.strerror}.",
            hint="Choose another directory with `--out`.",
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    # The lock is on the directory itself: no lock file can be left behind, and the system frees it with the process.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"Another run is at work in `{folder}`.",
                hint="Wait for it, or choose another directory with `--out`.",
            ) from error
        yield
    finally:
        os.close(descriptor)


def _matching_store(folder: Path, key: str, *, overwrite: bool) -> Store:
    path = folder / RECORDS
    wanted = RunKey(sha256=key)
    if path.exists():
        try:
            store = Store(path)
            found = store.get("run-key", "", RunKey)
        except OutputError:
            if not overwrite:
                raise
            found = None
        else:
            if found is None:  # killed when the file had just been made
                store.put("run-key", "", wanted)
            if found in (None, wanted):
                return store
            store.close()
        if not overwrite:
            raise OutputError(
                f"`{folder}` holds a run with another model, other data, other options, or of another machine.",
                hint="Choose another directory with `--out`, or give `--overwrite` to replace it.",
            )
        clear(folder)
    store = Store(path)
    store.put("run-key", "", wanted)
    return store


def clear(folder: Path) -> None:
    """Remove everything that edgewise put into `folder`; foreign files stay."""
    for pattern in OURS:
        for path in sorted(folder.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
