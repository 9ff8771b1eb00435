"""The arithmetic of the metrics: arrays in, numbers out.

`output` is a model's output for one sample without the batch axis. Functions that take `(output, label)` raise
`DataError` when they do not fit; the caller adds which sample it was. An output is taken for class scores when its
last axis has at least two entries; its other axes are positions (time steps, pixels), each with a decision of its own.
Metrics of the whole set take a list of items, or one array of all of them, which resampling needs to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewise.errors import DataError
from edgewise.records.tensors import Array

IntArray: TypeAlias = npt.NDArray[np.int64]
Scored: TypeAlias = npt.NDArray[np.float32]

THRESHOLD: Final = 0.5
"""A single score at or above it means class 1."""

REGRESSION_TOLERANCE: Final = 0.01
"""Two numbers agree when they differ by at most this share of the original output's largest magnitude."""

IGNORED_CLASS: Final = 255
"""Pixels with this label count for nothing, where there are fewer classes (the convention of Pascal VOC)."""

HIGHEST_PSNR: Final = 100.0
"""Decibels given to an output that equals its label; the true value is infinite."""


def top1(output: Array, label: Any) -> float:
    """Return the share of positions at which the label has the highest score; of equal scores the first counts."""
    return _top(output, label, 1)


def top5(output: Array, label: Any) -> float:
    """Return the share of positions at which the label is among the five highest scores."""
    return _top(output, label, 5)


def accuracy(output: Array, label: Any) -> float:
    """Return the share of positions at which the decision is the label (see `decisions`)."""
    chosen = decisions(output)
    return float(np.mean(chosen == _classes(output, label)))


def decisions(output: Array) -> IntArray:
    """Return the decision at each position.

    Whole numbers are decisions already. Of class scores (last axis >= 2) it is the index of the highest; a single
    score means class 1 from 0.5 on, so that logits of a two-class model need a metric of their own.
    """
    if output.dtype.kind in "iub":
        return output.astype(np.int64)
    if _is_single(output):
        return (output.reshape(output.shape[:-1] if output.ndim else ()) >= THRESHOLD).astype(np.int64)
    return np.asarray(output.argmax(axis=-1), np.int64)


def decision_and_label(output: Array, label: Any) -> IntArray:
    """Return decisions and labels as `[2, positions]`, for `f1`."""
    return np.stack([decisions(output).ravel(), _classes(output, label).ravel()])


def f1(items: Sequence[IntArray] | IntArray) -> float:
    """Return the F1 score: of class 1 where all decisions and labels are 0 or 1, else the mean over the classes.

    The classes are those that occur among the labels. NaN without any.
    """
    pairs = _stacked(items).reshape(2, -1) if isinstance(items, np.ndarray) else np.concatenate(items, axis=1)
    chosen, true = pairs
    if not true.size:
        return math.nan
    size = int(max(chosen.max(), true.max())) + 1
    hits = np.bincount(true[chosen == true], minlength=size)
    counted = np.bincount(chosen, minlength=size) + np.bincount(true, minlength=size)
    occurs = np.bincount(true, minlength=size) > 0
    if size <= 2:
        if counted[-1] == 0 or size == 1:
            return math.nan
        return float(2 * hits[1] / counted[1])
    return float(np.mean(2 * hits[occurs] / counted[occurs]))


def scores_and_label(output: Array, label: Any) -> Scored:
    """Return the scores and the 0/1 target of each class as `[2, C]`, for `auc` and `map`.

    The label is a class index, or one 0/1 entry a class (several may be 1). A single score has the label 0 or 1.
    """
    scores = output.reshape(-1).astype(np.float32)
    target = _label(label)
    if target.size == scores.size and np.all(np.isin(target, (0, 1))):
        return np.stack([scores, target.reshape(-1).astype(np.float32)])
    if target.size != 1:
        raise DataError(
            f"A label has to be a class index or one 0/1 entry for each of {scores.size} scores. "
            f"Received an array of shape {target.shape}."
        )
    index = int(_whole_numbers(target).reshape(()))
    _in_range(np.asarray(index), scores.size)
    return np.stack([scores, np.eye(1, scores.size, index, dtype=np.float32)[0]])


def auc(items: Sequence[Scored] | Scored) -> float:
    """Return the area under the ROC curve; ties count half (Mann and Whitney 1947).

    With one score that of class 1, with two that of their difference, else the mean over the classes one against
    the rest. Classes without a positive or without a negative sample are left out; NaN if none is left.
    """
    scores, targets = _stacked(items)
    if scores.shape[1] == 2:
        scores, targets = scores[:, 1:] - scores[:, :1], targets[:, 1:]
    areas = [_area(scores[:, c], targets[:, c] > 0) for c in range(scores.shape[1])]
    defined = [area for area in areas if not math.isnan(area)]
    return float(np.mean(defined)) if defined else math.nan


