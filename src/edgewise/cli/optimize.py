"""`edgewise optimize`: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options
from edgewise.cli.console import progress
from edgewise.cli.quantities import fraction, microseconds, seconds, size_bytes
from edgewise.errors import RecipeError
from edgewise.pipeline.optimize import optimize as run_optimize
from edgewise.pipeline.request import Effort, Goal, Request
from edgewise.records.codec import encode, indent
from edgewise.report.text import summary


def optimize(
    model: options.Model,
    data: options.Samples,
    *,
    max_drop: Annotated[
        str, typer.Option(help="Largest loss: points for metrics in [0, 1], relative otherwise.")
    ] = "1%",
    metric: options.Metric = None,
    max_latency: Annotated[str | None, typer.Option(help="Median latency to stay below: `5ms`.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Size of the model to stay below: `2MB`.")] = None,
    budget: Annotated[str, typer.Option(help="Time for everything: `90s`, `10m`.")] = "10m",
    backends: Annotated[
        str, typer.Option(help="Backends to try, separated by commas.", show_default="all that are installed")
    ] = "",
    threads: Annotated[str, typer.Option(help="Threads of one inference; several numbers are all tried: `1,2`.")] = "1",
    out: Annotated[
        Path | None, typer.Option(help="Directory of the result.", show_default="MODEL with the ending .edgewise")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run's results in --out.")] = False,
    accept_uncertified: Annotated[
        bool, typer.Option("--accept-uncertified", help="Take the best model even if its certificate falls short.")
    ] = False,
    calibration: Annotated[str | None, typer.Option(help="Samples for statistics alone; no labels needed.")] = None,
    select: Annotated[str | None, typer.Option(help="Samples for the search alone (with --certify).")] = None,
    certify: Annotated[str | None, typer.Option(help="Samples for the certificate alone (with --select).")] = None,
    label: options.Label = None,
    settings: options.Settings = None,
    shape: options.Shapes = None,
    state: options.State = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Make a model as small and fast as this machine allows, without losing more accuracy than you allow.

    Writes a bundle, a certificate and a report. Interrupted runs continue where they stopped.

    Example: edgewise optimize model.onnx --data samples.npz --max-drop 1%
    """
    request = Request(
        model=model,
        out=out or model.with_suffix(".edgewise"),
        data=options.data_request(
            data,
            label=label,
            settings=settings,
            shape=shape,
            state=state,
            seed=seed,
            calibration=calibration,
            select=select,
            certify=certify,
        ),
        goal=Goal(
            max_drop=fraction(max_drop),
            metric=metric,
            max_latency_us=None if max_latency is None else microseconds(max_latency),
            max_size_bytes=None if max_size is None else size_bytes(max_size),
            accept_uncertified=accept_uncertified,
        ),
        effort=Effort(
            budget_s=seconds(budget),
            backends=tuple(name.strip() for name in backends.split(",") if name.strip()),
            threads=_threads(threads),
        ),
        overwrite=overwrite,
    )
    command = shlex.join(["edgewise", *sys.argv[1:]])
    with progress() as shown:
        result = run_optimize(request, shown, command=command)
    if json:
        typer.echo(indent(encode(result.run)).decode())
    else:
        typer.echo(summary(result.run, files=files_of(result.folder)))
    if result.missed:
        raise RecipeError(result.missed, hint="The best result that was found is in the bundle; see the report.")


def files_of(folder: Path) -> dict[str, str]:
    """Return what the user may want to open, by what it is."""
    return {"bundle": str(folder), "report": str(folder / "report.html")}


def _threads(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise RecipeError(
            f"`--threads` has to be a number, or numbers separated by commas. Received `{text}`."
        ) from error
