"""What zeros in the weights are good for: bytes on the way to the device, beside the time that they do not save.

    python benchmarks/pruning_size.py --zoo ../shared/zoo

A model is pruned (unstructured), what stays is rounded to 4 bits with the zeros kept, and its bundle is packed: model
and manifest, without the untouched model and the test vectors. Calibration samples are disjoint from those scored.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, Session
from edgewise.bundle.pack import pack, unpack
from edgewise.bundle.read import Bundle
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.compress.nodes import constant
from edgewise.compress.prune.weight_sequence import prune_weights
from edgewise.compress.prune.weights import KeptOfEvery, Pattern, Unstructured, magnitude_mask, why_not
from edgewise.compress.unfold import unfolding
from edgewise.errors import EdgewiseError
from edgewise.measure.accuracy import Scores, scores
from edgewise.measure.certificate import certify
from edgewise.measure.latency import measure_group, ratio
from edgewise.measure.machine import describe
from edgewise.measure.process import Entry
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline.judge import opened
from edgewise.records.candidate import Candidate, Fuse, Quantize, RunOptions
from edgewise.records.certificate import Certificate
from edgewise.records.measurements import Latency
from quantized import ToolError, graph_of, open_session, ready_backends
from rows import Row, finish
from zoo_models import Subject, open_subject

COMMAND: Final = "python benchmarks/pruning_size.py --zoo ../shared/zoo"
SPARSITY: Final = {"resnet56": 0.5, "efficientnet_lite0": 0.3}
"""Share of the weights that goes before the others are rounded to 4 bits."""

MOST_SIZE: Final = 0.12
MOST_DROP: Final = 1.0
PRUNING_SAMPLES: Final = 100
SECONDS: Final = 20.0
TIMED: Final = "resnet56"
SPARSE: Final[Mapping[str, tuple[Pattern, float]]] = {
    "50 % zeros": (Unstructured(), 0.5),
    "80 % zeros": (Unstructured(), 0.8),
    "90 % zeros": (Unstructured(), 0.9),
    "2:4": (KeptOfEvery(2, 4), 0.5),
}


def size(zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str]) -> list[Row]:
    """Return how small the packed file of a pruned w4 model is, what is lost for that, and whether it comes back.

    Args:
        zoo: Folder with `zoo.toml`.
        names: Models that are measured, or None for all.
        command: The command that measures it again.
        left_out: Gets a sentence for everything that could not be measured.
    """
    rows: list[Row] = []
    for name, sparsity in SPARSITY.items():
        if names is None or name in names:
            print(f"{name}: size at {sparsity:.0%} zeros and w4 ...", file=sys.stderr, flush=True)
            rows += _size_rows(open_subject(zoo, name), sparsity, f"{command} --only {name}", left_out)
    return rows


def _size_rows(subject: Subject, sparsity: float, command: str, left_out: list[str]) -> list[Row]:
    what = f"{subject.name}: {sparsity:.0%} zeros, w4"
    samples, evaluated = subject.split(0)
    try:
        graph, _ = fuse(subject.model)
        pruned = prune_weights(graph, sparsity, Unstructured(), opened, samples[:PRUNING_SAMPLES])
        small = registry.get("ort").compile(graph_of(pruned.model, samples, "w4", "ort"), RunOptions())
    except (ToolError, EdgewiseError) as error:
        left_out.append(f"{what}: {error}")
        return [Row(f"{what} fails", 1, "failures", "0", False, 1, command)]

    def scored(session: Session) -> Scores:
        try:
            return scores(session.run, subject.dataset, evaluated, subject.metric)
        finally:
            session.close()

    original = scored(subject.float_session())
    proof = certify(original, scored(open_session(small)), metric=subject.metric, max_drop=MOST_DROP / 100)
    share, exact = _sent(subject, small, proof)
    drop = 100 * proof.drop
    return [
        Row(
            f"{what}, packed file beside float's ONNX file",
            share,
            "x",
            f"<= {MOST_SIZE}",
            share <= MOST_SIZE,
            1,
            command,
        ),
        Row(f"{what}, drop", drop, "points", f"<= {MOST_DROP:g}", drop <= MOST_DROP, proof.n, command),
        Row(f"{what}, lower bound of the drop", 100 * proof.lower, "points", "none", True, proof.n, command),
        Row(f"{what}, files that come back changed", float(not exact), "files", "0", exact, 1, command),
    ]


def _sent(subject: Subject, small: Artifact, proof: Certificate) -> tuple[float, bool]:
    """Return the packed file's bytes as a share of the float model's, and whether the model comes back bit by bit."""
    untouched = registry.get("ort").compile(subject.model, RunOptions())
    ladder = [
        NewRung(
            candidate=Candidate(steps=steps, backend="ort", options=RunOptions()),
            artifact=artifact,
            certificate=certificate,
            certified=True,
            timing=None,
        )
        for steps, artifact, certificate in (
            ((), untouched, None),
            ((Fuse(), Quantize(scheme="w4")), small, proof),
        )
    ]
    contract = Contract(model=subject.path.name, machine=describe(), created="2026-01-01T00:00:00Z")
    with tempfile.TemporaryDirectory(prefix="edgewise-size-") as name:
        folder = Path(name)
        manifest = write(folder / "out", ladder, default=1, contract=contract, vectors=[subject.dataset.feeds(0)])
        rung = manifest.ladder[1].name
        packed = pack(Bundle.load(folder / "out"), folder / "packed", rungs=[rung], vectors=False)
        unpack(folder / "packed", folder / "there")
        exact = Bundle.load(folder / "there").artifact(rung).files == small.files
    return packed.file_bytes / subject.path.stat().st_size, exact


def speed(zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str]) -> list[Row]:
    """Return how much faster zeros make a model in each backend: nothing is asked, and none is expected.

    Which weights are zero is a matter of magnitudes here: time does not depend on their values.
    """
    if names is not None and TIMED not in names:
        return []
    subject = open_subject(zoo, TIMED)
    samples, _ = subject.split(0, 8)
    graph, _ = fuse(subject.model)
    models = {"dense": graph, **{name: with_zeros(graph, *choice) for name, choice in SPARSE.items()}}
    rows: list[Row] = []
    for backend in ready_backends():
        print(f"{TIMED}: zeros in {backend} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="edgewise-zeros-") as folder:
            entries = []
            for number, (name, model) in enumerate(models.items()):
                artifact = registry.get(backend).compile(model, RunOptions())
                home = Path(folder) / str(number)
                artifact.write(home)
                entries.append(Entry(name, home, artifact.spec))
            found = dict(zip(models, measure_group(entries, samples, budget_s=SECONDS), strict=True))
        dense = found.pop("dense")
        for name, latency in found.items():
            if not isinstance(latency, Latency) or not isinstance(dense, Latency):
                left_out.append(f"{TIMED}: {name} in {backend} could not be timed")
                continue
            gain = ratio(dense, latency)
            what = f"{TIMED} in {backend}: {name} against dense ({gain.low:.3f} to {gain.high:.3f})"
            rows.append(Row(what, gain.value, "x", "none", True, gain.rounds, f"{command} --only {TIMED}"))
    return rows


def with_zeros(model: ir.Model, pattern: Pattern, sparsity: float) -> ir.Model:
    """Return a copy of `model` whose smallest weights are zero, in every layer that can have the pattern."""
    copy = model.clone()
    for node in copy.graph:
        weight = constant(node.inputs[1]) if node.op_type in {"Conv", "Gemm"} and len(node.inputs) > 1 else None
        if weight is None:
            continue
        shape = unfolding(node, weight)
        if isinstance(shape, str) or why_not(pattern, shape.columns // shape.kernel):
            continue
        matrix = shape.matrix(weight)
        zeroed = matrix * magnitude_mask(matrix, pattern, sparsity, kernel=shape.kernel)
        value = node.inputs[1]
        if value is not None:
            value.const_value = ir.tensor(shape.restore(zeroed.astype(np.float32)), name=value.name)
    return copy


def main() -> int:
    """Measure what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder with zoo.toml")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    parser.add_argument("--only", nargs="+", choices=tuple(SPARSITY), metavar="NAME", help="names of models")
    arguments = parser.parse_args()
    zoo, left_out = arguments.zoo.resolve(), list[str]()
    if not (zoo / "zoo.toml").is_file():
        print(f"There is no zoo in {zoo}: nothing can be measured.", file=sys.stderr)
        finish([], describe(), arguments.json, left_out=["every row: the zoo is absent"])
        return 0
    rows = size(zoo, arguments.only, command=COMMAND, left_out=left_out)
    rows += speed(zoo, arguments.only, command=COMMAND, left_out=left_out)
    finish(rows, describe(), arguments.json, left_out=left_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
