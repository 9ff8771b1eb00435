"""How far a quantized classifier's answers are from float's: flips, Kullback-Leibler divergence, and their pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

SMALLEST_PROBABILITY: Final = 1e-7
"""About float32's unit roundoff: below it, probabilities that sum to 1 tell nothing from 0."""

FEWEST_FLIPS: Final = 30
"""With fewer flips of the best rival a ratio of flips says nothing: the divergence decides."""

CALIBRATION_SHARE: Final = 4
"""At most one sample of so many calibrates."""


def drawn(samples: int, calibration: int, seed: int) -> tuple[Indices, Indices]:
    """Return which samples calibrate and which are evaluated: disjoint, together all, each in ascending order.

    Args:
        samples: How many there are.
        calibration: How many calibrate; fewer where that is more than a quarter of all.
        seed: Equal seeds draw equal samples.
    """
    order = np.random.default_rng(seed).permutation(samples)
    count = max(1, min(calibration, samples // CALIBRATION_SHARE))
    return np.sort(order[:count]), np.sort(order[count:])


def are_probabilities(outputs: npt.NDArray[Any]) -> bool:
    """Return whether outputs `[N, C]` of a float model end in a softmax: none negative, each row's sum 1."""
    return bool((outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=1e-3))


def log_probabilities(outputs: npt.NDArray[Any], *, probabilities: bool) -> FloatArray:
    """Return the logarithms of the class probabilities, shape `[N, C]`.

    Args:
        outputs: Scores `[N, C]`.
        probabilities: Whether they went through a softmax already. Then those below `SMALLEST_PROBABILITY` are raised
            to it, because 8 bits hold many as 0, and each row is made to sum to 1.
    """
    scores = np.asarray(outputs, np.float64)
    if probabilities:
        scores = np.log(np.maximum(scores, SMALLEST_PROBABILITY))
    scores = scores - scores.max(axis=1, keepdims=True)
    normalised: FloatArray = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return normalised


def divergences(original: npt.NDArray[Any], quantized: npt.NDArray[Any]) -> FloatArray:
    """Return the Kullback-Leibler divergence of each sample, original || quantized, in nats, shape `[N]`.

    Args:
        original: Outputs of the float model, `[N, C]`; they decide whether both are probabilities or logits.
        quantized: Outputs of the quantized model, `[N, C]`.
    """
    probabilities = are_probabilities(original)
    p = log_probabilities(original, probabilities=probabilities)
    q = log_probabilities(quantized, probabilities=probabilities)
    found: FloatArray = (np.exp(p) * (p - q)).sum(axis=1)
    return found


def flips(original: npt.NDArray[Any], quantized: npt.NDArray[Any]) -> int:
    """Return how many samples' highest score `[N, C]` is of another class; of equal scores the first counts."""
    return int((original.argmax(axis=1) != quantized.argmax(axis=1)).sum())


@dataclass(frozen=True)
class Distance:
    """How far one tool's answers are from float's.

    Attributes:
        flips: Samples whose answer differs, over all seeds.
        kl: Mean divergence in nats.
        n: Answers compared: samples times seeds.
    """

    flips: int
    kl: float
    n: int


def pooled(pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Distance:
    """Return the distance over several calibrations.

    Args:
        pairs: For each of them the outputs of the float model and of the quantized one, on the same samples.
    """
    found = np.concatenate([divergences(original, quantized) for original, quantized in pairs])
    return Distance(sum(flips(*pair) for pair in pairs), float(found.mean()), len(found))


@dataclass(frozen=True)
class Verdict:
    """One tool beside its best rivals.

    Attributes:
        flips_of: The rival with the fewest flips.
        flips: Flips as a multiple of that rival's; 1 where neither has any, infinite where only the rival has none.
        flips_count: Whether that rival has enough flips to be compared with.
        kl_of: The rival with the smallest divergence.
        kl: The divergence as a multiple of that rival's.
    """

    flips_of: str
    flips: float
    flips_count: bool
    kl_of: str
    kl: float


def compare(ours: Distance, rivals: Mapping[str, Distance]) -> Verdict:
    """Return how a tool does beside the rivals, of which there is at least one."""
    steady = min(rivals, key=lambda name: rivals[name].flips)
    near = min(rivals, key=lambda name: rivals[name].kl)
    return Verdict(
        flips_of=steady,
        flips=_multiple(ours.flips, rivals[steady].flips),
        flips_count=rivals[steady].flips >= FEWEST_FLIPS,
        kl_of=near,
        kl=_multiple(ours.kl, rivals[near].kl),
    )


def _multiple(value: float, other: float) -> float:
    if other > 0:
        return value / other
    return 1.0 if value == other else float("inf")
