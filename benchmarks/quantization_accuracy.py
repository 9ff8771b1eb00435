"""Accuracy after quantization: the drop against float on the task's own metric, with its paired lower bound."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewise.backends.protocol import Session
from edgewise.measure.accuracy import Scores, scores
from edgewise.measure.certificate import certify
from edgewise.records.certificate import Certificate
from quantized import ToolError, artifact_of, open_session, ours, ready_backends
from rows import Row
from zoo_models import Subject, open_subject

SEED: Final = 0
"""Seed of the calibration samples; the drop is measured on all others."""

W8A8: Final = {
    "efficientnet_lite0": 0.5,
    "resnet56": 0.2,
    "resnet8": 0.2,
    "ds_cnn": 0.3,
    "kwt1": 0.5,
    "ppocrv4_mobile_rec": 0.5,
    "ecg_cnn": 0.1,
    "fastestdet": 0.5,
}
"""Largest drop in points at w8a8."""

W4A8: Final = {"efficientnet_lite0": 1.5, "resnet56": 1.5}
"""Largest drop in points at w4a8."""


@dataclass(frozen=True)
class Question:
    """One drop to measure.

    Attributes:
        scheme: What the model is quantized to.
        ask: Largest drop in points; None where the number only stands beside others.
        rounding: How weights are rounded; None for edgewise's default.
    """

    scheme: str
    ask: float | None
    rounding: str | None = None

    @property
    def words(self) -> str:
        """How the row names it."""
        return "" if self.rounding is None else f", {self.rounding} rounding"


def accuracy(zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str]) -> list[Row]:
    """Return the rows of accuracy at w8a8; the arguments are those of `fidelity`."""
    questions = {name: [Question("w8a8", ask)] for name, ask in W8A8.items()}
    return _answered(zoo, names, questions, command, left_out)


def accuracy_w4a8(zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str]) -> list[Row]:
    """Return the rows of accuracy at w4a8, with those of nearest rounding beside them."""
    questions = {name: [Question("w4a8", ask), Question("w4a8", None, "nearest")] for name, ask in W4A8.items()}
    return _answered(zoo, names, questions, command, left_out)


def _answered(
    zoo: Path,
    names: Sequence[str] | None,
    questions: dict[str, list[Question]],
    command: str,
    left_out: list[str],
) -> list[Row]:
    rows: list[Row] = []
    for name, asked in questions.items():
        if names is None or name in names:
            print(f"{name}: accuracy at {asked[0].scheme} ...", file=sys.stderr, flush=True)
            rows += drops(open_subject(zoo, name), asked, ready_backends(), f"{command} --only {name}", left_out)
    return rows


def drops(
    subject: Subject, questions: Sequence[Question], backends: Sequence[str], command: str, left_out: list[str]
) -> list[Row]:
    """Return the rows of one model: for each question and backend the drop and its lower bound.

    Args:
        subject: The model and its samples.
        questions: What is measured.
        backends: Where.
        command: The command that measures it again.
        left_out: Gets a sentence for everything that could not be measured.
    """
    samples, indices = subject.split(SEED)

    def scored(session: Session) -> Scores:
        try:
            return scores(session.run, subject.dataset, indices, subject.metric)
        finally:
            session.close()

    original = scored(subject.float_session())
    rows = []
    for question in questions:
        options = {} if question.rounding is None else {"rounding": question.rounding}
        for backend in backends:
            what = f"{subject.name}: {ours(backend, question.scheme)}{question.words}"
            try:
                artifact = artifact_of(subject, samples, backend, question.scheme, **options)
            except ToolError as error:
                left_out.append(f"{what}: {error}")
                rows.append(Row(f"{what} fails", 1, "failures", "0", False, 1, command))
                continue
            proof = certify(original, scored(open_session(artifact)), metric=subject.metric, max_drop=0.01)
            rows += drop_rows(what, proof, question.ask, command)
    return rows


def drop_rows(what: str, proof: Certificate, ask: float | None, command: str) -> list[Row]:
    """Return the row that is asked for, the lower bound of a drop, behind the drop itself; both in points."""
    drop, lower = 100 * proof.drop, 100 * proof.lower
    rows = [Row(f"{what}, drop", drop, "points", "none", True, proof.n, command)]
    if ask is not None:
        asked = f"lower bound <= {ask:g}"
        rows.append(Row(f"{what}, lower bound of the drop", lower, "points", asked, lower <= ask, proof.n, command))
    return rows
