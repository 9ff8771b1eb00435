"""What the engine answers, as data that prints as one line of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edgewise.records.codec import Record
from edgewise.records.tensors import Array, Outputs

TOP: Final = 5
"""Classes that an answer names."""

MOST_VALUES: Final = 1000
"""Larger outputs are summarised: a line of JSON is for reading, arrays come from `Engine.outputs`."""


class ClassScore(Record, frozen=True, kw_only=True):
    """One class of an answer.

    Attributes:
        index: Position in the model's output.
        name: Name of the class, or None where the bundle has no names.
        score: The model's own output for it: a logit or a probability, whichever the model gives.
    """

    index: int
    name: str | None
    score: float


class OutputValue(Record, frozen=True, kw_only=True):
    """One output of an answer.

    Attributes:
        dtype: Element type.
        shape: Dimensions.
        values: Nested lists, or None where there are more than `MOST_VALUES` of them.
        minimum: Smallest value, where `values` is None and the output is of numbers; `maximum` and `mean` likewise.
    """

    dtype: str
    shape: tuple[int, ...]
    values: Any
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None


class Answer(Record, frozen=True, kw_only=True):
    """The answer to one sample.

    Attributes:
        input: What the sample was called.
        rung: The way in which the model was run.
        latency_us: Time of the inference in microseconds, pre-processing left out.
        classes: The best classes, best first, where the output is class scores; else None.
        outputs: The outputs by name; empty where `classes` says it all.
    """

    input: str
    rung: str
    latency_us: float
    classes: tuple[ClassScore, ...] | None
    outputs: dict[str, OutputValue]


def class_scores(outputs: Outputs, names: Sequence[str] | None, *, classifies: bool) -> Array | None:
    """Return the scores of the classes, shape `[C]`, or None where the outputs are something else.

    Args:
        outputs: The model's outputs.
        names: Names of the classes, where they are known.
        classifies: Whether the model is known to classify.
    """
    if len(outputs) != 1 or (names is None and not classifies):
        return None
    (scores,) = outputs.values()
    if scores.dtype.kind not in "fV" or scores.size < 2 or scores.size != scores.shape[-1]:
        return None
    if names is not None and len(names) != scores.size:
        return None
    return scores.reshape(-1)


def best_classes(scores: Array, names: Sequence[str] | None) -> tuple[ClassScore, ...]:
    """Return the `TOP` best classes, best first; of equal ones the first first."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")[:TOP]
    return tuple(
        ClassScore(index=int(i), name=None if names is None else names[int(i)], score=float(scores[i])) for i in order
    )


def output_value(array: Array) -> OutputValue:
    """Return an output as data."""
    if array.size <= MOST_VALUES:
        plain = array.astype(np.float64) if array.dtype.kind == "V" else array
        return OutputValue(dtype=array.dtype.name, shape=array.shape, values=plain.tolist())
    if array.dtype.kind not in "biufV":
        return OutputValue(dtype=array.dtype.name, shape=array.shape, values=None)
    numbers = np.asarray(array, np.float64)
    return OutputValue(
        dtype=array.dtype.name,
        shape=array.shape,
        values=None,
        minimum=float(numbers.min()),
        maximum=float(numbers.max()),
        mean=float(numbers.mean()),
    )
