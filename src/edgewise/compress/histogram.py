"""A histogram whose bins lie on a grid of powers of two, so that it grows and merges without an error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

BINS: Final = 8192
"""Most bins of a histogram. More than half of them cover the values, so an 8-bit step spans at least 16 bins."""

_SMALLEST_EXPONENT: Final = -100  # Finer than any activation needs, and `2 ** 100` is still a float32.


@dataclass
class Histogram:
    """Counts of values in bins `[k w, (k + 1) w)` for integers `k`, where `w` is a power of two.

    Bin edges are multiples of the width, so zero is an edge, doubling the width merges bins in pairs exactly, and the
    result depends neither on the order of the values nor on how they were grouped. Bins always reach to zero, because
    every quantized range does. A value is known up to one width, which is at most 1/4094 of the range with zero in it.

    Attributes:
        counts: Values in each bin, shape `[B]`, `B <= BINS`, int64.
        first: Index `k` of the first bin.
        exponent: The width is `2 ** exponent`.
        zeros: How many values were exactly zero; they are counted in bin 0 as well.
    """

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    first: int = 0
    exponent: int = _SMALLEST_EXPONENT
    zeros: int = 0

    @property
    def width(self) -> float:
        """Width of a bin, in the values' own unit."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Edges of the bins, shape `[B + 1]`."""
        return (self.first + np.arange(len(self.counts) + 1, dtype=np.float64)) * self.width

    @property
    def count(self) -> int:
        """How many values were added."""
        return int(self.counts.sum())

    def copy(self) -> Histogram:
        """Return a histogram of its own with the same counts."""
        return Histogram(self.counts.copy(), self.first, self.exponent, self.zeros)

    def add(self, values: npt.NDArray[np.float32], low: float, high: float) -> None:
        """Count `values`.

        Args:
            values: Finite numbers, shape `[N]`.
            low: A number that none of them is below.
            high: A number that none of them is above.
        """
        if values.size == 0:
            return
        self._cover(low, high)
        # The product with a power of two is exact, so no value changes its bin. (Products below the smallest float32
        # become zero: bin 0 for both signs, an error far below a width.)
        scaled = values * np.float32(1.0 / self.width)
        bins = np.floor(scaled, out=scaled).astype(np.int32)
        bins -= self.first
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.zeros += int(values.size - np.count_nonzero(values))

    def merge(self, other: Histogram) -> None:
        """Count everything that `other` counted. `other` is not changed."""
        if other.count == 0:
            return
        self._coarsen(max(0, other.exponent - self.exponent))
        self._cover(other.first * other.width, (other.first + len(other.counts) - 1) * other.width)
        counts, first = _coarser(other.counts, other.first, self.exponent - other.exponent)
        start = first - self.first
        self.counts[start : start + len(counts)] += counts
        self.zeros += other.zeros

    def _cover(self, low: float, high: float) -> None:
        """Widen the bins and append new ones until `[low, high]` is covered."""
        low, high = min(low, 0.0), max(high, 0.0)
        if len(self.counts):
            low = min(low, self.first * self.width)
            high = max(high, (self.first + len(self.counts) - 1) * self.width)
        exponent = self.exponent
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
            exponent += 1
        self._coarsen(exponent - self.exponent)
        first, last = math.floor(math.ldexp(low, -exponent)), math.floor(math.ldexp(high, -exponent))
        if not len(self.counts):
            self.counts, self.first = np.zeros(last - first + 1, np.int64), first
        elif first < self.first or last >= self.first + len(self.counts):
            grown = np.zeros(last - first + 1, np.int64)
            grown[self.first - first : self.first - first + len(self.counts)] = self.counts
            self.counts, self.first = grown, first

    def _coarsen(self, shift: int) -> None:
        """Double the width `shift` times."""
        self.counts, self.first = _coarser(self.counts, self.first, shift)
        self.exponent += shift


def _coarser(counts: npt.NDArray[np.int64], first: int, shift: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return `counts` in bins that are `2 ** shift` times as wide, and the index of the first one."""
    if shift == 0 or not len(counts):
        return counts, first >> shift
    bins = (first + np.arange(len(counts))) >> shift
    start = int(bins[0])
    return np.bincount(bins - start, weights=counts).astype(np.int64), start
