"""How far a model's outputs are from the original's on the same inputs: what can be said without labels.

The relative error of an output is the root mean square of its difference from the original's, over the standard
deviation of the original's output (over all its elements and samples): 0.1 is a signal-to-noise ratio of 20 dB. The
deviation, not the magnitude: logits that share an offset decide by their differences alone. Of outputs that are whole
numbers or booleans it is the share of elements that differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewise.errors import DataError
from edgewise.measure import scoring
from edgewise.measure.metrics import ALL, PerSample
from edgewise.records.tensors import Array, Outputs

FloatArray = npt.NDArray[np.float64]

METRIC: Final = "fidelity"

CONSTANT: Final = 1e-5
"""An output that varies by less than this share of its magnitude is constant; float32 rounds to 6e-8 of it."""


@dataclass
class _Sums:
    """Running sums over one output: of elements, values, their squares, and squared differences."""

    elements: int = 0
    values: float = 0.0
    squares: float = 0.0
    differences: float = 0.0
    is_real: bool = True

    def add(self, original: Array, other: Array | None) -> None:
        self.is_real = _is_real(original)
        base = np.asarray(original, np.float64) if self.is_real else np.zeros(original.shape)
        self.elements += original.size
        self.values += float(base.sum())
        self.squares += float((base**2).sum())
        if other is not None:
            self.differences += _squared(original, other) * original.size

    @property
    def scale(self) -> float:
        """Standard deviation of the original, or its root mean square where it is constant; 1 for whole numbers."""
        if not self.is_real:
            return 1.0
        n = max(self.elements, 1)
        magnitude = math.sqrt(self.squares / n)
        deviation = math.sqrt(max(self.squares / n - (self.values / n) ** 2, 0.0))
        return deviation if deviation > CONSTANT * magnitude else magnitude

    @property
    def error(self) -> float:
        mean = self.differences / max(self.elements, 1)
        return _relative(math.sqrt(mean) if self.is_real else mean, self.scale)


@dataclass(frozen=True)
class Fidelity:
    """What became of the outputs.

    Attributes:
        errors: Relative error of each output, by name; infinite where a value is not finite in one model alone.
        agreement: Share of samples and positions at which the first output decides the same.
        n: Samples compared.
    """

    errors: dict[str, float]
    agreement: float
    n: int


def compare(pairs: Iterable[tuple[Outputs, Outputs]]) -> Fidelity:
    """Compare outputs, sample by sample, in bounded memory.

    Args:
        pairs: Outputs of the original and of the other model, one pair a sample; at least one.

    Raises:
        DataError: If there are no pairs, or an output has another shape in the other model.
    """
    sums: dict[str, _Sums] = {}
    agreed: list[float] = []
    for original, other in pairs:
        for name, array in original.items():
            sums.setdefault(name, _Sums()).add(array, other[name])
        first = next(iter(original))
        agreed.append(scoring.agreement(_flat(other[first]), _flat(original[first])))
    if not agreed:
        raise DataError("At least one sample is needed to compare two models. Received none.")
    return Fidelity({name: one.error for name, one in sums.items()}, float(np.mean(agreed)), len(agreed))


def scales(outputs: Iterable[Outputs]) -> dict[str, float]:
    """Return what the errors of each output are relative to, from the original's outputs."""
    sums: dict[str, _Sums] = {}
    for one in outputs:
        for name, array in one.items():
            sums.setdefault(name, _Sums()).add(array, None)
    return {name: found.scale for name, found in sums.items()}


def metric(by_output: Mapping[str, float]) -> PerSample:
    """Return the metric for the search: 1 minus the relative error of a sample's worst output, at least 0.

    Args:
        by_output: What the errors of each output are relative to (`scales`).
    """
    return PerSample(name=METRIC, score=partial(_score, dict(by_output)), output=ALL, against="original")


def _score(by_output: Mapping[str, float], outputs: Outputs, original: Outputs) -> float:
    worst = 0.0
    for name, scale in by_output.items():
        mean = _squared(original[name], outputs[name])
        worst = max(worst, _relative(math.sqrt(mean) if _is_real(original[name]) else mean, scale))
    return 1 - min(1.0, worst)


def _squared(original: Array, other: Array) -> float:
    """Return the mean squared difference, infinite where one is not finite; of whole numbers the share that differs."""
    if original.shape != other.shape:
        raise DataError(
            f"Both models have to give outputs of one shape. Received {other.shape}, and {original.shape} from the "
            f"original."
        )
    if not original.size:
        return 0.0
    if not _is_real(original):
        return float(np.mean(original != other))
    first, second = np.asarray(original, np.float64), np.asarray(other, np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, first - second)
    return float(np.mean(gap**2)) if np.isfinite(gap).all() else math.inf


def _relative(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale > 0 and math.isfinite(scale) else math.inf


def _is_real(array: Array) -> bool:
    return array.dtype.kind in "fV"  # bfloat16 is void to numpy


def _flat(array: Array) -> Array:
    """Return the output without its batch of 1."""
    return array.squeeze(0) if array.ndim and array.shape[0] == 1 else array
