"""Pruning as a part of `edgewise optimize`: it runs to its end, and what it chooses is never worse than not pruning."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgewise.measure.latency import ratio
from edgewise.pipeline.optimize import finished_run
from edgewise.records.run import Run, Rung
from main_job import HERE, Case, cases, settings_text
from pruning_models import Extent, say
from rows import Row

NAMES: Final = ("efficientnet_lite0", "ppocrv4_mobile_rec", "cmapss_regression", "fastestdet")


def never_worse(
    zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str], extent: Extent
) -> list[Row]:
    """Return the rows of whole runs; the arguments are those of `beyond_int8`."""
    models = {model["name"]: model for model in tomllib.loads((zoo / "zoo.toml").read_text(encoding="utf-8"))["model"]}
    known = {case.name: case for case in cases(zoo)}
    rows: list[Row] = []
    for name in NAMES:
        if names is None or name in names:
            say(f"{name}: the whole run")
            case = known.get(name, Case(name, max_drop="5%"))
            rows += _of_one(
                case, models[name], zoo, command=f"{command} --only {name}", left_out=left_out, budget=extent.budget
            )
    return rows


def _of_one(
    case: Case, model: Mapping[str, Any], zoo: Path, *, command: str, left_out: list[str], budget: str
) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="edgewise-pruning-") as scratch:
        settings, out = Path(scratch) / "settings.toml", Path(scratch) / "out"
        settings.write_text(settings_text(model.get("preprocessing", {})), encoding="utf-8")
        code = [sys.executable, "-m", "edgewise", "optimize", str(zoo / model["path"])]
        code += ["--data", case.samples or str(zoo / model["data"]), "--settings", str(settings)]
        code += ["--max-drop", case.max_drop, "--budget", budget, "--out", str(out), *case.options]
        environment = {**os.environ, **case.environment, "EDGEWISE_ZOO": str(zoo)}
        done = subprocess.run(code, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        ended = done.returncode == 0
        rows = [Row(f"{case.name}: runs to its end", done.returncode, "exit code", "0", ended, 1, command)]
        if not ended:
            left_out.append(f"{case.name}: {(done.stderr.strip() or 'no words').splitlines()[-1]}")
            return rows
        return rows + run_rows(case.name, finished_run(out), command, left_out)


def run_rows(name: str, run: Run, command: str, left_out: list[str]) -> list[Row]:
    """Return what one run's default gives beside the fastest certified model that was not pruned.

    Args:
        name: The model.
        run: Its run.
        command: The command that measures it again.
        left_out: Gets what became of the pruned candidates where the default is not pruned.
    """
    chosen = run.ladder[run.chosen]
    tried = [outcome for outcome in run.outcomes if outcome.candidate.pruned is not None]
    rows = [Row(f"{name}: pruned candidates that were tried", len(tried), "models", "none", True, 1, command)]
    if not tried:
        left_out.append(f"{name}: no pruned candidate; {'; '.join(run.notes) or run.verdict}")
    elif chosen.candidate.pruned is None:
        left_out.append(f"{name}: the default is not pruned; {tried[-1].candidate.name}: {tried[-1].reason}")
    rows.append(comparison_row(name, chosen, fastest_whole(run.ladder), command))
    if run.pruning is not None:
        fewer = run.pruning.macs_before / max(1, run.pruning.macs_after)
        rows.append(Row(f"{name}: fewer MACs", fewer, "x", "none", True, 1, command))
    if chosen.certificate is not None:
        drop = 100 * chosen.certificate.drop
        rows.append(Row(f"{name}: observed drop", drop, "points", "none", True, chosen.certificate.n, command))
    return rows


def fastest_whole(ladder: Sequence[Rung]) -> Rung:
    """Return the fastest certified rung without pruning; the untouched model is always one."""
    whole = [rung for rung in ladder if rung.certified and rung.candidate.pruned is None]
    return min(whole, key=lambda rung: rung.latency.median_us)


def comparison_row(name: str, chosen: Rung, whole: Rung, command: str) -> Row:
    """Return how much faster the default is than a model that was not pruned, from the same rounds."""
    if chosen.candidate == whole.candidate:
        what = f"{name}: {chosen.candidate.name}, not pruned, against itself"
        return Row(what, 1.0, "x", ">= 1", True, chosen.latency.runs, command)
    gain = ratio(whole.latency, chosen.latency)
    what = f"{name}: {chosen.candidate.name} against {whole.candidate.name}"
    ask = f">= 1, or an interval that reaches it ({gain.low:.2f} to {gain.high:.2f})"
    return Row(what, gain.value, "x", ask, gain.high >= 1, gain.rounds, command)