def mean_average_precision(items: Sequence[Scored] | Scored) -> float:
    """Return the average precision of ranking all samples by each class's score, averaged over the classes.

    This is the `map` of classification and tagging. That of detection needs decoded boxes, which no exported graph
    has in a common form: it is a metric of one's own. Classes without a positive are left out; NaN if none is left.
    """
    scores, targets = _stacked(items)
    values = [
        _average_precision(scores[:, c], targets[:, c] > 0) for c in range(scores.shape[1]) if targets[:, c].any()
    ]
    return float(np.mean(values)) if values else math.nan


def overlaps(output: Array, label: Any) -> IntArray:
    """Return pixels in common, decided and labelled of each class, as `[3, C]`, for `miou`.

    The output has the label's shape and one axis of class scores before or after it, or is a map of classes itself.
    """
    true = _whole_numbers(_label(label))
    if output.shape[1:] == true.shape:
        chosen, classes = output.argmax(axis=0).astype(np.int64), output.shape[0]
    elif output.shape[:-1] == true.shape and output.ndim == true.ndim + 1:
        chosen, classes = output.argmax(axis=-1).astype(np.int64), output.shape[-1]
    elif output.shape == true.shape and output.dtype.kind in "iu":
        chosen = output.astype(np.int64)
        labelled = true[true != IGNORED_CLASS]
        classes = int(max(chosen.max(initial=0), labelled.max(initial=0))) + 1
    else:
        raise DataError(
            f"An output for `miou` has to have the label's shape {true.shape} and one axis of classes before or after "
            f"it. Received {output.shape}."
        )
    counted = true != IGNORED_CLASS if classes <= IGNORED_CLASS else np.ones(true.shape, np.bool_)
    chosen, true = chosen[counted], true[counted]
    _in_range(true, classes)
    return np.stack(
        [
            np.bincount(true[chosen == true], minlength=classes),
            np.bincount(chosen, minlength=classes),
            np.bincount(true, minlength=classes),
        ]
    )


def mean_intersection_over_union(items: Sequence[IntArray] | IntArray) -> float:
    """Return intersection over union from the pixels of all samples, averaged over the classes that occur."""
    if isinstance(items, np.ndarray):
        totals = items.sum(axis=0)
    else:
        totals = np.zeros((3, max(item.shape[1] for item in items)), np.int64)
        for item in items:
            totals[:, : item.shape[1]] += item
    union = totals[1] + totals[2] - totals[0]
    occurs = union > 0
    return float(np.mean(totals[0][occurs] / union[occurs])) if occurs.any() else math.nan


def squared_error(output: Array, label: Any) -> float:
    """Return the mean squared difference, in the label's unit squared."""
    return float(np.mean(_difference(output, label) ** 2))


def absolute_error(output: Array, label: Any) -> float:
    """Return the mean absolute difference, in the label's unit."""
    return float(np.mean(np.abs(_difference(output, label))))


def psnr(output: Array, label: Any) -> float:
    """Return the peak signal-to-noise ratio in dB, at most 100; the peak is 255 for whole-number labels, else 1."""
    peak = 255.0 if np.asarray(label).dtype.kind in "iu" else 1.0
    error = squared_error(output, label)
    return HIGHEST_PSNR if error == 0 else min(10 * math.log10(peak**2 / error), HIGHEST_PSNR)


def agreement(output: Array, original: Array) -> float:
    """Return the share of positions at which both models decide the same.

    For class scores (last axis >= 2) the highest class has to be the same; for a single score of which the original's
    lies in [0, 1], the side of 0.5; for whole numbers the number. Anything else is a regression, where the two have
    to differ by at most 1 % of the largest magnitude in the original's output.
    """
    _same_shape(output, original)
    regression = original.dtype.kind == "f" and _is_single(original) and not np.all((original >= 0) & (original <= 1))
    if regression:
        gap = np.abs(output.astype(np.float64) - original.astype(np.float64))
        return float(np.mean(gap <= REGRESSION_TOLERANCE * np.abs(original).max()))
    return float(np.mean(decisions(output) == decisions(original)))


def cosine(output: Array, original: Array) -> float:
    """Return the cosine of the angle between the two outputs; 1 where both are zero, 0 where only one is."""
    _same_shape(output, original)
    first, second = output.astype(np.float64).ravel(), original.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    if lengths == 0:
        return 1.0 if not first.any() and not second.any() else 0.0
    return max(-1.0, min(1.0, float(first @ second) / lengths))


