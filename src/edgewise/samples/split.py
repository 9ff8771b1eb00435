"""Three disjoint sets of samples: for statistics, for decisions, and for the certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgewise.errors import DataError

Indices = npt.NDArray[np.int64]

CALIBRATE_MOST: Final = 300
CALIBRATE_SHARE: Final = 0.15
SELECT_SHARE: Final = 0.25
SMALLEST: Final = 3
"""One sample in each set."""


@dataclass(frozen=True)
class Splits:
    """Indices of the samples of each set, ascending; together they are all samples, each once.

    Attributes:
        calibrate: For statistics; labels are not read.
        select: For every decision of the search.
        certify: For the certificate alone.
    """

    calibrate: Indices
    select: Indices
    certify: Indices


def split(n: int, labels: Sequence[Any] | None, seed: int) -> Splits:
    """Divide `n` samples: calibrate min(300, 15 %), select 25 %, certify the rest; at least one each.

    Where the labels are classes (whole numbers or texts, at least two different ones, on average at least two samples
    of each) every set holds each class in proportion, to within one sample: the samples are put in random order within
    their classes, the classes one behind the other, and each set takes every k-th (systematic sampling; Cochran,
    Sampling Techniques, 3rd ed., chapter 8). Every sample is equally likely to come into a given set.

    Args:
        n: Number of samples.
        labels: One label for each, or None.
        seed: Equal seeds give equal sets.

    Raises:
        DataError: If there are fewer than three samples, or another number of labels.
    """
    if labels is not None and len(labels) != n:
        raise DataError(f"There has to be one label for each of the {n:,} samples. Received {len(labels):,} labels.")
    if n < SMALLEST:
        raise DataError(
            f"There have to be at least {SMALLEST} samples, one for each of the sets calibrate, select and certify. "
            f"Received {n}.",
            hint="Give more samples (a certificate needs hundreds), or the three sets with --calibration, --select and "
            "--certify.",
        )
    calibrate = max(1, min(CALIBRATE_MOST, round(CALIBRATE_SHARE * n)))
    select = max(1, round(SELECT_SHARE * n))
    random = np.random.default_rng(seed)
    order = random.permutation(n)
    if labels is not None and are_classes(labels):
        codes = _codes(labels)
        # A class may come to lie anywhere in the row, so that its share in the rounding is random as well.
        places = random.permutation(int(codes.max()) + 1)
        order = order[np.argsort(places[codes[order]], kind="stable")]
    first = _every(n, calibrate, random)
    rest = np.delete(order, first)
    second = _every(len(rest), select, random)
    return Splits(
        calibrate=np.sort(order[first]).astype(np.int64),
        select=np.sort(rest[second]).astype(np.int64),
        certify=np.sort(np.delete(rest, second)).astype(np.int64),
    )


def are_classes(labels: Sequence[Any]) -> bool:
    """Return whether labels name classes: whole numbers or texts, two or more, on average twice or oftener each."""
    if not (all(isinstance(label, int) for label in labels) or all(isinstance(label, str) for label in labels)):
        return False
    return 2 <= len(set(labels)) <= len(labels) / 2


def _codes(labels: Sequence[Any]) -> Indices:
    """Return the number of each label's class, in the order of their first appearance."""
    numbers = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], np.int64)


def _every(n: int, count: int, random: np.random.Generator) -> Indices:
    """Return `count` positions out of `n`, evenly spaced from a random start."""
    start = random.random()
    return np.minimum(((np.arange(count) + start) * n / count).astype(np.int64), n - 1)
