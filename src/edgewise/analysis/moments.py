"""What batch normalization remembers of a layer's outputs, turned back into the moments of the layer's inputs.

A linear layer `y_k = b_k + sum_(c,s) w_kcs x_cs` of a stationary input with mean `m_c` and covariance
`C_cc' rho(s - s')` has the moments

    E y_k   = b_k + sum_c (sum_s w_kcs) m_c
    Var y_k = sum_(c,c') C_cc' sum_(s,s') w_kcs w_kc's' rho(s - s')

which batch normalization kept as its running mean and variance (Ioffe and Szegedy 2015). The first is linear in `m`,
the second in `C` for a given `rho`: both are solved by least squares, and the one free number of `rho`, the exponent of
its spectrum, is searched on a grid. Borders, where the layer's padding enters, are left out of the account.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewise.samples.fields import autocorrelation, natural_exponent

FloatArray = npt.NDArray[np.float64]

EXPONENTS: Final = tuple(0.25 * step for step in range(17))
"""From white noise to fields so smooth that steeper ones differ in nothing."""

FULL_COVARIANCE_MOST: Final = 4
"""Channels up to which every covariance is an unknown of its own: 10 unknowns for 4; beyond, variances alone."""

RIDGE: Final = 1e-3
"""Weight of the pull towards one variance for all channels, relative to the equations."""


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's input.

    Attributes:
        mean: Of each channel, shape `[C]`.
        covariance: Between the channels at one place, shape `[C, C]`, positive semi-definite.
        exponent: Of the power spectrum 1/f^exponent.
        misfit: Root mean square of the relative errors of the outputs' variances: 0 where the moments explain them all.
    """

    mean: FloatArray
    covariance: FloatArray
    exponent: float
    misfit: float


def input_moments(
    weights: FloatArray, bias: FloatArray, mean: FloatArray, variance: FloatArray, sizes: Sequence[int]
) -> Moments:
    """Return the moments of the input that explain best what batch normalization saw behind a linear layer.

    Args:
        weights: Of the layer, shape `[K, C, *window]`, dilated windows filled up with zeros.
        bias: Of the layer, shape `[K]`.
        mean: Running mean of its outputs, shape `[K]`.
        variance: Running variance, shape `[K]`, at least 0.
        sizes: Steps of the input along each axis of the window.
    """
    # Channels that never vary would dominate relative errors: they count as if they had a thousandth of the mean.
    scale = np.asarray(variance + 1e-3 * (float(variance.mean()) or 1.0), np.float64)
    means = _means(weights, mean - bias, np.sqrt(scale))
    cut = _cut(weights, sizes)
    found = []
    for exponent in EXPONENTS if any(size > 1 for size in cut.shape[2:]) else (natural_exponent(len(sizes)),):
        design, pairs = _design(cut, autocorrelation(sizes, exponent))
        covariance, misfit = _covariance(design / scale[:, None], variance / scale, pairs, weights.shape[1])
        found.append(Moments(means, covariance, exponent, misfit))
    return min(found, key=lambda moments: moments.misfit)


def unit_moments(weights: FloatArray, bias: FloatArray, sizes: Sequence[int], exponent: float) -> Moments:
    """Return a guess at the moments of an input of which no batch normalization tells: a documented prior, no more.

    Networks are initialized so that a layer's outputs have about unit variance (He et al. 2015, "Delving deep into
    rectifiers", section 2.2), and a folded batch normalization leaves outputs of variance gamma^2 and mean beta, of the
    order of 1 and 0. So the scale is that at which the median output has unit variance, and the mean the one of largest
    posterior probability where outputs' means are standard normal in units of their deviations, and the input's
    in units of twice its scale. Three channels are colors with a correlation of 0.9; others vary independently.

    Args:
        weights: Of the first linear layer, `[K, C, *window]`.
        bias: Of it, `[K]`.
        sizes: Steps of the input along each axis of the window.
        exponent: Of the input's power spectrum.
    """
    channels = weights.shape[1]
    shared = 0.9 if channels == 3 else 0.0
    correlation = shared + (1 - shared) * np.eye(channels)
    design, pairs = _design(_cut(weights, sizes), autocorrelation(sizes, exponent))
    deviation = np.sqrt(np.maximum(design @ np.array([correlation[c, d] for c, d in pairs]), 0.0))
    alive = deviation > 1e-3 * np.median(deviation)
    if not alive.any():
        return Moments(np.zeros(channels), np.eye(channels), exponent, 1.0)
    scale = 1 / float(np.median(deviation[alive]))
    sums = _sums(weights)[alive] / deviation[alive, None]
    target = -bias[alive] / (scale * deviation[alive])
    mean = scale * np.linalg.solve(sums.T @ sums + np.eye(channels) / 4, sums.T @ target)
    return Moments(mean, scale**2 * correlation, exponent, 1.0)


