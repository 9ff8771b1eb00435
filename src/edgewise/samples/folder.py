"""Folders of images."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgewise.errors import DataError
from edgewise.samples.images import SUFFIXES, read_image
from edgewise.samples.labels import parse_labels
from edgewise.samples.preprocessing import Preprocessing, apply
from edgewise.samples.source import Sample

LABELS_FILE: Final = "labels.csv"


class ImageSource:
    """Image files, decoded one at a time.

    Args:
        name: What the user named.
        files: The images in order.
        labels: One label for each, or None.
        preprocessing: What is done to each image.
        extra: Whatever else decides about the samples; it goes into the fingerprint.

    Raises:
        DataError: If there are no images.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        labels: list[Any] | None,
        *,
        preprocessing: Preprocessing,
        extra: bytes = b"",
    ) -> None:
        if not files:
            raise DataError(
                f"`{name}` has to hold images. There are none ({', '.join(sorted(SUFFIXES))}).",
                hint="Give a folder of images, or one with a sub-folder for each class.",
            )
        self.name = name
        self._files = tuple(files)
        self._labels = labels
        self._preprocessing = preprocessing
        self._extra = extra

    @property
    def files(self) -> tuple[Path, ...]:
        """The file of each image."""
        return self._files

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the files, undecoded, and over the labels."""
        digest = hashlib.sha256(self._extra)
        for file in self._files:
            digest.update(file.name.encode())
            try:
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
            except OSError as error:
                raise DataError(f"The image `{file}` has to be readable, but: {error.strerror}.") from error
        digest.update(repr(self._labels).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """Return one image, pre-processed.

        Raises:
            DataError: If the file is damaged, or does not fit the pre-processing.
        """
        file = self._files[index]
        try:
            image = apply(read_image(file), self._preprocessing)
        except DataError as error:
            if str(file) in error.message:
                raise
            raise DataError(f"`{file}`: {error.message}", hint=error.hint) from error
        return Sample({"": image}, None if self._labels is None else self._labels[index])

    def labels(self) -> list[Any] | None:
        """Return all labels, or None."""
        return None if self._labels is None else list(self._labels)


def open_folder(folder: Path, preprocessing: Preprocessing, label: str | None) -> ImageSource:
    """Return the images of a folder.

    With `labels.csv` in it: the images and labels that it lists, in its order; columns `image` (a path relative to the
    folder) and `label`, or the one that is named. Otherwise with one sub-folder for each class: the images in them. The
    label is the position of the sub-folder's name in alphabetical order, or the name itself where all are numbers.
    Otherwise: its images in the order of their names, without labels.

    Raises:
        DataError: If the folder cannot be read, holds no images, or its labels are damaged.
    """
    if (folder / LABELS_FILE).is_file():
        return _listed(folder, preprocessing, label or "label")
    if label is not None:
        raise DataError(
            f"Labels named `{label}` have to stand in `{LABELS_FILE}`. `{folder}` has no such file.",
            hint=f"Add a {LABELS_FILE} with the columns image and {label}.",
        )
    classes = {child: images for child in _children(folder) if child.is_dir() and (images := _images(child))}
    loose = _images(folder)
    if classes and loose:
        raise DataError(
            f"A folder has to hold either images or one sub-folder for each class. `{folder}` holds {len(loose)} "
            f"images and {len(classes)} folders of images.",
            hint="Move the images into sub-folders, or name one folder.",
        )
    if len(classes) == 1:
        only = next(iter(classes))
        raise DataError(
            f"There have to be at least two classes. `{folder}` has one folder of images, `{only.name}`.",
            hint=f"If `{only.name}` is no class, name it instead: {only}",
        )
    if not classes:
        return ImageSource(str(folder), loose, None, preprocessing=preprocessing)
    names = [child.name for child in classes]
    numbers = all(re.fullmatch(r"[0-9]{1,9}", name) for name in names)
    files, labels = [], []
    for index, (child, images) in enumerate(classes.items()):
        files.extend(images)
        labels.extend([int(child.name) if numbers else index] * len(images))
    extra = "\n".join(names).encode()
    return ImageSource(str(folder), files, labels, preprocessing=preprocessing, extra=extra)


def class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the names of the classes where their positions are the labels (one sub-folder a class), else None."""
    if (folder / LABELS_FILE).is_file():
        return None
    names = tuple(child.name for child in _children(folder) if child.is_dir() and _images(child))
    return None if not names or all(re.fullmatch(r"[0-9]{1,9}", name) for name in names) else names


def _listed(folder: Path, preprocessing: Preprocessing, column: str) -> ImageSource:
    """Return the images that `labels.csv` lists."""
    table = folder / LABELS_FILE
    files, texts = [], []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in ("image", column) if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"`{table}` has to have the columns `image` and `{column}`. It has "
                    f"{', '.join(f'`{name}`' for name in reader.fieldnames or ()) or 'none'}.",
                    hint="Name the column of the labels with --label.",
                )
            for row in reader:
                image, text = row["image"], row[column]
                if not image or text is None:
                    raise DataError(f"Row {reader.line_num} of `{table}` has to have an image and a label.")
                if not (folder / image).is_file():
                    raise DataError(f"Row {reader.line_num} of `{table}` names `{image}`, which is not there.")
                files.append(folder / image)
                texts.append(text)
    except OSError as error:
        raise DataError(f"`{table}` has to be readable, but: {error.strerror}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"`{table}` has to be a CSV file in UTF-8, but: {error}.") from error
    if not files:
        raise DataError(f"`{table}` has to list at least one image. It lists none.")
    return ImageSource(str(folder), files, parse_labels(texts, f"`{table}`"), preprocessing=preprocessing)


def _children(folder: Path) -> list[Path]:
    """Return what is in a folder, hidden files left out, in alphabetical order."""
    try:
        return sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"The folder `{folder}` has to be readable, but: {error.strerror}.") from error


def _images(folder: Path) -> list[Path]:
    return [child for child in _children(folder) if child.suffix.lower() in SUFFIXES and child.is_file()]
