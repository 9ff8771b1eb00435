"""What each command writes where it succeeds: text that people read, JSON that programs read, nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.cli.conftest import Bench, Said

from edgewise.bundle.pack import Packed
from edgewise.bundle.verify import Verification
from edgewise.cli.run import Refusal
from edgewise.pipeline.bench import Bench as Benched
from edgewise.pipeline.diff import Difference
from edgewise.pipeline.doctor import Diagnosis
from edgewise.pipeline.evaluate import Evaluation
from edgewise.pipeline.inspect import Inspection
from edgewise.records.codec import Record
from edgewise.records.run import Run
from edgewise.runtime.answers import Answer

DOCUMENTS: dict[str, type[Record]] = {
    "doctor": Diagnosis,
    "inspect": Inspection,
    "optimize": Run,
    "bench": Benched,
    "eval": Evaluation,
    "diff": Difference,
    "bundle verify": Verification,
    "bundle pack": Packed,
}
"""What `--json` prints, by command."""


@pytest.fixture
def calls(bench: Bench, finished: Path, tmp_path: Path) -> dict[str, list[str | Path]]:
    """Return a call of each command that succeeds."""
    data: list[str | Path] = ["--data", bench.samples]
    return {
        "doctor": ["doctor"],
        "inspect": ["inspect", bench.model],
        "optimize": ["optimize", bench.model, *data, "--max-drop", "20%", "--backends", "ort", "--out", finished],
        "bench": ["bench", bench.model, bench.bundle, "--time", "0.5s"],
        "eval": ["eval", bench.model, *data],
        "eval two": ["eval", bench.model, bench.other, *data],
        "diff": ["diff", bench.model, bench.other, *data],
        "bundle verify": ["bundle", "verify", bench.bundle],
        "bundle pack": ["bundle", "pack", bench.bundle, "--out", tmp_path / "packed.tar.xz"],
    }


@pytest.mark.parametrize(
    "name", ["doctor", "inspect", "bench", "eval", "eval two", "diff", "bundle verify", "bundle pack"]
)
def test_text(
    name: str, calls: dict[str, list[str | Path]], edgewise: Callable[..., Said], golden: Callable[..., None]
) -> None:
    said = edgewise(*calls[name])
    assert (said.code, said.err) == (0, "")
    golden(name.replace(" ", "-"), said.out)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "bench" else []) for name in DOCUMENTS]
)
def test_json(name: str, calls: dict[str, list[str | Path]], edgewise: Callable[..., Said]) -> None:
    said = edgewise(*calls[name], "--json")
    assert said.code == 0, said.err
    written = json.loads(said.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    decoded = msgspec.json.decode(said.out, type=DOCUMENTS[name])
    assert json.loads(msgspec.json.encode(decoded)) == written


@pytest.mark.parametrize("record", [*DOCUMENTS.values(), Answer, Refusal], ids=lambda record: str(record.__name__))
def test_the_fields_of_the_documents(record: type[Record], golden: Callable[..., None]) -> None:
    # What programs read: a field that vanishes or changes its type breaks them.
    schema = msgspec.json.schema(record)
    golden(f"fields-{record.__name__.lower()}", json.dumps(_without_words(schema), indent=1) + "\n", exact=True)


def _without_words(schema: object) -> object:
    if isinstance(schema, dict):
        return {key: _without_words(value) for key, value in schema.items() if key not in {"description", "title"}}
    if isinstance(schema, list):
        return [_without_words(value) for value in schema]
    return schema


def test_a_run_in_which_nothing_can_win(
    bench: Bench, edgewise: Callable[..., Said], golden: Callable[..., None], tmp_path: Path
) -> None:
    goal = ("--max-size", "1kB", "--budget", "2s", "--backends", "ort")
    said = edgewise("optimize", bench.model, "--data", bench.samples, *goal, "--out", tmp_path / "out")
    assert said.code == 2
    golden("optimize", said.out + said.err)


def test_a_finished_run_is_not_measured_again(
    calls: dict[str, list[str | Path]], finished: Path, edgewise: Callable[..., Said]
) -> None:
    said = edgewise(*calls["optimize"])
    assert said.code == 0
    assert said.err == f"`{finished}` holds the finished result of this very run; nothing was measured again.\n"
    lines = said.out.splitlines()
    assert lines[0].endswith(".")
    assert sum(line.startswith("*  ") for line in lines) == 1
    assert lines[-2:] == [f"bundle  {finished}", f"report  {finished / 'report.html'}"]


@pytest.mark.slow
def test_another_run_in_the_same_directory(
    bench: Bench, finished: Path, edgewise: Callable[..., Said], tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    manifest = (out / "manifest.json").read_bytes()
    line = [
        "optimize",
        bench.other,
        "--data",
        bench.samples,
        "--max-size",
        "1kB",
        "--budget",
        "1s",
        "--backends",
        "ort",
    ]
    said = edgewise(*line, "--out", out)
    assert said.code == 2
    assert not said.out
    assert "holds a run with another model" in said.err
    assert "--overwrite" in said.err
    assert (out / "manifest.json").read_bytes() == manifest
    said = edgewise(*line, "--out", out, "--overwrite")
    assert "Nothing that was tried is better" in said.out
    assert json.loads((out / "manifest.json").read_bytes())["manifest"]["model"] == "other.onnx"


def test_report(finished: Path, edgewise: Callable[..., Said], golden: Callable[..., None], tmp_path: Path) -> None:
    said = edgewise("report", finished, "--out", tmp_path / "again.html")
    assert (said.code, said.err) == (0, "")
    golden("report", said.out)
    assert (tmp_path / "again.html").read_bytes() == (finished / "report.html").read_bytes()


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_export(
    to: str, bench: Bench, edgewise: Callable[..., Said], golden: Callable[..., None], tmp_path: Path
) -> None:
    if to == "openvino":
        pytest.importorskip("openvino")
    copy = shutil.copytree(bench.bundle, tmp_path / "model.edgewise")
    said = edgewise("export", copy, "--to", to)
    assert (said.code, said.err) == (0, "")
    written = {Path(line) for line in said.out.splitlines()}
    assert written == {path for path in tmp_path.iterdir() if path.is_file()}
    golden(f"export-{to}", said.out)


def test_a_bundle_that_answers_otherwise_here(
    bench: Bench, edgewise: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.bundle.verify.difference", lambda *_: 1.0)
    said = edgewise("bundle", "verify", bench.bundle)
    assert said.code == 2
    assert said.out.count("differs") == 2
    assert said.err.startswith("error: A rung of this bundle does not answer here as it did where it was made.\nhint: ")
    said = edgewise("bundle", "verify", bench.bundle, "--json")
    assert said.code == 2
    assert json.loads(said.out)["passed"] is False


def test_the_comparison_says_whether_the_bound_is_kept(bench: Bench, edgewise: Callable[..., Said]) -> None:
    data = ("--data", bench.samples)
    said = edgewise("eval", bench.model, bench.model, *data, "--max-drop", "5%")
    assert "The bound of 5 points is kept.\n" in said.out
    said = edgewise("eval", bench.model, bench.model, *data, "--max-drop", "0.1%")
    assert "The bound of 0.1 points is NOT shown: about " in said.out
    assert " samples would show it, if they are like these.\n" in said.out
    said = edgewise("eval", bench.model, bench.other, *data)
    assert "The bound of 1 points is NOT kept.\n" in said.out


@pytest.mark.slow
def test_a_run_without_samples(
    bench: Bench, edgewise: Callable[..., Said], golden: Callable[..., None], tmp_path: Path
) -> None:
    goal = ("--max-size", "1kB", "--budget", "2s", "--backends", "ort")
    said = edgewise("optimize", bench.model, "--data", "none", *goal, "--out", tmp_path / "out")
    assert said.code == 2
    golden("optimize-none", said.out + said.err)


def test_a_drop_cannot_be_bounded_without_samples(bench: Bench, edgewise: Callable[..., Said], tmp_path: Path) -> None:
    said = edgewise("optimize", bench.model, "--data", "none", "--max-drop", "1%", "--out", tmp_path / "out")
    assert said.code == 2
    assert "`--max-drop` needs samples, but `--data none` says that there are none" in said.err
    assert "--tolerance" in said.err
    assert not (tmp_path / "out").exists()
