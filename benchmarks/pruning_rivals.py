"""edgewise beside Torch-Pruning: the same model, samples, multiply-accumulates and seconds of recovery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from edgewise.errors import EdgewiseError
from edgewise.pipeline.library import load
from pruning_models import Extent, Split, compiled, failure, macs, pruned, say, split, wanted, why_no_recovery
from quantized import ToolError
from rows import Row

SCRIPT: Final = Path(__file__).resolve().parent / "peers" / "torch_pruning_resnet.py"

RIVAL: Final = "Torch-Pruning"
HELPED: Final = "Torch-Pruning, then edgewise's training"
OURS: Final = "edgewise"

JUDGES: Final = 10
"""One sample of so many tells edgewise's training when to stop."""

NEURONS: Final = (0.35, 0.5)
"""Shares of inner channels that edgewise takes; the rival gets the multiply-accumulates that this leaves."""

RIVALLED: Final = {"resnet56": "cifar10/resnet56.pt2"}
"""The exported program of a model, as Torch-Pruning reads it."""


@dataclass
class Accuracies:
    """What both tools reached at the same multiply-accumulates, in per cent of the scored samples.

    Attributes:
        one_shot: By tool, before recovery.
        recovered: By tool, after it.
    """

    one_shot: dict[str, float] = field(default_factory=dict)
    recovered: dict[str, float] = field(default_factory=dict)


def torch_pruning(
    zoo: Path,
    names: Sequence[str] | None,
    *,
    command: str,
    left_out: list[str],
    extent: Extent,
    python: str = sys.executable,
) -> list[Row]:
    """Return the rows beside Torch-Pruning; the arguments are those of `beyond_int8`.

    Args:
        zoo: Folder of the zoo.
        names: Models; None for all.
        command: The command that measures it again.
        left_out: Gets a sentence for everything that could not be measured.
        extent: How long it is measured.
        python: A Python that has torch and torch-pruning.
    """
    rows: list[Row] = []
    for name in wanted(RIVALLED, names):
        again = f"{command} --only {name}"
        parts = split(zoo, name, extent)
        whole = macs(parts.subject.model)
        for share in NEURONS:
            say(f"{name}: beside {RIVAL}, {100 * share:.0f} % of the inner channels")
            try:
                left, found = _ours(parts, share, extent, left_out)
            except ToolError as error:
                rows.append(failure(f"{name}: {OURS} at {100 * share:.0f} %", error, again, left_out))
                continue
            try:
                said = _rival(parts, zoo / RIVALLED[name], left, extent=extent, found=found, python=python)
                left_out.append(f"note: {RIVAL} at {whole / left:.2f}x fewer MACs: {said}")
            except ToolError as error:
                left_out.append(f"{name}: {error}")
            rows += rival_rows(f"{name}, {whole / left:.2f}x fewer MACs", found, len(parts.scored), again)
    return rows


def _ours(parts: Split, share: float, extent: Extent, left_out: list[str]) -> tuple[int, Accuracies]:
    """Return the multiply-accumulates that edgewise leaves, and its accuracy before and after recovery."""
    found = Accuracies()
    model = pruned(parts.subject.model, parts.samples, neurons=share)
    found.one_shot[OURS] = accuracy(parts, model)
    reason = why_no_recovery()
    if reason:
        left_out.append(f"{parts.subject.name}: {OURS}, recovered: {reason}")
    else:
        recovered = pruned(parts.subject.model, parts.samples, neurons=share, recover_s=extent.recover_s)
        found.recovered[OURS] = accuracy(parts, recovered)
    return macs(model), found


def _rival(parts: Split, exported: Path, left: int, *, extent: Extent, found: Accuracies, python: str) -> str:
    """Run Torch-Pruning in a process of its own, score what it leaves, and return what it says it chose.

    Raises:
        ToolError: If it is not installed, or fails.
    """
    name = parts.subject.model.graph.inputs[0].name or ""
    with tempfile.TemporaryDirectory(prefix="edgewise-torch-pruning-") as folder:
        samples = Path(folder) / "samples.npz"
        np.savez(samples, x=np.concatenate([feeds[name] for feeds in parts.samples]))
        code = [python, str(SCRIPT), "--model", str(exported), "--samples", str(samples), "--macs", str(left)]
        code += ["--seconds", str(extent.recover_s), "--out", folder]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        done = subprocess.run(code, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ToolError(f"{RIVAL}: {(done.stderr.strip() or 'no words').splitlines()[-1]}")
        said = json.loads(done.stdout.splitlines()[-1])
        try:
            found.one_shot[RIVAL] = accuracy(parts, load(Path(folder) / "pruned.onnx"))
            found.recovered[RIVAL] = accuracy(parts, load(Path(folder) / "recovered.onnx"))
            if not why_no_recovery():
                found.recovered[HELPED] = accuracy(parts, _helped(parts, Path(folder) / "pruned.onnx", extent))
        except EdgewiseError as error:
            raise ToolError(f"{RIVAL}'s model: {error.message}") from error
    return rival_words(said)


def _helped(parts: Split, path: Path, extent: Extent) -> ir.Model:
    """Return the rival's pruned model after edgewise's own training, on the same samples for the same time."""
    from edgewise.compress.recover.distil import distil

    judges, rest = parts.samples[::JUDGES], [feeds for at, feeds in enumerate(parts.samples) if at % JUDGES]
    return distil(load(path), parts.subject.model, rest, seconds=extent.recover_s, held_out=judges).model


def rival_words(said: Mapping[str, Any]) -> str:
    """Return what Torch-Pruning did, in one line."""
    tried, steps = len(said["divergences"]), said.get("steps")
    trained = f", {steps} steps" if steps else ""
    return f"version {said['version']}, {said['chosen']} of {tried} tried, {said['macs']} MACs{trained}"


def accuracy(parts: Split, model: ir.Model) -> float:
    """Return the accuracy of a float model in per cent."""
    return 100 * float(parts.score(compiled(model, "ort")).array().mean())


def rival_rows(where: str, found: Accuracies, n: int, command: str) -> list[Row]:
    """Return all accuracies, and by how many points edgewise is above its rival, however that is trained.

    A stage that edgewise reached and the rival did not has no row that asks for anything.

    Args:
        where: The model and how much of it is left.
        found: What was measured.
        n: Samples that were scored.
        command: The command that measures it again.
    """
    rows = []
    for stage, reached in (("one-shot", found.one_shot), ("recovered", found.recovered)):
        rows += [
            Row(f"{where}, {stage}: accuracy, {tool}", value, "%", "none", True, n, command)
            for tool, value in reached.items()
        ]
        rivals = [tool for tool in reached if tool != OURS]
        if not rivals:
            continue
        best = max(rivals, key=reached.__getitem__)
        what = f"{where}, {stage}: {OURS} above {best}"
        if OURS in reached:
            above = reached[OURS] - reached[best]
            rows.append(Row(what, above, "points", "> 0", above > 0, n, command))
        else:
            rows.append(Row(f"{what} could not be measured", 1, "failures", "0", False, 1, command))
    return rows
