"""What taking turns is worth: a model measured against itself (docs/adr/0003-one-process-a-candidate.md).

    python benchmarks/in_turns.py [--json FILE]

The true ratio is 1. Each repetition finds it twice in the same time: from two processes that take turns, and from two
measurements one after the other. Rows are the worst and the mean distance from 1. It uses the demo's model, so that no
zoo is needed: `--zoo` is taken because every benchmark takes it.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import numpy as np

from edgewise.backends import registry
from edgewise.errors import EdgewiseError
from edgewise.formats.registry import load
from edgewise.formats.shapes import fix_shapes
from edgewise.measure.latency import measure_group, ratio
from edgewise.measure.machine import describe
from edgewise.measure.process import Entry
from edgewise.records.candidate import RunOptions
from edgewise.records.measurements import Latency
from edgewise.records.tensors import Feeds
from rows import Row, finish

REPEATS: Final = 12
SECONDS: Final = 4.0
COMMAND: Final = "python benchmarks/in_turns.py"


def untouched(folder: Path) -> Entry:
    """Return the demo's model as an entry, its artifact in `folder`."""
    with as_file(files("edgewise") / "demo" / "digits.onnx") as path:
        model = fix_shapes(load(path), {})
    artifact = registry.get("ort").compile(model, RunOptions())
    artifact.write(folder)
    return Entry("digits", folder, artifact.spec)


def measured(entries: list[Entry], feeds: list[Feeds], seconds: float, seed: int) -> list[Latency]:
    """Return the latencies of entries that take turns."""
    results = []
    for result in measure_group(entries, feeds, budget_s=seconds, seed=seed):
        if isinstance(result, EdgewiseError):
            raise result
        results.append(result)
    return results


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, help="not used here")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    arguments = parser.parse_args()

    feeds: list[Feeds] = [{"image": np.zeros((1, 1, 28, 28), np.float32)}]
    turns, apart, inside = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        entry = untouched(Path(folder))
        for repeat in range(REPEATS):
            one, same = measured([entry, entry], feeds, SECONDS, repeat)
            found = ratio(one, same)
            turns.append(abs(found.value - 1))
            inside += found.low <= 1 <= found.high
            (first,), (second,) = (measured([entry], feeds, SECONDS / 2, repeat) for _ in range(2))
            apart.append(abs(first.median_us / second.median_us - 1))

    rows = [
        Row(f"{how}, {what} distance from 1", 100 * pick(values), "%", "none", met=True, n=REPEATS, command=COMMAND)
        for how, values in (("in turns", turns), ("one after the other", apart))
        for what, pick in (("mean", lambda values: float(np.mean(values))), ("worst", max))
    ]
    # The interval is at 95 %: with 12 of them, fewer than 10 that hold 1 would be a surprise at 2 %.
    rows.append(Row("intervals that hold 1", inside, f"of {REPEATS}", ">= 10", inside >= 10, REPEATS, COMMAND))
    finish(rows, describe(), arguments.json)


if __name__ == "__main__":
    main()
