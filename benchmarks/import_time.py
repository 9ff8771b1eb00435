"""What libraries cost at every start of a process (docs/adr/0002-msgspec-for-records.md, 0009-click-for-commands.md).

    python benchmarks/import_time.py [--json FILE]

Each library is imported and given one record type, or one command that is run, in a process of its own, in turns.
pydantic and typer are no part of edgewise; they come with the group `bench`. No model is needed: `--zoo` is taken
because every benchmark takes it.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Final

from edgewise.measure.machine import describe
from rows import Row, finish

FIELDS: Final = "\n    a: int\n    b: str"
CASES: Final = {
    "msgspec": f"import msgspec\nclass R(msgspec.Struct, frozen=True, forbid_unknown_fields=True):{FIELDS}",
    "pydantic": f"import pydantic\nclass R(pydantic.BaseModel, frozen=True, extra='forbid'):{FIELDS}",
    "click": (
        "import click\n@click.command()\n@click.option('--a', type=int)\ndef c(a):\n    pass\n"
        "c([], standalone_mode=False)"
    ),
    "typer": (
        "import typer\napp = typer.Typer()\n@app.command()\ndef c(a: int = 0) -> None:\n    pass\n"
        "app([], standalone_mode=False)"
    ),
    "numpy": "import numpy",
    "edgewise": "import edgewise",
    "edgewise.records.run": "import edgewise.records.run",
}
ROUNDS: Final = 15
ALLOWED_SHARE: Final = 0.5
COMMAND: Final = "python benchmarks/import_time.py"


def seconds(code: str) -> float:
    """Return how long a fresh interpreter takes to run `code`, its own start left out."""
    timed = f"import time\nbefore = time.perf_counter()\n{code}\nprint(time.perf_counter() - before)"
    result = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(result.stdout)


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, help="not used here")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    arguments = parser.parse_args()

    left_out = []
    cases = dict(CASES)
    for name in ("pydantic", "typer"):
        if importlib.util.find_spec(name) is None:
            left_out.append(f"{name}, because it is not installed; `pip install --group bench` brings it")
            del cases[name]
    times: dict[str, list[float]] = {name: [] for name in cases}
    for code in cases.values():
        seconds(code)  # the first run reads the files from the disk
    for _ in range(ROUNDS):
        for name, code in cases.items():
            times[name].append(1000 * seconds(code))

    median = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        Row(
            row=f"{name} (fastest {min(values):.0f}, slowest {max(values):.0f})",
            value=median[name],
            unit="ms",
            ask="none",
            met=True,
            n=ROUNDS,
            command=COMMAND,
        )
        for name, values in times.items()
    ]
    for ours, other in (("msgspec", "pydantic"), ("click", "typer")):
        if other in median:
            share = median[ours] / median[other]
            ask = f"<= {ALLOWED_SHARE:g}"
            rows.append(Row(f"{ours} / {other}", share, "x", ask, share <= ALLOWED_SHARE, ROUNDS, COMMAND))
    finish(rows, describe(), arguments.json, left_out=left_out)


if __name__ == "__main__":
    main()
