"""The main job: model and samples in; bundle, certificate and report out."""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from edgewise import __version__
from edgewise.backends import registry
from edgewise.bundle.read import Bundle
from edgewise.errors import BackendError, BundleError, DataError, RecipeError
from edgewise.measure.fidelity import metric as fidelity_metric
from edgewise.measure.fidelity import scales
from edgewise.measure.machine import describe
from edgewise.measure.metrics import ALL, Metric, default_metric, resolve
from edgewise.pipeline import explore, finish
from edgewise.pipeline.build import Workshop
from edgewise.pipeline.certify import certify
from edgewise.pipeline.copies import Copies, count_copies
from edgewise.pipeline.deliver import REPORT, deliver
from edgewise.pipeline.inputs import Data, LoadedModel, load_model, open_data
from edgewise.pipeline.job import Deadline, Job
from edgewise.pipeline.judge import open_judge
from edgewise.pipeline.noise import quantization_noise
from edgewise.pipeline.progress import Progress, Quiet
from edgewise.pipeline.request import Request, check
from edgewise.pipeline.synthetic import synthetic_data
from edgewise.pipeline.workspace import open_workspace
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import Record, encode
from edgewise.records.findings import Decline
from edgewise.records.machine import Machine
from edgewise.records.run import RUN_SCHEMA, DataFacts, Outcome, Run
from edgewise.records.store import Store
from edgewise.samples.state import run_sequence

WITHOUT_SAMPLES: Final = (
    "Nothing was certified: there were no samples. How many answers change on real inputs is not known; a few hundred "
    "unlabelled samples in `--data` would bound it."
)


@dataclass(frozen=True)
class Result:
    """What the main job gives back.

    Attributes:
        run: Everything that was measured, decided and declined.
        folder: The directory that holds the bundle, `report.html` and `run.sqlite`.
        missed: Which goal the default does not reach, in a sentence; empty where it reaches all.
    """

    run: Run
    folder: Path
    missed: str


class Beginning(Record, frozen=True, kw_only=True):
    """Made once, when a run begins for the first time.

    Attributes:
        run_id: Identity of the run.
        started: UTC, ISO 8601.
    """

    run_id: str
    started: str


class Ending(Record, frozen=True, kw_only=True):
    """The last record of a run that has finished."""

    run: Run
    missed: str


class Session(Record, frozen=True, kw_only=True):
    """One call of the main job began to work on this run.

    Attributes:
        seconds: Wall-clock seconds that it had taken by then, for reading model and samples.
    """

    seconds: float


