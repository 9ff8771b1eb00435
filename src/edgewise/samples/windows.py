"""A CSV file in which every row is one window of numbers."""

from __future__ import annotations

import csv
import hashlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DataError
from edgewise.records.tensors import Array
from edgewise.samples.finite import non_finite
from edgewise.samples.labels import parse_labels
from edgewise.samples.preprocessing import Preprocessing, prepare
from edgewise.samples.source import Sample

_DELIMITERS = (",", ";", "\t")


class WindowSource:
    """One window of F values a row: a sample has the shape `[F]`, or the `sample_shape` of the pre-processing.

    The first row may be a header: it is one if its first cell is no number, or if one of its cells is the name of the
    labels. The column `label`, or the one that is named, holds the labels; `last` is the last column, with a header or
    without. Columns are separated by commas,
    semicolons or tabs. Empty lines are skipped. Only the places of the rows are kept in memory.

    Args:
        path: The file, in UTF-8.
        preprocessing: Its `sample_shape` is used.
        label: Name of the column of labels; None for `label` where there is one.

    Raises:
        DataError: If the file has no rows, its rows differ in length, or the column of labels is missing.
    """

    def __init__(self, path: Path, preprocessing: Preprocessing, label: str | None) -> None:
        self.name = str(path)
        self._path = path
        self._preprocessing = preprocessing
        self._starts = array("q")
        self._lines = array("q")
        texts: list[str] = []
        digest = hashlib.sha256(f"label={label}\n".encode())
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DataError(f"`{path}` has to be readable, but: {error.strerror}.") from error
        start, width = 0, 0
        self._column: int | None = None
        self._delimiter = ","
        self._names: list[str] | None = None
        for number, line in enumerate(self._file, 1):
            digest.update(line)
            begin, start = start, start + len(line)
            text = self._decoded(line, number)
            if not text.strip():
                continue
            if not width:
                self._delimiter = max(_DELIMITERS, key=text.count)
                cells = self._cells(text, number)
                width = len(cells)
                names = [cell.strip() for cell in cells]
                self._names = names if not _is_number(cells[0]) or (label or "label") in names else None
                self._column = self._label_column(label, width)
                if self._names is not None:
                    continue
            cells = self._cells(text, number)
            if len(cells) != width:
                raise DataError(
                    f"Every row of `{path}` has to have {width} columns, as the first has. Row {number} has "
                    f"{len(cells)}."
                )
            if self._column is not None:
                texts.append(cells[self._column])
            self._starts.append(begin)
            self._lines.append(number)
        if not self._starts:
            raise DataError(
                f"`{path}` has to hold one window a row. It has no rows.",
                hint="Write the values of each window into a row, its label into a column named label.",
            )
        if width - (self._column is not None) < 1:
            raise DataError(f"`{path}` has to have columns of values beside the labels.")
        self._labels = parse_labels(texts, f"`{path}`") if self._column is not None else None
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Sample:
        """Return one window, float64.

        Raises:
            DataError: If a cell is no finite number; the message names row and column.
        """
        self._file.seek(self._starts[index])
        line = self._lines[index]
        cells = self._cells(self._decoded(self._file.readline(), line), line)
        values = [self._number(cell, line, column) for column, cell in enumerate(cells) if column != self._column]
        window: Array = np.array(values)
        if not np.isfinite(window).all():
            raise non_finite(window, f"Row {line} of `{self._path}`")
        try:
            window = prepare(window, self._preprocessing)
        except DataError as error:
            raise DataError(f"Row {line} of `{self._path}`: {error.message}", hint=error.hint) from error
        return Sample({"": window}, None if self._labels is None else self._labels[index])

    def labels(self) -> list[Any] | None:
        """Return all labels, or None."""
        return None if self._labels is None else list(self._labels)

    def _label_column(self, label: str | None, width: int) -> int | None:
        if self._names is None:
            if label not in {None, "last"}:
                raise DataError(
                    f"The column `{label}` has to be named in the first row. `{self._path}` begins with numbers.",
                    hint="Add a header, or say `last` for the last column.",
                )
            return width - 1 if label == "last" else None
        wanted = label or "label"
        if wanted in self._names:
            return self._names.index(wanted)
        if label is None:
            return None
        if label == "last":
            return width - 1
        raise DataError(
            f"The labels have to be a column of `{self._path}`. There is no `{label}`; the columns are "
            f"{', '.join(f'`{name}`' for name in self._names[-5:])}."
        )

    def _cells(self, text: str, line: int) -> list[str]:
        try:
            return next(csv.reader([text], delimiter=self._delimiter, strict=True))
        except (csv.Error, StopIteration) as error:
            raise DataError(f"Row {line} of `{self._path}` has to be CSV on one line, but: {error}.") from error

    def _decoded(self, line: bytes, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"Row {number} of `{self._path}` has to be text in UTF-8, but: {error}.") from error

    def _number(self, cell: str, line: int, column: int) -> float:
        try:
            return float(cell)
        except ValueError as error:
            name = f"{column + 1}" if self._names is None else f"{column + 1} (`{self._names[column]}`)"
            last = column == len(self._names or ()) - 1 or self._names is None
            raise DataError(
                f"Every value has to be a number. Row {line}, column {name} of `{self._path}` is `{cell.strip()}`.",
                hint="If the last column holds the labels, say so with --label last." if last else None,
            ) from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
