"""Where two models part: the error of every tensor that both compute, where it arises first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgewise.bundle.read import Bundle
from edgewise.compress.quantize.restore import quantized_nodes
from edgewise.compress.statistics import observe
from edgewise.errors import DataError, ModelError
from edgewise.pipeline.culprits import Culprits, Sampled, Timing, closest, culprits
from edgewise.pipeline.export import graph_file
from edgewise.pipeline.inputs import load_model, preprocessing_of
from edgewise.pipeline.judge import open_judge
from edgewise.pipeline.progress import Progress, Quiet
from edgewise.pipeline.request import DataRequest
from edgewise.pipeline.subjects import is_bundle
from edgewise.records.codec import Record
from edgewise.records.tensors import Array, Feeds
from edgewise.samples.bind import Dataset, bind
from edgewise.samples.open import open_source
from edgewise.samples.state import steps


class TensorError(Record, frozen=True, kw_only=True):
    """How far one tensor is off.

    Attributes:
        tensor: Its name, in both models.
        operator: The operator that makes it in the first model.
        sqnr_db: Signal-to-quantization-noise ratio in decibels: 10 log10(sum a^2 / sum (a - b)^2) over all samples;
            None where the two are equal.
        arises_db: By how many decibels it is worse than the worst of the tensors that the node reads: what this node
            itself adds. None where the tensor is equal, or nothing before it is compared.
        largest: Largest difference of one value.
    """

    tensor: str
    operator: str
    sqnr_db: float | None
    arises_db: float | None
    largest: float


class Difference(Record, frozen=True, kw_only=True):
    """The comparison of two models.

    Attributes:
        names: The two models.
        tensors: The tensors that both compute, in graph order.
        samples: How many samples were run.
        quantization: Which layers do the damage, where the second model is quantized and the first is not.
        rescaled: Tensors whose channels were scaled before the second model was quantized: those of the first are
            scaled likewise before they are compared, so that only errors differ.
    """

    names: tuple[str, str]
    tensors: tuple[TensorError, ...]
    samples: int
    quantization: Culprits | None = None
    rescaled: tuple[str, ...] = ()

    def culprits(self) -> tuple[TensorError, ...]:
        """Return the tensors that are off, those whose own node adds most first."""
        off = [error for error in self.tensors if error.sqnr_db is not None]
        return tuple(sorted(off, key=lambda error: -(error.arises_db if error.arises_db is not None else -math.inf)))


@dataclass
class _Sums:
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0

    def add(self, first: Array, second: Array) -> None:
        finite = np.isfinite(first) & np.isfinite(second)  # masks of attention hold infinities on purpose
        a, b = first[finite].astype(np.float64), second[finite].astype(np.float64)
        self.signal += float(np.sum(a * a))
        self.noise += float(np.sum((a - b) ** 2))
        self.largest = max(self.largest, float(np.max(np.abs(a - b), initial=0.0)))

    def sqnr_db(self) -> float | None:
        if self.noise == 0:
            return None
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def diff(
    first: Path,
    second: Path,
    *,
    data: DataRequest,
    samples: int = 32,
    costs: int = 0,
    budget_s: float = 10.0,
    progress: Progress | None = None,
) -> Difference:
    """Compare all tensors of two models that have the same name, over some samples.

    Both graphs run in ONNX Runtime as they are written, so that what is compared is the graphs and not the fusions of a
    runtime. Of a bundle the graph behind its default is taken. Where only the second one is quantized, each of its
    layers is taken back to floating point as well, to see what it does to the outputs.

    Args:
        first: Model file or bundle: the reference.
        second: Model file or bundle.
        data: The samples.
        samples: How many of them, from the first on.
        costs: Of how many of the worst quantized layers to measure what keeping them in floating point costs: of a
            bundle on its own backend, else on ONNX Runtime.
        budget_s: Seconds for that.
        progress: Hears what is done.

    Raises:
        UserError: If a model or the samples cannot be used, or the two have nothing to compare.
    """
    progress = progress or Quiet()
    progress.stage("Reading models and samples")
    models = [load_model(_graph(path), data.shapes) for path in (first, second)]
    graphs = [model.fixed for model in models]
    quantizes = bool(quantized_nodes(graphs[1]) and not quantized_nodes(graphs[0]))
    original = graphs[0]
    rescaled: tuple[str, ...] = ()
    if quantizes:
        like_second, rescaled = closest(graphs[0], graphs[1])
        graphs[0] = like_second if rescaled else original
    producers, others = (_producers(graph) for graph in graphs)
    shared = [name for name in producers if name in others]
    if not shared:
        raise ModelError(
            "Two models can be compared where tensors have the same names, but these share none.",
            hint="Give a model and what was made of it; `edgewise eval` compares any two by their answers.",
        )
    inputs = models[0].facts.inputs
    preprocessing = Bundle.load(second).manifest.preprocessing if is_bundle(second) else None
    dataset = bind(
        open_source(data.samples, preprocessing or preprocessing_of(data), label=data.label), inputs, state=data.state
    )
    count = min(samples, len(dataset))
    if count < 1:
        raise DataError(f"At least one sample has to be compared. Received {samples}.")
    sums = {name: _Sums() for name in shared}
    progress.stage("Comparing", count)
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(open_judge(observe(graph, shared)))) for graph in graphs]
        for index in range(count):
            for step in steps(sessions[0].run, dataset.feeds(index), dataset.state):
                one, other = (session.run(step) for session in sessions)
                for name, total in sums.items():
                    if one[name].dtype.kind == "f" and one[name].shape == other[name].shape:
                        total.add(one[name], other[name])
            progress.step()
    found = None
    if quantizes:
        found = _culprits(
            [original, graphs[1]], dataset, count, timing=_timing(second, costs, budget_s), progress=progress
        )
    return Difference(
        names=(first.name, second.name),
        tensors=tuple(_error(name, producers[name], sums) for name in shared),
        samples=count,
        quantization=found,
        rescaled=rescaled,
    )


def _culprits(
    graphs: Sequence[ir.Model], dataset: Dataset, count: int, *, timing: Timing, progress: Progress
) -> Culprits:
    labels = dataset.labels()
    feeds: Sequence[Feeds] = Sampled(dataset.feeds, count)
    if dataset.state:
        # Each step is a sample of its own, and what was fed back is what the reference gave.
        with closing(open_judge(graphs[0])) as session:
            feeds = [step for index in range(count) for step in steps(session.run, dataset.feeds(index), dataset.state)]
        labels = None
    return culprits(graphs[0], graphs[1], feeds, labels=labels, timing=timing, progress=progress)


def _timing(second: Path, worst: int, budget_s: float) -> Timing:
    if not is_bundle(second):
        return Timing(worst=worst, budget_s=budget_s)
    artifact = Bundle.load(second).rung().artifact
    return Timing(worst=worst, budget_s=budget_s, backend=artifact.backend, options=artifact.options)


def _graph(path: Path) -> Path:
    return graph_file(Bundle.load(path)) if is_bundle(path) else path


def _producers(model: ir.Model) -> dict[str, ir.Node]:
    """Return the node that makes each tensor of the main graph, in graph order."""
    return {value.name: node for node in model.graph for value in node.outputs if value.name}


def _error(name: str, node: ir.Node, sums: Mapping[str, _Sums]) -> TensorError:
    own = sums[name].sqnr_db()
    before = [_before(value, sums) for value in node.inputs if value is not None]
    known = [sqnr for sqnr in before if sqnr is not None]
    worst = min(known, default=math.inf if before else None)
    return TensorError(
        tensor=name,
        operator=node.op_type,
        sqnr_db=own,
        arises_db=None if own is None or worst is None or math.isinf(worst) else worst - own,
        largest=sums[name].largest,
    )


def _before(value: ir.Value, sums: Mapping[str, _Sums]) -> float | None:
    """Return the ratio of the nearest tensor at or before `value` that both models compute, or None if it is equal."""
    while (total := sums.get(value.name or "")) is None:
        producer = value.producer()
        if producer is None or not producer.inputs or producer.inputs[0] is None:
            return None
        value = producer.inputs[0]
    return total.sqnr_db()
