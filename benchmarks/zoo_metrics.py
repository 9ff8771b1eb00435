"""Metrics of tasks that only their own users know: detection and reading words. Given to `--metric` by name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def intersection_over_union(box: FloatArray, boxes: FloatArray) -> FloatArray:
    """Return the overlap of `box [4]` with each of `boxes [N, 4]` (left, top, right, bottom), shape `[N]`."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return np.asarray(common / np.maximum(areas - common, 1e-12))


class Ap50:
    """Mean over the classes of the average precision at an overlap of 0.5 (101 recall points, as COCO has it).

    The output is one grid `[85, H, W]`: objectness, four numbers of the box, 80 class scores. A label is `[K, 5]`:
    class, then the corners as fractions of the picture.
    """

    higher_is_better = True
    bounds = (0.0, 1.0)

    @staticmethod
    def item(output: npt.NDArray[np.float32], label: FloatArray) -> Any:
        """Keep boxes, scores and classes above a score of 0.01 after greedy suppression at 0.45."""
        grid = output.reshape(output.shape[-3:]).astype(np.float64)
        height, width = grid.shape[1:]
        rows, columns = np.indices((height, width))
        scores = grid[0] ** 0.6 * grid[5:].max(axis=0) ** 0.4
        x, y = (columns + np.tanh(grid[1])) / width, (rows + np.tanh(grid[2])) / height
        w, h = 1 / (1 + np.exp(-grid[3])), 1 / (1 + np.exp(-grid[4]))
        corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)
        seen = scores > 0.01
        boxes, scores, classes = corners[seen], scores[seen], grid[5:].argmax(axis=0)[seen]
        order = list(np.argsort(-scores, kind="stable"))
        kept: list[int] = []
        while order:
            best = order.pop(0)
            kept.append(best)
            close = intersection_over_union(boxes[best], boxes[order]) > 0.45 if order else np.zeros(0, bool)
            order = [
                other for other, near in zip(order, close, strict=True) if not near or classes[other] != classes[best]
            ]
        return boxes[kept], scores[kept], classes[kept], label

    @classmethod
    def whole(cls, outputs: Sequence[npt.NDArray[np.float32]], labels: Sequence[FloatArray]) -> float:
        """Return the mean average precision over the classes that occur in the labels."""
        items = [cls.item(output, label) for output, label in zip(outputs, labels, strict=True)]
        classes = sorted({int(kind) for *_, label in items for kind in label[:, 0]})
        return float(np.mean([cls._average_precision(items, kind) for kind in classes])) if classes else float("nan")

    @staticmethod
    def _average_precision(items: Sequence[Any], kind: int) -> float:
        found: list[tuple[float, bool]] = []
        total = 0
        for boxes, scores, classes, label in items:
            free = label[label[:, 0] == kind, 1:]
            total += len(free)
            for index in np.flatnonzero(classes == kind):
                overlaps = intersection_over_union(boxes[index], free) if len(free) else np.zeros(1)
                hit = bool(overlaps.max() >= 0.5)
                if hit:
                    free = np.delete(free, int(overlaps.argmax()), axis=0)
                found.append((float(scores[index]), hit))
        hits = np.array([hit for _, hit in sorted(found, key=lambda pair: -pair[0])], dtype=np.float64)
        if not len(hits):
            return 0.0
        recall, precision = np.cumsum(hits) / total, np.cumsum(hits) / np.arange(1, len(hits) + 1)
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        return float(envelope[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())


class WordAccuracy:
    """Share of words that are read without an error: letters and digits, case ignored; greedy CTC decoding.

    The characters, one a line, are in the file that the environment variable `WORD_CHARACTERS` names.
    """

    higher_is_better = True

    def __init__(self) -> None:
        self._characters: list[str] = []

    def per_sample(self, output: npt.NDArray[np.float32], label: object) -> float:
        """Return 1 where the decoded text `[T, C]` is the label, else 0."""
        if not self._characters:
            lines = Path(os.environ["WORD_CHARACTERS"]).read_text(encoding="utf-8").splitlines()
            self._characters = ["", *lines, " "]
        best = output.reshape(-1, output.shape[-1]).argmax(axis=1)
        changed = np.append(True, best[1:] != best[:-1])
        text = "".join(self._characters[index] for index in best[changed])
        return float(_plain(text) == _plain(str(label)))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


ap50 = Ap50()
word_accuracy = WordAccuracy()
