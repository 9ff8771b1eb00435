"""`edgewise report`: the HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.pipeline.deliver import REPORT, write_report
from edgewise.pipeline.optimize import finished_run


def report(
    run: Annotated[Path, typer.Argument(help="Directory that `edgewise optimize` wrote.", show_default=False)],
    *,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="report.html in the run")] = None,
) -> None:
    """Write the HTML report of a run again, from its records.

    Example: edgewise report model.edgewise --out report.html
    """
    path = out or run / REPORT
    write_report(finished_run(run), path)
    typer.echo(str(path))
