"""The main job on real models, beside plain ONNX Runtime static quantization and NNCF in the same rounds.

    python benchmarks/main_job.py --zoo ../shared/zoo [--json FILE] [--only NAME ...]

Each model goes through `edgewise optimize` in a process of its own, one thread. For two of them the peers quantize the
same model from the same calibration samples; they are then timed in turns with the bundle's default and the untouched
model, and scored on the same certify samples.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgewise.backends.protocol import Artifact
from edgewise.bundle.read import Bundle
from edgewise.measure.accuracy import Scores, scores
from edgewise.measure.certificate import certify
from edgewise.measure.latency import measure_group, ratio
from edgewise.measure.machine import describe
from edgewise.measure.metrics import resolve
from edgewise.measure.process import Entry
from edgewise.pipeline.inputs import Data, load_model, open_data
from edgewise.pipeline.optimize import finished_run
from edgewise.pipeline.request import DataRequest
from edgewise.records.measurements import Latency, Ratio
from edgewise.records.run import Run
from edgewise.samples.state import first_step
from peers.quantizers import PEERS
from rows import Row, finish

HERE: Final = Path(__file__).resolve().parent
COMMAND: Final = "python benchmarks/main_job.py --zoo ../shared/zoo"
TIMING_S: Final = 40.0
NO_ASK: Final = ("none", True)


@dataclass(frozen=True)
class Case:
    """One model of the zoo.

    Attributes:
        name: Its name in `zoo.toml`.
        max_drop: The bound to ask for.
        options: Further options of `edgewise optimize`.
        samples: What goes to `--data` where it is not the data of `zoo.toml`.
        peers: Whether the peers are measured, too.
        environment: Variables that its metric or samples need.
    """

    name: str
    max_drop: str = "1%"
    options: tuple[str, ...] = ()
    samples: str | None = None
    peers: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def cases(zoo: Path) -> tuple[Case, ...]:
    """Return the models that are measured."""
    return (
        Case("resnet56", peers=True),
        Case("efficientnet_lite0", max_drop="3%", peers=True),
        Case("ecg_cnn", options=("--calibration", str(zoo / "ecg/mitbih_beats_calib.npz"))),
        Case("kwt1", max_drop="2%"),
        Case("fastestdet", max_drop="5%", samples="zoo_samples:coco128", options=("--metric", "zoo_metrics:ap50")),
        Case(
            "ppocrv4_mobile_rec",
            max_drop="3%",
            options=("--shape", "x=1,3,48,?", "--label", "text", "--metric", "zoo_metrics:word_accuracy"),
            environment={"WORD_CHARACTERS": str(zoo / "ocr/characters.txt")},
        ),
        Case(
            "silero_vad",
            max_drop="2%",
            samples="zoo_samples:voices",
            options=("--state", "stateN=state", "--shape", "input=1,?", "--shape", "state=2,1,128"),
        ),
    )


def main() -> int:
    """Measure everything and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder with zoo.toml")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    parser.add_argument("--only", nargs="+", help="names of models; all by default")
    parser.add_argument("--budget", default="5m", help="budget of each run")
    arguments = parser.parse_args()
    zoo = arguments.zoo.resolve()
    if not (zoo / "zoo.toml").is_file():
        print(f"There is no zoo in {zoo}: nothing can be measured.", file=sys.stderr)
        finish([], describe(), arguments.json, left_out=["every row: the zoo is absent"])
        return 0
    models = {model["name"]: model for model in tomllib.loads((zoo / "zoo.toml").read_text(encoding="utf-8"))["model"]}
    rows: list[Row] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgewise-main-job-") as scratch:
        for case in cases(zoo):
            if arguments.only and case.name not in arguments.only:
                left_out.append(f"{case.name}: not asked for")
                continue
            folder = Path(scratch) / case.name
            folder.mkdir()
            rows.extend(_measure(case, models[case.name], Place(zoo, folder, arguments.budget, left_out)))
    finish(rows, describe(), arguments.json, left_out=left_out)
    return 0


