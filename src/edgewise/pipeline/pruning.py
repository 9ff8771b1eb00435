"""One kind of pruning alone: what `edgewise prune` and `edgewise.prune` do."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, get_args

import onnx_ir as ir

from edgewise.analysis.coupling import Group
from edgewise.backends import registry
from edgewise.errors import DataError, OutputError, RecipeError
from edgewise.formats.onnx import save
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline.inputs import Split, load_model, open_data
from edgewise.pipeline.judge import opened
from edgewise.pipeline.progress import Progress, Quiet
from edgewise.pipeline.prune import PatternName, Pruned, Pruner, compare, nothing_pruned
from edgewise.pipeline.pruning_choices import Choice, is_stream
from edgewise.pipeline.quantize import Held
from edgewise.pipeline.request import DataRequest
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import Record
from edgewise.records.findings import Decline
from edgewise.records.pruning import Pruning, PruningTrial
from edgewise.records.tensors import Feeds
from edgewise.samples.state import steps

MOST_SAMPLES: Final = 2000
"""Samples that are kept in memory and fitted to; more change little and take time."""


MATRIX_RANK: Final = 2
HALF: Final = 0.5

QUANTIZED: Final = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
"""Operators that quantized models have, and no other."""


class Neurons(Record, frozen=True, kw_only=True, tag="neurons"):
    """Take a share of the units of every group that is not a residual stream, in (0, 1)."""

    share: float


class Layers(Record, frozen=True, kw_only=True, tag="layers"):
    """Take so many residual branches or blocks, >= 1, those that do the least damage."""

    count: int


class Weights(Record, frozen=True, kw_only=True, tag="weights"):
    """Set a share of the weights to zero, in (0, 1), where the pattern allows it."""

    share: float
    pattern: PatternName = "unstructured"


class Time(Record, frozen=True, kw_only=True, tag="time"):
    """Take what does the least damage until the time is at most this share of the whole model's, in (0, 1)."""

    share: float


Ask: TypeAlias = Neurons | Layers | Weights | Time


class PruneResult(Record, frozen=True, kw_only=True):
    """What `edgewise prune` did.

    Attributes:
        file: The pruned model.
        asked: What was asked for.
        pruning: What was taken.
        held_out: The result against the whole model, on samples that no step saw.
        zeros: Share of the numbers in the pruned model's weights that are zero.
        declines: What was left as it is, and why.
        open_batch: Name of the batch dimension of the file, which is 1 in the pruned model; None where it was fixed.
    """

    file: str
    asked: Ask
    pruning: Pruning
    held_out: PruningTrial
    zeros: float
    declines: tuple[Decline, ...]
    open_batch: str | None = None


@dataclass(frozen=True)
class Way:
    """How a pruned model will run, and what may be done for it.

    Attributes:
        backend: Where it will run: what is saved is measured there.
        quantized: Whether it will be quantized to 8 bits: then 8-bit layers are timed.
        options: Threads and precision.
        recover_s: Seconds of training on the whole model's answers afterwards; 0 for none.
        seed: Seed of every draw.
    """

    backend: str = "ort"
    quantized: bool = True
    options: RunOptions = field(default_factory=RunOptions)
    recover_s: float = 0.0
    seed: int = 0


def check(ask: Ask) -> None:
    """Refuse what cannot be meant.

    Raises:
        RecipeError: If a share is not between 0 and 1, or not that of the pattern, or a count below 1.
    """
    match ask:
        case Layers(count=count):
            if not isinstance(count, int) or count < 1:
                raise RecipeError(f"The number of layers has to be a whole number of 1 or more. Received {count}.")
        case Neurons(share=share) | Weights(share=share) | Time(share=share):
            if isinstance(ask, Weights) and ask.pattern not in get_args(PatternName):
                raise RecipeError(
                    f"The pattern has to be one of {', '.join(get_args(PatternName))}. Received `{ask.pattern}`."
                )
            if isinstance(ask, Weights) and ask.pattern == "2:4" and share != HALF:
                raise RecipeError(f"The pattern 2:4 sets half of the weights to zero: ask for 0.5. Received {share:g}.")
            if not isinstance(share, int | float) or not 0 < share < 1:
                raise RecipeError(f"A share has to be a number between 0 and 1, both excluded. Received {share}.")


def require_float(model: ir.Model) -> None:
    """Refuse a model that is quantized already: its weights are integers on a grid that pruning would leave.

    Raises:
        RecipeError: If it is.
    """
    if is_quantized(model):
        raise RecipeError(
            "A model has to be pruned before it is quantized, but this one is quantized already.",
            hint="Give the float model; `edgewise optimize` and `edgewise.quantize` quantize what is left.",
        )


