"""Samples for models that come without any: drawn from what is known of each input, which arrives here as numbers.

What is known is a `Law` for every input. `pipeline/synthetic.py` finds it in the graph; here nothing knows a graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewise.errors import DataError
from edgewise.records.tensors import Array
from edgewise.samples.fields import draw_field, draw_leaves
from edgewise.samples.source import Sample

FloatArray = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

STEPS: Final = 16
"""Steps of a sample of a recurrent model: states have settled by then in the models that were looked at (empirical)."""


@dataclass(frozen=True)
class Field:
    """A random field or picture (`samples/fields.py`) of given mean and covariance, limited to a range.

    Attributes:
        shape: Of the input, batch included.
        dtype: Of the input.
        places: Index into the flattened input of each channel and place, `[C, *sizes]`: every element once.
        mean: Of each channel, `[C]`.
        mixing: A root of the channels' covariance, `[C, C]`.
        exponent: Of the power spectrum.
        low: Least value of each channel, `[C]`; minus infinity where there is none.
        high: Greatest value likewise.
        leaves: Whether it is a picture of discs that hide each other, and no Gaussian field.
        spread: Standard deviation of the logarithm of the contrast, by which samples differ; the median is 1.
    """

    shape: tuple[int, ...]
    dtype: str
    places: Indices
    mean: FloatArray
    mixing: FloatArray
    exponent: float
    low: FloatArray
    high: FloatArray
    leaves: bool = False
    spread: float = 0.0

    def draw(self, random: np.random.Generator, steps: int | None) -> Array:
        """Return one sample, `[*shape]`, or `[steps, *shape]` with time as one more axis of the field."""
        time = () if steps is None else (steps,)
        noise = self._noise(random, time) * np.exp(self.spread * random.standard_normal())
        mean, low, high = (part.reshape(-1, *[1] * (noise.ndim - 1)) for part in (self.mean, self.low, self.high))
        field = np.clip(np.tensordot(self.mixing, noise, axes=1) + mean, low, high)
        field = np.moveaxis(field, 0, len(time))
        sample = np.empty((*time, int(self.places.size)))
        sample[..., self.places] = field
        if self.dtype in {"int8", "uint8"}:
            sample = np.rint(sample)
        # bfloat16 is no type of numpy's own: `bind` rounds to it.
        return sample.reshape((*time, *self.shape)).astype("float32" if self.dtype == "bfloat16" else self.dtype)

    def _noise(self, random: np.random.Generator, time: tuple[int, ...]) -> FloatArray:
        """Return independent channels of mean 0 and variance 1, `[C, *time, *sizes]`."""
        channels, *sizes = self.places.shape
        if not self.leaves:
            return draw_field(random, channels, (*time, *sizes), self.exponent)
        height, width = (size for size in sizes if size > 1)
        pictures = [draw_leaves(random, (height, width), channels) for _ in range(*time or (1,))]
        return np.stack(pictures, axis=1).reshape(channels, *time, *sizes)


@dataclass(frozen=True)
class Choice:
    """Each element is one of a few numbers, or any whole number of a range.

    Attributes:
        shape: Of the input, batch included.
        dtype: Of the input.
        among: The numbers to choose from, each as likely as the others.
        together: Whether all elements of a sample are the same number.
    """

    shape: tuple[int, ...]
    dtype: str
    among: range | tuple[float, ...]
    together: bool = False

    def draw(self, random: np.random.Generator, steps: int | None) -> Array:
        """Return one sample, `[*shape]`, or `[steps, *shape]` where the input has dimensions."""
        time = () if steps is None or not self.shape else (steps,)
        drawn = random.integers(len(self.among), size=() if self.together else (*time, *self.shape))
        if isinstance(self.among, range):
            numbers: Array = drawn * self.among.step + self.among.start
        else:
            numbers = np.array(self.among)[drawn]
        return np.ascontiguousarray(np.broadcast_to(numbers, (*time, *self.shape)), self.dtype).reshape(
            (*time, *self.shape)
        )


Law: TypeAlias = Field | Choice


class SyntheticSource:
    """Unlabelled samples drawn from laws: as many as asked for, equal for equal seeds, none of them kept in memory.

    Args:
        laws: What each input is drawn from, by name. Inputs that a recurrent model feeds back itself are none of them.
        count: Number of samples, at least 1.
        seed: Equal seeds give equal samples.
        steps: Time steps of a sample of a recurrent model, None for other models.
    """

    name = "none"

    def __init__(self, laws: Mapping[str, Law], count: int, *, seed: int, steps: int | None = None) -> None:
        if count < 1:
            raise DataError(f"There has to be at least one synthetic sample. Received {count}.")
        self._laws = dict(laws)
        self._count = count
        self._seed = seed
        self._steps = steps

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the samples follow from."""
        digest = hashlib.sha256(f"synthetic 1 {self._count} {self._seed} {self._steps}".encode())
        for name, law in self._laws.items():
            digest.update(f"\n{name} {type(law).__name__}".encode())
            for field, value in vars(law).items():
                digest.update(f" {field} ".encode())
                digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; every input has a stream of random numbers of its own."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        arrays = {}
        for position, (name, law) in enumerate(self._laws.items()):
            random = np.random.default_rng([self._seed, index, position])
            arrays[name] = law.draw(random, self._steps)
        return Sample(arrays)

    def labels(self) -> list[Any] | None:
        """Return None: nobody has labelled what was never seen."""
        return None
