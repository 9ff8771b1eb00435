"""The main job from end to end, on models and data of every kind; processes that measure are faked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.pipeline.conftest import FakeMeasures, MakeTask, Task, answers, check, random
from tests.pipeline.test_pipeline_resume import shape

from edgewise.bundle.read import Bundle
from edgewise.cli.app import run
from edgewise.errors import DataError, OutputError, RecipeError
from edgewise.formats.onnx import save
from edgewise.pipeline import finish, ledger
from edgewise.pipeline import optimize as optimize_module
from edgewise.pipeline.certify import certify
from edgewise.pipeline.inputs import open_data
from edgewise.pipeline.optimize import finished_run, optimize
from edgewise.pipeline.request import DataRequest, Effort, Goal, Request
from edgewise.records.store import Store
from edgewise.samples.bind import Dataset
from edgewise.testing.graphs import (
    GraphBuilder,
    conv_net,
    recurrent_cell,
    two_input_net,
)


def test_the_faster_model_is_chosen_and_certified(task: Task, measures: FakeMeasures) -> None:
    result = task.run()
    chosen = result.run.ladder[result.run.chosen]
    assert chosen.candidate.name.startswith("ort int8")
    assert chosen.certificate is not None
    assert chosen.certificate.passed
    assert chosen.certificate.upper <= 0.1
    assert chosen.certificate.n == result.run.data.certify
    assert result.run.verdict.startswith("2.00x as fast")
    assert "larger; the loss of top1 is at most" in result.run.verdict
    assert result.missed == ""
    assert result.run.notes == ()
    assert [o.fate for o in result.run.outcomes].count("chosen") == 1
    data = result.run.data
    assert data.calibrate + data.select + data.certify == data.n == 240
    assert (data.labelled, data.metric) == (True, "top1")
    check(result)
    assert measures.footprints == [rung.candidate.name for rung in result.run.ladder]


def test_equal_seeds_give_equal_results_but_for_the_clock(task: Task, measures: FakeMeasures) -> None:
    first, second = task.run(out=task.folder / "a"), task.run(out=task.folder / "b")
    assert shape(first.run) == shape(second.run)
    models = [sorted(path.name for path in (r.folder / "models").iterdir()) for r in (first, second)]
    assert models[0] == models[1]  # names hold hashes
    assert len(measures.groups) == 4


# Never a regression.


def test_where_everything_is_slower_the_untouched_model_stays(task: Task, measures: FakeMeasures) -> None:
    measures.median_us = {"int8": 130.0, "fp16": 110.0, "fused": 105.0}
    result = task.run()
    assert result.run.chosen == 0
    assert len(result.run.ladder) == 1
    assert result.run.verdict == (
        "Nothing that was tried is better than the untouched model: no candidate came within the bound on the select "
        "split and was faster."
    )
    assert all("slower" in o.reason for o in result.run.outcomes[1:])
    check(result)


def test_what_turns_out_slower_in_the_last_timing_is_not_chosen(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(entries: Any, feeds: Any, *, budget_s: float, seed: int) -> Any:
        measures.median_us = {"int8": 103.0, "fp16": 104.0, "fused": 105.0}
        return measures.measure_group(entries, feeds, budget_s=budget_s, seed=seed)

    monkeypatch.setattr(finish, "measure_group", last)
    result = task.run()
    assert result.run.chosen == 0
    assert "it is slower" in result.run.verdict
    assert len(result.run.ladder) > 1
    assert all(rung.certified for rung in result.run.ladder)
    check(result)


def test_what_is_only_smaller_is_chosen_where_it_keeps_the_speed(task: Task, measures: FakeMeasures) -> None:
    measures.median_us = {"int8": 130.0, "fp16": 100.0, "fused": 120.0}
    result = task.run()
    assert result.run.ladder[result.run.chosen].candidate.name == "ort fp16-weights"
    outcome = next(o for o in result.run.outcomes if o.fate == "chosen")
    assert "times smaller and keeps the speed" in outcome.reason


def test_what_is_smaller_but_slower_is_not_chosen(task: Task, measures: FakeMeasures) -> None:
    measures.median_us = {"int8": 130.0, "fp16": 108.0, "fused": 120.0}
    assert task.run().run.chosen == 0


def test_what_was_asked_to_be_smaller_is_certified_and_chosen_although_it_is_slower(
    task: Task, measures: FakeMeasures
) -> None:
    measures.median_us = {"int8": 130.0, "fp16": 140.0, "fused": 120.0, "w8": 150.0, "w4": 150.0}
    sizes = {o.candidate.name: o.size_bytes for o in task.run(out=task.folder / "all").run.outcomes}
    half, whole = sizes["ort fp16-weights"], sizes["ort untouched"]
    assert half is not None
    assert whole is not None
    result = task.run(max_size_bytes=(half + whole) // 2)
    chosen = result.run.ladder[result.run.chosen]
    assert result.run.chosen > 0
    assert chosen.certified
    assert chosen.size_bytes <= (half + whole) // 2
    assert result.missed == ""
    assert result.run.verdict.startswith("0.")
    check(result)


def test_a_gain_beyond_arithmetic_is_refused(task: Task, measures: FakeMeasures) -> None:
    measures.median_us = {"int8": 1.0, "fp16": 110.0, "fused": 105.0}
    result = task.run()
    assert result.run.chosen == 0
    assert "beyond what arithmetic allows" in result.run.verdict


def test_a_gain_below_an_empty_call_is_refused(task: Task, measures: FakeMeasures) -> None:
    measures.untouched_us = 0.004
    measures.median_us = {"int8": 0.001, "fp16": 110.0, "fused": 105.0}
    result = task.run()
    assert result.run.chosen == 0
    assert "not longer than calling a function that does nothing" in result.run.verdict


def test_a_candidate_whose_process_dies_costs_only_itself(task: Task, measures: FakeMeasures) -> None:
    measures.failing = {"ort int8-mse", "ort int8-mixed3"}
    result = task.run()
    assert result.run.ladder[result.run.chosen].candidate.name == "ort fused"
    reasons = {o.candidate.name: o.reason for o in result.run.outcomes}
    assert "it could not be timed" in reasons["ort int8-mse"]
    assert "ended with status 3" in reasons["ort int8-mse"]


def test_a_rung_that_dies_in_the_last_timing_is_left_out(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(entries: Any, feeds: Any, *, budget_s: float, seed: int) -> Any:
        measures.failing = {entry.name for entry in entries if "int8" in entry.name}
        return measures.measure_group(entries, feeds, budget_s=budget_s, seed=seed)

    monkeypatch.setattr(finish, "measure_group", last)
    result = task.run()
    assert result.run.ladder[0].candidate.name == "ort untouched"
    assert not any("int8" in rung.candidate.name for rung in result.run.ladder)
    assert any("failed when it was timed for the last time" in note for note in result.run.notes)
    check(result)


# Goals.


def test_goals_that_are_missed_are_said_and_the_bundle_is_still_written(task: Task, measures: FakeMeasures) -> None:
    result = task.run(max_latency_us=20.0)
    assert "has to stay below 0.02 ms; the best model that was found takes 0.05 ms" in result.missed
    check(result)
    assert task.run(max_latency_us=20.0).missed == result.missed  # a finished run says it again
    size = result.run.ladder[0].size_bytes
    result = task.run(out=task.folder / "b", max_size_bytes=size // 10)
    assert "; the smallest candidate has " in result.missed
    assert result.run.chosen == 0
    assert all("more than `--max-size`" in o.reason for o in result.run.outcomes[1:])
    check(result)
    assert task.run(out=task.folder / "c", max_latency_us=60.0, max_size_bytes=10 * size).missed == ""
    assert measures.groups


def test_the_command_ends_with_2_where_a_goal_is_missed(
    task: Task, measures: FakeMeasures, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["optimize", str(task.model), "--data", str(task.samples), "--out", str(task.out)]
    assert run([*arguments, "--max-drop", "10%", "--backends", "ort", "--max-latency", "0.02ms", "--json"]) == 2
    heard = capsys.readouterr()
    assert "has to stay below 0.02 ms" in heard.err
    assert json.loads(heard.out)["chosen"] > 0
    Bundle.load(task.out).session().close()
    assert measures.groups


def test_too_few_samples_leave_the_untouched_model_and_say_how_many_would_do(
    task: Task, measures: FakeMeasures
) -> None:
    result = task.run(max_drop=0.02)
    found = result.run
    assert found.chosen == 0
    (_, rung) = found.ladder
    # Of those whose estimate lies within the bound, the fastest.
    assert "int8" in rung.candidate.name
    assert not rung.certified
    assert rung.certificate is not None
    assert rung.certificate.upper > 0.02
    assert f"`{rung.candidate.name}`, 2.00x as fast, is not certified: on {rung.certificate.n} samples" in found.verdict
    if rung.certificate.samples_needed is not None:
        assert f"about {rung.certificate.samples_needed} certify samples would show it" in found.verdict
    bundle = check(result)
    assert bundle.rung().candidate.is_untouched
    assert bundle.rungs[1] == rung.candidate.name
    bundle.session(1).close()
    accepted = task.run(out=task.folder / "b", max_drop=0.02, accept_uncertified=True)
    assert accepted.run.chosen == 1
    assert "NOT certified" in accepted.run.verdict
    assert measures.groups


# Data.


def test_none_of_the_certify_samples_is_read_before_the_ladder_is_fixed(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    before: list[int] = []
    opened: dict[str, Any] = {}
    feeds, label = Dataset.feeds, Dataset.label

    def opening(*arguments: Any) -> Any:
        opened["data"] = open_data(*arguments)
        read.clear()  # `bind` checks the first sample's shape, whichever set it is in
        return opened["data"]

    def certifying(job: Any, ladder: Any) -> Any:
        before.extend(read)
        return certify(job, ladder)

    def read_feeds(dataset: Dataset, index: int) -> Any:
        read.append(index)
        return feeds(dataset, index)

    def read_label(dataset: Dataset, index: int) -> Any:
        read.append(index)
        return label(dataset, index)

    monkeypatch.setattr(optimize_module, "open_data", opening)
    monkeypatch.setattr(optimize_module, "certify", certifying)
    monkeypatch.setattr(Dataset, "feeds", read_feeds)
    monkeypatch.setattr(Dataset, "label", read_label)
    task.run()
    data = opened["data"]
    assert set(before) == {*data.calibrate.indices, *data.select.indices}
    assert not set(before) & set(data.certify.indices)
    assert set(data.certify.indices) <= set(read)
    assert measures.groups


def test_a_second_run_on_the_same_certify_samples_says_so(task: Task, measures: FakeMeasures) -> None:
    first = task.run(out=task.folder / "a")
    second = task.run(out=task.folder / "b", data={"seed": 1})  # most of its certify samples are the same
    for result, reused in ((first, 0), (second, 1)):
        found = [rung.certificate.reused for rung in result.run.ladder if rung.certificate is not None]
        assert found == [reused] * len(found) != []
    assert first.run.notes == ()
    assert any("opened by another run before" in note for note in second.run.notes)
    assert measures.groups


def test_a_ledger_that_cannot_be_written_is_said(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ledger, "ledger_path", lambda: tmp_path / "file" / "ledger.sqlite")
    (note,) = task.run().run.notes
    assert "ledger" in note
    assert "is not known" in note
    assert measures.groups


def test_separate_sets_are_not_split(task: Task, measures: FakeMeasures) -> None:
    with np.load(task.samples) as arrays:
        x, y = arrays["x"], arrays["y"]
    parts = {"calibration": slice(0, 30), "select": slice(30, 90), "certify": slice(90, 240)}
    data = {}
    for name, part in parts.items():
        labels = {} if name == "calibration" else {"y": y[part]}
        np.savez(task.folder / f"{name}.npz", allow_pickle=False, x=x[part], **labels)
        data[name] = str(task.folder / f"{name}.npz")
    result = task.run(data={**data, "samples": data["select"]})
    facts = result.run.data
    assert (facts.calibrate, facts.select, facts.certify) == (30, 60, 150)
    check(result)
    assert measures.groups


def test_without_labels_the_flip_rate_is_certified(task: Task, measures: FakeMeasures) -> None:
    with np.load(task.samples) as arrays:
        np.savez(task.samples, x=arrays["x"])
    result = task.run()
    chosen = result.run.ladder[result.run.chosen]
    assert result.run.data.metric == "agreement"
    assert not result.run.data.labelled
    assert chosen.certificate is not None
    assert chosen.certificate.claim == "flip-rate"
    assert "share of changed answers" in result.run.verdict
    assert measures.groups


def test_a_metric_of_the_whole_set_is_resampled(make_task: MakeTask, measures: FakeMeasures) -> None:
    b = GraphBuilder("score")
    hidden = b.node("Relu", b.node("MatMul", b.input("x", (1, 6)), b.weight(6, 16, fan_in=6)))
    b.output(b.node("Sigmoid", b.node("MatMul", hidden, b.weight(16, 1, fan_in=16))), "y", (1, 1))
    model = b.build()
    x = random(200, 6)
    task = make_task(model, x=x, y=(x.sum(1) + random(200) > 0).astype(np.int64))
    result = task.run(metric="auc", max_drop=0.1)
    certificate = result.run.ladder[-1].certificate
    assert certificate is not None
    assert not certificate.exact
    assert "bootstrap" in certificate.method
    check(result)
    assert measures.groups


def test_a_relative_metric_is_bounded_relatively(make_task: MakeTask, measures: FakeMeasures) -> None:
    b = GraphBuilder("regression")
    hidden = b.node("Relu", b.node("MatMul", b.input("x", (1, 6)), b.weight(6, 16, fan_in=6)))
    b.output(b.node("MatMul", hidden, b.weight(16, 1, fan_in=16)), "y", (1, 1))
    task = make_task(b.build(), x=random(200, 6), y=3 * random(200, 1))
    result = task.run(metric="mae", max_drop=0.2)
    certificate = result.run.ladder[-1].certificate
    assert certificate is not None
    assert certificate.relative
    assert "% of its value" in result.run.verdict
    check(result)
    assert measures.groups


def test_a_whole_metric_on_very_few_samples_ends_with_the_untouched_model(task: Task, measures: FakeMeasures) -> None:
    with np.load(task.samples) as arrays:
        np.savez(task.samples, x=arrays["x"][:24], y=arrays["y"][:24] % 2)
    result = task.run(metric="f1")
    assert result.run.chosen == 0
    assert any("at least 10 samples" in o.reason for o in result.run.outcomes)
    check(result)
    assert measures.groups


def test_an_output_that_the_metric_does_not_read_is_said_to_be_unjudged(
    make_task: MakeTask, measures: FakeMeasures
) -> None:
    graph = GraphBuilder("heads")
    graph.input("x", ["rows", 6])
    for name, classes in (("digit", 3), ("odd", 2)):
        graph.output(
            graph.node("MatMul", "x", graph.weight(6, classes, fan_in=6), name=f"{name}_head"), name, ["rows", classes]
        )
    task = make_task(graph.build(), x=random(120, 6), y=np.arange(120) % 3)
    batch, output = task.run(max_drop=0.5).run.notes[:2]
    assert measures.groups
    assert "`rows` is fixed to 1" in batch
    assert "judges the output `digit` alone. Nothing is certified of `odd`" in output


def test_two_inputs(make_task: MakeTask, measures: FakeMeasures) -> None:
    model = two_input_net()
    left, right = random(120, 6), random(120, 3)
    task = make_task(model, left=left, right=right, y=answers(model, {"left": left, "right": right}))
    check(task.run())
    assert measures.groups


def test_a_recurrent_model_has_its_state_fed_back(make_task: MakeTask, measures: FakeMeasures) -> None:
    task = make_task(recurrent_cell(features=4), x=random(60, 5, 4))
    result = task.run(data={"state": {"new_state": "state"}}, metric="cosine", max_drop=0.1)
    assert check(result).manifest.state == {"new_state": "state"}
    assert measures.groups


def test_a_folder_of_images(tmp_path: Path, measures: FakeMeasures) -> None:
    task = Task(tmp_path)
    save(conv_net(size=16, classes=2), task.model)
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(12):
            pixels = draw.integers(0, 256, (20, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    settings = tmp_path / "edgewise.toml"
    settings.write_text('[preprocessing]\nresize = [16, 16]\nscale = 0.00392\nlayout = "NCHW"\n')
    data = {"samples": str(tmp_path / "images"), "settings": str(settings)}
    result = task.run(data=data, max_drop=0.5)
    manifest = check(result).manifest
    assert manifest.preprocessing is not None
    assert manifest.preprocessing.scale == pytest.approx(0.00392)
    assert result.run.data.metric == "top1"
    assert measures.groups


# Refusals: nothing is written.


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"max_drop": 0.0}, RecipeError, "--max-drop"),
        ({"metric": "nonsense"}, RecipeError, "A metric has to be one of"),
        ({"data": {"samples": "nowhere.npz"}}, DataError, "nowhere"),
        ({"effort": {"backends": ("tpu",)}}, RecipeError, "A backend has to be one of"),
        ({"effort": {"backends": ("reference",)}}, RecipeError, "there for comparison"),
        ({"data": {"state": {"probabilities": "nothing"}}}, RecipeError, "has to name an input"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_leaves_nothing_behind(
    task: Task, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        task.run(**options)
    assert not task.out.exists()


def test_labels_are_needed_by_a_metric_that_reads_them(task: Task) -> None:
    with np.load(task.samples) as arrays:
        np.savez(task.samples, x=arrays["x"])
    with pytest.raises(RecipeError, match="needs labels") as caught:
        task.run(metric="top1")
    assert "agreement" in str(caught.value.hint)
    assert not task.out.exists()


def test_a_full_disk_ends_the_run_with_one_sentence(
    task: Task, measures: FakeMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"room for a candidate.*No space left"):
            task.run()
    check(task.run())
    assert measures.groups


def test_finished_run_refuses_what_is_none(task: Task, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no `run\.sqlite`"):
        finished_run(tmp_path)
    with Store(tmp_path / "run.sqlite"):
        pass
    with pytest.raises(DataError, match="has not finished"):
        finished_run(tmp_path)
    assert not task.out.exists()


def test_a_quiet_call_needs_no_progress(task: Task, measures: FakeMeasures) -> None:
    class Loud:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def stage(self, title: str, steps: int | None = None) -> None:
            self.heard.append(f"{title} {steps}")

        def step(self, what: str = "") -> None:
            self.heard.append(f"step {what}")

        def note(self, sentence: str) -> None:
            self.heard.append(f"note {sentence}")

    loud = Loud()
    request = Request(
        model=task.model,
        out=task.out,
        data=DataRequest(samples=str(task.samples)),
        goal=Goal(max_drop=0.1),
        effort=Effort(backends=("ort",)),
    )
    optimize(request, loud)
    stages = [words for words in loud.heard if not words.startswith(("step", "note"))]
    assert stages[0].startswith("Reading the model")
    assert "Fusing None" in stages
    assert "Calibrating 36" in stages
    assert stages[-1].startswith("Writing the bundle")
    loud.heard.clear()
    optimize(request, loud)
    assert any(words.startswith("note") and "finished result of this very run" in words for words in loud.heard)
    assert measures.groups
