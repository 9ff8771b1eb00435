"""Writes what the user takes away: the bundle, the graphs behind it, the report."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from edgewise.backends.protocol import Artifact
from edgewise.bundle.manifest import Timing
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.errors import ContractError, OutputError
from edgewise.formats.onnx import save
from edgewise.pipeline.job import Job
from edgewise.records.candidate import Candidate
from edgewise.records.codec import Record
from edgewise.records.run import Run, Rung
from edgewise.report.html import render

VECTORS: Final = 4
"""Test vectors in a bundle: enough to notice a broken runtime, few enough to travel."""

SOURCES: Final = "sources"
REPORT: Final = "report.html"


class Source(Record, frozen=True, kw_only=True):
    """The ONNX graph behind a rung whose artifact is of another format; `edgewise export` reads it.

    Attributes:
        file: Its name in the folder `sources`.
        sha256: Hash of the file.
    """

    file: str
    sha256: str


def deliver(job: Job, run: Run) -> None:
    """Write bundle, graphs and report into the directory of the run.

    Raises:
        OutputError: If it cannot be written or is full.
    """
    job.progress.stage("Writing the bundle and the report")
    for rung in run.ladder:
        _keep_graph(job, rung.candidate)
    write(
        job.workspace.folder,
        [_new_rung(job, rung) for rung in run.ladder],
        default=run.chosen,
        contract=Contract(
            model=run.model.name,
            machine=run.machine,
            created=run.started,
            preprocessing=job.data.preprocessing,
            state=job.data.state,
            classes=job.data.classes,
        ),
        vectors=job.timing_feeds(VECTORS),
    )
    write_report(run, job.workspace.folder / REPORT)


def _new_rung(job: Job, rung: Rung) -> NewRung:
    build = job.workshop.build(rung.candidate)
    if build.spec is None:
        raise ContractError(f"Only a candidate that was built can be delivered, but `{rung.candidate.name}` was not.")
    return NewRung(
        candidate=rung.candidate,
        artifact=Artifact.read(job.workshop.folder(rung.candidate), build.spec),
        certificate=rung.certificate,
        certified=rung.certified,
        check=rung.check,
        timing=Timing(median_us=rung.latency.median_us, p99_us=rung.latency.p99_us, speedup=rung.speedup),
        product_bits=build.product_bits,
    )


def _keep_graph(job: Job, candidate: Candidate) -> None:
    """Keep the graph of a rung as ONNX where its artifact is something else."""
    if candidate.backend == "ort":
        return
    stored = job.workspace.store.get("source", candidate.name, Source)
    if stored is not None and _has_hash(job.workspace.folder / SOURCES / stored.file, stored.sha256):
        return
    model, _ = job.workshop.graph(candidate)
    name = f"{candidate.name.replace(' ', '-')}.onnx"
    folder = job.workspace.folder / SOURCES
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"`{folder}` has to be writable, but: {error.strerror}.") from error
    save(model, folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    job.workspace.store.put("source", candidate.name, Source(file=name, sha256=digest))


def _has_hash(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def write_report(run: Run, path: Path) -> None:
    """Write the HTML report of a run, all or nothing.

    Raises:
        OutputError: If the place cannot be written or is full.
    """
    text = render(run)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"The report `{path}` has to be writable, but: {error.strerror}.") from error