def optimize(
    request: Request,
    progress: Progress | None = None,
    *,
    command: str = "edgewise.optimize(...)",
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Make a model as small and fast as this machine allows, within the loss that is allowed.

    A run that was interrupted goes on where it stopped when the same request is made again: no finished measurement
    is made twice. The untouched model is always a candidate, so the result is never worse than it.

    Args:
        request: What to optimize, on which samples, for which goal.
        progress: Hears what is done.
        command: What the report names as the command that reproduces the run.
        clock: Gives seconds; tests hand in their own.

    Raises:
        UserError: If the request, the model or the samples cannot be used.
    """
    progress = progress or Quiet()
    check(request)
    began = clock()
    backends = _backends(request.effort.backends)
    progress.stage("Reading the model and the samples")
    model = load_model(request.model, request.data.shapes)
    data = _data(request, model)
    metric = _metric(request, model, data)
    machine = describe(backends=backends)
    with open_workspace(request.out, _run_key(request, model, data, machine), overwrite=request.overwrite) as workspace:
        finished = workspace.store.get("ending", "", Ending)
        if finished is not None and _is_whole(request.out):
            workspace.tidy()  # killed when it had just finished
            progress.note(f"`{request.out}` holds the finished result of this very run; nothing was measured again.")
            return Result(finished.run, request.out, finished.missed)
        beginning = workspace.store.recall("beginning", "", Beginning, _begin)
        spent_s = _spent_s(workspace.store)
        if spent_s:
            progress.note(
                f"`{request.out}` holds a part of this run: it goes on, {spent_s:.0f} s of its budget are spent."
            )
        workspace.store.put("session", "", Session(seconds=clock() - began))
        deadline = Deadline(clock, began - spent_s + request.effort.budget_s)
        job = Job(
            request=request,
            model=model,
            data=data,
            metric=metric,
            machine=machine,
            backends=backends,
            workspace=workspace,
            workshop=Workshop(model, data.calibrate, workspace, progress, lambda: deadline.left_s),
            progress=progress,
            deadline=deadline,
            run_id=beginning.run_id,
        )
        return _run(job, beginning, command)


def _run(job: Job, beginning: Beginning, command: str) -> Result:
    exploration = explore.explore(job)
    proof = certify(job, exploration.ladder)
    ladder, notes = finish.measure_ladder(job, proof.rungs, proof.found)
    choice = finish.choose(job, ladder)
    fused = job.workshop.findings()
    run = Run(
        schema=RUN_SCHEMA,
        edgewise=__version__,
        command=command,
        started=beginning.started,
        seconds=job.deadline.clock() - (job.deadline.end - job.request.effort.budget_s),
        model=job.model.facts,
        data=_data_facts(job),
        machine=job.machine,
        changes=tuple(fused.changes),
        declines=_unique([*job.model.declines, *fused.declines, *_quantization_declines(exploration.outcomes)]),
        outcomes=finish.with_fates(exploration.outcomes, choice, proof.rejected),
        ladder=choice.ladder,
        chosen=choice.chosen,
        verdict=finish.verdict(choice),
        notes=(*_notes(job), *exploration.notes, *proof.notes, *notes),
        noise=quantization_noise(job, choice.ladder[choice.chosen].candidate),
        pruning=job.workshop.taken(choice.ladder[choice.chosen].candidate),
    )
    missed = finish.why_missed(job, choice.ladder[choice.chosen], run.outcomes)
    deliver(job, run)
    job.workspace.store.put("ending", "", Ending(run=run, missed=missed))
    job.workspace.tidy()
    return Result(run, job.workspace.folder, missed)


def _begin() -> Beginning:
    return Beginning(run_id=uuid.uuid4().hex, started=datetime.now(UTC).isoformat(timespec="seconds"))


def _backends(asked: Sequence[str]) -> tuple[str, ...]:
    """Return the backends to try: those that were asked for, or all that are ready.

    Raises:
        RecipeError: If one does not exist.
        BackendMissingError: If one was asked for that is not installed.
    """
    for name in asked:
        registry.get(name).version()
        if not registry.BACKENDS[name].fast:
            raise RecipeError(
                f"A backend to try has to be one that is meant for use, but `{name}` is there for comparison.",
                hint=f"`--backends {','.join(registry.ready())}` tries all that are ready here.",
            )
    return tuple(asked) or registry.ready()


def _run_key(request: Request, model: LoadedModel, data: Data, machine: Machine) -> str:
    """Return the hash of everything that decides about a measurement; the budget and the directory do not."""
    settings = (request.data, request.goal, data.preprocessing)
    parts = [
        model.sha256,
        data.sha256,
        *(hashlib.sha256(encode(part)).hexdigest() for part in settings),
        repr((request.effort.backends, request.effort.threads)),
        machine.cpu,
        machine.fingerprint,
        repr(sorted(machine.packages.items())),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _data(request: Request, model: LoadedModel) -> Data:
    if request.data.is_synthetic:
        return synthetic_data(request.data, model)
    return open_data(request.data, model.facts.inputs)


def _metric(request: Request, model: LoadedModel, data: Data) -> Metric:
    if data.synthetic:
        return fidelity_metric(_output_scales(model, data))
    name = request.goal.metric
    if name is None:
        name = default_metric(data.select.dataset.labels(), _output_shape(model, data))
    metric = resolve(name)
    if metric.against == "labels" and not data.labelled:
        raise RecipeError(
            f"The metric `{metric.name}` needs labels, but the samples have none.",
            hint="Add labels, or use `--metric agreement`, which compares with the original model.",
        )
    return metric


def _output_scales(model: LoadedModel, data: Data) -> dict[str, float]:
    """Run the model over the synthetic samples of the search and return how far its outputs spread."""
    dataset = data.select.dataset
    try:
        with closing(open_judge(model.fixed, RunOptions())) as session:
            return scales(
                run_sequence(session.run, dataset.feeds(int(index)), dataset.state) for index in data.select.indices
            )
    except BackendError as error:
        raise explore.not_runnable(error.message) from error


def _output_shape(model: LoadedModel, data: Data) -> tuple[int, ...]:
    """Run the model once and return the shape of its first output without the batch."""
    dataset = data.select.dataset
    try:
        with closing(open_judge(model.fixed, RunOptions())) as session:
            outputs = run_sequence(session.run, dataset.feeds(int(data.select.indices[0])), dataset.state)
    except BackendError as error:
        raise explore.not_runnable(error.message) from error
    first = np.asarray(outputs[model.facts.outputs[0].name])
    return first.shape[1:] if not dataset.state else (first.shape[0], *first.shape[2:])


def _notes(job: Job) -> list[str]:
    """Return what holds of every run of this kind on this model, in full sentences."""
    notes = []
    if job.model.open_batch is not None:
        notes.append(
            f"The batch `{job.model.open_batch}` is fixed to 1: the bundle answers one sample at a time, which is what "
            f"was measured{'' if job.data.synthetic else ' and certified'}."
        )
    if job.data.synthetic:
        return [*notes, *job.data.synthetic, WITHOUT_SAMPLES]
    outputs = [port.name for port in job.model.facts.outputs if port.name not in job.data.state]
    read = job.metric.output or outputs[0]
    unjudged = [f"`{name}`" for name in outputs if name != read]
    if unjudged and read != ALL:
        notes.append(
            f"The metric `{job.metric.name}` judges the output `{read}` alone. Nothing is certified of "
            f"{', '.join(unjudged)}; a metric of your own can judge all outputs."
        )
    if copies := job.workspace.store.recall("copies", "", Copies, lambda: count_copies(job.data)).certify:
        notes.append(
            f"{copies} of the {len(job.data.certify)} certify samples are copies of other samples. The certificate "
            f"counts them as new ones and so says too much: remove the copies."
        )
    return notes


def _data_facts(job: Job) -> DataFacts:
    data, asked = job.data, job.request.data
    return DataFacts(
        source=asked.samples,
        sha256=data.sha256,
        n=len(data.calibrate) + len(data.select) + len(data.certify),
        calibrate=len(data.calibrate),
        select=len(data.select),
        certify=len(data.certify),
        labelled=data.labelled,
        metric=job.metric.name,
        seed=asked.seed,
        synthetic=bool(data.synthetic),
    )


def _spent_s(store: Store) -> float:
    """Return the seconds that earlier sessions of this run took, each up to the last record that it finished."""
    reading = store.get_all("session", Session)
    return math.fsum(session.seconds for session in reading) + math.fsum(store.spans("session"))


def _is_whole(folder: Path) -> bool:
    """Return whether the bundle and the report of a finished run are still there as they were written."""
    try:
        bundle = Bundle.load(folder)
        for rung in bundle.rungs:
            bundle.artifact(rung)
        bundle.vectors()
    except BundleError:
        return False
    return (folder / REPORT).is_file()


def _quantization_declines(outcomes: Sequence[Outcome]) -> list[Decline]:
    return [decline for outcome in outcomes for decline in outcome.declines]


def _unique(declines: Sequence[Decline]) -> tuple[Decline, ...]:
    return tuple(dict.fromkeys(declines))


def finished_run(folder: Path) -> Run:
    """Return the record of a finished run.

    Raises:
        DataError: If there is no run in `folder`, or it has not finished.
        OutputError: If its records are damaged.
    """
    path = folder / "run.sqlite"
    if not path.is_file():
        raise DataError(
            f"`{folder}` has to be a directory that `edgewise optimize` wrote, but it holds no `run.sqlite`.",
            hint="Give the directory of the run, not a file in it.",
        )
    with Store(path, writable=False) as store:
        ending = store.get("ending", "", Ending)
    if ending is None:
        raise DataError(f"The run in `{folder}` has not finished.", hint="Give the same command again: it goes on.")
    return ending.run
