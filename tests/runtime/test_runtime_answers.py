"""Answers: what they call a class, and what they print."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.records.codec import decode, encode
from edgewise.records.tensors import Array
from edgewise.runtime.answers import MOST_VALUES, Answer, best_classes, class_scores, output_value


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 1, 3)])
def test_scores_are_one_vector_of_one_output(shape: tuple[int, ...]) -> None:
    scores = class_scores({"y": np.ones(shape, np.float32)}, ("a", "b", "c"), classifies=False)
    assert scores is not None
    assert scores.shape == (3,)
    assert class_scores({"y": np.ones(shape, np.float32)}, None, classifies=True) is not None


@pytest.mark.parametrize(
    ("outputs", "names", "classifies"),
    [
        ({"y": np.ones((1, 3), np.float32)}, None, False),  # nobody said that it classifies
        ({"y": np.ones((1, 3), np.float32)}, ("a", "b"), True),  # names of something else
        ({"y": np.ones((2, 3), np.float32)}, None, True),  # two answers
        ({"y": np.ones((3, 1), np.float32)}, None, True),
        ({"y": np.ones((1, 1), np.float32)}, None, True),  # one score says nothing
        ({"y": np.ones((1, 3), np.int64)}, None, True),  # an index, not scores
        ({"y": np.ones((1, 3)), "z": np.ones((1, 3))}, None, True),
    ],
)
def test_what_is_no_scores_is_not_called_so(
    outputs: dict[str, Array], names: tuple[str, ...] | None, classifies: bool
) -> None:
    assert class_scores(outputs, names, classifies=classifies) is None


def test_the_best_come_first_and_ties_in_order() -> None:
    best = best_classes(np.array([0.5, 2.0, -1.0, 2.0, 0.0, 1.0, 0.25], np.float32), None)
    assert [(c.index, c.name, c.score) for c in best] == [
        (1, None, 2.0), (3, None, 2.0), (5, None, 1.0), (0, None, 0.5), (6, None, 0.25),
    ]  # fmt: skip
    assert [c.name for c in best_classes(np.array([1.0, 2.0]), ("cat", "dog"))] == ["dog", "cat"]


def test_small_outputs_are_written_out_and_large_ones_summarised() -> None:
    small = output_value(np.arange(6, dtype=np.int8).reshape(2, 3))
    assert (small.dtype, small.shape, small.values) == ("int8", (2, 3), [[0, 1, 2], [3, 4, 5]])
    assert output_value(np.zeros(MOST_VALUES)).values is not None
    large = output_value(np.arange(MOST_VALUES + 1, dtype=np.float32))
    assert large.values is None
    assert (large.minimum, large.maximum, large.mean) == (0.0, MOST_VALUES, MOST_VALUES / 2)
    words = output_value(np.full(MOST_VALUES + 1, "a"))
    assert (words.values, words.minimum) == (None, None)


def test_an_answer_is_one_line_of_json() -> None:
    answer = Answer(
        input="a.jpg",
        rung="ort int8-mse",
        latency_us=12.5,
        classes=best_classes(np.array([1.0, 2.0]), ("cat", "dog")),
        outputs={"y": output_value(np.array([[1.0, 2.0]]))},
    )
    line = encode(answer)
    assert b"\n" not in line
    assert encode(decode(line, Answer)) == line
