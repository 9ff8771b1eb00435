"""Random fields with the spectrum of natural signals: numbers in, numbers out.

The power of natural images falls with the square of the spatial frequency, whatever is pictured (Field 1987,
"Relations between the statistics of natural images and the response properties of cortical cells"; van der Schaaf and
van Hateren 1996, "Modelling the power spectra of natural images": exponents of 1.9 with a standard deviation of 0.4).
A line through such an image has a power of 1/f, which is what physiological and machine signals have as well, so one
family serves both: power ~ 1/f^exponent on the torus of the sample's own size. Exponent 0 is white noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LEAVES: Final = 300
"""Discs in a picture: they cover all but a few per cent of it."""


def natural_exponent(dimensions: int) -> float:
    """Return the exponent of natural signals: 2 for images, 1 for lines, 0 where nothing is beside anything."""
    return float(min(dimensions, 2))


def power_spectrum(sizes: Sequence[int], exponent: float) -> FloatArray:
    """Return the power of each frequency, shape `sizes`, its mean 1, so that the field has unit variance.

    Frequencies are in cycles a step, `|f| = sqrt(fy^2 + fx^2)`. Frequency 0, the mean of a sample, has the power of the
    lowest other one: samples differ in brightness as their largest features do.

    Args:
        sizes: Steps along each axis, each at least 1.
        exponent: Of 1/f in the power, at least 0.
    """
    axes = np.meshgrid(*(np.fft.fftfreq(size) for size in sizes), indexing="ij")
    frequency = np.sqrt(sum((axis**2 for axis in axes), start=np.zeros(tuple(sizes))))
    lowest = 1.0 / max((*sizes, 1))
    power = np.maximum(frequency, lowest) ** -exponent
    return np.asarray(power / power.mean(), np.float64)


def autocorrelation(sizes: Sequence[int], exponent: float) -> FloatArray:
    """Return the correlation of two points of the field by their offset on the torus, shape `sizes`; 1 at offset 0.

    It is the transform of the spectrum (Wiener and Khinchin).
    """
    return np.asarray(np.fft.ifftn(power_spectrum(sizes, exponent)).real, np.float64)


def draw_leaves(random: np.random.Generator, sizes: tuple[int, int], channels: int) -> FloatArray:
    """Return a picture of discs that hide each other, `[channels, *sizes]`; each has one standard normal color.

    The dead leaves model (Matheron 1968) with radii of density r^-3 has the spectrum and the edges of natural images
    (Lee, Mumford and Huang 2001, "Occlusion models for natural images"), and networks that saw nothing else learn
    features from it that serve on photographs (Baradad et al. 2021, "Learning to see by looking at noise").
    The radii lie between 1/64 and 1 times the longer side; discs are laid from the front to the back.

    Args:
        random: Source of noise.
        sizes: Height and width.
        channels: Number of independent colors.
    """
    longest = float(max(sizes))
    least = max(1.0, longest / 64)
    owner = np.full(sizes, -1)
    for disc in range(LEAVES):
        radius = (least**-2 + random.random() * (longest**-2 - least**-2)) ** -0.5
        center = [random.uniform(-radius, size + radius) for size in sizes]
        box = tuple(
            slice(max(0, int(at - radius)), min(size, int(at + radius) + 2))
            for at, size in zip(center, sizes, strict=True)
        )
        rows, columns = (np.arange(part.start, part.stop) - at for part, at in zip(box, center, strict=True))
        inside = rows[:, None] ** 2 + columns[None, :] ** 2 <= radius**2
        owner[box][inside & (owner[box] < 0)] = disc
    # What no disc covers belongs to the last color.
    return np.asarray(random.standard_normal((channels, LEAVES + 1))[:, owner], np.float64)


def draw_field(random: np.random.Generator, channels: int, sizes: Sequence[int], exponent: float) -> FloatArray:
    """Return independent Gaussian random fields of mean 0 and variance 1, shape `[channels, *sizes]`.

    Args:
        random: Source of noise.
        channels: How many.
        sizes: Steps along each axis of space or time; none gives one point.
        exponent: Of the spectrum.
    """
    noise = random.standard_normal((channels, *sizes))
    if not sizes or exponent == 0:
        return noise
    axes = tuple(range(1, 1 + len(sizes)))
    shaped = np.fft.fftn(noise, axes=axes) * np.sqrt(power_spectrum(sizes, exponent))
    return np.asarray(np.fft.ifftn(shaped, axes=axes).real, np.float64)
