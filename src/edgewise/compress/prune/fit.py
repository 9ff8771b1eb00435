"""Ridge regression of a layer's wanted outputs on the inputs that are left to it, from streamed second moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewise.errors import ContractError, DataError
from edgewise.records.tensors import Array

Stack = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

RIDGES: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried on held-out rows, relative to the mean of the diagonal of the Gram matrix (empirical)."""

HELD_EVERY: Final = 5
"""Every fifth sample is held out of the fit that the ridge is chosen by."""

SAMPLES_PER_COLUMN: Final = 2.0
"""Rows that a column needs at least before a warning is due: below it, a regression without a ridge fits noise."""

_ROWS: Final = 2048


@dataclass(frozen=True)
class Summary:
    """Means and second moments of rows about them, each divided by the number of rows.

    Without a bias (`about_zero`) the means are zero, and the moments about zero.

    Attributes:
        count: How many rows, >= 1.
        mean: Mean of the inputs, shape `[G, K]`.
        target_mean: Mean of the targets, shape `[G, R]`.
        gram: Covariance of the inputs, shape `[G, K, K]`.
        cross: Covariance of the targets (rows) with the inputs (columns), shape `[G, R, K]`.
        energy: Variance of each target, shape `[G, R]`.
    """

    count: int
    mean: Stack
    target_mean: Stack
    gram: Stack
    cross: Stack
    energy: Stack

    def of_layer(self, weight: Stack, bias: Stack) -> Summary:
        """Return the moments with the targets `weight @ x + bias`, shapes `[G, R, K]` and `[G, R]`."""
        cross = weight @ self.gram
        return Summary(
            count=self.count,
            mean=self.mean,
            target_mean=np.einsum("grk,gk->gr", weight, self.mean) + bias,
            gram=self.gram,
            cross=cross,
            energy=np.einsum("grk,grk->gr", cross, weight),
        )

    def about_zero(self) -> Summary:
        """Return the moments about zero: those of a layer without a bias."""
        mean, target = self.mean, self.target_mean
        return Summary(
            count=self.count,
            mean=np.zeros_like(mean),
            target_mean=np.zeros_like(target),
            gram=self.gram + mean[:, :, None] * mean[:, None, :],
            cross=self.cross + target[:, :, None] * mean[:, None, :],
            energy=self.energy + target**2,
        )

    def error(self, weight: Stack) -> Stack:
        """Return the mean square of `t - V x - b` with the best `b`, for `V = weight` `[G, R, K]`; shape `[G, R]`.

        It is `E - 2 C V^T + V S V^T` in each row; what rounding makes negative is 0.
        """
        curve = np.einsum("grk,grk->gr", weight @ self.gram - 2.0 * self.cross, weight)
        return np.asarray(np.maximum(self.energy + curve, 0.0), np.float64)

    def bias(self, weight: Stack) -> Stack:
        """Return the bias with which `weight` meets the mean of the targets, shape `[G, R]`."""
        return np.asarray(self.target_mean - np.einsum("grk,gk->gr", weight, self.mean), np.float64)


