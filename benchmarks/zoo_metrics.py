"""Metrics of tasks that only their own users know: detection and reading words. Given to `--metric` by name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

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

    @classmethod
    def item(cls, output: npt.NDArray[np.float32], label: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Match one picture's boxes with its labels: which is a hit does not depend on other pictures.

        Returns:
            What was found, `[N, 3]`: class, score, 1 for a hit; and how many there are of each class, `[80]`.
        """
        boxes, scores, classes = cls._detections(output)
        hits = np.zeros(len(scores))
        for kind in np.unique(classes):
            free = label[label[:, 0] == kind, 1:]
            for index in np.flatnonzero(classes == kind):
                overlaps = intersection_over_union(boxes[index], free)
                if len(overlaps) and overlaps.max() >= 0.5:
                    hits[index] = 1
                    free = np.delete(free, int(overlaps.argmax()), axis=0)
        counts = np.bincount(label[:, 0].astype(np.int64), minlength=80).astype(np.float64)
        return np.stack([classes.astype(np.float64), scores, hits], axis=1), counts

    @staticmethod
    def _detections(output: npt.NDArray[np.float32]) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
        """Return boxes, scores above 0.01 and classes, best first, after greedy suppression per class at 0.45."""
        grid = output.reshape(output.shape[-3:]).astype(np.float64)
        height, width = output.shape[-2:]
        rows, columns = np.indices((height, width))
        scores = grid[0] ** 0.6 * grid[5:].max(axis=0) ** 0.4
        x, y = (columns + np.tanh(grid[1])) / width, (rows + np.tanh(grid[2])) / height
        w, h = 1 / (1 + np.exp(-grid[3])), 1 / (1 + np.exp(-grid[4]))
        corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)
        seen = scores > 0.01
        boxes, found, classes = corners[seen], scores[seen], grid[5:].argmax(axis=0)[seen]
        order = np.argsort(-found, kind="stable")
        kept: list[int] = []
        while len(order):
            best, order = int(order[0]), order[1:]
            kept.append(best)
            close = intersection_over_union(boxes[best], boxes[order]) > 0.45
            order = order[~(close & (classes[order] == classes[best]))]
        return boxes[kept], found[kept], classes[kept]

    @staticmethod
    def whole(items: Sequence[tuple[FloatArray, FloatArray]]) -> float:
        """Return the mean average precision over the classes that occur in the labels."""
        found = np.concatenate([detections for detections, _ in items])
        totals = np.sum([counts for _, counts in items], axis=0)
        found = found[np.lexsort((-found[:, 1], found[:, 0]))]
        precisions = []
        for kind in np.flatnonzero(totals):
            first, last = np.searchsorted(found[:, 0], [kind, kind + 1])
            hits = found[first:last, 2]
            if not len(hits):
                precisions.append(0.0)
                continue
            gained = np.cumsum(hits)
            precision = np.maximum.accumulate((gained / np.arange(1, len(hits) + 1))[::-1])[::-1]
            at = np.searchsorted(gained / totals[kind], np.linspace(0, 1, 101))
            precisions.append(float(np.append(precision, 0.0)[at].mean()))
        return float(np.mean(precisions)) if precisions else float("nan")


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
