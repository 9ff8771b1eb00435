"""`edgewise demo`: the main job on what comes with the package."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import as_file, files
from pathlib import Path

import click

from edgewise.cli.command import command
from edgewise.cli.console import progress
from edgewise.cli.optimize import files_of
from edgewise.cli.quantities import fraction, seconds
from edgewise.pipeline.optimize import optimize as run_optimize
from edgewise.pipeline.request import DataRequest, Effort, Goal, Request
from edgewise.report.text import summary


@command("edgewise demo --out /tmp/digits")
@click.option(
    "--out", type=Path, metavar="FOLDER", default="edgewise-demo", show_default=True, help="Directory of the result."
)
@click.option("--max-drop", metavar="DROP", default="1%", show_default=True, help="Largest loss of accuracy.")
@click.option("--budget", metavar="TIME", default="3m", show_default=True, help="Time for everything.")
@click.option("--overwrite", is_flag=True, help="Replace another run's results in --out.")
def demo(*, out: Path, max_drop: str, budget: str, overwrite: bool) -> None:
    """Optimize a small convolutional network that reads digits; model and samples come with edgewise."""
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
    click.echo(summary(result.run, files=files_of(result.folder)))
