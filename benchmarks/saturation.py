"""What 8-bit weights lose where 8-bit sums saturate, and what 7-bit ones lose; docs/adr/0010-saturation-is-measured.md.

    python benchmarks/saturation.py --zoo ../shared/zoo [--json FILE] [--only NAME ...]

Each model is quantized here, with 8-bit weights, and again in a process without dot products, where `edgewise.quantize`
finds out that sums saturate and takes 7-bit weights. Both run in that process: OpenVINO with ONEDNN_MAX_CPU_ISA=AVX2,
ONNX Runtime in `qemu-x86_64 -cpu Haswell` (Debian: `apt-get install qemu-user`), which is slow, so it gets few samples.
Answers are compared with those of the float model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from answers import flips
from edgewise.backends import registry
from edgewise.backends.processor import is_x86
from edgewise.measure.machine import describe
from edgewise.pipeline.library import quantize
from edgewise.records.candidate import RunOptions
from rows import Row, finish
from zoo_models import Subject, open_subject

COMMAND: Final = "python benchmarks/saturation.py --zoo ../shared/zoo"
MODELS: Final = ("resnet8", "ds_cnn", "resnet56", "efficientnet_lite0")
SEED: Final = 0

BIT_DB: Final = 6.1
"""What a bit is worth: half the step is a quarter of the noise. More than that 7-bit weights must not lose."""


@dataclass(frozen=True)
class Place:
    """A way to run a backend without dot products.

    Attributes:
        backend: The backend.
        says: Its name in rows.
        prefix: What is written before the command line.
        environment: Variables that are set.
        calibration: Calibration samples.
        samples: Evaluated samples, at most.
        models: The models that are small enough.
    """

    backend: str
    says: str
    prefix: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    calibration: int
    samples: int
    models: tuple[str, ...]

    def why_not(self) -> str | None:
        """Return why it cannot be done on this machine, or None."""
        if not is_x86():
            return f"{self.says}, because this processor is no x86"
        if self.backend not in registry.ready():
            return f"{self.says}, because {self.backend} is not installed"
        if self.prefix and shutil.which(self.prefix[0]) is None:
            return f"{self.says}, because `{self.prefix[0]}` is not installed"
        if (bits := registry.get(self.backend).target().exact_product_bits) < 8:
            return f"{self.says}, because here, too, sums are exact up to {bits} bits only"
        return None


PLACES: Final = (
    Place("openvino", "OpenVINO on AVX2", (), (("ONEDNN_MAX_CPU_ISA", "AVX2"),), 100, 500, MODELS),
    Place(
        "ort",
        "ONNX Runtime on an emulated Haswell",
        ("qemu-x86_64", "-cpu", "Haswell"),
        # numpy's own AVX2 code crashes in qemu 7.2 (`argsort`); older versions of numpy know the second name.
        (("NPY_DISABLE_CPU_FEATURES", "X86_V3 AVX2"),),
        32,
        100,
        MODELS[:2],
    ),
)


def quantized(subject: Subject, place: Place) -> ir.Model:
    """Return the model as `edgewise.quantize` makes it in this process."""
    samples, _ = subject.split(SEED, place.calibration)
    return quantize(subject.model, samples, backend=place.backend)


def answers(subject: Subject, place: Place, graph: ir.Model) -> npt.NDArray[Any]:
    """Return the outputs of a graph in this process, `[N, C]`."""
    backend = registry.get(place.backend)
    _, evaluated = subject.split(SEED, place.calibration)
    return subject.answers(backend.open(backend.compile(graph, RunOptions())), evaluated[: place.samples])


def elsewhere(zoo: Path, name: str, place: Place, folder: Path) -> tuple[int, npt.NDArray[Any], npt.NDArray[Any]]:
    """Run `folder/8.onnx`, and what is quantized there, without dot products.

    Returns:
        The weight bits that are exact there, and the outputs `[N, C]` of both.
    """
    task = json.dumps({"zoo": str(zoo), "name": name, "place": PLACES.index(place), "folder": str(folder)})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict(place.environment)}
    command = [*place.prefix, sys.executable, str(Path(__file__)), "--there", task]
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL if place.prefix else None)
    found = np.load(folder / "there.npz")
    return int(found["bits"]), found["eight"], found["seven"]


def there(task: str) -> None:
    """Do what `elsewhere` asks for, in its process."""
    asked = json.loads(task)
    place, folder = PLACES[asked["place"]], Path(asked["folder"])
    subject = open_subject(Path(asked["zoo"]), asked["name"])
    eight = answers(subject, place, ir.load(folder / "8.onnx"))
    seven = answers(subject, place, quantized(subject, place))
    bits = registry.get(place.backend).target().exact_product_bits
    np.savez(folder / "there.npz", eight=eight, seven=seven, bits=bits)


def sqnr_db(original: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return the signal-to-quantization-noise ratio of outputs `[N, C]` in dB."""
    noise = float(((original - other).astype(np.float64) ** 2).sum())
    return float(10 * np.log10((original.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def measured(zoo: Path, name: str, place: Place) -> list[Row]:
    """Return the rows of one model in one place."""
    subject = open_subject(zoo, name)
    _, evaluated = subject.split(SEED, place.calibration)
    original = subject.answers(subject.float_session(), evaluated[: place.samples])
    graph = quantized(subject, place)
    here = answers(subject, place, graph)
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        ir.save(graph, Path(folder) / "8.onnx")
        bits, eight, seven = elsewhere(zoo, name, place, Path(folder))
    noise = {"eight": sqnr_db(original, eight), "seven": sqnr_db(original, seven)}
    changed = {"eight": flips(original, eight), "seven": flips(original, seven)}
    count = len(original)
    exact = sqnr_db(original, here)
    least = exact - BIT_DB

    def row(what: str, value: float, unit: str, ask: str = "none", *, met: bool = True) -> Row:
        return Row(f"{name}, {place.says}, {what}", value, unit, ask, met, count, COMMAND)

    def share(flipped: int) -> float:
        return 100 * flipped / count

    return [
        row("weight bits found exact", bits, "bits", "= 7", met=bits == 7),
        row("8-bit weights with dot products", exact, "dB"),
        row("8-bit weights", noise["eight"], "dB"),
        row("7-bit weights", noise["seven"], "dB", f">= {least:.1f}", met=noise["seven"] >= least),
        row("8-bit weights with dot products", share(flips(original, here)), "% flips"),
        row("8-bit weights", share(changed["eight"]), "% flips"),
        row(
            "7-bit weights",
            share(changed["seven"]),
            "% flips",
            "<= 8-bit weights",
            met=changed["seven"] <= changed["eight"],
        ),
    ]


def saturation(zoo: Path, only: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """Measure every model in every place.

    Args:
        zoo: The folder of the zoo.
        only: Names of models; none stands for all.

    Returns:
        The rows, and one sentence for what was left out.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    for place in PLACES:
        if reason := place.why_not():
            left_out.append(reason)
            continue
        for name in place.models:
            if not only or name in only:
                rows.extend(measured(zoo, name, place))
    return rows, left_out


def main() -> None:
    """Run, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder of the zoo")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="models, by their names in the zoo")
    parser.add_argument("--there", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.there is not None:
        there(arguments.there)
        return
    if not (arguments.zoo / "zoo.toml").exists():
        finish([], describe(), arguments.json, left_out=["every row: the zoo is absent"])
        return
    rows, left_out = saturation(arguments.zoo, arguments.only)
    finish(rows, describe(), arguments.json, left_out=left_out)


if __name__ == "__main__":
    main()
