"""A random network in the making: what exists already, and layers with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgewise.testing.graphs import GraphBuilder


class ChannelDrawing:
    """A network in the making: images `[N, C, H, W]` and sequences `[N, T, C]` by name, with the sizes behind N."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.builder = GraphBuilder("random_channels", seed=seed)
        self.batch = 1 + self.below(2)
        self.images: dict[str, tuple[int, int, int]] = {}
        self.rows: dict[str, tuple[int, int]] = {}

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return bool(self.random.random() < probability)

    def below(self, bound: int) -> int:
        """Return an integer from 0 to `bound - 1`."""
        return int(self.random.integers(bound))

    def image(self) -> str:
        """Return an image: mostly the newest, else any, which gives it another reader."""
        return self._pick(list(self.images))

    def sequence(self) -> str:
        """Return a sequence: mostly the newest, else any."""
        return self._pick(list(self.rows))

    def _pick(self, names: Sequence[str]) -> str:
        return names[-1] if self.chance(0.7) else names[self.below(len(names))]

    def partner(self, name: str) -> str | None:
        """Return another image of the same size, or None."""
        others = [other for other, sizes in self.images.items() if sizes == self.images[name] and other != name]
        return others[self.below(len(others))] if others else None

    def integers(self, *numbers: int) -> str:
        """Add a constant of rank 1."""
        return self.builder.constant(np.array(numbers, np.int64))

    def values(self, *shape: int) -> str:
        """Add a constant of numbers from 0.5 to 1.5."""
        return self.builder.constant(self.random.uniform(0.5, 1.5, shape).astype(np.float32))

    def conv(self, value: str, channels: int, out: int, *, kernel: int = 1, group: int = 1, **attributes: Any) -> str:
        """Add a Conv, mostly with a bias."""
        inputs = [value, self.builder.weight(out, channels // group, kernel, kernel)]
        if self.chance(0.6):
            inputs.append(self.builder.weight(out, fan_in=4))
        return self.builder.node("Conv", *inputs, group=group, pads=[kernel // 2] * 4, **attributes)

    def linear(self, value: str, width: int, out: int) -> str:
        """Add a MatMul, mostly with a bias behind it."""
        value = self.builder.node("MatMul", value, self.builder.weight(width, out, fan_in=width))
        return self.builder.node("Add", value, self.builder.weight(out, fan_in=4)) if self.chance(0.6) else value
