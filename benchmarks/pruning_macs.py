"""Work: how many fewer multiply-accumulates a pruned float model needs within its bound on accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewise.records.certificate import Certificate
from pruning_models import (
    Extent,
    compiled,
    drop_row,
    failure,
    macs,
    points,
    pruned,
    say,
    split,
    wanted,
    why_no_recovery,
)
from quantized import ToolError
from rows import Row


@dataclass(frozen=True)
class Work:
    """What a pruned float model has to reach.

    Attributes:
        time: Time that is aimed at, as a share of the whole model's.
        fewer_macs: How many times fewer multiply-accumulates.
        drop: Largest drop in points.
    """

    time: float
    fewer_macs: float
    drop: float


WORK: Final = {"kwt1": Work(0.75, 1.25, 1.0)}


def fewer_macs(
    zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str], extent: Extent
) -> list[Row]:
    """Return the rows of work; the arguments are those of `beyond_int8`."""
    rows: list[Row] = []
    for name in wanted(WORK, names):
        asked, again = WORK[name], f"{command} --only {name}"
        parts = split(zoo, name, extent)
        original = parts.score(compiled(parts.subject.model, "ort"))
        for words, seconds in (("pruned", 0.0), ("pruned, recovered", extent.recover_s)):
            what = f"{name}: {words}"
            if seconds and (reason := why_no_recovery()):
                left_out.append(f"{what}: {reason}")
                continue
            say(what)
            try:
                model = pruned(parts.subject.model, parts.samples, latency=asked.time, recover_s=seconds)
                proof = parts.proof(original, compiled(model, "ort"))
            except ToolError as error:
                rows.append(failure(what, error, again, left_out))
                continue
            rows += work_rows(what, asked, macs(parts.subject.model) / macs(model), proof, again)
    return rows


def work_rows(what: str, asked: Work, fewer: float, proof: Certificate, command: str) -> list[Row]:
    """Return how many fewer multiply-accumulates there are, met only within the drop, and the drop."""
    met = fewer >= asked.fewer_macs and points(proof) <= asked.drop
    ask = f">= {asked.fewer_macs:g} at <= {asked.drop:g} points"
    return [
        Row(f"{what}, fewer MACs", fewer, "x", ask, met, proof.n, command),
        drop_row(what, proof, asked.drop, command),
    ]
