"""`edgewise demo`: the main job on what comes with the package."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.console import progress
from edgewise.cli.optimize import files_of
from edgewise.cli.quantities import fraction, seconds
from edgewise.pipeline.optimize import optimize as run_optimize
from edgewise.pipeline.request import DataRequest, Effort, Goal, Request
from edgewise.report.text import summary


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Directory of the result.")] = Path("edgewise-demo"),
    max_drop: Annotated[str, typer.Option(help="Largest loss of accuracy.")] = "1%",
    budget: Annotated[str, typer.Option(help="Time for everything.")] = "3m",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run's results in --out.")] = False,
) -> None:
    """Optimize a small convolutional network that reads digits; model and samples come with edgewise.

    Example: edgewise demo --out /tmp/digits
    """
    with as_file(files("edgewise") / "demo") as folder, progress() as shown:
        request = Request(
            model=folder / "digits.onnx",
            out=out,
            data=DataRequest(samples=str(folder / "digits.npz")),
            goal=Goal(max_drop=fraction(max_drop)),
            effort=Effort(budget_s=seconds(budget)),
            overwrite=overwrite,
        )
        result = run_optimize(request, shown, command=shlex.join(["edgewise", *sys.argv[1:]]))
    typer.echo(summary(result.run, files=files_of(result.folder)))
