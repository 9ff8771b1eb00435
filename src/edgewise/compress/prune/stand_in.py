"""Linear maps that stand in for a part of a network, fitted by ridge regression and judged on samples held out.

The prior towards which the ridge pulls is the identity where entry and exit have one shape: few samples then end at the
drop, which is what there is without a fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from edgewise.compress.prune.fit import RIDGES, Moments, Stack, Summary, fit, ridge_regression
from edgewise.errors import DataError


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
class Fitted:
    """A stand-in and what it is worth.

    Attributes:
        stand_in: Fitted to all rows.
        error: Mean square of what is missing of the values it stands in for, all channels together, divided by their
            variance: of a fit to the other rows, on the rows held out. On all rows where none were held out.
    """

    stand_in: StandIn
    error: float


@dataclass(frozen=True, eq=False)
class StandIns:
    """What can stand in for a region.

    Attributes:
        drop: Error of the entry itself, in the same units as `Fitted.error`; None where its shape differs.
        shift: One shift a channel, or None likewise.
        affine: One scale and one shift a channel, or None likewise.
        linear: A full linear map.
    """

    drop: float | None
    shift: Fitted | None
    affine: Fitted | None
    linear: Fitted

    @property
    def best(self) -> Fitted | None:
        """The cheapest one that is not beaten by another on the rows held out; None where the drop is."""
        errors = [(one.error, one) for one in (self.shift, self.affine, self.linear) if one is not None]
        least, best = min(errors, key=lambda pair: pair[0])
        return None if self.drop is not None and self.drop <= least else best


def fit_stand_ins(moments: Moments, *, is_same_shape: bool) -> StandIns:
    """Return the best maps of inputs to targets.

    Args:
        moments: Of one group: the entry's channels as inputs, the exit's as targets.
        is_same_shape: Whether the entry can be taken for the exit.

    Raises:
        DataError: If no row was seen.
    """
    everything = moments.all()
    if everything is None:
        raise DataError(
            "A stand-in needs at least one sample, but there is none.",
            hint="Give more samples, or a larger calibration split.",
        )
    seen, held = moments.fit(), moments.held_out()
    if seen is None or held is None:
        seen = held = everything
    channels, outputs = everything.mean.shape[1], everything.target_mean.shape[1]
    kept = np.ones((1, channels), bool)
    if not is_same_shape:
        found = fit(np.zeros((1, outputs, channels)), moments, kept)
        return StandIns(None, None, None, Fitted(Linear(found.weight[0], found.bias[0]), found.error))
    same = np.eye(channels)[None]
    found = fit(same, moments, kept)
    return StandIns(
        drop=_error(held, same, np.zeros((1, channels))),
        shift=_shift(seen, held, everything),
        affine=_affine(seen, held, everything),
        linear=Fitted(Linear(found.weight[0], found.bias[0]), found.error),
    )


def _shift(seen: Summary, held: Summary, everything: Summary) -> Fitted:
    same = np.eye(everything.mean.shape[1])[None]
    shift = everything.bias(same)[0]
    return Fitted(Affine(np.ones_like(shift), shift), _error(held, same, seen.bias(same)))


def _affine(seen: Summary, held: Summary, everything: Summary) -> Fitted:
    """Return one regression for each channel, with one ridge for all."""
    ones = np.ones((everything.mean.shape[1], 1, 1))
    kept = ones[:, 0] > 0

    def solved(summary: Summary, ridge: float) -> tuple[Stack, Stack]:
        own = _by_channel(summary)
        scale = ridge_regression(ones, own, kept, ridge)
        return scale, own.bias(scale)

    judge = _by_channel(held)
    ridge, error = _least(lambda ridge: _error(judge, *solved(seen, ridge)))
    scale, shift = solved(everything, ridge)
    return Fitted(Affine(scale[:, 0, 0], shift[:, 0]), error)


def _least(error: Callable[[float], float]) -> tuple[float, float]:
    tried = {ridge: error(ridge) for ridge in (*RIDGES, np.inf)}
    best = min(tried, key=tried.__getitem__)
    return best, tried[best]


def _by_channel(summary: Summary) -> Summary:
    """Return the moments of each channel alone, as groups of one."""
    return Summary(
        count=summary.count,
        mean=summary.mean.reshape(-1, 1),
        target_mean=summary.target_mean.reshape(-1, 1),
        gram=np.einsum("gkk->gk", summary.gram).reshape(-1, 1, 1),
        cross=np.einsum("gkk->gk", summary.cross).reshape(-1, 1, 1),
        energy=summary.energy.reshape(-1, 1),
    )


def _error(summary: Summary, matrix: Stack, shift: Stack) -> float:
    """Return `mean ||t - A x - b||^2 / mean ||t - mean t||^2`; where the latter is 0, 0 or infinity."""
    wrong = float(summary.error(matrix).sum() + ((summary.bias(matrix) - shift) ** 2).sum())
    whole = float(summary.energy.sum())
    if whole > 0:
        return wrong / whole
    return 0.0 if wrong == 0 else np.inf