class Moments:
    """Second moments of the inputs that a layer really gets and of the outputs that it should give.

    Kept are two sets of sums: of every fifth sample, which is held out, and of the others. The error of any linear map
    on the rows held out follows from their sums, so that no row is kept.

    Precision: rows are shifted by the mean of the first ones, multiplied in float32 over at most 2,048 rows at a time
    and summed in float64: an entry's error is below 2048 x 2**-24 = 1.2e-4 of the sum of its terms' magnitudes, and as
    rounding errors have random signs, about 3e-6 is seen.

    Args:
        groups: Groups G of the layer.
        columns: Inputs K of each.
        outputs: Outputs R of each.
        own: Matrix and bias of the layer if what it should give is what they make of the same inputs: targets are then
            not added, and nothing is kept of them.

        has_bias: Whether the layer has a bias that may change; without one, the moments are about zero.

    Attributes:
        samples: How many samples were added.
    """

    def __init__(
        self, groups: int, columns: int, outputs: int, *, has_bias: bool = True, own: tuple[Stack, Stack] | None = None
    ) -> None:
        self.samples = 0
        self._has_bias, self._own = has_bias, own
        outputs = outputs if own is None else 0
        self._shape = (groups, columns, outputs)
        self._parts = (_Sums(groups, columns, outputs), _Sums(groups, columns, outputs))
        self._shift: tuple[Array, Array] | None = None

    @property
    def count(self) -> int:
        """How many rows were added."""
        return sum(part.count for part in self._parts)

    def add(self, inputs: Array, targets: Array | None = None, *, sample: int) -> None:
        """Add the rows of one sample.

        Args:
            inputs: What the layer gets, shape `[P, G, K]`, float32.
            targets: What it should give, shape `[P, G, R]`; None where that is its own output.
            sample: Number of the sample, from 0: every fifth is held out.

        Raises:
            ContractError: If the shapes do not fit.
            DataError: If a row holds NaN or infinities.
        """
        groups, columns, outputs = self._shape
        targets = np.zeros((len(inputs), groups, 0), np.float32) if targets is None else targets
        expected = (len(inputs), groups, columns), (len(inputs), groups, outputs)
        if (inputs.shape, targets.shape) != expected:
            raise ContractError(
                f"Rows have to be of the shapes {expected[0]} and {expected[1]}. "
                f"Received {inputs.shape} and {targets.shape}."
            )
        if not len(inputs):
            return
        if not (np.isfinite(inputs).all() and np.isfinite(targets).all()):
            raise DataError(
                f"Every activation has to be finite, but calibration sample {sample} makes NaN or an infinity.",
                hint="Look for NaN, infinities or extreme values in that sample, and for a wrong pre-processing.",
            )
        if self._shift is None:
            self._shift = inputs.mean(axis=0, dtype=np.float64), targets.mean(axis=0, dtype=np.float64)
        self.samples += 1
        self._parts[sample % HELD_EVERY == 1].add(inputs - self._shift[0], targets - self._shift[1])

    def fit(self) -> Summary | None:
        """Return the moments of the rows that are not held out; None where there are none."""
        return self._summary(self._parts[0])

    def held_out(self) -> Summary | None:
        """Return the moments of the rows held out; None where there are none."""
        return self._summary(self._parts[1])

    def all(self) -> Summary | None:
        """Return the moments of all rows; None where there are none."""
        return self._summary(self._parts[0].plus(self._parts[1]))

    def _summary(self, part: _Sums) -> Summary | None:
        part.flush()
        if not part.count or self._shift is None:
            return None
        summary = part.summary(*self._shift)
        if self._own is not None:
            summary = summary.of_layer(*self._own)
        return summary if self._has_bias else summary.about_zero()


class _Sums:
    """Sums over shifted rows."""

    def __init__(self, groups: int, columns: int, outputs: int) -> None:
        self.shape = (groups, columns, outputs)
        self.count = 0
        self.total = np.zeros((groups, columns))
        self.target_total = np.zeros((groups, outputs))
        self.gram = np.zeros((groups, columns, columns))
        self.cross = np.zeros((groups, outputs, columns))
        self.energy = np.zeros((groups, outputs))
        self._waiting: list[tuple[Array, Array]] = []
        self._rows = 0

    def add(self, inputs: Array, targets: Array) -> None:
        self._waiting.append((inputs.astype(np.float32), targets.astype(np.float32)))
        self._rows += len(inputs)
        self.count += len(inputs)
        if self._rows >= _ROWS:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        # [G, P, K], so that every group is one product of contiguous matrices.
        x = np.ascontiguousarray(np.concatenate([pair[0] for pair in self._waiting]).swapaxes(0, 1))
        t = np.ascontiguousarray(np.concatenate([pair[1] for pair in self._waiting]).swapaxes(0, 1))
        self._waiting, self._rows = [], 0
        for start in range(0, x.shape[1], _ROWS):
            rows, wanted = x[:, start : start + _ROWS], t[:, start : start + _ROWS]
            self.total += rows.sum(axis=1, dtype=np.float64)
            self.target_total += wanted.sum(axis=1, dtype=np.float64)
            self.energy += np.einsum("gpr,gpr->gr", wanted, wanted, dtype=np.float64)
            if len(x) > 1:
                self.gram += rows.swapaxes(1, 2) @ rows
            else:  # numpy calls the symmetric product of BLAS for `a.T @ a`, but not for stacks.
                self.gram[0] += rows[0].T @ rows[0]
            self.cross += wanted.swapaxes(1, 2) @ rows

    def plus(self, other: _Sums) -> _Sums:
        self.flush()
        other.flush()
        result = _Sums(*self.shape)
        result.count = self.count + other.count
        for name in ("total", "target_total", "gram", "cross", "energy"):
            setattr(result, name, getattr(self, name) + getattr(other, name))
        return result

    def summary(self, shift: Array, target_shift: Array) -> Summary:
        total, target = self.total / self.count, self.target_total / self.count
        return Summary(
            count=self.count,
            mean=total + shift,
            target_mean=target + target_shift,
            gram=self.gram / self.count - total[:, :, None] * total[:, None, :],
            cross=self.cross / self.count - target[:, :, None] * total[:, None, :],
            energy=np.maximum(self.energy / self.count - target**2, 0.0),
        )