@dataclass(frozen=True)
class Place:
    """Where and how long a case is measured.

    Attributes:
        zoo: The folder of the zoo.
        folder: Scratch for this case.
        budget: Budget of the run, as the option has it.
        left_out: Gets a sentence for every row that cannot be measured.
    """

    zoo: Path
    folder: Path
    budget: str
    left_out: list[str]


def _measure(case: Case, model: Mapping[str, Any], place: Place) -> list[Row]:
    """Run the main job on one model, and the peers where they are asked for."""
    print(f"{case.name} ...", file=sys.stderr, flush=True)
    zoo, folder = place.zoo, place.folder
    settings = folder / "settings.toml"
    settings.write_text(settings_text(model.get("preprocessing", {})), encoding="utf-8")
    data = case.samples or str(zoo / model["data"])
    out = folder / "out"
    command = [sys.executable, "-m", "edgewise", "optimize", str(zoo / model["path"]), "--data", data]
    command += ["--settings", str(settings), "--max-drop", case.max_drop, "--budget", place.budget, "--out", str(out)]
    environment = {**os.environ, **case.environment, "EDGEWISE_ZOO": str(zoo)}
    began = time.monotonic()
    command += case.options
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    print(done.stdout or done.stderr, file=sys.stderr, flush=True)
    ended = Row(
        row=f"{case.name}: runs to its end",
        value=float(done.returncode),
        unit="exit code",
        ask="0",
        met=done.returncode == 0,
        n=1,
        command=f"{COMMAND} --only {case.name}",
    )
    if done.returncode != 0:
        return [ended]
    run = finished_run(out)
    rows = [ended, *_rows(case, run, seconds)]
    if case.peers:
        request = DataRequest(samples=data, settings=str(settings))
        rows += _beside_peers(case, zoo / model["path"], request, place)
    return rows


def settings_text(preprocessing: Mapping[str, Any]) -> str:
    """Return the pre-processing of `zoo.toml` as edgewise reads it."""
    lines = ["[preprocessing]"]
    for name, value in preprocessing.items():
        text = f'"{value}"' if isinstance(value, str) else str(value)
        lines.append(f"{name} = {text}")
    return "\n".join(lines) + "\n"


def _rows(case: Case, run: Run, seconds: float) -> list[Row]:
    """Return what one run reached, beside what was asked for."""
    chosen = run.ladder[run.chosen]
    again = f"{COMMAND} --only {case.name}"

    def row(what: str, measured: tuple[float, str], asked: tuple[str, bool], n: int) -> Row:
        (value, unit), (ask, met) = measured, asked
        return Row(row=f"{case.name}: {what}", value=value, unit=unit, ask=ask, met=met, n=n, command=again)

    name = chosen.candidate.name
    speedup, proof = chosen.speedup, chosen.certificate
    smaller = run.ladder[0].size_bytes / chosen.size_bytes
    rows = [
        row(f"{name} against ONNX Runtime float", (speedup.value, "x"), _speed_ask(case, speedup), chosen.latency.runs),
        row("smaller on disk", (smaller, "x"), NO_ASK, 1),
        row("whole run", (seconds, "s"), _time_ask(case, seconds), 1),
    ]
    if proof is not None:
        asked = (f"<= {case.max_drop.rstrip('%')}", proof.passed)
        rows.append(row(f"upper bound of the drop ({proof.claim})", _points(proof.upper), asked, proof.n))
        rows.append(row("observed drop", _points(proof.drop), NO_ASK, proof.n))
    if case.name == "efficientnet_lite0":
        lower = 0.0 if proof is None else proof.lower
        certified = proof is not None and proof.passed
        rows.append(
            row("certified, and lower bound of the drop", _points(lower), ("<= 0.7", certified and lower <= 0.007), 1)
        )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        rows.append(row("peak memory of any process so far", (peak, "GiB"), ("< 2", peak < 2), 1))
    return rows


def _points(value: float) -> tuple[float, str]:
    return 100 * value, "points"


