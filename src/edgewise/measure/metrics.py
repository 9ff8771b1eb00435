"""The metrics, as a table, and how a name becomes one. The arithmetic is in `scoring.py`.

A metric is either `PerSample`, one number a sample whose mean is the metric (certificates are exact where the number
is bounded), or `Whole`, a function of all samples at once (bootstrap). One of your own is `package.module:object`
with `per_sample(output, label)` or `whole(outputs, labels)`, and optionally `higher_is_better` (True), `bounds`
(`(0, 1)`; None says that there are none) and `output`: the name of the output that it reads, or `outputs = "all"` for
a dictionary of all of them. Without a name it reads the model's first output. Outputs come without the
batch axis. With `item(output, label)` beside it, `whole(items)` gets what that returned of each sample instead: a
bootstrap calls `whole` some thousand times, so what can be done once a sample belongs into `item`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewise.errors import RecipeError
from edgewise.measure import scoring

FIRST: Final = ""
ALL: Final = "all"


@dataclass(frozen=True, kw_only=True)
class PerSample:
    """A metric that is the mean of one score a sample.

    Attributes:
        name: Its name.
        score: The score of `(output, label)`; for `against="original"`, of `(output, output of the original)`.
        higher_is_better: Direction.
        bounds: Least and greatest possible score, or None.
        output: Name of the output that it reads, `""` for the first, `"all"` for a dictionary of all.
        against: What `score` compares with.
        root: Whether the metric is the square root of the mean (`rmse`).
        flips: Whether 1 means "the same answer" and 0 "another one", so that the mean loss is a flip rate.
    """

    name: str
    score: Callable[[Any, Any], float]
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)
    output: str = FIRST
    against: Literal["labels", "original"] = "labels"
    root: bool = False
    flips: bool = False

    def total(self, scores: Sequence[float] | npt.NDArray[np.float64]) -> float:
        """Return the metric of these scores."""
        mean = float(np.mean(scores))
        return math.sqrt(mean) if self.root else mean

    @property
    def relative(self) -> bool:
        """Whether a drop is a fraction of the original's value rather than a difference in points."""
        return _is_relative(self.bounds) and self.against == "labels"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A metric of all samples at once.

    Attributes:
        name: Its name.
        item: What is kept of `(output, label)`: as little as `total` needs.
        total: The metric of these items; NaN where it is not defined, as for an AUC without positives.
        stackable: Whether items are arrays, and `total` takes one array of all of them as well, samples first.
        higher_is_better: Direction.
        bounds: Least and greatest possible value, or None.
        output: As for `PerSample`.
    """

    name: str
    item: Callable[[Any, Any], Any]
    total: Callable[[Any], float]
    stackable: bool = False
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)
    output: str = FIRST
    against: Literal["labels"] = "labels"

    @property
    def relative(self) -> bool:
        """Whether a drop is a fraction of the original's value rather than a difference in points."""
        return _is_relative(self.bounds)


Metric: TypeAlias = PerSample | Whole

METRICS: Final[dict[str, Metric]] = {
    metric.name: metric
    for metric in (
        PerSample(name="top1", score=scoring.top1),
        PerSample(name="top5", score=scoring.top5),
        PerSample(name="accuracy", score=scoring.accuracy),
        Whole(name="auc", item=scoring.scores_and_label, total=scoring.auc, stackable=True),
        Whole(name="f1", item=scoring.decision_and_label, total=scoring.f1, stackable=True),
        Whole(name="map", item=scoring.scores_and_label, total=scoring.mean_average_precision, stackable=True),
        Whole(name="miou", item=scoring.overlaps, total=scoring.mean_intersection_over_union, stackable=True),
        PerSample(name="rmse", score=scoring.squared_error, higher_is_better=False, bounds=None, root=True),
        PerSample(name="mae", score=scoring.absolute_error, higher_is_better=False, bounds=None),
        PerSample(name="psnr", score=scoring.psnr, bounds=None),
        PerSample(name="agreement", score=scoring.agreement, against="original", flips=True),
        PerSample(name="cosine", score=scoring.cosine, against="original", bounds=(-1.0, 1.0)),
    )
}