def is_quantized(model: ir.Model) -> bool:
    """Return whether a model has quantized weights or activations."""
    return any(node.op_type in QUANTIZED for node in model.graph.all_nodes())


def prune_model(model: ir.Model, feeds: Sequence[Feeds], ask: Ask, way: Way) -> Pruned:
    """Return a model with a part taken, made up for on unlabelled samples.

    Args:
        model: A fused float model with a fixed batch; not changed.
        feeds: Samples; a few of them judge, the rest is fitted to.
        ask: What to take.
        way: How the result will run.

    Raises:
        RecipeError: If nothing can be pruned, or not so much.
        DataError: If there is no sample.
    """
    check(ask)
    require_float(model)
    if not feeds:
        raise DataError("Pruning needs samples to make up for what it takes, but there is none.")
    target = registry.get(way.backend).target()
    pruner = Pruner(model, feeds, target, quantized=way.quantized, options=way.options, seed=way.seed)
    pruned = _pruned(pruner, ask)
    return pruner.recovered(pruned, way.recover_s) if way.recover_s else pruned


def _pruned(pruner: Pruner, ask: Ask) -> Pruned:
    match ask:
        case Neurons(share=share):
            found = pruner.parts.coupling.groups
            groups = [group for group in found if not is_stream(group, pruner.model)]
            kept = tuple(_kept(group) for group in found if group not in groups)
            if not groups:
                raise nothing_pruned(pruner.parts.coupling)
            pruned = pruner.made([Choice({group.name: _left(group, share)}) for group in groups])
            return Pruned(pruned.model, pruned.account, (*pruned.declines, *kept))
        case Layers(count=count):
            return pruner.made([Choice(dropped=name) for name in pruner.least_missed(count)])
        case Weights(share=share, pattern=pattern):
            return pruner.with_zeros(share, pattern)
        case Time(share=share):
            return pruner.at(share)


def _kept(group: Group) -> Decline:
    reason = (
        f"all {group.size} units of `{group.name}` stay: they are read and then added or multiplied to again; a goal "
        "in time narrows them where that pays"
    )
    return Decline(stage="prune", node=group.name, operator="", reason=reason)


def _left(group: Group, share: float) -> int:
    """Return how many units stay: at least one."""
    return max(1, group.size - round(share * group.size))


def prune_file(
    path: Path, data: DataRequest, ask: Ask, way: Way, *, out: Path, progress: Progress | None = None
) -> PruneResult:
    """Prune a model file on samples, and write the result.

    The samples are split as `edgewise optimize` does it: calibration and selection are fitted to, and the rest, which
    no step sees, tells how far the answers are from the whole model's.

    Args:
        path: The model file.
        data: The samples; labels are not read.
        ask: What to take.
        way: How the result will run.
        out: File to write.
        progress: Hears what is done.

    Raises:
        UserError: If the model, the samples or the request cannot be used, or the file exists.
    """
    progress = progress or Quiet()
    check(ask)
    if data.is_synthetic:
        raise DataError("Pruning makes up for what it takes on real samples: `--data none` is not enough.")
    if out.exists():
        raise OutputError(f"`{out}` exists.", hint="Choose another file with `--out`, or remove it.")
    progress.stage("Reading the model and the samples")
    loaded = load_model(path, data.shapes)
    require_float(loaded.fixed)
    fused, _ = fuse(loaded.fixed)
    sets = open_data(data, loaded.facts.inputs)
    progress.stage("Pruning")
    pruned = prune_model(fused, _feeds(fused, sets.calibrate, sets.select), ask, way)
    progress.stage("Comparing with the whole model")
    held_out = compare(fused, pruned.model, _feeds(fused, sets.certify))
    save(pruned.model, out)
    return PruneResult(
        file=str(out),
        asked=ask,
        pruning=pruned.account,
        held_out=held_out,
        zeros=_zeros(pruned.model),
        declines=pruned.declines,
        open_batch=loaded.open_batch,
    )


def _zeros(model: ir.Model) -> float:
    """Return the share of zeros among the numbers of matrices and kernels."""
    weights = [
        value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None
    ]
    kernels = [array for array in weights if array.ndim >= MATRIX_RANK]
    total = sum(array.size for array in kernels)
    return sum(int((array == 0).sum()) for array in kernels) / total if total else 0.0


def _feeds(model: ir.Model, *parts: Split) -> list[Feeds]:
    """Return the samples of some sets, evenly thinned; of sequences every step, the model's own states fed back."""
    places = [(part.dataset, int(index)) for part in parts for index in part.indices]
    held = Held()
    with opened(model) as run:
        few = places[:: max(1, -(-len(places) // MOST_SAMPLES))]
        given = (steps(run, dataset.feeds(index), dataset.state) for dataset, index in few)
        deque(held.through(itertools.chain.from_iterable(given)), maxlen=0)
    return held.feeds
