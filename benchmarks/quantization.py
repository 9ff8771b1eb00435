"""Quantization beside ONNX Runtime's and NNCF's, each at its documented best, from the same calibration samples.

    python benchmarks/quantization.py --zoo ../shared/zoo [--json FILE] [--only NAME ...] [--rows KIND ...]

Every tool gets the same 200 samples (a quarter of them where there are fewer than 800), drawn anew for each seed; what
calibrates is never evaluated. edgewise is measured in ONNX Runtime and in OpenVINO, each against all rivals. Everything
takes about three quarters of an hour on two quiet processors; `--seeds 1` is for a quick look. What saturates is a
question of its own: `benchmarks/saturation.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from edgewise.measure.machine import describe
from quantization_accuracy import accuracy, accuracy_w4a8
from quantization_cost import cost, size, speed
from quantization_fidelity import fidelity
from quantized import BACKENDS, ready_backends
from rows import Row, finish
from zoo_models import CLASSIFIERS, OTHERS

COMMAND: Final = "python benchmarks/quantization.py --zoo ../shared/zoo"
SEEDS: Final = 5
KINDS: Final = ("fidelity", "accuracy", "w4a8", "speed", "cost", "size")


def main() -> int:
    """Measure what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder with zoo.toml")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    parser.add_argument("--only", nargs="+", choices=(*CLASSIFIERS, *OTHERS), metavar="NAME", help="names of models")
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"calibrations for fidelity; {SEEDS} by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time for fidelity; 2 by default")
    arguments = parser.parse_args()
    zoo = arguments.zoo.resolve()
    if not (zoo / "zoo.toml").is_file():
        print(f"There is no zoo in {zoo}: nothing can be measured.", file=sys.stderr)
        finish([], describe(), arguments.json, left_out=["every row: the zoo is absent"])
        return 0
    left_out = [f"{name}: not installed" for name in BACKENDS if name not in ready_backends()]
    left_out += [f"{kind}: not asked for" for kind in KINDS if kind not in arguments.rows]
    if arguments.only:
        left_out += [f"{name}: not asked for" for name in (*CLASSIFIERS, *OTHERS) if name not in arguments.only]
    if arguments.seeds < SEEDS:
        left_out.append(f"fidelity: {SEEDS - arguments.seeds} of the {SEEDS} seeds that are asked for")
    table = measurements(arguments.seeds, arguments.jobs)
    rows: list[Row] = []
    for kind in KINDS:
        if kind in arguments.rows:
            rows += table[kind](zoo, arguments.only, command=f"{COMMAND} --rows {kind}", left_out=left_out)
    finish(rows, describe(), arguments.json, left_out=left_out)
    return 0


def measurements(seeds: int, jobs: int) -> dict[str, Callable[..., Sequence[Row]]]:
    """Return what measures each kind of row.

    Args:
        seeds: Calibrations for fidelity.
        jobs: Processes at a time for fidelity.
    """
    return {
        "fidelity": partial(fidelity, seeds=seeds, jobs=jobs),
        "accuracy": accuracy,
        "w4a8": accuracy_w4a8,
        "speed": speed,
        "cost": cost,
        "size": size,
    }


if __name__ == "__main__":
    sys.exit(main())
