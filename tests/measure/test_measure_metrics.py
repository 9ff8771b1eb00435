"""Metrics: the arithmetic against plain definitions, how names resolve, and each thing that does not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.errors import DataError, RecipeError
from edgewise.measure import metrics, scoring
from edgewise.measure.metrics import METRICS, PerSample, Whole


def _scores(*values: float) -> Any:
    return np.asarray(values, np.float32)


@given(scores=hnp.arrays(np.float32, st.integers(6, 12), elements=st.integers(0, 4).map(float)), data=st.data())
def test_top_k_is_membership_in_a_stable_sort(scores: Any, data: st.DataObject) -> None:
    label = data.draw(st.integers(0, scores.size - 1))
    order = np.argsort(-scores, kind="stable").tolist()
    assert scoring.top1(scores, label) == float(label in order[:1])
    assert scoring.top5(scores, label) == float(label in order[:5])
    assert scoring.accuracy(scores, label) == scoring.top1(scores, label)


def test_positions_have_decisions_of_their_own() -> None:
    output = np.asarray([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert scoring.top1(output, np.asarray([1, 0, 0, 0])) == 0.75
    assert scoring.accuracy(output, [1, 1, 1, 1]) == 0.5


def test_labels_may_be_whole_floats_or_one_hot() -> None:
    assert scoring.top1(_scores(0, 3, 1), np.float32(1.0)) == 1
    assert scoring.top1(_scores(0, 3, 1), np.asarray([0, 0, 1])) == 0
    assert scoring.top1(_scores(0, 3, 1), np.asarray([1])) == 1
    assert scoring.accuracy(_scores(0, 3, 1), np.asarray([0, 1, 0])) == 1


@pytest.mark.parametrize(
    ("score", "output", "label", "message"),
    [
        (scoring.top1, _scores(1, 2, 3), 3, "in 0 to 2, because the model has 3 classes. Received 3"),
        (scoring.top1, _scores(1, 2, 3), -1, "Received -1"),
        (scoring.accuracy, _scores(0.2), 2, "in 0 to 1"),
        (scoring.top5, _scores(1, 2, 3), None, "needs labels"),
        (scoring.top1, _scores(1, 2, 3), 1.5, "whole numbers"),
        (scoring.top1, _scores(1, 2, 3), math.nan, "Received NaN"),
        (scoring.top1, _scores(1, 2, 3), "cat", "Received 'cat'"),
        (scoring.top1, _scores(1, 2, 3), [1, 2], "one class a position"),
        (scoring.top1, _scores(1, 2, 3), [1, 1, 0], "one class a position"),
        (scoring.top1, _scores(0.4), 0, "at least two class scores"),
        (scoring.squared_error, _scores(1, 2), 1.0, "as many numbers as the output"),
        (scoring.absolute_error, _scores(1), None, "needs labels"),
        (scoring.overlaps, np.zeros((3, 4, 4)), np.zeros((5, 5)), "one axis of classes before or after"),
        (scoring.overlaps, np.zeros((3, 2, 2)), np.full((2, 2), 3), "Received 3"),
        (scoring.scores_and_label, _scores(1, 2, 3), 7, "in 0 to 2"),
        (scoring.scores_and_label, _scores(1, 2, 3), [2, 0], "one 0/1 entry for each of 3"),
        (scoring.agreement, _scores(1, 2, 3), _scores(1, 2), "outputs of one shape"),
        (scoring.cosine, _scores(1, 2, 3), _scores(1, 2), "outputs of one shape"),
    ],
)
def test_what_does_not_fit_is_said(score: Any, output: Any, label: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(output, label)


def test_a_single_score_is_cut_at_one_half() -> None:
    assert scoring.decisions(_scores(0.5)) == 1
    assert scoring.decisions(np.float32(0.49) * np.ones(())) == 0
    assert scoring.accuracy(_scores(0.7), 1) == 1
    assert scoring.accuracy(np.asarray([[0.7], [0.1]]), [1, 1]) == 0.5
    assert scoring.accuracy(np.asarray([4, 2]), [4, 3]) == 0.5


def test_f1_of_two_classes_and_of_many() -> None:
    items = [np.asarray([[decision], [label]]) for decision, label in ((1, 1), (1, 0), (0, 1), (1, 1), (0, 0))]
    assert scoring.f1(items) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    many = [np.asarray([[0, 1, 2, 2], [0, 2, 2, 1]])]
    # Class 0: 1; class 1: 0; class 2: 2 * 1 / (2 + 2).
    assert scoring.f1(many) == pytest.approx((1 + 0 + 0.5) / 3)
    assert math.isnan(scoring.f1([np.asarray([[0], [0]])]))
    assert math.isnan(scoring.f1([np.zeros((2, 0), np.int64)]))


@given(data=st.data(), n=st.integers(2, 30))
def test_auc_is_the_share_of_pairs_in_order(data: st.DataObject, n: int) -> None:
    scores = data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    labels = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    positive = [score for score, label in zip(scores, labels, strict=True) if label]
    negative = [score for score, label in zip(scores, labels, strict=True) if not label]
    pairs = [(one > other) + 0.5 * (one == other) for one in positive for other in negative]
    found = scoring.auc([scoring.scores_and_label(_scores(s), a) for s, a in zip(scores, labels, strict=True)])
    two = scoring.auc([scoring.scores_and_label(_scores(-s, 0), a) for s, a in zip(scores, labels, strict=True)])
    if pairs:
        assert found == pytest.approx(np.mean(pairs))
        assert two == pytest.approx(found)
    else:
        assert math.isnan(found)


def test_auc_of_many_classes_is_their_mean() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.random((40, 3)).astype(np.float32), rng.integers(0, 2, 40)
    items = [scoring.scores_and_label(o, int(c)) for o, c in zip(outputs, labels, strict=True)]
    each = [
        scoring.auc([scoring.scores_and_label(o[c : c + 1], int(k == c)) for o, k in zip(outputs, labels, strict=True)])
        for c in (0, 1)
    ]
    # Class 2 has no positive and is left out.
    assert scoring.auc(items) == pytest.approx(np.mean(each))


def test_average_precision_by_hand() -> None:
    # Ranked: hit, miss, hit, miss: precision 1 at the first hit, 2/3 at the second.
    items = [scoring.scores_and_label(_scores(s), y) for s, y in ((9, 1), (8, 0), (7, 1), (6, 0))]
    assert scoring.mean_average_precision(items) == pytest.approx((1 + 2 / 3) / 2)
    tied = [scoring.scores_and_label(_scores(1), y) for y in (1, 0, 0, 1)]
    assert scoring.mean_average_precision(tied) == pytest.approx(0.5)
    several = [scoring.scores_and_label(_scores(3, 1), [1, 1]), scoring.scores_and_label(_scores(2, 2), [0, 0])]
    assert scoring.mean_average_precision(several) == pytest.approx((1 + 0.5) / 2)
    assert math.isnan(scoring.mean_average_precision([scoring.scores_and_label(_scores(1), 0)]))


def test_intersection_over_union_by_hand() -> None:
    label = np.asarray([[0, 0], [1, 255]])
    scores = np.zeros((2, 2, 2))
    scores[1] = [[0, 1], [1, 1]]  # decisions 0 1 / 1 1; the last pixel is ignored
    scores[0] = 0.5
    expected = (1 / 2 + 1 / 2) / 2
    assert scoring.mean_intersection_over_union([scoring.overlaps(scores, label)]) == pytest.approx(expected)
    last = np.moveaxis(np.stack([scores[0], scores[1], scores[0] - 1]), 0, -1)
    assert scoring.mean_intersection_over_union([scoring.overlaps(last, label)]) == pytest.approx(expected)
    as_map = scoring.overlaps(np.asarray([[0, 1], [1, 1]]), label)
    assert scoring.mean_intersection_over_union([as_map]) == pytest.approx(expected)
    # Items of class maps differ in length.
    longer = np.asarray([[0, 0, 4], [0, 0, 4], [0, 0, 4]])
    assert scoring.mean_intersection_over_union([as_map, longer]) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert math.isnan(scoring.mean_intersection_over_union([np.zeros((3, 2), np.int64)]))


def test_errors_and_psnr() -> None:
    assert scoring.squared_error(_scores(1, 3), [0, 1]) == 2.5
    assert scoring.absolute_error(_scores(1, 3), np.asarray([[0], [1]])) == 1.5
    assert scoring.psnr(_scores(0.1), [0.0]) == pytest.approx(20, abs=1e-5)
    assert scoring.psnr(np.asarray([25.5]), np.asarray([0], np.uint8)) == pytest.approx(20)
    assert scoring.psnr(_scores(0.5), [0.5]) == scoring.HIGHEST_PSNR
    rmse = METRICS["rmse"]
    assert isinstance(rmse, PerSample)
    assert rmse.total([9.0, 16.0]) == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(
    ("output", "original", "share"),
    [
        (_scores(1, 2, 9), _scores(1, 2, 3), 1.0),
        (_scores(4, 2, 3), _scores(1, 2, 3), 0.0),
        (np.asarray([[0, 1], [1, 0]], np.float32), np.asarray([[0, 1], [0, 1]], np.float32), 0.5),
        (_scores(0.6), _scores(0.5), 1.0),
        (_scores(0.4), _scores(0.5), 0.0),
        (_scores(100.9), _scores(100), 1.0),
        (_scores(101.1), _scores(100), 0.0),
        (np.asarray([[-5.0], [3.2]]), np.asarray([[-5.0], [3.0]]), 0.5),
        (np.asarray([1, 2, 3]), np.asarray([1, 2, 4]), 2 / 3),
    ],
)
def test_agreement(output: Any, original: Any, share: float) -> None:
    assert scoring.agreement(output, original) == pytest.approx(share)


def test_cosine() -> None:
    assert scoring.cosine(_scores(1, 2), _scores(2, 4)) == pytest.approx(1)
    assert scoring.cosine(_scores(1, 0), _scores(0, 1)) == 0
    assert scoring.cosine(_scores(1, 0), _scores(-1, 0)) == -1
    assert scoring.cosine(_scores(0, 0), _scores(0, 0)) == 1
    assert scoring.cosine(_scores(0, 0), _scores(1, 0)) == 0


def test_the_table_has_the_documented_metrics() -> None:
    assert set(METRICS) == {
        "top1", "top5", "accuracy", "auc", "f1", "map", "miou", "rmse", "psnr", "agreement", "cosine", "mae",
    }  # fmt: skip
    assert {name for name, metric in METRICS.items() if metric.relative} == {"rmse", "mae", "psnr"}
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {"rmse", "mae"}


def test_an_unknown_metric_is_declined() -> None:
    with pytest.raises(RecipeError, match="Received `top2`") as caught:
        metrics.resolve("top2")
    assert "`miou`" in caught.value.message
    assert metrics.resolve("top1") is METRICS["top1"]


_MODULE = """
class Near:
    def per_sample(self, output, label):
        return float(abs(output - label) < 1)
    bounds = (0, 1)
    output = "distance"