def _speed_ask(case: Case, speedup: Ratio) -> tuple[str, bool]:
    if case.name == "resnet56":
        return f">= 2.3, lower end > 2.0 (here {speedup.low:.2f})", speedup.value >= 2.3 and speedup.low > 2.0
    return f"never slower (interval from {speedup.low:.2f})", speedup.value >= 1 or speedup.low == 1


def _time_ask(case: Case, seconds: float) -> tuple[str, bool]:
    return ("< 300", seconds < 300) if case.name == "resnet56" else ("none", True)


def _beside_peers(case: Case, model: Path, request: DataRequest, place: Place) -> list[Row]:
    """Time the bundle's default, the untouched model and the peers in turns; score the peers on the certify samples."""
    loaded = load_model(model, {})
    data = open_data(request, loaded.facts.inputs)
    calibration = [data.calibrate.dataset.feeds(int(index)) for index in data.calibrate.indices]
    bundle = Bundle.load(place.folder / "out")
    default, original = bundle.rung(), bundle.manifest.ladder[0]
    entries = [
        Entry("ONNX Runtime float", bundle.folder / original.folder, original.artifact),
        Entry("edgewise", bundle.folder / default.folder, default.artifact),
    ]
    made: dict[str, Artifact] = {}
    for peer in PEERS:
        reason = peer.why_not()
        if reason:
            place.left_out.append(f"{case.name}, {peer.name}: {reason}")
            continue
        made[peer.name] = peer.quantize(model, calibration, place.folder)
        home = place.folder / re.sub(r"\W+", "-", peer.name)
        made[peer.name].write(home)
        entries.append(Entry(peer.name, home, made[peer.name].spec))
    feeds = [first_step(data.select.dataset.feeds(int(index)), {}) for index in data.select.indices[:8]]
    results = measure_group(entries, feeds, budget_s=TIMING_S)
    latencies = {entry.name: result for entry, result in zip(entries, results, strict=True)}
    return _peer_rows(case, latencies, _drops(made, bundle, data))


def _drops(made: Mapping[str, Artifact], bundle: Bundle, data: Data) -> dict[str, float]:
    """Return what each peer loses on the certify samples, in points of top1."""
    metric, part = resolve("top1"), data.certify

    def scored(artifact: Artifact) -> Scores:
        session = PEERS[0].open(artifact)
        try:
            return scores(session.run, part.dataset, part.indices, metric)
        finally:
            session.close()

    original = scored(bundle.artifact(0))
    proofs = {
        name: certify(original, scored(artifact), metric=metric, max_drop=0.01) for name, artifact in made.items()
    }
    return {name: 100 * proof.drop for name, proof in proofs.items()}


def _peer_rows(case: Case, latencies: Mapping[str, object], drops: Mapping[str, float]) -> list[Row]:
    ours, floating = latencies["edgewise"], latencies["ONNX Runtime float"]
    if not isinstance(ours, Latency) or not isinstance(floating, Latency):
        return []
    again = f"{COMMAND} --only {case.name}"
    rows = []
    for name, latency in {"edgewise": ours, **latencies}.items():
        if not isinstance(latency, Latency):
            continue
        rows.append(
            Row(f"{case.name}, beside peers: {name}", latency.median_us / 1e3, "ms", "none", True, latency.runs, again)
        )
    better = min(
        (found for found in drops if isinstance(latencies[found], Latency)), key=lambda found: _median(latencies[found])
    )
    against = latencies[better]
    if isinstance(against, Latency):
        gain = ratio(against, ours)
        ask = f">= 1, or an interval that includes it ({gain.low:.2f} to {gain.high:.2f})"
        rows.append(
            Row(f"{case.name}: edgewise against {better}", gain.value, "x", ask, gain.high >= 1, gain.rounds, again)
        )
    rows += [
        Row(f"{case.name}: drop of {name}", drop, "points", "none", True, 1, again) for name, drop in drops.items()
    ]
    return rows


def _median(latency: object) -> float:
    return latency.median_us if isinstance(latency, Latency) else float("inf")


if __name__ == "__main__":
    sys.exit(main())
