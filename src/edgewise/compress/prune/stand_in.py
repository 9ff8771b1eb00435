"""Linear maps that stand in for a part of a network, fitted by least squares on second moments.

Of what goes in (`x`, C channels) and what should come out (`y`, C' channels), both seen at many places, the moments are
kept twice: of four samples in five, which fit, and of every fifth, which says how good a fit is and how much ridge it
needs. The held-out error of a linear map is a quadratic form in the moments, so that no row has to be kept:

    mean ||y - A x - b||^2 = tr[Syy] - 2 tr[A Syx^T] + tr[A Sxx A^T] + ||mean y - A mean x - b||^2,

with the S centred. The ridge pulls towards a prior (the identity where a part is left out, the old weights where a
layer is fitted anew), so that many columns and few rows end at what there would be without a fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewise.compress.solve import damped
from edgewise.errors import ContractError, DataError
from edgewise.records.tensors import Array

Stack: TypeAlias = npt.NDArray[np.float64]

RIDGES: Final = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""What is tried, relative to the mean of the diagonal of the moments: from next to none to next to the prior."""

_HELD_EVERY: Final = 5


@dataclass(frozen=True, eq=False)
class Affine:
    """One scale and one shift for each channel.

    Attributes:
        scale: Shape `[C]`; all ones for a shift alone.
        shift: Shape `[C]`.
    """

    scale: Stack
    shift: Stack


@dataclass(frozen=True, eq=False)
class Linear:
    """A full linear map over channels.

    Attributes:
        matrix: Shape `[C', C]`.
        shift: Shape `[C']`.
    """

    matrix: Stack
    shift: Stack


StandIn: TypeAlias = Affine | Linear


@dataclass(frozen=True, eq=False)
class Fit:
    """A map of each of G groups, and what it is worth.

    Attributes:
        matrix: Shape `[G, R, K]`.
        shift: Shape `[G, R]`.
        ridge: What was chosen on the rows held out; 0 where there was nothing to choose.
        error: Mean squared error of the rows held out, divided by their variance about their mean; of all rows where
            none were held out.
    """

    matrix: Stack
    shift: Stack
    ridge: float
    error: float


class _Sums:
    """Sums over rows about fixed points, which lie near the means."""

    def __init__(self, groups: int, columns: int, outputs: int) -> None:
        self.count = 0
        self.x = np.zeros((groups, columns))
        self.y = np.zeros((groups, outputs))
        self.xx = np.zeros((groups, columns, columns))
        self.yx = np.zeros((groups, outputs, columns))
        self.yy = np.zeros((groups, outputs))

    def add(self, x: Stack, y: Stack) -> None:
        """Add rows, `[G, P, K]` and `[G, P, R]`."""
        self.count += x.shape[1]
        self.x += x.sum(axis=1)
        self.y += y.sum(axis=1)
        self.xx += x.swapaxes(1, 2) @ x
        self.yx += y.swapaxes(1, 2) @ x
        self.yy += np.einsum("gpr,gpr->gr", y, y)

    def __add__(self, other: _Sums) -> _Sums:
        result = _Sums(*self.x.shape, self.y.shape[1])
        result.count = self.count + other.count
        for name in ("x", "y", "xx", "yx", "yy"):
            setattr(result, name, getattr(self, name) + getattr(other, name))
        return result