class Mean:
    higher_is_better = False
    bounds = None
    outputs = "all"
    def whole(self, outputs, labels):
        return sum(labels) / len(outputs)

class Counted:
    bounds = None
    def item(self, output, label):
        return 10 * label
    def whole(self, items):
        return sum(items)

class Count:
    def item(self, output, label):
        return [len(output), label]
    def whole(self, items):
        return sum(length == label for length, label in items) / len(items)

near = Near()
class box:
    inner = near
nothing = 3
class Bad(Near):
    bounds = (1, 0)
class Worse(Near):
    bounds = "ab"
class Third(Near):
    output = 3
class Endless(Near):
    bounds = (0, float("inf"))
"""


def test_metrics_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text(_MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    near = metrics.resolve("own_metric:near")
    assert isinstance(near, PerSample)
    assert (near.output, near.bounds, near.higher_is_better, near.relative) == ("distance", (0.0, 1.0), True, False)
    assert near.score(np.float32(1), 1.5) == 1
    assert isinstance(metrics.resolve("own_metric:box.inner"), PerSample)
    counted = metrics.resolve("own_metric:Counted")
    assert isinstance(counted, Whole)
    assert counted.total([counted.item(None, 1), counted.item(None, 2)]) == 30
    mean = metrics.resolve("own_metric:Mean")
    assert isinstance(mean, Whole)
    assert (mean.output, mean.bounds, mean.higher_is_better, mean.relative) == ("all", None, False, True)
    assert mean.total([mean.item("a", 1), mean.item("b", 2)]) == 1.5
    assert metrics.resolve("own_metric:Endless").bounds is None
    count = metrics.resolve("own_metric:Count")
    assert isinstance(count, Whole)
    assert count.total([count.item("ab", 2), count.item("abc", 2)]) == 0.5
    for name, message in (
        ("own_metric:nothing", "has to have `per_sample"),
        ("own_metric:missing", "has no `missing`"),
        ("absent_module:x", "there is no `absent_module`"),
        ("own_metric:Bad", "in order"),
        ("own_metric:Worse", "two numbers or None"),
        ("own_metric:Third", "name of an output or `all`"),
        (":x", "has no `x`"),
    ):
        with pytest.raises(RecipeError, match=message):
            metrics.resolve(name)


def test_a_broken_import_inside_a_metric_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_metric.py").write_text("import not_there_at_all\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        metrics.resolve("broken_metric:x")


@pytest.mark.parametrize(
    ("labels", "shape", "name"),
    [
        (None, (10,), "agreement"),
        ([None, None], (10,), "agreement"),
        ([3, 7], (10,), "top1"),
        ([np.int64(3)], (10,), "top1"),
        ([np.zeros(7, np.int64)], (7, 5), "top1"),
        ([0, 1], (1,), "accuracy"),
        ([True, False], (), "accuracy"),
        ([0.0, 1.0], (1,), "accuracy"),
        ([112, 80], (1,), "mae"),
        ([112.5, 80.0], (1,), "mae"),
        ([np.zeros((3, 8, 8))], (3, 8, 8), "mae"),
    ],
)
def test_the_default_metric(labels: Any, shape: tuple[int, ...], name: str) -> None:
    assert metrics.default_metric(labels, shape) == name


@pytest.mark.parametrize(("labels", "shape"), [(["cat"], (10,)), ([np.zeros((4, 5))], (10,)), ([0.5], (10,))])
def test_no_default_where_none_follows(labels: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="one has to be named"):
        metrics.default_metric(labels, shape)
