"""The names of things: candidates, backends, metrics and losses in the words that a reader of the report knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edgewise.records.candidate import Candidate, Fuse, HalveWeights, Prune, Quantize, Step
from edgewise.records.measurements import Accuracy, Ratio
from edgewise.records.run import Run
from edgewise.report import quantities as q

BACKENDS: Final = {"ort": "ONNX Runtime", "openvino": "OpenVINO", "reference": "ONNX reference evaluator"}
"""Proper names; a backend that is not listed goes by its own."""
_PERCENT_METRICS: Final = frozenset({"top1", "top5", "accuracy", "agreement"})
"""Shares of samples, which read best in per cent."""
_UNIT_METRICS: Final = _PERCENT_METRICS | {"auc", "f1", "map", "miou"}
"""Metrics in [0, 1], whose drop is in points."""
# Control characters (line feed and tab are left), lone surrogates, and the marks that turn the direction of text: a
# name that holds them could blank, break or reorder what stands around it.
_INVISIBLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return `text` with every character that cannot be seen, or that reorders others, written as an escape."""
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def cleaned(run: Run) -> Run:
    """Return `run` with `visible` applied to every string in it."""
    return msgspec.convert(_cleaned(msgspec.to_builtins(run)), Run)


def _cleaned(value: Any) -> Any:
    match value:
        case str():
            return visible(value)
        case dict():
            return {_cleaned(key): _cleaned(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_cleaned(entry) for entry in value]
        case _:
            return value


def backend_name(backend: str) -> str:
    """Return the proper name of a backend."""
    return BACKENDS.get(backend, backend)


def described(candidate: Candidate) -> str:
    """Return what a candidate is, in words: "OpenVINO; fused; int8 weights and activations (mse ranges); 1 thread"."""
    options = candidate.options
    parts = [backend_name(candidate.backend)]
    parts += [_step(step) for step in candidate.steps] or ["the model as it came"]
    if options.precision != "fp32":
        parts.append(f"{options.precision} arithmetic")
    if options.graph_optimization == "off":
        parts.append("run as written")
    parts.append(q.plural(options.threads, "thread"))
    return "; ".join(parts)


def _step(step: Step) -> str:
    match step:
        case Fuse():
            return "fused"
        case Quantize():
            return _quantized(step)
        case Prune():
            recovered = ", then trained on the model's own answers" if step.recovered else ""
            return f"pruned, aiming at {100 * step.time:.0f} % of the time{recovered}"
        case HalveWeights():
            return "weights stored as fp16"


def _quantized(step: Quantize) -> str:
    weights, _, activations = step.scheme.removeprefix("w").partition("a")
    bits, _, group = weights.partition("g")
    what = f"{bits}-bit weights" + (f" in groups of {group}" if group else "")
    what += f" and {activations}-bit activations" if activations else ", float activations"
    if step.scheme == "w8a8":
        what = "int8 weights and activations"
    details = [f"{step.ranges} ranges"] if activations else []
    if step.rounding != "nearest":
        details.append(f"{step.rounding} rounding")
    if step.extra_time:
        details.append(f"worst layers in float for {100 * step.extra_time:g} % of the time")
    if step.extra_size:
        details.append(f"8 bits where fewer do the most damage, for {100 * step.extra_size:g} % more bytes")
    return f"{what} ({', '.join(details)})" if details else what


def faster(ratio: Ratio) -> tuple[str, str]:
    """Return how the speed compares, as number and word: 2.41 times, "faster".

    Where the interval holds 1, the measurement does not tell the two apart, and the word says so.
    """
    if ratio.low <= 1 <= ratio.high:
        return q.ratio(ratio.value), "the speed: no measurable difference"
    if ratio.value >= 1:
        return q.ratio(ratio.value), "faster"
    return (q.ratio(1 / ratio.value), "slower") if ratio.value > 0 else (q.ratio(ratio.value), "the speed")


def interval(ratio: Ratio) -> str:
    """Return the interval of a ratio: "95 % interval 2.31 to 2.52", with signs."""
    return f"{q.confidence(ratio.confidence)} interval {q.ratio(ratio.low)} to {q.ratio(ratio.high)}"


def compared(before: float, after: float, better: str, worse: str) -> str:
    """Return how `after` compares where less is better: 3.62 times `smaller`, 1.10 times `larger`, or `equal`."""
    if before <= 0 or after <= 0:
        return q.NONE
    value = before / after
    word, value = (better, value) if value >= 1 else (worse, 1 / value)
    return "equal" if q.ratio(value) == q.ratio(1.0) else f"{q.ratio(value)} {word}"


@dataclass(frozen=True)
class Terms:
    """How this run's metric and its losses are written.

    Attributes:
        metric: Name of the metric.
        percent: Whether its value is written in per cent.
        unit: Unit of a loss: `points`, `%` (of the original's value) or `% of answers` (that changed).
        flips: Whether there are no labels, so that what is bounded is the share of answers that change.
        synthetic: Whether there were no samples, so that the outputs were compared on synthetic ones.
    """

    metric: str
    percent: bool
    unit: str
    flips: bool
    synthetic: bool = False

    @classmethod
    def of(cls, run: Run) -> Terms:
        """Return the terms of `run`.

        The certificates say which kind of loss was bounded. Where there are none, because nothing helped, the
        metric's own range decides, as it does in the search: points in [0, 1], relative change otherwise.
        """
        certificates = [rung.certificate for rung in run.ladder if rung.certificate is not None]
        metric = run.data.metric
        if run.data.synthetic:
            return cls(metric=metric, percent=False, unit="%", flips=False, synthetic=True)
        if certificates:
            flips = certificates[0].claim == "flip-rate"
            relative = certificates[0].relative
        else:
            flips = not run.data.labelled and metric == "agreement"
            values = [outcome.accuracy.value for outcome in run.outcomes if outcome.accuracy is not None]
            relative = metric not in _UNIT_METRICS and not all(0 <= value <= 1 for value in values)
        unit = "% of answers" if flips else "%" if relative else "points"
        return cls(metric=metric, percent=metric in _PERCENT_METRICS, unit=unit, flips=flips)

    def value(self, value: float) -> str:
        """Return a value of the metric."""
        return q.share(value) if self.percent else q.significant(value, 4)

    def accuracy(self, accuracy: Accuracy) -> str:
        """Return a value with its interval: `91.3 % (90.6 % to 92.1 %)`."""
        return f"{self.value(accuracy.value)} ({self.value(accuracy.low)} to {self.value(accuracy.high)})"

    def loss(self, value: float, rounding: str = "nearest") -> str:
        """Return a loss: `0.62 points`."""
        return q.drop(value, unit=self.unit, rounding=rounding)

    @property
    def lost(self) -> str:
        """What a loss is a loss of: `top1 lost`, or `answers changed`, or `outputs off` without samples."""
        if self.synthetic:
            return "outputs off"
        return "answers changed" if self.flips else f"{self.metric} lost"