def resolve(name: str) -> Metric:
    """Return the metric `name`: a key of `METRICS` or `package.module:object`.

    The current folder is searched for the module as well, because that is where a user's own metric lies.

    Raises:
        RecipeError: If there is none of that name, or if the object has neither `per_sample` nor `whole`.
    """
    if ":" in name:
        return _of_user(name)
    metric = METRICS.get(name)
    if metric is None:
        raise RecipeError(
            f"A metric has to be one of {', '.join(f'`{known}`' for known in METRICS)}, or `package.module:object`. "
            f"Received `{name}`.",
            hint="A metric of your own is an object with `per_sample(output, label)` or `whole(outputs, labels)`.",
        )
    return metric


def default_metric(labels: Sequence[Any] | None, output_shape: tuple[int, ...]) -> str:
    """Return the metric that is meant when none is named.

    Without labels `agreement`. With whole-number labels `top1` where the output's last axis holds at least two class
    scores, one label a position of the other axes; `accuracy` where it is a single score and the labels are 0 and 1
    (or booleans). With labels that are numbers with a fraction and have the output's shape, `mae`.

    Args:
        labels: All labels, or None. The first that is not None decides, and for numbers all do.
        output_shape: Shape of the model's first output without the batch axis.

    Raises:
        RecipeError: If none of these fits.
    """
    present = [label for label in labels or () if label is not None]
    if not present:
        return "agreement"
    first = np.asarray(present[0])
    size = math.prod(output_shape)
    classes = output_shape[-1] if output_shape else 1
    whole = first.dtype.kind in "iub" or (
        first.dtype.kind == "f" and all(np.all(np.mod(np.asarray(label), 1) == 0) for label in present)
    )
    if first.dtype.kind in "iub" and classes >= 2 and first.size in {1, size // classes, classes}:
        return "top1"
    if whole and size == 1 and all(np.all(np.isin(np.asarray(label), (0, 1))) for label in present):
        return "accuracy"
    if first.dtype.kind in "iuf" and first.size == size:
        return "mae"
    raise RecipeError(
        f"No metric follows from labels of type {first.dtype} and shape {first.shape} and an output of shape "
        f"{output_shape}: one has to be named.",
        hint=f"Give --metric, one of {', '.join(METRICS)}, or package.module:object.",
    )


def _is_relative(bounds: tuple[float, float] | None) -> bool:
    return bounds is None or bounds[0] < 0 or bounds[1] > 1


def _of_user(name: str) -> Metric:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there, but something that it imports is not: its own traceback says what
        raise RecipeError(
            f"The metric `{name}` has to name a module that can be imported, but there is no `{error.name}`.",
            hint="Modules are looked for in the current folder and in the environment.",
        ) from error
    except (AttributeError, ValueError) as error:
        raise RecipeError(
            f"The metric `{name}` has to name an object, but `{module_name}` has no `{attribute}`."
        ) from error
    if isinstance(found, type):
        found = found()
    return _adapt(name, found)


def _adapt(name: str, found: Any) -> Metric:
    per_sample, whole = getattr(found, "per_sample", None), getattr(found, "whole", None)
    higher = bool(getattr(found, "higher_is_better", True))
    bounds = _bounds(name, getattr(found, "bounds", (0.0, 1.0)))
    output = getattr(found, "output", getattr(found, "outputs", FIRST))
    if not isinstance(output, str):
        raise RecipeError(
            f"`output` of the metric `{name}` has to be the name of an output or `all`. Received {output!r}."
        )
    if callable(per_sample):
        return PerSample(name=name, score=per_sample, higher_is_better=higher, bounds=bounds, output=output)
    if callable(whole):
        item = getattr(found, "item", None)
        return Whole(
            name=name,
            item=item if callable(item) else lambda output, label: (output, label),
            total=(
                (lambda items: float(whole(items)))
                if callable(item)
                else (lambda items: float(whole([pair[0] for pair in items], [pair[1] for pair in items])))
            ),
            higher_is_better=higher,
            bounds=bounds,
            output=output,
        )
    raise RecipeError(f"The metric `{name}` has to have `per_sample(output, label)` or `whole(outputs, labels)`.")


def _bounds(name: str, bounds: Any) -> tuple[float, float] | None:
    if bounds is None:
        return None
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"`bounds` of the metric `{name}` has to be two numbers or None. Received {bounds!r}."
        ) from error
    if not low < high:
        raise RecipeError(f"`bounds` of the metric `{name}` has to be in order. Received {low}, {high}.")
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
