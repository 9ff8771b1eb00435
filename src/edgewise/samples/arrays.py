"""Samples in `.npz` and `.npy` files."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgewise.errors import DataError
from edgewise.records.tensors import Array
from edgewise.samples.finite import non_finite
from edgewise.samples.preprocessing import Preprocessing, prepare
from edgewise.samples.rows import Archive, Rows, open_npy
from edgewise.samples.source import Sample

SAMPLES: Final = "x"
LABELS: Final = "y"


class ArraySource:
    """Samples in arrays whose first axis counts them.

    In an `.npz`, `x` holds the samples of a model's only input, or every input has an array of its name; an array
    without dimensions is constant for all samples. Labels are in `y` or in the array that is named. Beside `x` there
    may be any other arrays; one that has the name of an input is that input, as it is.

    Args:
        path: The file.
        preprocessing: What is done to each array.
        label: Name of the array of labels; None for `y` where there is one.

    Raises:
        DataError: If the file is damaged, holds no samples, or its arrays differ in length.
    """

    def __init__(self, path: Path, preprocessing: Preprocessing, label: str | None) -> None:
        self.name = str(path)
        self._path = path
        self._preprocessing = preprocessing
        self._label = label
        self._inputs: dict[str, Rows] = {}
        self._beside: dict[str, Rows] = {}
        self._constants: dict[str, Array] = {}
        self._labels: Rows | None = None
        if path.suffix.lower() == ".npy":
            if label is not None:
                raise DataError(
                    f"`{path}` has to be an `.npz` to hold labels. It is one array, `{label}` is not in it."
                )
            self._inputs[""] = open_npy(path)
        else:
            self._read_archive(Archive(path))
        self._length = self._count()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file's bytes and the name of the labels."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(f"label={self._label}".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: If it has NaN or infinite values, or cannot be pre-processed.
        """
        beside = {name: rows[index] for name, rows in self._beside.items()}
        arrays = {name: self._row(rows, index) for name, rows in self._inputs.items()}
        label = None if self._labels is None else _as_label(self._labels[index])
        return Sample({**self._constants, **beside, **arrays}, label)

    def labels(self) -> list[Any] | None:
        """Return all labels: numbers and texts as Python's own, others as arrays.

        Raises:
            DataError: If one is NaN or infinite.
        """
        if self._labels is None:
            return None
        values = self._labels.all()
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            index = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(axis=1)))
            raise DataError(f"Labels have to be finite. Label {index} of {self._labels.where} is not.")
        listed: list[Any] = values.tolist() if values.ndim == 1 else list(values)
        return listed

    def _row(self, rows: Rows, index: int) -> Array:
        row = rows[index]
        if row.dtype.kind in "fc" and not np.isfinite(row).all():
            raise non_finite(row, f"Sample {index} of {rows.where}")
        try:
            return prepare(row, self._preprocessing)
        except DataError as error:
            raise DataError(f"Sample {index} of {rows.where}: {error.message}", hint=error.hint) from error

    def _read_archive(self, archive: Archive) -> None:
        """Sort the arrays into samples, constants and labels."""
        names = set(archive.names)
        label = self._label if self._label is not None else LABELS if LABELS in names else None
        if label is not None and label not in names:
            raise DataError(
                f"The labels have to be an array of `{self.name}`. There is no `{label}`; the arrays are "
                f"{', '.join(f'`{name}`' for name in archive.names)}.",
                hint="Name one of them with --label.",
            )
        if not names - {label}:
            raise DataError(
                f"`{self.name}` has to hold samples. Its arrays are {', '.join(archive.names) or 'none'}.",
                hint="Save them with numpy.savez(path, x=samples, y=labels).",
            )
        if label is not None:
            self._labels = archive.open(label)
            if not self._labels.shape:
                raise DataError(f"{archive.where(label)} has to have one label for each sample. It is a single number.")
        for name in archive.names:
            if name != label:
                self._add(archive, name, named=SAMPLES not in names)

    def _add(self, archive: Archive, name: str, *, named: bool) -> None:
        """Add one array. `named` says that every array has the name of an input, so that all must fit."""
        if name != SAMPLES and not named:
            try:
                header = archive.header(name)
            except DataError:
                return  # Beside `x` there may be anything, a list of class names for example.
            if header.dtype.kind not in "fiub" or (
                header.shape and header.shape[0] != archive.header(SAMPLES).shape[0]
            ):
                return
        rows = archive.open(name)
        if rows.shape:
            # What lies beside `x` need not be an input: it is neither checked nor pre-processed.
            group = self._inputs if named or name == SAMPLES else self._beside
            group["" if name == SAMPLES else name] = rows
            return
        value = rows.all()
        if value.dtype.kind in "fc" and not np.isfinite(value):
            raise DataError(f"Constants have to be finite. {rows.where} is {value}.")
        self._constants[name] = value

    def _count(self) -> int:
        """Return how many samples there are, after checking that all arrays agree."""
        if not self._inputs:
            raise DataError(
                f"`{self.name}` has to hold an array whose first axis counts the samples. All of its arrays are single "
                f"numbers."
            )
        if any(not rows.shape for rows in self._inputs.values()):
            raise DataError(f"The first axis of `{self.name}` has to count the samples. It is a single number.")
        lengths = {rows.where: len(rows) for rows in self._inputs.values()}
        if self._labels is not None:
            lengths[self._labels.where] = len(self._labels)
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{where} has {length:,}" for where, length in lengths.items())
            raise DataError(
                f"All arrays and the labels have to have one entry for each sample, but {counts}.",
                hint="Save samples and labels of the same number: numpy.savez(path, x=samples, y=labels).",
            )
        return next(iter(lengths.values()))


def _as_label(value: Array) -> Any:
    return value.item() if value.ndim == 0 else value
