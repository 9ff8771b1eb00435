"""Test vectors: a few inputs and what each rung made of them, and what difference from that arithmetic explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgewise.records import arrays
from edgewise.records.candidate import Candidate, Quantize
from edgewise.records.tensors import Array, Feeds, Outputs, Run

FLOAT_UNIT: Final = 2.0**-20
"""Relative change of the inputs that stands for another order of float32 sums: the unit roundoff 2^-24 times the
square root of 256 terms, by which random roundings grow (Higham, "Accuracy and Stability", 2nd ed., 2.8)."""

COARSE_UNIT: Final = 2.0**-8
"""The same for 8-bit activations and bfloat16: half a step of 8 bits on [-1, 1], and the unit roundoff of bfloat16.
Another order of sums moves values across the edge between two steps, so that whole steps are what changes."""

MARGIN: Final = 4.0
"""Tolerances are this many times what such a change of the inputs does. Empirical: every layer rounds, not the first
alone."""

_DRAWS: Final = 3


@dataclass(frozen=True)
class Vectors:
    """Test vectors of a bundle.

    Attributes:
        feeds: A few feeds, as for `Session.run`.
        expected: For each rung, in the order of the ladder, the outputs for each of the feeds.
    """

    feeds: tuple[dict[str, Array], ...]
    expected: tuple[tuple[dict[str, Array], ...], ...]

    def pack(self) -> bytes:
        """Return them as bytes."""
        named = {f"in {i} {name}": array for i, feed in enumerate(self.feeds) for name, array in feed.items()}
        for rung, answers in enumerate(self.expected):
            for i, outputs in enumerate(answers):
                named |= {f"out {rung} {i} {name}": array for name, array in outputs.items()}
        return arrays.pack(named)

    @classmethod
    def unpack(cls, data: bytes) -> Vectors:
        """Return what `pack` packed.

        Raises:
            ValueError: If `data` is something else.
        """
        feeds: dict[int, dict[str, Array]] = {}
        expected: dict[int, dict[int, dict[str, Array]]] = {}
        for key, array in arrays.unpack(data).items():
            kind, _, rest = key.partition(" ")
            if kind == "in":
                i, _, name = rest.partition(" ")
                feeds.setdefault(int(i), {})[name] = array
            else:
                rung, i, name = rest.split(" ", 2)
                expected.setdefault(int(rung), {}).setdefault(int(i), {})[name] = array
        return cls(tuple(feeds.values()), tuple(tuple(answers.values()) for answers in expected.values()))


def tolerances(
    run: Run, feeds: Sequence[Feeds], expected: Sequence[Outputs], candidate: Candidate, *, seed: int = 0
) -> dict[str, float]:
    """Return for each output how far it may be from the expected one on another processor.

    Processors with the same instructions still sum in different orders, because blocks follow the sizes of caches.
    How much that matters is a matter of the model; so it is measured: the floating-point inputs are changed by as
    much as such roundings change values (`FLOAT_UNIT`, `COARSE_UNIT`), and the largest change of each output times
    `MARGIN` is its tolerance; for floating-point outputs at least that unit of its largest value times `MARGIN`.

    Args:
        run: Runs the rung.
        feeds: The test vectors' inputs.
        expected: The rung's outputs for them.
        candidate: What the rung is.
        seed: Seed of the changes.
    """
    coarse = candidate.options.precision == "bf16" or any(isinstance(step, Quantize) for step in candidate.steps)
    unit = COARSE_UNIT if coarse else FLOAT_UNIT
    random = np.random.default_rng(seed)
    largest = dict.fromkeys(expected[0], 0.0)
    for feed, outputs in zip(feeds, expected, strict=True):
        for name, array in outputs.items():
            if array.dtype.kind in "fV" and array.size:
                values = np.abs(np.asarray(array, np.float64))
                largest[name] = max(largest[name], unit * float(values[np.isfinite(values)].max(initial=0.0)))
        for _ in range(_DRAWS):
            changed = run({name: _changed(array, unit, random) for name, array in feed.items()})
            for name, array in outputs.items():
                if math.isfinite(change := difference(array, changed[name])):
                    largest[name] = max(largest[name], change)
    return {name: MARGIN * value for name, value in largest.items()}


def difference(expected: Array, received: Array) -> float:
    """Return the largest difference between two arrays; 0 where they are equal, NaN equal to NaN.

    Infinite where shapes or types differ, where a value is not finite in one alone, or for other than numbers.
    """
    if expected.shape != received.shape or expected.dtype != received.dtype:
        return math.inf
    if expected.tobytes() == received.tobytes():
        return 0.0
    if expected.dtype.kind not in "biufV":
        return math.inf
    one, other = np.asarray(expected, np.float64), np.asarray(received, np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(one - other))
    return math.inf if np.isnan(apart).any() else float(apart.max(initial=0.0))


def expected_outputs(run: Run, feeds: Sequence[Mapping[str, Array]]) -> tuple[dict[str, Array], ...]:
    """Return what `run` makes of `feeds`."""
    return tuple({name: np.array(array) for name, array in run(feed).items()} for feed in feeds)


def _changed(array: Array, unit: float, random: np.random.Generator) -> Array:
    if array.dtype.kind != "f" or not array.size:
        return array  # tokens, masks and pixels are exact
    if unit == FLOAT_UNIT:
        noise = array * (unit * random.choice([-1.0, 1.0], array.shape))
    else:
        noise = float(np.abs(array).max()) * unit * random.uniform(-1, 1, array.shape)
    return np.asarray(array + noise, array.dtype, order="C")