class Pairs:
    """Moments of inputs and outputs, in memory that does not depend on the number of rows: `32 G (K + R) K` bytes.

    Args:
        groups: Groups G that do not see each other.
        columns: Inputs K of each.
        outputs: Outputs R of each.
    """

    def __init__(self, groups: int, columns: int, outputs: int) -> None:
        self.shape = (groups, outputs, columns)
        self._fit = _Sums(groups, columns, outputs)
        self._held = _Sums(groups, columns, outputs)
        self._about: tuple[Stack, Stack] | None = None

    @property
    def count(self) -> int:
        """Rows that were added."""
        return self._fit.count + self._held.count

    def add(self, x: Array, y: Array, *, sample: int) -> None:
        """Add one sample.

        Args:
            x: What goes in, shape `[P, G, K]`.
            y: What should come out, shape `[P, G, R]`.
            sample: Number of the sample, from 0: every fifth is held out.

        Raises:
            DataError: If a row holds NaN or infinities.
        """
        rows = np.asarray(x, np.float64).swapaxes(0, 1), np.asarray(y, np.float64).swapaxes(0, 1)
        if not all(np.isfinite(values).all() for values in rows):
            raise DataError(
                f"Every activation has to be finite, but calibration sample {sample} makes NaN or an infinity.",
                hint="Look for NaN, infinities or extreme values in that sample, and for a wrong pre-processing.",
            )
        if rows[0].shape[1] == 0:
            return
        if self._about is None:
            self._about = rows[0].mean(axis=1), rows[1].mean(axis=1)
        about_x, about_y = self._about
        sums = self._held if sample % _HELD_EVERY == 1 else self._fit
        sums.add(rows[0] - about_x[:, None], rows[1] - about_y[:, None])

    def fit(self, prior: Stack) -> Fit:
        """Return the linear map that is best where it was not fitted, made again of all rows.

        `A = W + (Syx - W Sxx) (Sxx + r I)^-1`: ridge regression of what the prior W leaves over.

        Args:
            prior: W, towards which the ridge pulls, shape `[G, R, K]`.

        Source: Zhong et al. 2024, "ERQ" (ridge regression of an output on inputs that were changed upstream).
        """

        def solved(sums: _Sums, ridge: float) -> Stack:
            gram, cross, _ = _centred(sums)
            lost = cross - prior @ gram
            change = np.linalg.solve(damped(gram, ridge), lost.swapaxes(1, 2)).swapaxes(1, 2)
            return np.asarray(prior + change, np.float64)

        fitted, held = self._parts()
        errors = {ridge: _error(held, (made := solved(fitted, ridge)), _shift(fitted, made)) for ridge in RIDGES}
        ridge = min(errors, key=lambda one: errors[one])
        return self._result(solved(self._fit + self._held, ridge), ridge, errors[ridge])

    def fit_scales(self) -> Fit:
        """Return the best scale and shift of each channel; K has to be R.

        `a = (s_yx + r s_xx) / (s_xx + r s_xx)` shrinks towards 1, with one ridge for all channels.
        """
        self._require_square()

        def solved(sums: _Sums, ridge: float) -> Stack:
            gram, cross, _ = _centred(sums)
            own, with_y = np.einsum("gkk->gk", gram), np.einsum("gkk->gk", cross)
            damping = ridge * np.maximum(own.mean(axis=1, keepdims=True), np.finfo(np.float64).tiny)
            return _diagonal((with_y + damping) / (own + damping))

        fitted, held = self._parts()
        errors = {ridge: _error(held, (made := solved(fitted, ridge)), _shift(fitted, made)) for ridge in RIDGES}
        ridge = min(errors, key=lambda one: errors[one])
        return self._result(solved(self._fit + self._held, ridge), ridge, errors[ridge])

    def fit_shift(self) -> Fit:
        """Return the identity with the best shift of each channel; K has to be R."""
        self._require_square()
        fitted, held = self._parts()
        same = _diagonal(np.ones(self.shape[:2]))
        return self._result(same, 0.0, _error(held, same, _shift(fitted, same)))

    def error_of(self, matrix: Stack) -> float:
        """Return the relative error of `matrix` with no shift on the rows held out: what no fit at all costs."""
        _, held = self._parts()
        about_x, about_y = self._points()
        # `y = A x` is `y' = A x' + (A px - py)` in coordinates about the points px and py.
        return _error(held, matrix, np.einsum("grk,gk->gr", matrix, about_x) - about_y)

    def _result(self, matrix: Stack, ridge: float, error: float) -> Fit:
        about_x, about_y = self._points()
        shift = _shift(self._fit + self._held, matrix) + about_y - np.einsum("grk,gk->gr", matrix, about_x)
        return Fit(matrix, shift, ridge, error)

    def _parts(self) -> tuple[_Sums, _Sums]:
        """Return the sums that fit and those that judge, which are the same where one of the two is missing."""
        if self.count == 0:
            raise DataError(
                "A stand-in needs at least one sample, but there is none.",
                hint="Give more samples, or a larger calibration split.",
            )
        if self._fit.count and self._held.count:
            return self._fit, self._held
        return self._fit + self._held, self._fit + self._held

    def _points(self) -> tuple[Stack, Stack]:
        self._parts()
        if self._about is None:
            raise ContractError("Rows have to lie about a point.")
        return self._about

    def _require_square(self) -> None:
        if self.shape[1] != self.shape[2]:
            raise ContractError(f"Scales keep the number of channels. Received {self.shape[2]} and {self.shape[1]}.")


def _diagonal(values: Stack) -> Stack:
    return np.asarray(values[:, :, None] * np.eye(values.shape[1]))


def _centred(sums: _Sums) -> tuple[Stack, Stack, Stack]:
    """Return Sxx `[G, K, K]`, Syx `[G, R, K]` and the diagonal of Syy `[G, R]`."""
    x, y = sums.x / sums.count, sums.y / sums.count
    gram = sums.xx / sums.count - x[:, :, None] * x[:, None, :]
    cross = sums.yx / sums.count - y[:, :, None] * x[:, None, :]
    return gram, cross, np.maximum(sums.yy / sums.count - y**2, 0.0)


def _shift(sums: _Sums, matrix: Stack) -> Stack:
    return np.asarray(sums.y - np.einsum("grk,gk->gr", matrix, sums.x)) / sums.count


def _error(sums: _Sums, matrix: Stack, shift: Stack) -> float:
    """Return `mean ||y - A x - b||^2 / mean ||y - mean y||^2`; where the latter is 0, 0 or infinity."""
    gram, cross, variance = _centred(sums)
    moved = _shift(sums, matrix) - shift
    square = variance.sum() - 2 * (matrix * cross).sum() + ((matrix @ gram) * matrix).sum() + (moved**2).sum()
    total, wrong = float(variance.sum()), max(float(square), 0.0)
    if total > 0:
        return wrong / total
    return 0.0 if wrong == 0 else float("inf")