def _means(weights: FloatArray, target: FloatArray, spread: FloatArray) -> FloatArray:
    """Solve the first equation, each row in units of its output's standard deviation, with a slight pull to zero."""
    sums = _sums(weights) / spread[:, None]
    normal = sums.T @ sums
    pull = 1e-6 * max(float(np.trace(normal)) / len(normal), np.finfo(np.float64).tiny)
    return np.asarray(np.linalg.solve(normal + pull * np.eye(len(normal)), sums.T @ (target / spread)), np.float64)


def _sums(weights: FloatArray) -> FloatArray:
    """Return the sum of each output's weights over its window, `[K, C]`."""
    return np.asarray(weights.reshape(*weights.shape[:2], -1).sum(axis=2), np.float64)


def _cut(weights: FloatArray, sizes: Sequence[int]) -> FloatArray:
    """Return the weights with their window cut to the input, and with one of 1 step for each axis that has none."""
    wide = weights.reshape(*weights.shape, *[1] * (len(sizes) - weights.ndim + 2))
    return wide[(slice(None), slice(None), *(slice(size) for size in sizes))]


def _design(weights: FloatArray, correlation: FloatArray) -> tuple[FloatArray, list[tuple[int, int]]]:
    """Return what each unknown of the covariance adds to each variance, shape `[K, unknowns]`, and the unknowns."""
    outputs, channels = weights.shape[:2]
    pairs = [(c, c) for c in range(channels)]
    if channels <= FULL_COVARIANCE_MOST:
        pairs += [(c, d) for c in range(channels) for d in range(c + 1, channels)]
    window = weights.shape[2:]
    places = np.indices(window).reshape(len(window), math.prod(window)).T
    offsets = (places[:, None] - places[None, :]) % np.array(correlation.shape)
    between = correlation[tuple(np.moveaxis(offsets, -1, 0))] if correlation.ndim else np.ones((1, 1))
    flat = weights.reshape(outputs, channels, -1)
    shared = flat @ between
    columns = [(1.0 if c == d else 2.0) * np.einsum("ks,ks->k", shared[:, c], flat[:, d]) for c, d in pairs]
    return np.stack(columns, axis=1), pairs


def _covariance(
    design: FloatArray, target: FloatArray, pairs: Sequence[tuple[int, int]], channels: int
) -> tuple[FloatArray, float]:
    """Solve the second equation and return the nearest covariance that can be, with the misfit it leaves."""
    diagonal = design[:, :channels].sum(axis=1)
    common = float(diagonal @ target / max(float(diagonal @ diagonal), np.finfo(np.float64).tiny))
    start = np.array([common if c == d else 0.0 for c, d in pairs])
    normal = design.T @ design
    pull = RIDGE * float(np.trace(normal)) / len(normal)
    step = np.linalg.solve(
        normal + max(pull, np.finfo(np.float64).tiny) * np.eye(len(normal)), design.T @ (target - design @ start)
    )
    covariance = np.zeros((channels, channels))
    for (c, d), value in zip(pairs, start + step, strict=True):
        covariance[c, d] = covariance[d, c] = value
    values, vectors = np.linalg.eigh(covariance)
    covariance = (vectors * np.maximum(values, RIDGE * abs(common))) @ vectors.T
    explained = design @ np.array([covariance[c, d] for c, d in pairs])
    return covariance, float(np.sqrt(np.mean((explained - target) ** 2)))
