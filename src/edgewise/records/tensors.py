"""Arrays, and the functions that turn arrays into arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy.typing as npt

from edgewise.records.codec import Record

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]
Outputs: TypeAlias = Mapping[str, Array]
Run: TypeAlias = Callable[[Feeds], Outputs]
"""Runs a model once: one array for every input name in, one for every output name out."""


class Port(Record, frozen=True, kw_only=True):
    """One input or output of a model.

    Attributes:
        name: Its name in the graph.
        dtype: The numpy name of its element type: `float32`, `int64`, `uint8`, `bfloat16` ...
        shape: Its dimensions; a string names a dimension that is not fixed, `?` one without a name.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
