"""The metric of one model with its interval; of two, the paired comparison."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgewise.errors import RecipeError
from edgewise.measure.accuracy import Scores, scores, summarise
from edgewise.measure.certificate import certify
from edgewise.measure.machine import describe
from edgewise.measure.metrics import Metric, default_metric, resolve
from edgewise.pipeline.certify import CONFIDENCE
from edgewise.pipeline.inputs import preprocessing_of
from edgewise.pipeline.progress import Progress, Quiet
from edgewise.pipeline.request import DataRequest
from edgewise.pipeline.subjects import Subject, open_subject
from edgewise.records.certificate import Certificate
from edgewise.records.codec import Record
from edgewise.records.measurements import Accuracy
from edgewise.samples.bind import Dataset, bind
from edgewise.samples.open import open_source
from edgewise.samples.state import run_sequence


class Evaluation(Record, frozen=True, kw_only=True):
    """What one or two models reach on all samples.

    Attributes:
        names: What was scored.
        accuracies: The metric of each, where it can be had of one model alone.
        comparison: What the second loses against the first, or None for one model.
    """

    names: tuple[str, ...]
    accuracies: tuple[Accuracy, ...]
    comparison: Certificate | None


def evaluate(
    first: Path,
    second: Path | None,
    *,
    data: DataRequest,
    metric: str | None,
    max_drop: float,
    progress: Progress | None = None,
) -> Evaluation:
    """Score one or two models or bundles on all samples.

    The comparison is the certificate's procedure. It is a certificate only if the samples took part in no decision
    about the second model, which is not known here.

    Raises:
        UserError: If a model, the samples or the metric cannot be used.
    """
    progress = progress or Quiet()
    progress.stage("Reading models and samples")
    subjects = [open_subject(path, shapes=data.shapes) for path in (first, second) if path is not None]
    dataset = _dataset(subjects, data)
    with ExitStack() as stack:
        sessions = [subject.open() for subject in subjects]
        for session in sessions:
            stack.callback(session.close)
        sample = run_sequence(sessions[0].run, dataset.feeds(0), dataset.state)
        chosen = _metric(metric, dataset, next(iter(sample.values())).shape[1:])
        if chosen.against == "original" and len(subjects) == 1:
            raise RecipeError(
                f"The metric `{chosen.name}` compares two models, but one was given.",
                hint="Give a second model, or labels and a metric that uses them.",
            )
        everything = np.arange(len(dataset), dtype=np.int64)
        progress.stage("Scoring", len(dataset) * len(subjects))
        found: list[Scores] = []
        for subject, session in zip(subjects, sessions, strict=True):
            name = subject.name
            found.append(
                scores(
                    session.run,
                    dataset,
                    everything,
                    chosen,
                    reference=sessions[0].run if chosen.against == "original" else None,
                    progress=lambda _, name=name: progress.step(name),  # type: ignore[misc]
                )
            )
    comparison = None
    if len(found) == 2:
        original = None if chosen.against == "original" else found[0]
        comparison = certify(
            original,
            found[1],
            metric=chosen,
            max_drop=max_drop,
            confidence=CONFIDENCE,
            isa=describe(backends={subject.artifact.spec.backend for subject in subjects}).fingerprint,
        )
    return Evaluation(
        names=tuple(subject.name for subject in subjects),
        accuracies=tuple(summarise(one, chosen) for one in found),
        comparison=comparison,
    )


def _dataset(subjects: list[Subject], data: DataRequest) -> Dataset:
    """Open the samples for the first model, as the first bundle among the models prepares them."""
    of_bundle = next((subject for subject in subjects if subject.preprocessing is not None), None)
    asked = preprocessing_of(data) if data.settings is not None or of_bundle is None else of_bundle.preprocessing
    state = data.state or (dict(of_bundle.state) if of_bundle is not None else {})
    return bind(open_source(data.samples, asked, label=data.label), subjects[0].inputs, state=state)


def _metric(name: str | None, dataset: Dataset, output_shape: tuple[int, ...]) -> Metric:
    return resolve(name or default_metric(dataset.labels(), output_shape))
