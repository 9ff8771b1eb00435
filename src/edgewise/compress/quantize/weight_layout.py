"""Which channels each weight of a linear operator joins. Pure functions on shapes and arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

LINEAR: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators of the form `y = W x + b` on channels."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WeightLayout:
    """How the weights of one linear operator are laid out.

    Attributes:
        operator: One of `LINEAR`. The weights are `[M, C / groups, ...]` for Conv, `[C, M / groups, ...]` for
            ConvTranspose, `[C, M]` for MatMul and Gemm.
        shape: Shape of the weights.
        groups: Groups of channels.
        transposed: Whether a Gemm's weights are `[M, C]`.
    """

    operator: Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def _outputs_first(self) -> bool:
        return self.operator == "Conv" or self.transposed

    @property
    def outputs(self) -> int:
        """Number `M` of output channels."""
        return self.shape[0] if self._outputs_first else self.shape[1] * self.groups

    @property
    def inputs(self) -> int:
        """Number `C` of input channels."""
        return self.shape[1] * self.groups if self._outputs_first else self.shape[0]

    @property
    def output_index(self) -> Indices:
        """Output channel of each weight; broadcasts to `shape`."""
        return self._first() if self._outputs_first else self._second()

    @property
    def input_index(self) -> Indices:
        """Input channel of each weight; broadcasts to `shape`."""
        return self._second() if self._outputs_first else self._first()

    def _first(self) -> Indices:
        return self._spatial(np.arange(self.shape[0])[:, None])

    def _second(self) -> Indices:
        rows, columns = self.shape[:2]
        group = np.arange(rows) // (rows // self.groups) if self.groups > 1 else np.zeros(rows, np.int64)
        return self._spatial(group[:, None] * columns + np.arange(columns))

    def _spatial(self, index: Indices) -> Indices:
        return index.reshape(*index.shape, *[1] * (len(self.shape) - 2))


def largest(weight: npt.NDArray[np.floating], index: Indices, size: int) -> npt.NDArray[np.float64]:
    """Return the largest magnitude among the weights of each index.

    Args:
        weight: The weights.
        index: A number in `[0, size)` for each weight; broadcasts to their shape.
        size: How many numbers come back.
    """
    found = np.zeros(size)
    np.maximum.at(found, np.broadcast_to(index, weight.shape).reshape(-1), np.abs(weight.reshape(-1)))
    return found


def total(values: npt.NDArray[np.floating], index: Indices, size: int) -> npt.NDArray[np.float64]:
    """Return the sum of the values of each index; the arguments are those of `largest`."""
    flat = np.broadcast_to(index, values.shape).reshape(-1)
    return np.asarray(np.bincount(flat, weights=values.reshape(-1).astype(np.float64), minlength=size), np.float64)
