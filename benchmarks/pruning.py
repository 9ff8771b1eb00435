"""The three prunings on real models, each number beside what was asked for.

    python benchmarks/pruning.py --zoo ../shared/zoo [--json FILE] [--only NAME ...] [--rows KIND ...] [--quick]

What prunes, calibrates and recovers is never scored: for ResNet56 2,000 samples without labels and 3,000 others. One
thread. Recovery needs torch, and the rows beside Torch-Pruning a Python with torch and torch-pruning: `make bench`
brings both; `--peer-python` names another one.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from edgewise.measure.machine import describe
from pruning_int8 import ATTEMPTS, beyond_int8
from pruning_macs import WORK, fewer_macs
from pruning_models import QUICK, Extent
from pruning_one_shot import one_shot
from pruning_rivals import torch_pruning
from pruning_whole import NAMES, never_worse
from quantized import BACKENDS, ready_backends
from rows import Row, finish

COMMAND: Final = "python benchmarks/pruning.py --zoo ../shared/zoo"
KINDS: Final = ("one-shot", "beyond-int8", "fewer-macs", "size", "torch-pruning", "never-worse")
MODELS: Final = (*ATTEMPTS, *WORK, *NAMES)


def main() -> int:
    """Measure what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder with zoo.toml")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--quick", action="store_true", help="whether everything runs: the numbers prove nothing")
    parser.add_argument("--peer-python", default=sys.executable, metavar="FILE", help="a Python with torch-pruning")
    arguments = parser.parse_args()
    zoo = arguments.zoo.resolve()
    if not (zoo / "zoo.toml").is_file():
        print(f"There is no zoo in {zoo}: nothing can be measured.", file=sys.stderr)
        finish([], describe(), arguments.json, left_out=["every row: the zoo is absent"])
        return 0
    left_out = [f"{name}: not installed" for name in BACKENDS if name not in ready_backends()]
    left_out += [f"{kind}: not asked for" for kind in KINDS if kind not in arguments.rows]
    if arguments.only:
        left_out += [f"{name}: not asked for" for name in MODELS if name not in arguments.only]
    if arguments.quick:
        left_out.append("--quick: few samples and little time; no number counts")
    table = measurements(QUICK if arguments.quick else Extent(), arguments.peer_python)
    rows: list[Row] = []
    for kind in KINDS:
        if kind in arguments.rows:
            rows += table[kind](zoo, arguments.only, command=f"{COMMAND} --rows {kind}", left_out=left_out)
    finish(rows, describe(), arguments.json, left_out=left_out)
    return 0


def measurements(extent: Extent, python: str) -> dict[str, Callable[..., Sequence[Row]]]:
    """Return what measures each kind of row.

    Args:
        extent: How long it is measured.
        python: A Python that has torch and torch-pruning.
    """
    return {
        "one-shot": partial(one_shot, extent=extent),
        "beyond-int8": partial(beyond_int8, extent=extent),
        "fewer-macs": partial(fewer_macs, extent=extent),
        "size": size,
        "torch-pruning": partial(torch_pruning, extent=extent, python=python),
        "never-worse": partial(never_worse, extent=extent),
    }


def size(*arguments: Any, left_out: list[str], **options: Any) -> Sequence[Row]:
    """Return the rows of size, of `pruning_size`."""
    try:
        measured: Sequence[Row] = importlib.import_module("pruning_size").size(*arguments, left_out=left_out, **options)
    except ModuleNotFoundError as error:
        left_out.append(f"size: {error}")
        return []
    return measured


if __name__ == "__main__":
    sys.exit(main())