@dataclass(frozen=True)
class Fit:
    """A layer that was fitted.

    Attributes:
        weight: Its matrix, shape `[G, R, K]`, zero in the columns that are gone.
        bias: Its bias, shape `[G, R]`.
        ridge: The ridge, relative to the mean of the Gram matrix' diagonal; infinite where the old weights were kept.
        error: Mean square of what is missing of the targets, all outputs together, divided by their variance.
        error_before: The same with the old weights in the columns that are left, and the best bias.
        is_held_out: Whether both errors were measured on rows that the fit did not see.
    """

    weight: Stack
    bias: Stack
    ridge: float
    error: float
    error_before: float
    is_held_out: bool


def ridge_regression(weight: Stack, summary: Summary, kept: Mask, ridge: float) -> Stack:
    """Return the matrix `V`, zero outside of `kept`, that makes `mean ||t - V x - b||^2 + r ||V - W||^2` smallest.

    On the columns that are kept, `V = W + (C - W S) (S + r I)^-1`.

    Args:
        weight: `W`, shape `[G, R, K]`; what stands in columns that are not kept does not matter.
        summary: The moments `S` and `C`.
        kept: Columns that stay, shape `[G, K]`.
        ridge: `r`, relative to the mean of each group's diagonal of `S` over the columns kept, > 0; infinite for `W`.

    Source: Hoerl and Kennard 1970, "Ridge Regression", with the old weights in place of the origin; Zhong et al. 2024,
    "ERQ" (its first step, for the inputs of a quantized layer).
    """
    old = np.where(kept[:, None, :], weight, 0.0)
    if ridge == np.inf:
        return old
    # Columns that no group keeps are left out; those that only some keep become equations of their own.
    some = np.flatnonzero(kept.any(axis=0))
    inside, part = kept[:, some], old[:, :, some]
    both = inside[:, :, None] & inside[:, None, :]
    system = np.where(both, summary.gram[:, some[:, None], some[None, :]], 0.0)
    lost = np.where(inside[:, None, :], summary.cross[:, :, some] - part @ system, 0.0)
    level = np.einsum("gkk->g", system) / np.maximum(inside.sum(axis=1), 1)
    np.einsum("gkk->gk", system)[:] += np.where(inside, np.where(level > 0, ridge * level, 1.0)[:, None], 1.0)
    result = np.zeros_like(old)
    result[:, :, some] = part + np.linalg.solve(system, lost.swapaxes(1, 2)).swapaxes(1, 2)
    return result


def fit(weight: Stack, moments: Moments, kept: Mask) -> Fit:
    """Return the layer that comes nearest to its targets, with the ridge that is best on rows held out.

    Without rows held out (fewer than two samples) the largest ridge is taken.

    Args:
        weight: The layer's matrix, shape `[G, R, K]`.
        moments: What was seen.
        kept: Columns that stay, shape `[G, K]`.

    Raises:
        DataError: If no row was seen.
    """
    seen, held, everything = moments.fit(), moments.held_out(), moments.all()
    if everything is None:
        raise DataError("A layer needs at least one row of its inputs to be fitted, but there is none.")
    judge = everything if held is None else held
    whole = max(float(judge.energy.sum()), np.finfo(np.float64).tiny)
    before = float(judge.error(np.where(kept[:, None, :], weight, 0.0)).sum()) / whole
    if seen is None or held is None:
        ridge = max(RIDGES)
        error = float(everything.error(ridge_regression(weight, everything, kept, ridge)).sum()) / whole
    else:
        tried = {
            ridge: float(held.error(ridge_regression(weight, seen, kept, ridge)).sum()) / whole for ridge in RIDGES
        }
        ridge = min(tried, key=tried.__getitem__)
        error = tried[ridge]
    if error >= before:
        ridge, error = np.inf, before
    fitted = ridge_regression(weight, everything, kept, ridge)
    return Fit(fitted, everything.bias(fitted), ridge, error, before, held is not None)
