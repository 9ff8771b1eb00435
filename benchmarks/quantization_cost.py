"""What quantization costs and brings: latency beside the rivals, time and memory to quantize, size on disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact
from edgewise.errors import EdgewiseError
from edgewise.formats.onnx import to_bytes
from edgewise.formats.registry import load
from edgewise.measure.latency import measure_group, ratio
from edgewise.measure.process import Entry
from edgewise.measure.turns import peak_resident_bytes
from edgewise.records.candidate import RunOptions
from edgewise.records.measurements import Latency
from edgewise.records.tensors import Feeds
from peers.quantizers import Nncf, OnnxRuntimeStatic
from quantization_accuracy import Question, drops
from quantized import ToolError, artifact_of, graph_of, ours, ready_backends, rival_artifact
from rows import Row
from zoo_models import CLASSIFIERS, Subject, open_subject

TIMED: Final = (*CLASSIFIERS, "fastestdet")
SECONDS: Final = 20.0
"""Time of one comparison; all its models take turns."""

FEEDS: Final = 8
"""Samples that are run in rotation while latency is measured."""

COSTLY: Final = "efficientnet_lite0"
"""The model whose cost and size are asked for."""

IMAGES: Final = 300
MOST_SECONDS: Final = 240.0
MOST_GIB: Final = 3.0
PROCESSORS: Final = 2
MOST_SIZE: Final = 0.16
SIZE_DROP: Final = 1.5


def speed(zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str]) -> list[Row]:
    """Return the rows of latency: edgewise beside the rivals' int8 models in the same backend, in turns."""
    rows: list[Row] = []
    for name in TIMED:
        if names is not None and name not in names:
            continue
        subject = open_subject(zoo, name)
        samples, evaluated = subject.split(0)
        feeds = [subject.dataset.feeds(int(index)) for index in evaluated[:FEEDS]]
        for backend in ready_backends():
            print(f"{name}: speed in {backend} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="edgewise-speed-") as folder:
                made = _candidates(subject, samples, backend, Path(folder), left_out)
                latencies = in_turns(made, feeds, Path(folder), left_out)
                rows += speed_rows(f"{name} in {backend}", ours(backend), latencies, f"{command} --only {name}")
    return rows


def _candidates(
    subject: Subject, samples: Sequence[Feeds], backend: str, folder: Path, left_out: list[str]
) -> dict[str, Artifact]:
    """Return the int8 models that this backend can run, by the tool's name."""
    static = OnnxRuntimeStatic()

    def static_here() -> Artifact:
        artifact = rival_artifact(static, subject, samples, folder)
        if backend == artifact.spec.backend:
            return artifact
        return registry.get(backend).compile(load(folder / static.file_name), RunOptions())

    makers: dict[str, Callable[[], Artifact]] = {
        ours(backend): lambda: artifact_of(subject, samples, backend),
        static.name: static_here,
    }
    if backend == "openvino":
        makers[Nncf.name] = lambda: rival_artifact(Nncf(), subject, samples, folder)
    made = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except (ToolError, EdgewiseError) as error:
            left_out.append(f"{subject.name}: speed in {backend}: {error}")
    return made


def in_turns(
    made: Mapping[str, Artifact], feeds: Sequence[Feeds], folder: Path, left_out: list[str], *, seconds: float = SECONDS
) -> dict[str, Latency]:
    """Return the latencies of models that take turns, by name.

    Args:
        made: The models.
        feeds: Samples that each of them runs on in rotation.
        folder: Where they are written.
        left_out: Gets a sentence for each that fails.
        seconds: Time of the comparison.
    """
    entries = []
    for name, artifact in made.items():
        home = folder / re.sub(r"\W+", "-", name)
        artifact.write(home)
        entries.append(Entry(name, home, artifact.spec))
    found = {}
    for entry, result in zip(entries, measure_group(entries, feeds, budget_s=seconds), strict=True):
        if isinstance(result, Latency):
            found[entry.name] = result
        else:
            left_out.append(f"latency of {entry.name}: {result.message}")
    return found


def speed_rows(where: str, tool: str, latencies: Mapping[str, Latency], command: str) -> list[Row]:
    """Return the latency of each tool, and that of `tool` beside the fastest other.

    Args:
        where: The model and the backend that runs all of them.
        tool: The one that must not be slower.
        latencies: From the same rounds.
        command: The command that measures it again.
    """
    if tool not in latencies:
        return [Row(f"{where}: {tool} fails", 1, "failures", "0", False, 1, command)]
    rows = [
        Row(f"{where}: latency, {other}", latency.median_us / 1e3, "ms", "none", True, latency.runs, command)
        for other, latency in latencies.items()
    ]
    rivals = [other for other in latencies if other != tool]
    if rivals:
        best = min(rivals, key=lambda other: latencies[other].median_us)
        gain = ratio(latencies[best], latencies[tool])
        ask = f">= 1, or an interval that reaches it ({gain.low:.3f} to {gain.high:.3f})"
        rows.append(Row(f"{where}: {tool} against {best}", gain.value, "x", ask, gain.high >= 1, gain.rounds, command))
    return rows


def cost(zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str]) -> list[Row]:
    """Return the time and the memory that quantization takes in a process of its own."""
    if names is not None and COSTLY not in names:
        return []
    rows: list[Row] = []
    for backend in ready_backends():
        print(f"{COSTLY}: cost for {backend} ...", file=sys.stderr, flush=True)
        code = [sys.executable, str(Path(__file__).resolve()), str(zoo), backend]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(PROCESSORS))
        done = subprocess.run(code, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
        what = f"{COSTLY}: {ours(backend)}, second-order rounding, {IMAGES} images"
        again = f"{command} --only {COSTLY}"
        if done.returncode != 0:
            left_out.append(f"{what}: {(done.stderr.strip() or 'no words').splitlines()[-1]}")
            rows.append(Row(f"{what} fails", 1, "failures", "0", False, 1, again))
            continue
        used = json.loads(done.stdout.splitlines()[-1])
        seconds, peak = float(used["seconds"]), float(used["peak_bytes"]) / 2**30
        rows.append(Row(f"{what}, time", seconds, "s", f"<= {MOST_SECONDS:g}", seconds <= MOST_SECONDS, 1, again))
        rows.append(Row(f"{what}, peak memory", peak, "GiB", f"< {MOST_GIB:g}", peak < MOST_GIB, 1, again))
    return rows


def quantize_once(zoo: Path, backend: str) -> dict[str, float]:
    """Quantize in this process, and return the seconds it took and the process's peak memory in bytes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:PROCESSORS])
    subject = open_subject(zoo, COSTLY)
    began = time.monotonic()
    samples = [subject.dataset.feeds(index) for index in range(min(IMAGES, len(subject.dataset)))]
    graph_of(subject.model, samples, "w8a8", backend, rounding="second-order")
    return {"seconds": time.monotonic() - began, "peak_bytes": float(peak_resident_bytes())}


def size(zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str]) -> list[Row]:
    """Return how small the ONNX file of w4 weight-only is, and what is lost for that."""
    if names is not None and COSTLY not in names:
        return []
    print(f"{COSTLY}: size at w4 ...", file=sys.stderr, flush=True)
    subject = open_subject(zoo, COSTLY)
    samples, _ = subject.split(0)
    again = f"{command} --only {COSTLY}"
    what = f"{COSTLY}: edgewise w4, ONNX file beside float's"
    try:
        small = len(to_bytes(graph_of(subject.model, samples, "w4", "ort")))
    except ToolError as error:
        left_out.append(f"{what}: {error}")
        return [Row(f"{what} fails", 1, "failures", "0", False, 1, again)]
    share = small / subject.path.stat().st_size
    rows = [Row(what, share, "x", f"<= {MOST_SIZE}", share <= MOST_SIZE, 1, again)]
    return rows + drops(subject, [Question("w4", SIZE_DROP)], ("ort",), again, left_out)


if __name__ == "__main__":
    print(json.dumps(quantize_once(Path(sys.argv[1]), sys.argv[2])))
