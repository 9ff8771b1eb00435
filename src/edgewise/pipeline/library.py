"""The jobs as Python functions: what `import edgewise` offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from edgewise.analysis.facts import port
from edgewise.backends import registry
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.plan import observed_tensors, plan
from edgewise.compress.quantize.recipe import Scheme
from edgewise.compress.statistics import collect, observe
from edgewise.errors import RecipeError
from edgewise.formats.registry import load as load_file
from edgewise.formats.shapes import fix_shapes, require_static
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline.bench import Bench
from edgewise.pipeline.bench import bench as run_bench
from edgewise.pipeline.build import open_judge
from edgewise.pipeline.optimize import Result
from edgewise.pipeline.optimize import optimize as run_optimize
from edgewise.pipeline.progress import Progress
from edgewise.pipeline.request import DataRequest, Effort, Goal, Request
from edgewise.records.candidate import Quantize, RangeMethod, RunOptions
from edgewise.records.tensors import Array, Feeds
from edgewise.samples.bind import feeds_of
from edgewise.samples.source import Sample

Shapes: TypeAlias = Mapping[str, tuple[int | None, ...]]


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
    samples: Iterable[Array | Mapping[str, Array]],
    scheme: str = "w8a8",
    *,
    ranges: RangeMethod = "mse",
    backend: str = "ort",
) -> ir.Model:
    """Return `model`, fused and quantized, as standard QDQ ONNX.

    Args:
        model: A model with a fixed batch, as `load` gives it; it is not changed.
        samples: Unlabelled samples without a batch axis, prepared as the model wants them: one array for the only
            input, or arrays by input name. Each is read once; memory does not grow with their number.
        scheme: `w8a8`: 8-bit weights, one scale a channel; 8-bit activations, one scale a tensor.
        ranges: How the range of an activation is chosen.
        backend: Whose kernels decide where 8 bits pay.

    Raises:
        RecipeError: If the scheme or backend does not exist, or no node can be quantized.
        DataError: If a sample does not fit, or there is none.
    """
    Scheme.parse(scheme)
    target = registry.get(backend).target()
    fused, _ = fuse(model)
    names = observed_tensors(fused, target)
    inputs = tuple(port(value) for value in fused.graph.inputs)

    def feeds() -> Iterable[Feeds]:
        for index, sample in enumerate(samples):
            arrays = dict(sample) if isinstance(sample, Mapping) else {"": sample}
            yield feeds_of(Sample(arrays), inputs, where=f"Sample {index}")

    with closing(open_judge(observe(fused, names), RunOptions())) as session:
        statistics = collect(session.run, feeds(), names)
    decided = plan(fused, statistics, target, Quantize(scheme=scheme, ranges=ranges))
    if not decided.nodes:
        raise RecipeError("No node of this model can be quantized.", hint="`edgewise inspect` says why, node by node.")
    return apply(fused, decided)


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
