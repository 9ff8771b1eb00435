"""What the user takes away."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.pipeline.conftest import Task, job_of

from edgewise.bundle.read import Bundle
from edgewise.errors import ContractError, OutputError
from edgewise.formats.registry import load
from edgewise.pipeline import deliver as module
from edgewise.pipeline.build import Build
from edgewise.pipeline.deliver import Source, deliver, write_report
from edgewise.pipeline.optimize import finished_run
from edgewise.pipeline.progress import Quiet
from edgewise.records.store import Store


def test_graphs_of_other_formats_are_kept_with_their_hash(finished: Task) -> None:
    rung = Bundle.load(finished.out).rung()
    with Store(finished.out / "run.sqlite") as store:
        source = store.get("source", rung.name, Source)
    assert source is not None
    path = finished.out / "sources" / source.file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256
    assert "DequantizeLinear" in {node.op_type for node in load(path).graph}
    assert len(list(path.parent.iterdir())) == 1  # graphs for ONNX Runtime are in the bundle already


def test_a_graph_that_was_kept_is_kept_again_only_where_it_is_gone(finished: Task, task: Task) -> None:
    rung = finished_run(finished.out).ladder[-1]
    with job_of(task) as job:
        module._keep_graph(job, rung.candidate)
        (path,) = (task.out / "sources").iterdir()
        made = path.read_bytes()
        module._keep_graph(job, rung.candidate)
        assert job.workspace.store.count("source") == 1
        path.write_bytes(made[:100])
        module._keep_graph(job, rung.candidate)
        assert path.read_bytes() == made
        path.unlink()
        module._keep_graph(job, rung.candidate)
        assert path.read_bytes() == made


def test_sources_that_cannot_be_written_are_an_error(finished: Task, task: Task) -> None:
    rung = finished_run(finished.out).ladder[-1]
    with job_of(task) as job:
        (task.out / "sources").write_text("in the way")
        with pytest.raises(OutputError, match="sources` has to be writable"):
            module._keep_graph(job, rung.candidate)


def test_only_what_was_built_is_delivered(finished: Task, task: Task) -> None:
    run = finished_run(finished.out)
    with job_of(task) as job:
        nothing = Build(spec=None, size_bytes=0, declines=(), failure="because")
        job.workspace.store.put("build", run.ladder[0].candidate.name, nothing)
        with pytest.raises(ContractError, match="can be delivered"):
            deliver(job, run)
    assert not (task.out / "manifest.json").exists()


def test_the_manifest_says_what_the_run_says(finished: Task) -> None:
    run, manifest = finished_run(finished.out), Bundle.load(finished.out).manifest
    assert manifest.default == run.chosen > 0
    assert (manifest.model, manifest.created, manifest.machine) == (run.model.name, run.started, run.machine)
    for own, rung in zip(run.ladder, manifest.ladder, strict=True):
        assert (rung.candidate, rung.certificate, rung.certified) == (own.candidate, own.certificate, own.certified)
        assert rung.timing is not None
        assert rung.timing.median_us == own.latency.median_us


def test_a_report_is_written_whole_or_not_at_all(finished: Task, tmp_path: Path) -> None:
    run = finished_run(finished.out)
    write_report(run, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == (finished.out / "report.html").read_text()
    with pytest.raises(OutputError, match="has to be writable"):
        write_report(run, tmp_path / "none" / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_quiet_hears_nothing() -> None:
    quiet = Quiet()
    quiet.stage("a", 1)
    quiet.step("b")
    quiet.note("c")
    assert vars(quiet) == {}
