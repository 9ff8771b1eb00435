"""The one form of every benchmark: rows with an ask, a table with the machine under it, a JSON list, a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgewise.records.machine import Machine


@dataclass(frozen=True)
class Row:
    """One measured number beside what was asked for.

    Attributes:
        row: What was measured, on what.
        value: The number.
        unit: Its unit: `%`, `x`, `ms`, `s`, `points` ...
        ask: What it has to be, in words: `<= 6`, `>= 2.3`.
        met: Whether it is.
        n: How many samples, runs or resamplings the number rests on.
        command: The command that measures it again.
    """

    row: str
    value: float
    unit: str
    ask: str
    met: bool
    n: int
    command: str


def finish(
    rows: Sequence[Row], machine: Machine, json_path: Path | None = None, *, left_out: Sequence[str] = ()
) -> None:
    """Print the table, the machine and the verdict; write the rows as JSON where a path is given.

    Args:
        rows: The rows, in the order in which they are shown.
        machine: The machine on which they were measured.
        json_path: File that gets the list of rows, or None.
        left_out: One sentence for each row that was not measured, with the reason.
    """
    header = ("row", "value", "unit", "ask", "met", "n")
    cells = [(row.row, _number(row.value), row.unit, row.ask, "yes" if row.met else "NO", str(row.n)) for row in rows]
    widths = [max(len(line[column]) for line in (header, *cells)) for column in range(len(header))]
    for line in (header, tuple("-" * width for width in widths), *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for sentence in left_out:
        print(f"left out: {sentence}")
    print(_machine(machine))
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    print(f"{sum(row.met for row in rows)} of {len(rows)} rows met")


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _machine(machine: Machine) -> str:
    load = "unknown" if machine.load is None else f"{machine.load:.2f}"
    packages = ", ".join(f"{name} {version}" for name, version in sorted(machine.packages.items()))
    return (
        f"machine: {machine.cpu}, {machine.cores} processors, {' '.join(machine.isa) or machine.architecture}; "
        f"{machine.system}; governor {machine.governor or 'unknown'}; load {load}; Python {machine.python}; {packages}"
    )
