"""Small models, samples and bundles, and the command line called as a user calls it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.backends import registry
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.cli.app import run
from edgewise.formats.onnx import save
from edgewise.measure.machine import describe
from edgewise.pipeline import quantize
from edgewise.records.candidate import Candidate, RunOptions
from edgewise.testing import graphs

COLUMNS = 100


@dataclass(frozen=True)
class Said:
    """What a command left behind: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def fixed_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fix the width of help texts, and keep the ledger of certify sets out of the user's home."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture
def edgewise(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Call the command line in this process."""

    def called(*arguments: str | Path, stdin: bytes = b"") -> Said:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr("sys.argv", ["edgewise", *map(str, arguments)])
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return called


@pytest.fixture(autouse=True)
def untimed_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let quantization depend on no clock: every layer is dear in float, and every step is affordable."""
    monkeypatch.setattr(quantize, "extra_times", lambda _backend, _base, variants, *_rest: [1.0] * len(variants))
    monkeypatch.setattr(quantize.Quantizer, "_affords", lambda *_: True)


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of a process of its own."""
    return [sys.executable, "-m", "edgewise", *map(str, arguments)]


def process(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Call the command line in a process of its own."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]  # options are of any kind
        command(*arguments), capture_output=True, text=True, check=False, timeout=300, **options
    )


def balanced_net(*, seed: int = 0) -> ir.Model:
    """Return a small residual net whose ten classes are all answered: the mean of each score is taken away."""
    model = graphs.conv_net(batch="N", seed=seed)
    (head,) = (node for node in model.graph if node.op_type == "Gemm")
    bias = head.inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    mean = scores(model, images(400, seed=99)).mean(axis=0)
    bias.const_value = ir.tensor((bias.const_value.numpy() - mean).astype(np.float32), name=bias.name)
    return model


def images(count: int, *, seed: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return images whose channels differ in brightness, shape `[count, 3, 16, 16]`."""
    draw = np.random.default_rng(seed)
    brightness = draw.standard_normal((count, 3, 1, 1))
    return (draw.standard_normal((count, 3, 16, 16)) + 2 * brightness).astype(np.float32)


def scores(
    model: ir.Model, inputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the model's outputs, shape `[count, 10]`."""
    backend = registry.get("ort")
    session = backend.open(backend.compile(model, RunOptions()))
    try:
        return np.concatenate([session.run({"image": one[None]})["scores"] for one in inputs])
    finally:
        session.close()


@dataclass(frozen=True)
class Bench:
    """What lies ready: a model, its samples, a bundle of it."""

    folder: Path

    @property
    def model(self) -> Path:
        """A classifier of images `[3, 16, 16]`."""
        return self.folder / "model.onnx"

    @property
    def other(self) -> Path:
        """Another one, with other weights."""
        return self.folder / "other.onnx"

    @property
    def samples(self) -> Path:
        """240 labelled samples, nine tenths of which the model answers as their label says."""
        return self.folder / "samples.npz"

    @property
    def bundle(self) -> Path:
        """A bundle of the model with two rungs."""
        return self.folder / "model.edgewise"


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return the things that lie ready; no test writes there."""
    made = Bench(tmp_path_factory.mktemp("bench"))
    model = balanced_net()
    save(model, made.model)
    save(balanced_net(seed=1), made.other)
    x = images(240)
    y = scores(model, x).argmax(axis=1)
    y[::10] = (y[::10] + 1) % 10
    np.savez(made.samples, x=x, y=y)
    write_bundle(made.bundle, graphs.conv_net())
    return made


def write_bundle(folder: Path, model: ir.Model, *, classes: Sequence[str] | None = None, **contract: object) -> Path:
    """Write a bundle with two rungs: the model as it is, run in ONNX Runtime with and without its rewriting."""
    ladder = []
    for level in ("off", "all"):
        options = RunOptions(graph_optimization=level)
        artifact = registry.get("ort").compile(model, options)
        candidate = Candidate(steps=(), backend="ort", options=options)
        ladder.append(NewRung(candidate=candidate, artifact=artifact, certificate=None, certified=True, timing=None))
    write(
        folder,
        ladder,
        default=1,
        contract=Contract(
            model="model.onnx",
            machine=describe(),
            created="2026-11-22T16:00:00Z",
            classes=None if classes is None else tuple(classes),
            **contract,  # type: ignore[arg-type]  # as the caller says
        ),
        vectors=[graphs.random_feeds(model)],
    )
    return folder


@pytest.fixture(scope="session")
def finished(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a small run that has finished; no test writes there."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = ("--max-drop", "20%", "--budget", "5s", "--backends", "ort", "--out", folder)
    said = process("optimize", bench.model, "--data", bench.samples, *arguments, env=environment(tmp_path_factory))
    assert said.returncode == 0, said.stderr
    return folder


def environment(factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a process of its own."""
    return {**os.environ, "XDG_STATE_HOME": str(factory.getbasetemp() / "state"), "COLUMNS": str(COLUMNS)}


# Golden files

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = "EDGEWISE_UPDATE_GOLDEN"

_VOLATILE = (
    # Facts of a machine: the whole value.
    (
        re.compile(r"^(processor|cores|instruction sets|memory|system|governor|load|energy|GPUs)  .*$", re.MULTILINE),
        r"\1  #",
    ),
    (re.compile(r"^(.*remembered in ).*$", re.MULTILINE), r"\1#"),
    (re.compile(r"fp32( bf16)?( fp16)?  +(\d+|-)"), "#  #"),
    (re.compile(r"^.*, load (#|unknown|[\d.]+)$", re.MULTILINE), "#, load #"),
    # Versions, measured numbers, and numbers with a unit.
    (re.compile(r"-?\b\d+(\.\d+)+([eE][-+]\d+)?|-?\b\d+(\.\d+)?[eE][-+]\d+"), "#"),
    (re.compile(r"[-+]?(#|\d+)(?= (ms|us|µs|s|MiB|MB|kB|bytes|GFLOP/s|GB/s)\b)"), "#"),
    (re.compile(r"# (us|µs|ms|s)\b"), "# s"),
    (re.compile(r"(?<=tried in )[^;]+(?=;)"), "#"),
    (re.compile(r"\b\d+(?=  +#x)"), "#"),
    # Columns are as wide as their contents.
    (re.compile(r"(?<=\S)  +"), "  "),
)


def normalised(text: str, places: Mapping[Path, str]) -> str:
    """Return what a command wrote with all that differs between machines and runs replaced by `#`, paths by names."""
    for place, name in places.items():
        text = text.replace(str(place), name)
    for pattern, replacement in _VOLATILE:
        text = pattern.sub(replacement, text)
    return text


@pytest.fixture
def golden(bench: Bench, tmp_path: Path) -> Callable[..., None]:
    """Compare a text with the file of that name in `tests/golden`."""

    def compare(name: str, text: str, *, exact: bool = False, **places: Path) -> None:
        path = GOLDEN / f"{name}.txt"
        names = {bench.folder: "BENCH", tmp_path: "TMP", **{place: name for name, place in places.items()}}
        found = text if exact else normalised(text, names)
        if UPDATE in os.environ:
            path.write_text(found, encoding="utf-8")
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        assert found == expected, f"{path} differs; if this is meant, run pytest with {UPDATE}=1 and look at the diff"

    return compare


# What cannot be used


@dataclass(frozen=True)
class Place:
    """What a case of bad input is made from: the things that lie ready, and an empty folder."""

    bench: Bench
    tmp: Path


Arguments: TypeAlias = list[str | Path]
Case: TypeAlias = Callable[[Place], Arguments]


@pytest.fixture
def place(bench: Bench, tmp_path: Path) -> Place:
    """Return what a case is made from."""
    return Place(bench, tmp_path)


def optimize(at: Place, *more: str | Path, model: Path | None = None, data: str | Path | None = None) -> Arguments:
    """Return the arguments of a short run that writes to `out` in the empty folder."""
    short = ("--budget", "1s", "--backends", "ort", "--out", at.tmp / "out")
    return ["optimize", model or at.bench.model, "--data", str(data or at.bench.samples), *short, *more]


def saved(path: Path, model: ir.Model) -> Path:
    """Save a model, and return its file."""
    save(model, path)
    return path


def samples(path: Path, **arrays: object) -> Path:
    """Save samples, and return their file."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # arrays or what becomes one
    return path


def check_refused(function: Case, fragment: str, place: Place, edgewise: Callable[..., Said]) -> None:
    """Check that a case is refused in one sentence and a hint, and leaves nothing behind."""
    arguments = function(place)
    before = contents(place.tmp)
    said = edgewise(*arguments)
    assert said.code == 2, said.err
    assert not said.out
    first, *rest = said.err.splitlines()
    assert first.startswith("error: ")
    assert first.endswith((".", "?", "?)"))
    assert fragment in first
    assert [line[:6] for line in rest] == ["hint: "]
    assert contents(place.tmp) == before


def contents(folder: Path) -> Mapping[Path, bytes | None]:
    """Return all that lies in a folder: the files with what they hold."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
