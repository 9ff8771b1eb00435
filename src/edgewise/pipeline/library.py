"""The jobs as Python functions: what `import edgewise` offers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias, get_args

import numpy as np
import onnx_ir as ir

from edgewise.analysis.facts import port
from edgewise.analysis.target import Target
from edgewise.backends import registry
from edgewise.compress.quantize.placement import place
from edgewise.compress.quantize.reasons import write_reasons
from edgewise.compress.quantize.recipe import Scheme
from edgewise.compress.quantize.weight_only import store_weights
from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.formats.onnx import check_weights
from edgewise.formats.registry import load as load_file
from edgewise.formats.shapes import fix_shapes, require_static
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline.bench import Bench
from edgewise.pipeline.bench import bench as run_bench
from edgewise.pipeline.optimize import Result
from edgewise.pipeline.optimize import optimize as run_optimize
from edgewise.pipeline.progress import Progress
from edgewise.pipeline.prune import PatternName
from edgewise.pipeline.pruning import Ask, Layers, Neurons, Time, Way, Weights, prune_model, require_float
from edgewise.pipeline.pruning import check as check_pruning
from edgewise.pipeline.quantize import Quantizer, gather, nothing_quantized
from edgewise.pipeline.request import DataRequest, Effort, Goal, Request
from edgewise.pipeline.synthetic import synthetic_samples
from edgewise.records.candidate import Quantize, RangeMethod, Rounding, RunOptions
from edgewise.records.tensors import Array, Feeds
from edgewise.samples.bind import feeds_of
from edgewise.samples.source import Sample

Shapes: TypeAlias = Mapping[str, tuple[int | None, ...]]

_RANGES: Final = tuple(name for part in get_args(RangeMethod) for name in get_args(part))


def load(path: str | Path, *, shapes: Shapes | None = None) -> ir.Model:
    """Return the model in a file, with batch 1 and the shapes asked for.

    Args:
        path: ONNX file.
        shapes: Shapes of inputs with dynamic dimensions other than the batch; None keeps a dimension dynamic.

    Raises:
        ModelError: If the file is missing, damaged, or of another format.
        RecipeError: If a dynamic dimension has to be given.
    """
    model = load_file(Path(path))
    require_static(model, shapes or {})
    return fix_shapes(model, shapes or {})


def quantize(
    model: ir.Model,
    samples: Iterable[Array | Mapping[str, Array]] | None,
    scheme: str = "w8a8",
    *,
    ranges: RangeMethod = "output",
    rounding: Rounding = "second-order",
    extra_time: float = 0.02,
    extra_size: float = 0.0,
    backend: str = "ort",
) -> ir.Model:
    """Return `model`, fused and quantized, as standard QDQ ONNX.

    Every choice is made by what it does to the model's outputs on the samples, without labels. With `extra_time` layers
    are timed on this machine, so that two calls may keep different ones in float; 0 makes the result reproducible.

    What stayed float or got more bits, and why, is in the model's `metadata_props["edgewise.declines"]`, a JSON list;
    `edgewise inspect` shows it. Where weights alone are quantized, the arithmetic is in float: plain ONNX Runtime
    dequantizes the weights in each run, slower than float by far, unless its session has the option
    `session.disable_quant_qdq` = 1; and `session.qdq_matmulnbits_accuracy_level` has to be 1, or it rounds activations
    as well. Bundles set both.

    Args:
        model: A model with a fixed batch, as `load` gives it (it fixes the batch to 1); it is not changed.
        samples: Unlabelled samples without a batch axis, prepared as the model wants them: one array for the only
            input, or arrays by input name. Each is read once, and at most 512 MiB of them are kept. None makes
            synthetic ones, as `--data none` does.
        scheme: `w8a8`, `w6a8`, `w4a8` ...: integers of that width, stored as int8; `w8a16`, `w4a16` ...: 16-bit
            activations, for NPUs (slower here); `w8`, `w4`, `w2` ...: weights alone, packed, float activations;
            `w4g32`: likewise with a scale for each 32 input channels.
        ranges: How the range of an activation is chosen. `output` takes for each tensor the range with the least error
            at the layers that read it, and equalizes channels where that helps; the others look at the tensor alone.
        rounding: How weights are rounded.
        extra_time: Share of the quantized model's time that may be spent on keeping those layers in float that do the
            most damage for it.
        extra_size: Share of the weights' bytes that may be spent, where fewer than 8 bits are asked for, on 8 bits for
            the layers whose few bits do the most damage.
        backend: Whose kernels decide where 8 bits pay.

    Raises:
        RecipeError: If the scheme, the ranges, the rounding or the backend do not exist, or no node can be quantized.
        ModelError: If it is no model in memory, or weights hold NaN or infinities.
        DataError: If a sample does not fit, or there is none.
    """
    _check_model(model)
    if ranges not in _RANGES:
        raise RecipeError(f"`ranges` has to be one of {', '.join(_RANGES)}. Received `{ranges}`.")
    if rounding not in get_args(Rounding):
        raise RecipeError(f"`rounding` has to be one of {', '.join(get_args(Rounding))}. Received `{rounding}`.")
    for name, share in (("extra_time", extra_time), ("extra_size", extra_size)):
        if not 0 <= share < math.inf:
            raise RecipeError(f"`{name}` has to be a share of at least 0. Received {share:g}.")
    step = Quantize(scheme=scheme, ranges=ranges, rounding=rounding, extra_time=extra_time, extra_size=extra_size)
    target = registry.get(backend).target()
    check_weights(model)
    fused, _ = fuse(model)
    _check_quantizable(fused, target, Scheme.parse(str(scheme)))
    feeds = _feeds(fused, samples)
    quantizer = Quantizer(gather(fused, [target], lambda _run: feeds), target)
    decision = quantizer.decide(step)
    quantized = quantizer.model(decision)
    write_reasons(quantized, decision.plan.declines)
    return quantized


def prune(
    model: ir.Model,
    samples: Iterable[Array | Mapping[str, Array]] | None,
    *,
    neurons: float | None = None,
    layers: int | None = None,
    weights: float | None = None,
    pattern: PatternName = "unstructured",
    latency: float | None = None,
    recover_s: float = 0.0,
    backend: str = "ort",
    threads: int = 1,
    quantized: bool = True,
) -> ir.Model:
    """Return `model`, fused, with a part taken away and made up for by what is left, as ordinary float ONNX.

    One of `neurons`, `layers`, `weights` and `latency` says what is taken. Nothing is certified: that is what
    `optimize` does. What could not be made up for, and layers with too few samples for their width, are in the model's
    `metadata_props["edgewise.declines"]`, a JSON list; `edgewise inspect` shows it.

    Args:
        model: A float model with a fixed batch, as `load` gives it (it fixes the batch to 1); it is not changed.
        samples: Unlabelled samples as `quantize` takes them, but real ones: what is taken is made up for on them.
        neurons: Share of the channels and hidden units of every group that is not a residual stream, in (0, 1).
        layers: Residual branches or blocks to take, >= 1: those that do the least damage.
        weights: Share of the weights to set to zero, in (0, 1). That makes archives smaller, not models faster.
        pattern: Where zeros may be: `unstructured`, `1x4` or `2:4`, which is `weights=0.5`.
        latency: Measured time to reach, as a share of the whole model's, in (0, 1): what does the least damage goes.
        recover_s: Seconds of training on the whole model's answers afterwards; needs `edgewise[torch]`. 0 for none.
        backend: Where the result will run: with `latency` it is timed there.
        threads: Threads of one inference.
        quantized: Whether the result will be quantized to 8 bits: with `latency` 8-bit layers are timed then.

    Raises:
        RecipeError: If not one thing is asked for, if it cannot be meant, if nothing can be pruned or not so much, if
            the model is quantized already, if the backend does not exist, or PyTorch is missing.
        ModelError: If it is no model in memory, weights hold NaN or infinities, or PyTorch lacks an operator.
        DataError: If a sample does not fit, or there is none.
    """
    _check_model(model)
    asked: list[Ask] = []
    if neurons is not None:
        asked.append(Neurons(share=neurons))
    if layers is not None:
        asked.append(Layers(count=layers))
    if weights is not None:
        asked.append(Weights(share=weights, pattern=pattern))
    if latency is not None:
        asked.append(Time(share=latency))
    if len(asked) != 1:
        raise RecipeError(
            f"One of `neurons`, `layers`, `weights` and `latency` has to be given. Received {len(asked)}.",
            hint="`latency=0.6` takes what does the least damage.",
        )
    if weights is None and pattern != "unstructured":
        raise RecipeError("`pattern` says where zeros may be, but no `weights` are set to zero.")
    if not 0 <= recover_s < math.inf:
        raise RecipeError(f"`recover_s` has to be a number of seconds of at least 0. Received {recover_s:g}.")
    if samples is None:
        raise DataError("Pruning makes up for what it takes on real samples, but there is none.")
    check_pruning(asked[0])
    require_float(model)
    check_weights(model)
    fused, _ = fuse(model)
    way = Way(backend=backend, quantized=quantized, options=RunOptions(threads=threads), recover_s=recover_s)
    pruned = prune_model(fused, list(_feeds(fused, samples)), asked[0], way)
    result = pruned.model.clone()
    write_reasons(result, pruned.declines)
    return result


def _check_model(model: object) -> None:
    """Refuse what is no model in memory.

    Raises:
        ModelError: If it is none.
    """
    if not isinstance(model, ir.Model):
        raise ModelError(
            f"A model has to be given as `edgewise.load` returns it. Received {type(model).__name__}.",
            hint="Give the path of the file to `edgewise.load`.",
        )


def _feeds(model: ir.Model, samples: Iterable[Array | Mapping[str, Array]] | None) -> Iterator[Feeds]:
    """Return samples as the model takes them, read one after another; synthetic ones for None.

    Raises:
        DataError: If they are no samples, at once, or if one does not fit, when it is read.
    """
    if samples is None:
        return iter(synthetic_samples(model))
    if isinstance(samples, Mapping | str) or not isinstance(samples, Iterable):
        raise DataError(
            f"Samples have to be a list of samples, or anything else that gives one after another. Received "
            f"{type(samples).__name__}.",
            hint="For a single sample give a list of one; None makes synthetic ones.",
        )
    inputs = tuple(port(value) for value in model.graph.inputs)
    return (
        feeds_of(_sample(sample, f"Sample {index}"), inputs, where=f"Sample {index}")
        for index, sample in enumerate(samples)
    )


def _sample(given: Array | Mapping[str, Array], where: str) -> Sample:
    """Return a sample as arrays; lists of numbers, and what else numpy reads, are arrays, too.

    Raises:
        DataError: If it holds anything but numbers.
    """
    named = given if isinstance(given, Mapping) else {"": given}
    try:
        arrays = {name: np.asarray(array) for name, array in named.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} has to hold arrays, but numpy makes none of it: {error}.") from error
    for name, array in arrays.items():
        if array.dtype.kind in "OSU":
            what = f"array `{name}`" if name else "its array"
            raise DataError(f"{where} has to hold arrays of numbers, but {what} is of type {array.dtype}.")
    return Sample(arrays)


def _check_quantizable(model: ir.Model, target: Target, scheme: Scheme) -> None:
    """Refuse a model in which nothing can be quantized, before any sample is read.

    Raises:
        RecipeError: With the first of the reasons.
    """
    if scheme.is_weight_only:
        stored, declines = store_weights(model, scheme, target.stored_weight_bits)
        any_node = bool(stored)
    else:
        placement = place(model, target)
        any_node, declines = bool(placement.weighted), placement.declines
    if not any_node:
        raise nothing_quantized(declines)


def optimize(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    max_drop: float | None = None,
    tolerance: float | None = None,
    metric: str | None = None,
    budget_s: float = 600.0,
    backends: Sequence[str] = (),
    threads: Sequence[int] = (1,),
    shapes: Shapes | None = None,
    state: Mapping[str, str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Make a model as small and fast as this machine allows; `edgewise optimize` with its most used options.

    Args:
        model: ONNX file.
        data: Samples: file, folder or `package.module:function`. `none` where there are none: then synthetic ones are
            drawn and nothing is certified.
        out: Directory of the result.
        max_drop: Largest loss: points for metrics in [0, 1] (0.01 is one point), relative otherwise. None stands for
            0.01.
        tolerance: Without samples, in place of `max_drop`: largest error of any output on synthetic samples, as a share
            of its standard deviation. None stands for 0.1.
        metric: Name or `package.module:object`; None chooses by labels and outputs.
        budget_s: Seconds for everything.
        backends: Backends to try; empty stands for all that are installed.
        threads: Numbers of threads of one inference to try.
        shapes: Shapes of inputs with dynamic dimensions other than the batch.
        state: Input that each output feeds back, by output name.
        seed: Seed of the split and of every draw.
        overwrite: Whether another run's results in `out` may be replaced.
        progress: Hears what is done.

    Returns:
        Everything that was measured, decided and declined; `Bundle.load(out)` opens the bundle.

    Raises:
        UserError: If the request, the model or the samples cannot be used.
    """
    request = Request(
        model=Path(model),
        out=Path(out),
        data=DataRequest(samples=str(data), shapes=dict(shapes or {}), state=dict(state or {}), seed=seed),
        goal=Goal(max_drop=max_drop, tolerance=tolerance, metric=metric),
        effort=Effort(budget_s=budget_s, backends=tuple(backends), threads=tuple(threads)),
        overwrite=overwrite,
    )
    return run_optimize(request, progress)


def bench(
    *models: str | Path,
    data: str | Path | None = None,
    shapes: Shapes | None = None,
    backends: Sequence[str] = ("ort",),
    threads: int = 1,
    budget_s: float = 10.0,
) -> Bench:
    """Measure latency, cold start and memory of models and bundles in turns.

    Args:
        models: ONNX files and bundles; ratios are against the first.
        data: Samples to run on; None for random numbers.
        shapes: Shapes of dynamic inputs.
        backends: Where model files are run; a bundle decides for itself.
        threads: Threads of one inference for model files.
        budget_s: Seconds for the timing.

    Raises:
        UserError: If a model, bundle, backend or sample cannot be used.
    """
    return run_bench(
        [Path(model) for model in models],
        data=None if data is None else DataRequest(samples=str(data)),
        shapes=dict(shapes or {}),
        backends=backends,
        threads=threads,
        budget_s=budget_s,
    )
