"""Scores of a model over samples, their interval, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from edgewise.errors import DataError, ResourceError
from edgewise.measure import accuracy, betting, bootstrap
from edgewise.measure.accuracy import Scores, constant_output, scores, summarise
from edgewise.measure.metrics import METRICS, Metric, PerSample, Whole
from edgewise.records.codec import decode, encode
from edgewise.records.tensors import Feeds, Outputs


@dataclass
class _Data:
    """Samples that are what the model gives: `x` of one row a sample."""

    rows: Any
    targets: Any = None
    state: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def feeds(self, index: int) -> Feeds:
        row = np.asarray(self.rows[index], np.float32)
        return {
            "x": row[:, None] if self.state else row[None],
            **({"h": np.zeros(1, np.float32)} if self.state else {}),
        }

    def label(self, index: int) -> Any:
        return None if self.targets is None else self.targets[index]


def _identity(feeds: Feeds) -> Outputs:
    return {"y": np.asarray(feeds["x"]), "twice": 2 * np.asarray(feeds["x"])}


def _scored(metric: Metric, rows: Any, targets: Any = None, **options: Any) -> Scores:
    return scores(_identity, _Data(rows, targets), range(len(rows)), metric, **options)


_THREE = [[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]


def test_scores_are_kept_sample_by_sample_and_survive_json() -> None:
    seen: list[int] = []
    found = _scored(METRICS["top1"], _THREE, [1, 1, 1], progress=seen.append)
    assert found.array().tolist() == [1, 0, 1]
    assert found.value == pytest.approx(2 / 3)
    assert (found.n, seen, found.kept()) == (3, [1, 2, 3], [])
    assert decode(encode(found), Scores) == found


def test_only_the_samples_named_are_run_and_the_hash_says_which() -> None:
    data = _Data(_THREE, [1, 1, 1])
    some = scores(_identity, data, np.asarray([2, 0]), METRICS["top1"])
    other = scores(_identity, data, [0, 2], METRICS["top1"])
    assert some.array().tolist() == [1, 1]
    assert some.samples != other.samples
    assert some.samples == scores(_identity, data, [2, 0], METRICS["top5"]).samples


def test_whole_set_metrics_keep_items_that_survive_json() -> None:
    found = _scored(METRICS["auc"], [[0.1], [0.8], [0.3], [0.4]], [0, 1, 1, 0])
    assert found.value == 0.75
    assert found.array().size == 0
    again = decode(encode(found), Scores)
    auc = METRICS["auc"]
    assert isinstance(auc, Whole)
    assert auc.total(again.kept()) == 0.75


def test_a_metric_of_ones_own_gets_arrays_and_labels_back() -> None:
    got: list[Any] = []

    def total(items: Any) -> float:
        got[:] = items
        return 0.5

    own = Whole(name="own", item=lambda output, label: (output, label), total=total, output="all")
    label = {"boxes": np.arange(4, dtype=np.int64).reshape(1, 4), "names": ["a"], "area": np.float64(2.5)}
    found = _scored(own, [[1.0, 2.0]], [label])
    (outputs, target), = got  # fmt: skip
    assert outputs["twice"].tolist() == [2.0, 4.0]
    assert outputs["y"].dtype == np.float32
    assert target["boxes"].tolist() == [[0, 1, 2, 3]]
    assert target["names"] == ["a"]
    assert target["area"] == 2.5
    assert found.kept()[0][1]["boxes"].dtype == np.int64


def test_a_metric_may_name_its_output() -> None:
    named = PerSample(name="own", score=lambda output, _: float(output.sum()), bounds=None, output="twice")
    assert _scored(named, [[1.0, 2.0]]).array().tolist() == [6.0]


def test_sequences_lose_the_batch_axis_behind_time() -> None:
    shapes: list[Any] = []

    def step(feeds: Feeds) -> Outputs:
        return {"y": np.asarray(feeds["x"])[None] * np.ones((1, 1), np.float32), "h_next": feeds["h"] + 1}

    def note(output: Any, label: Any) -> float:
        shapes.append((output.shape, label))
        return 1.0

    metric = PerSample(name="own", score=note)
    scores(step, _Data([[1.0, 2.0, 3.0]], [5], state={"h_next": "h"}), [0], metric)
    assert shapes == [((3, 1), 5)]


def test_label_free_metrics_compare_with_the_original() -> None:
    def shifted(feeds: Feeds) -> Outputs:
        return {"y": np.asarray(feeds["x"])[:, ::-1]}

    data = _Data([[0.1, 0.9], [0.5, 0.5]])
    found = scores(shifted, data, [0, 1], METRICS["agreement"], reference=_identity)
    assert found.array().tolist() == [0, 1]
    assert scores(shifted, data, [0, 1], METRICS["agreement"], reference=shifted).value == 1
    with pytest.raises(DataError, match="compares with the original model, which was not given"):
        scores(shifted, data, [0], METRICS["cosine"])


def test_the_original_is_not_run_twice_against_itself() -> None:
    calls: list[int] = []

    def counted(feeds: Feeds) -> Outputs:
        calls.append(1)
        return _identity(feeds)

    scores(counted, _Data(_THREE), range(3), METRICS["agreement"], reference=counted)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("metric", "rows", "targets", "message"),
    [
        (METRICS["top1"], [], [], "At least one sample"),
        (METRICS["top1"], _THREE, [0, 1, 2], "Sample 2: A class label has to lie in 0 to 1"),
        (METRICS["top1"], _THREE, None, "Sample 0: This metric needs labels"),
        (METRICS["top1"], [[0.1, 0.9], [0.1, math.nan]], [1, 1], "Sample 1: .* `y` holds NaN"),
        (METRICS["mae"], _THREE, [[1, 2], [1, 2, 3], [1, 2]], "Sample 1: .* as many numbers"),
        (METRICS["auc"], [[0.3], [0.4]], [1, 1], "`auc` is not defined on these samples"),
        (PerSample(name="own", score=lambda *_: 2.0), _THREE, None, "Sample 0: .* in its bounds, 0 to 1. Received 2"),
        (PerSample(name="own", score=lambda *_: math.nan), _THREE, None, "Received NaN"),
        (PerSample(name="own", score=lambda *_: 1.0, output="z"), _THREE, None, "output `z`, .*it has `y`, `twice`"),
        (Whole(name="own", item=lambda *_: 0, total=lambda _: 7.0), _THREE, None, "in its bounds, 0 to 1. Received 7"),
        (Whole(name="own", item=lambda *_: {1j}, total=lambda _: 1.0), _THREE, None, "numbers, strings, arrays"),
        (Whole(name="own", item=lambda *_: np.asarray(["a"]), total=lambda _: 1.0), _THREE, None, "numbers, strings"),
    ],
)
def test_what_is_refused(metric: Metric, rows: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _scored(metric, rows, targets)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "WHOLE_LIMIT_BYTES", 200)
    with pytest.raises(ResourceError, match="4 samples are more"):
        _scored(Whole(name="own", item=lambda output, _: np.repeat(output, 5), total=lambda _: 1.0), [[1.0, 2.0]] * 9)


def test_a_constant_model_is_noticed() -> None:
    same = _scored(METRICS["top1"], [[0.2, 0.8]] * 4, [0, 1, 0, 1])
    assert constant_output(same) == "The model's output is the same for all 4 samples: it does not depend on its input."
    rows = [[0.2, 0.8 + index / 100] for index in range(12)]
    decided = _scored(METRICS["top1"], rows, [0, 1] * 6)
    sentence = constant_output(decided)
    assert sentence is not None
    assert "decides the same for all 12 samples" in sentence
    # The labels are the same as well: no reason for doubt. Nor with a few samples, or one.
    assert constant_output(_scored(METRICS["top1"], rows, [1] * 12)) is None
    assert constant_output(_scored(METRICS["top1"], rows[:5], [0, 1, 0, 1, 0])) is None
    assert constant_output(_scored(METRICS["top1"], rows[:1], [1])) is None
    assert constant_output(_scored(METRICS["top1"], _THREE, [1, 0, 1])) is None


def test_intervals_and_their_methods() -> None:
    right = _scored(METRICS["top1"], _THREE * 20, [1, 0, 0] * 20)
    found = summarise(right, METRICS["top1"])
    assert (found.low, found.high) == (
        betting.binomial_lower(40, 60, confidence=0.975),
        betting.binomial_upper(40, 60, confidence=0.975),
    )
    assert (found.method, found.n, found.value, found.higher_is_better) == (betting.BINOMIAL_METHOD, 60, 40 / 60, True)

    fractions = PerSample(name="own", score=lambda output, _: float(output[0]))
    between = summarise(_scored(fractions, _THREE * 20), fractions)
    assert between.method == betting.METHOD
    assert 0 <= between.low < between.value < between.high <= 1

    errors = np.random.default_rng(0).normal(size=200)
    distance = summarise(_scored(METRICS["rmse"], errors[:, None], [0.0] * 200), METRICS["rmse"])
    assert distance.method == bootstrap.METHOD
    assert not distance.higher_is_better
    # The standard error of a root mean square of normal values is its value / sqrt(2 n).
    width = (distance.high - distance.low) / (2 * 1.96)
    assert width == pytest.approx(distance.value / math.sqrt(400), rel=0.3)

    few = summarise(_scored(METRICS["auc"], [[0.1], [0.8]], [0, 1]), METRICS["auc"])
    assert (few.low, few.high) == (0, 1)
    assert few.method.startswith("none")
    alone = summarise(_scored(METRICS["mae"], [[1.0]], [0.0]), METRICS["mae"])
    assert (alone.low, alone.value, alone.high) == (1, 1, 1)


@pytest.mark.parametrize("name", ["auc", "f1", "map", "miou"])
def test_a_stack_of_items_gives_what_the_list_gives(name: str) -> None:
    metric = METRICS[name]
    assert isinstance(metric, Whole)
    rng = np.random.default_rng(3)
    if name == "miou":
        kept = [metric.item(rng.random((3, 4, 4)), rng.integers(0, 3, (4, 4))) for _ in range(12)]
    else:
        kept = [metric.item(rng.random(3).astype(np.float32), int(rng.integers(0, 3))) for _ in range(12)]
    chosen = rng.integers(0, 12, 12)
    assert metric.stackable
    assert metric.total(np.stack(kept)[chosen]) == pytest.approx(metric.total([kept[index] for index in chosen]))


def test_long_resamplings_are_fewer() -> None:
    def of(metric: Metric, n: int, items: bytes = b"") -> int:
        values = bytes(8 * n) if isinstance(metric, PerSample) else b""
        found = Scores(
            metric=metric.name, n=n, samples="", value=0, values=values, items=items,
            same_output=False, same_decision=False,
        )  # fmt: skip
        return accuracy.resamples(found, metric)

    assert of(METRICS["rmse"], 300) == bootstrap.RESAMPLES
    assert of(METRICS["rmse"], 40_000) == 1000
    assert of(METRICS["map"], 3000, bytes(4 * 6_000_000)) == 199
    assert of(Whole(name="own", item=lambda *_: 0, total=lambda _: 1.0), 3000, b"1") == 499
