"""What every row of pruning needs: samples apart, pruned models, their accuracy, work and time."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from answers import Indices
from edgewise.analysis.cost import layer_costs, total_macs
from edgewise.backends import registry
from edgewise.backends.protocol import Artifact
from edgewise.errors import EdgewiseError
from edgewise.measure.accuracy import Scores, scores
from edgewise.measure.certificate import certify
from edgewise.pipeline.library import prune
from edgewise.records.candidate import Precision, RunOptions
from edgewise.records.certificate import Certificate
from edgewise.records.tensors import Feeds
from quantized import ToolError, open_session
from rows import Row
from zoo_models import CALIBRATION, Subject, open_subject

SAMPLES: Final = 2000
"""Unlabelled samples that prune, calibrate and recover."""

MOST_SHARE: Final = 0.4
"""At most this share of the samples is taken away from those that are scored: 2,000 of 5,000."""

SEED: Final = 0
BOUND: Final = 0.01


@dataclass(frozen=True)
class Extent:
    """How long things are measured.

    Attributes:
        timing_s: Seconds of one comparison of latencies.
        recover_s: Seconds of one recovery.
        budget: Budget of one run of `edgewise optimize`.
        most_scored: Samples that are scored at most; None for all.
    """

    timing_s: float = 40.0
    recover_s: float = 300.0
    budget: str = "5m"
    most_scored: int | None = None


QUICK: Final = Extent(timing_s=6.0, recover_s=20.0, budget="1m", most_scored=500)
"""For a look at whether everything runs: its numbers prove nothing."""


@dataclass(frozen=True)
class Split:
    """A model with its samples apart.

    Attributes:
        subject: The model.
        samples: What prunes, calibrates and recovers, without labels.
        scored: Which samples of the subject's data are scored: never one of `samples`.
    """

    subject: Subject
    samples: list[Feeds]
    scored: Indices

    @property
    def calibration(self) -> list[Feeds]:
        """Those of the samples that quantization calibrates with, spread evenly."""
        return self.samples[:: max(1, len(self.samples) // CALIBRATION)][:CALIBRATION]

    def score(self, artifact: Artifact) -> Scores:
        """Return what a model scores."""
        session = open_session(artifact)
        try:
            return scores(session.run, self.subject.dataset, self.scored, self.subject.metric)
        finally:
            session.close()

    def proof(self, original: Scores, artifact: Artifact) -> Certificate:
        """Return how much worse a model is than the original, with bounds."""
        return certify(original, self.score(artifact), metric=self.subject.metric, max_drop=BOUND)


def parted(total: int, count: int, seed: int = SEED) -> tuple[Indices, Indices]:
    """Return which samples are used without labels and which are scored: disjoint, together all, ascending.

    Args:
        total: How many there are.
        count: How many are used; fewer where that is more than `MOST_SHARE` of all.
        seed: Equal seeds draw equal samples.
    """
    order = np.random.default_rng(seed).permutation(total)
    used = max(1, min(count, int(MOST_SHARE * total)))
    return np.sort(order[:used]), np.sort(order[used:])


def split(zoo: Path, name: str, extent: Extent) -> Split:
    """Open a model, its samples apart; those that the zoo has without labels are used where there are some."""
    subject = open_subject(zoo, name)
    if subject.calibration is not None:
        used = range(min(SAMPLES, len(subject.calibration)))
        samples: list[Feeds] = [subject.calibration.feeds(index) for index in used]
        scored = np.arange(len(subject.dataset))
    else:
        chosen, scored = parted(len(subject.dataset), SAMPLES)
        samples = [subject.dataset.feeds(int(index)) for index in chosen]
    if extent.most_scored is not None:
        scored = scored[:: max(1, len(scored) // extent.most_scored)]
    return Split(subject, samples, scored)


def pruned(model: ir.Model, samples: Sequence[Feeds], **goal: Any) -> ir.Model:
    """Return what `edgewise.prune` makes.

    Args:
        model: The float model.
        samples: Without labels.
        goal: What it is asked for: `neurons=0.5`, `latency=0.6`, `recover_s=60` ...

    Raises:
        ToolError: If it refuses or fails.
    """
    words = "edgewise prune " + " ".join(f"{name}={value}" for name, value in goal.items())
    try:
        return prune(model, samples, **goal)
    except EdgewiseError as error:
        raise ToolError(f"{words}: {error.message}") from error
    except Exception as error:  # a fault of ours is a row that is missed, and costs no other row
        raise ToolError(f"{words}: {type(error).__name__}: {str(error)[:200]}") from error


def compiled(model: ir.Model, backend: str, precision: Precision = "fp32") -> Artifact:
    """Return a model as a backend runs it.

    Raises:
        ToolError: If the backend refuses.
    """
    try:
        return registry.get(backend).compile(model, RunOptions(precision=precision))
    except EdgewiseError as error:
        raise ToolError(f"{backend}: {error.message}") from error


def macs(model: ir.Model) -> int:
    """Return the multiply-accumulates of one inference."""
    return total_macs(layer_costs(model))


def points(proof: Certificate) -> float:
    """Return the observed drop in points."""
    return 100 * proof.drop


def drop_row(what: str, proof: Certificate, ask: float | None, command: str) -> Row:
    """Return the observed drop against float, with its interval in the ask."""
    interval = f"{100 * proof.lower:.2f} to {100 * proof.upper:.2f}"
    asked = f"none ({interval})" if ask is None else f"<= {ask:g} ({interval})"
    met = ask is None or points(proof) <= ask
    return Row(f"{what}, drop", points(proof), "points", asked, met, proof.n, command)


def accuracy_row(what: str, found: Scores, least: float | None, command: str) -> Row:
    """Return the share of samples that are right, in per cent, of a metric that scores each sample."""
    value = 100 * float(found.array().mean())
    ask, met = ("none", True) if least is None else (f">= {least:g}", value >= least)
    return Row(f"{what}, accuracy", value, "%", ask, met, len(found.array()), command)


def failure(what: str, error: Exception, command: str, left_out: list[str]) -> Row:
    """Return the missed row of what could not be made, and say why in `left_out`."""
    left_out.append(f"{what}: {error}")
    return Row(f"{what} fails", 1, "failures", "0", False, 1, command)


def why_no_recovery() -> str:
    """Return why nothing can be recovered here; empty where it can."""
    return "" if importlib.util.find_spec("torch") else "torch is not installed (edgewise[torch] brings it)"


def wanted(table: Mapping[str, Any], names: Sequence[str] | None) -> list[str]:
    """Return the models of a table that are asked for."""
    return [name for name in table if names is None or name in names]


def say(words: str) -> None:
    """Tell whoever waits what is done now."""
    print(f"{words} ...", file=sys.stderr, flush=True)
