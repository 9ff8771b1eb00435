"""`edgewise report`: the HTML report of a run."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.cli.command import command
from edgewise.pipeline.deliver import REPORT, write_report
from edgewise.pipeline.optimize import finished_run


@command("edgewise report model.edgewise --out report.html")
@click.argument("run", type=Path, help="Directory that `edgewise optimize` wrote.")
@click.option("--out", type=Path, metavar="FILE", help="File to write.  [default: report.html in the run]")
def report(run: Path, *, out: Path | None) -> None:
    """Write the HTML report of a run again, from its records."""
    path = out or run / REPORT
    write_report(finished_run(run), path)
    click.echo(str(path))