def _top(output: Array, label: Any, k: int) -> float:
    if output.ndim == 0 or _is_single(output):
        raise DataError(
            f"An output for `top{k}` has to have at least two class scores on its last axis. Received {output.shape}.",
            hint="Use --metric accuracy for a single score, or mae for a number.",
        )
    true = _classes(output, label)
    own = np.take_along_axis(output, true[..., None], axis=-1)
    ahead = (output > own).sum(axis=-1)
    first = np.arange(output.shape[-1]) < true[..., None]
    ahead = ahead + ((output == own) & first).sum(axis=-1)
    return float(np.mean(ahead < k))


def _classes(output: Array, label: Any) -> IntArray:
    """Return the class index of each position of `output`."""
    true = _label(label)
    is_map = output.dtype.kind in "iub"
    positions = output.shape if is_map else output.shape[:-1]
    classes = None if is_map else max(output.shape[-1] if output.ndim else 1, 2)
    if true.size == math.prod(positions):
        indices = _whole_numbers(true).reshape(positions)
    elif true.size == classes and math.prod(positions) == 1 and np.all(np.isin(true, (0, 1))) and true.sum() == 1:
        indices = np.asarray(true.argmax(), np.int64).reshape(positions)
    else:
        raise DataError(
            f"Labels have to be one class a position (shape {positions}) of an output of shape {output.shape}. "
            f"Received shape {true.shape}."
        )
    if classes is not None:
        _in_range(indices, classes)
    return indices


def _label(label: Any) -> Array:
    if label is None:
        raise DataError(
            "This metric needs labels, and there are none.",
            hint="Give labels with the data, or use --metric agreement, which needs none.",
        )
    found = np.asarray(label)
    if found.dtype.kind not in "iubf":
        raise DataError(
            f"Labels of this metric have to be numbers. Received {label!r}.",
            hint="Give class indices, or a metric of your own as package.module:object.",
        )
    if found.dtype.kind == "f" and np.isnan(found).any():
        raise DataError("A label has to be a number. Received NaN.")
    return found


def _whole_numbers(labels: Array) -> IntArray:
    if labels.dtype.kind == "f" and np.any(labels != np.floor(labels)):
        raise DataError(f"Class labels have to be whole numbers. Received {labels.ravel()[:3].tolist()}.")
    return labels.astype(np.int64)


def _in_range(indices: IntArray, classes: int) -> None:
    if indices.size and (indices.min() < 0 or indices.max() >= classes):
        outside = indices[(indices < 0) | (indices >= classes)].ravel()[0]
        raise DataError(
            f"A class label has to lie in 0 to {classes - 1}, because the model has {classes} classes. "
            f"Received {outside}.",
            hint="Check that the labels count from 0 and belong to this model.",
        )


def _is_single(output: Array) -> bool:
    return output.ndim == 0 or output.shape[-1] == 1


def _same_shape(output: Array, original: Array) -> None:
    if output.shape != original.shape:
        raise DataError(
            f"Both models have to give outputs of one shape. Received {output.shape}, and {original.shape} "
            f"from the original."
        )


def _difference(output: Array, label: Any) -> npt.NDArray[np.float64]:
    true = _label(label)
    if true.size != output.size:
        raise DataError(
            f"A label has to have as many numbers as the output of shape {output.shape}. Received shape {true.shape}."
        )
    return np.asarray(output.astype(np.float64).ravel() - true.astype(np.float64).ravel())


def _stacked(items: Sequence[Array] | Array) -> Array:
    """Return the items as one array with the samples on its second axis."""
    return np.moveaxis(items, 0, 1) if isinstance(items, np.ndarray) else np.stack(items, axis=1)


def _area(scores: Array, positive: npt.NDArray[np.bool_]) -> float:
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return math.nan
    # Sorted on both sides: a search in order stays in the cache, and resampling does this thousands of times.
    others, own = np.sort(scores[~positive]), np.sort(scores[positive])
    ahead = np.searchsorted(others, own, side="left") + np.searchsorted(others, own, side="right")
    return float(ahead.sum() / (2 * positives * negatives))


def _average_precision(scores: Array, positive: npt.NDArray[np.bool_]) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    # Equal scores cannot be told apart: a threshold takes all of them.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    recalled, taken = hits[last], last + 1
    return float(np.sum(np.diff(recalled, prepend=0) * recalled / taken) / positive.sum())
