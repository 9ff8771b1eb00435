"""Models of the zoo with their samples, opened in this process."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from answers import drawn
from edgewise.backends import registry
from edgewise.backends.protocol import Session
from edgewise.measure.metrics import Metric, resolve
from edgewise.pipeline.inputs import load_model
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Feeds
from edgewise.samples.bind import Dataset, bind
from edgewise.samples.open import open_source
from edgewise.samples.preprocessing import Preprocessing

Indices = npt.NDArray[np.int64]

CALIBRATION: Final = 200
"""Calibration samples, the same for every tool; a quarter of the samples where there are fewer than 800."""


@dataclass(frozen=True)
class Description:
    """What `zoo.toml` does not say of a model.

    Attributes:
        metric: Metric of its task.
        samples: What is opened instead of the data of `zoo.toml`.
        label: Name of the labels.
        shapes: Shapes of dynamic inputs.
    """

    metric: str = "top1"
    samples: str | None = None
    label: str | None = None
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)


CLASSIFIERS: Final = (
    "efficientnet_lite0",
    "squeezenet1_1",
    "resnet56",
    "resnet20",
    "resnet8",
    "ds_cnn",
    "kwt1",
    "vww",
    "ecg_cnn",
)

OTHERS: Final = {
    "fastestdet": Description(metric="zoo_metrics:ap50", samples="zoo_samples:coco128"),
    "ppocrv4_mobile_rec": Description(metric="zoo_metrics:word_accuracy", label="text", shapes={"x": (1, 3, 48, None)}),
}


@dataclass(frozen=True)
class Subject:
    """A model, its samples, and what is measured on them.

    Attributes:
        name: Its name in `zoo.toml`.
        path: Its file.
        model: Its graph with batch 1.
        dataset: The labelled samples.
        calibration: Unlabelled samples, where the zoo has some apart.
        metric: What its accuracy is.
    """

    name: str
    path: Path
    model: ir.Model
    dataset: Dataset
    calibration: Dataset | None
    metric: Metric

    def split(self, seed: int, count: int = CALIBRATION) -> tuple[list[Feeds], Indices]:
        """Return the calibration samples of a seed, and which samples of `dataset` are evaluated: never the same."""
        if self.calibration is not None:
            chosen, _ = drawn(len(self.calibration), count, seed)
            return [self.calibration.feeds(int(index)) for index in chosen], np.arange(len(self.dataset))
        chosen, evaluated = drawn(len(self.dataset), count, seed)
        return [self.dataset.feeds(int(index)) for index in chosen], evaluated

    def float_session(self) -> Session:
        """Return the untouched model in ONNX Runtime."""
        backend = registry.get("ort")
        return backend.open(backend.compile(self.model, RunOptions()))

    def answers(self, session: Session, indices: Indices) -> npt.NDArray[Any]:
        """Return the first output for each sample, flat, as `[N, C]`; the session is closed."""
        try:
            first = session.outputs[0].name
            rows = [np.ravel(session.run(self.dataset.feeds(int(index)))[first]) for index in indices]
        finally:
            session.close()
        return np.stack(rows)


def open_subject(zoo: Path, name: str) -> Subject:
    """Open a model and its samples.

    Raises:
        EdgewiseError: If a file is missing or damaged.
    """
    described = next(model for model in _described(zoo) if model["name"] == name)
    more = OTHERS.get(name, Description())
    os.environ["EDGEWISE_ZOO"] = str(zoo)  # zoo_samples reads it
    if "characters" in described:
        os.environ["WORD_CHARACTERS"] = str(zoo / described["characters"])  # zoo_metrics reads it
    loaded = load_model(zoo / described["path"], more.shapes)
    preprocessing = msgspec.convert(described.get("preprocessing", {}), Preprocessing)

    def opened(spec: str) -> Dataset:
        return bind(open_source(spec, preprocessing, label=more.label), loaded.facts.inputs)

    apart = described.get("calibration")
    return Subject(
        name=name,
        path=zoo / described["path"],
        model=loaded.fixed,
        dataset=opened(more.samples or str(zoo / described["data"])),
        calibration=opened(str(zoo / apart)) if apart else None,
        metric=resolve(more.metric),
    )


def _described(zoo: Path) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = tomllib.loads((zoo / "zoo.toml").read_text(encoding="utf-8"))["model"]
    return models
