"""From what the user names to a source of samples."""

from __future__ import annotations

from pathlib import Path

from edgewise.errors import DataError
from edgewise.samples.arrays import ArraySource
from edgewise.samples.folder import ImageSource, open_folder
from edgewise.samples.function import is_function, open_function
from edgewise.samples.images import SUFFIXES
from edgewise.samples.preprocessing import Preprocessing
from edgewise.samples.source import Source
from edgewise.samples.windows import WindowSource

_HINT = "Give an .npz, .npy or .csv file, a folder of images, or package.module:function."


def open_source(spec: str, preprocessing: Preprocessing | None = None, *, label: str | None = None) -> Source:
    """Return the samples that `spec` names.

    Args:
        spec: A file (`.npz`, `.npy`, `.csv`, one image), a folder of images, or `package.module:function`. What exists
            as a file or folder is taken for that.
        preprocessing: What is done to each sample; None for nothing.
        label: Name of the labels: an array of an `.npz`, a column of a CSV file; None for the usual names `y` and
            `label`, where there are any.

    Raises:
        DataError: If there is no such thing, it is damaged, or it holds no samples; the message says where.
        ResourceError: If there is no room for a temporary copy of compressed or generated samples.
    """
    preprocessing = preprocessing or Preprocessing()
    path = Path(spec)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise DataError(f"The samples `{spec}` have to be readable, but: {error.strerror}.") from error
    if not exists and is_function(spec):
        if label is not None:
            raise DataError(f"Labels of `{spec}` have to come with the samples. Received the name `{label}`.")
        return open_function(spec, preprocessing)
    if not exists:
        raise DataError(f"The samples have to exist. There is no `{spec}`.", hint=_HINT)
    source = open_folder(path, preprocessing, label) if is_folder else _open_file(path, preprocessing, label)
    if not len(source):
        raise DataError(f"There has to be at least one sample. `{spec}` has none.", hint=_HINT)
    return source


def _open_file(path: Path, preprocessing: Preprocessing, label: str | None) -> Source:
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError as error:
        raise DataError(f"The samples `{path}` have to be readable, but: {error.strerror}.") from error
    if not begin:
        raise DataError(f"A file of samples has to hold something. `{path}` is empty.", hint=_HINT)
    suffix = path.suffix.lower()
    if suffix in {".npz", ".npy"}:
        return ArraySource(path, preprocessing, label)
    if suffix in SUFFIXES:
        return ImageSource(str(path), [path], None, preprocessing=preprocessing)
    if suffix in {".csv", ".tsv", ".txt"}:
        return WindowSource(path, preprocessing, label)
    raise DataError(f"Samples of the kind `{suffix or path.name}` are not known. Received `{path}`.", hint=_HINT)
