"""Second moments of a layer's inputs, streamed over samples in bounded memory: what second-order methods work on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.unfold import Rows, Unfolding, spread
from edgewise.compress.unfold import unfolding as unfolding_of
from edgewise.errors import ContractError, DataError
from edgewise.records.tensors import Array

Matrices = npt.NDArray[np.float64]

LARGEST_GRAM: Final = 4608 * 4608
"""Most numbers of one Gram matrix, all groups together: 162 MiB in float64. `Moments` holds two of this size."""

_PRODUCTS: Final = 1 << 25  # Multiplications of one sample and one product that take about a millisecond.
_ROWS_PER_COLUMN: Final = 16
_MOST_POSITIONS: Final = 512

_BUFFERED_ROWS: Final = 1024
_BUFFERED_VALUES: Final = 1 << 22

LARGEST_INPUT: Final = 2.0**50
"""Largest magnitude of an input whose products can be summed over 1,024 rows in float32, and squared again with
weights in front of them."""

_HELD_EVERY: Final = 5
_HELD_VALUES: Final = 1 << 22
_HELD_SAMPLES: Final = 16  # At least so many samples share the memory for held-out rows.


@dataclass(frozen=True)
class Summary:
    """Means and centred second moments of rows, each divided by the number of rows.

    Attributes:
        count: How many rows n, >= 1.
        samples: How many samples they come from, >= 1.
        mean: Mean of the float inputs, shape `[G, K]`.
        mean_hat: Mean of the quantized inputs, shape `[G, K]`.
        centred_gram: Covariance of the quantized inputs, shape `[G, K, K]`.
        centred_drift: Covariance of the lost part `x - x_hat` (rows) with `x_hat` (columns), shape `[G, K, K]`.
    """

    count: int
    samples: int
    mean: Matrices
    mean_hat: Matrices
    centred_gram: Matrices
    centred_drift: Matrices

    @property
    def gram(self) -> Matrices:
        """Mean of `x_hat x_hat^T`, shape `[G, K, K]`."""
        return self.centred_gram + self.mean_hat[:, :, None] * self.mean_hat[:, None, :]

    @property
    def drift(self) -> Matrices:
        """Mean of `(x - x_hat) x_hat^T`, shape `[G, K, K]`."""
        return self.centred_drift + (self.mean - self.mean_hat)[:, :, None] * self.mean_hat[:, None, :]

    @property
    def cross(self) -> Matrices:
        """Mean of `x x_hat^T`, shape `[G, K, K]`."""
        return self.gram + self.drift


class Moments:
    """Second moments of one layer's inputs: `x` of the float model, `x_hat` of the model that is quantized so far.

    Kept are the Gram matrix of `x_hat` and the drift `sum (x - x_hat) x_hat^T`, not `sum x x_hat^T`: near 8 bits the
    two inputs differ by a thousandth, and a difference of two large sums in float32 would lose it.

    Every fifth sample is held out: its rows are kept as they are (32 MiB at most), so that a fit can be judged on
    samples that it did not see, and can then be made again with them.

    Precision: rows are shifted by the mean of the first ones, multiplied in float32 over at most 1,024 rows at a time,
    and summed in float64. An entry's error is at most 1024 x 2**-24 = 6e-5 of the sum of its terms' magnitudes; as
    rounding errors have random signs, about 2e-6 is seen.

    Memory: two `[G, K, K]` in float64 (at most 324 MiB, see `LARGEST_GRAM`), 32 MiB of rows that wait and 32 MiB of
    rows held out. `fit` and `all` make two matrices more each, and `all` works on copies of the sums: up to eight in
    all, 1.3 GiB, for the largest layer that is taken.

    Args:
        unfolding: How the layer is a product of matrices.
        positions: Most positions of one sample, or None for a number that keeps a sample near a millisecond, with 128
            samples giving at least eight rows a column.

    Attributes:
        unfolding: As given.
        positions: As given, or as chosen.
        samples: Samples that were added and had any position.
        is_too_large: Whether an input was larger than `LARGEST_INPUT`: there are no moments then.
    """

    def __init__(self, unfolding: Unfolding, *, positions: int | None = None) -> None:
        self.unfolding = unfolding
        self.positions = positions if positions is not None else _positions(unfolding)
        self.samples = 0
        self.is_too_large = False
        groups, columns = unfolding.groups, unfolding.columns
        self._fit = _Sums(groups, columns)
        self._waiting: list[tuple[Rows, Rows]] = []
        self._waiting_rows = 0
        self._held: list[tuple[Rows, Rows]] = []
        self._held_rows = 0
        self._held_samples = 0
        self._width = groups * columns

    @property
    def count(self) -> int:
        """How many rows were added, those held out included."""
        return self._fit.count + self._waiting_rows + self._held_rows

    def add(self, x: Array, x_hat: Array, *, sample: int) -> None:
        """Add one sample.

        Args:
            x: The layer's input in the float model, as the node takes it.
            x_hat: Its input in the quantized model, of the same shape.
            sample: Number of the sample, from 0: decides which positions are read and whether the sample is held out.

        Raises:
            ContractError: If the shapes differ.
            DataError: If a row holds NaN or infinities.
        """
        if x.shape != x_hat.shape:
            raise ContractError(
                f"Both inputs of a layer have to have one shape. Received {list(x.shape)} and {list(x_hat.shape)}."
            )
        room = _HELD_VALUES // self._width
        held = sample % _HELD_EVERY == 1 and self._held_rows < room
        share = min(max(1, room // _HELD_SAMPLES), room - self._held_rows)
        most = min(self.positions, share) if held else self.positions
        total = self.unfolding.positions(x.shape)
        if total == 0:
            return
        chosen = spread(total, most, sample)
        pair = self.unfolding.rows(x, chosen), self.unfolding.rows(x_hat, chosen)
        # Both extremes propagate NaN.
        extremes = [abs(float(extreme)) for rows in pair for extreme in (rows.min(), rows.max())]
        if not all(map(math.isfinite, extremes)):
            raise DataError(
                f"Every activation has to be finite, but calibration sample {sample} makes NaN or an infinity.",
                hint="Look for NaN, infinities or extreme values in that sample, and for a wrong pre-processing.",
            )
        if max(extremes) > LARGEST_INPUT:
            self.is_too_large = True
            return
        self.samples += 1
        if held:
            self._held.append(pair)
            self._held_rows += len(chosen)
            self._held_samples += 1
            return
        self._waiting.append(pair)
        self._waiting_rows += len(chosen)
        if self._waiting_rows >= min(_BUFFERED_ROWS, max(1, _BUFFERED_VALUES // self._width)):
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._fit.add(*_joined(self._waiting))
            self._waiting, self._waiting_rows = [], 0

    def held_out(self) -> tuple[Rows, Rows] | None:
        """Return the rows held out, of `x` and of `x_hat`, each `[P, G, K]`; None where there are none."""
        return _joined(self._held) if self._held else None

    def fit(self) -> Summary | None:
        """Return the moments of all rows but those held out; None where there are none, or inputs are too large."""
        self._flush()
        if self.is_too_large or not self._fit.count:
            return None
        return self._fit.summary(self.samples - self._held_samples)

    def all(self) -> Summary | None:
        """Return the moments of all rows; None where there are none, or inputs are too large."""
        self._flush()
        if self.is_too_large or not self._held:
            return self.fit()
        sums = self._fit.copy()
        x, x_hat = _joined(self._held)
        step = min(_BUFFERED_ROWS, max(1, _BUFFERED_VALUES // self._width))
        for start in range(0, len(x), step):
            sums.add(x[start : start + step], x_hat[start : start + step])
        return sums.summary(self.samples)


class _Sums:
    """Sums over rows, of `x_hat - shift` and of `x - x_hat`."""

    def __init__(self, groups: int, columns: int) -> None:
        self.count = 0
        self.shift = np.zeros((groups, columns), np.float32)
        self.total = np.zeros((groups, columns))
        self.lost = np.zeros((groups, columns))
        self.gram = np.zeros((groups, columns, columns))
        self.drift = np.zeros((groups, columns, columns))

    def copy(self) -> _Sums:
        other = _Sums.__new__(_Sums)
        other.count, other.shift = self.count, self.shift
        other.total, other.lost = self.total.copy(), self.lost.copy()
        other.gram, other.drift = self.gram.copy(), self.drift.copy()
        return other

    def add(self, x: Rows, x_hat: Rows) -> None:
        """Add rows, each `[P, G, K]`."""
        if self.count == 0:
            # Moments about a point near the mean: centring them later takes the difference of small numbers.
            self.shift = x_hat.mean(axis=0, dtype=np.float64).astype(np.float32)
        # [G, P, K], so that every group is one product of contiguous matrices.
        moved = np.ascontiguousarray((x_hat - self.shift).swapaxes(0, 1))
        lost = np.ascontiguousarray((x - x_hat).swapaxes(0, 1))
        self.count += len(x)
        self.total += moved.sum(axis=1, dtype=np.float64)
        self.lost += lost.sum(axis=1, dtype=np.float64)
        for group in range(len(moved)):
            # One group at a time: numpy calls the symmetric product of BLAS for `a.T @ a`, but not for stacks.
            self.gram[group] += moved[group].T @ moved[group]
        if lost.any():
            self.drift += lost.swapaxes(1, 2) @ moved

    def summary(self, samples: int) -> Summary:
        """Return the moments about the means."""
        total, lost = self.total / self.count, self.lost / self.count
        gram = self.gram / self.count - total[:, :, None] * total[:, None, :]
        drift = self.drift / self.count - lost[:, :, None] * total[:, None, :]
        mean_hat = total + self.shift
        return Summary(self.count, samples, mean_hat + lost, mean_hat, gram, drift)


def moments_for(node: ir.Node, weight: Array) -> Moments | str:
    """Return empty moments for the activation of `node`, or why there can be none, as a clause.

    Args:
        node: A Conv, ConvTranspose, Gemm or MatMul.
        weight: Its weights.
    """
    found = unfolding_of(node, weight)
    if isinstance(found, str):
        return found
    size = found.groups * found.columns**2
    if size > LARGEST_GRAM:
        return (
            f"the Gram matrix of its {found.groups * found.columns} inputs would hold {size} numbers, "
            f"and {LARGEST_GRAM} are the limit"
        )
    return Moments(found)


def _positions(unfolding: Unfolding) -> int:
    """Return how many positions of a sample are worth reading."""
    groups, columns = unfolding.groups, unfolding.columns
    affordable = _PRODUCTS // (groups * columns * columns)
    return min(_MOST_POSITIONS, max(affordable, -(-columns // _ROWS_PER_COLUMN), 1))


def _joined(pairs: list[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
