"""The seam between data and everything that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from edgewise.records.tensors import Array


@dataclass(frozen=True)
class Sample:
    """One sample, without a batch axis.

    Attributes:
        arrays: One array for every input that the data names. Data that names none, such as one image, has the
            single key `""`, which stands for the model's only input that is neither a state nor constant.
        label: Class index, number, string, array or any object; None where there is no label.
    """

    arrays: dict[str, Array]
    label: Any = None


class Source(Protocol):
    """Samples in a fixed order with random access. Memory stays bounded whatever their number."""

    @property
    def name(self) -> str:
        """What the user named, for messages."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the samples and labels, or of what stands for them without reading all of them twice."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: If it cannot be read; the message names its file or row.
        """

    def labels(self) -> list[Any] | None:
        """Return all labels in order without reading the samples, or None where there are none."""
