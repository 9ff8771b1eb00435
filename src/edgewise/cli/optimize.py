"""`edgewise optimize`: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from edgewise.cli import options
from edgewise.cli.command import command, json_option
from edgewise.cli.console import progress
from edgewise.cli.quantities import fraction, microseconds, seconds, size_bytes
from edgewise.errors import RecipeError
from edgewise.pipeline.optimize import optimize as run_optimize
from edgewise.pipeline.request import Effort, Goal, Request
from edgewise.records.codec import encode, indent
from edgewise.report.text import summary


@command(
    "edgewise optimize model.onnx --data samples.npz --max-drop 1%",
    "edgewise optimize model.onnx --data photos/ --max-latency 5ms --budget 20m --out fast",
)
@options.model
@options.samples_or_none
@click.option(
    "--max-drop",
    metavar="DROP",
    help="Largest loss: points for metrics in [0, 1], relative otherwise.  [default: 1%]",
)
@click.option(
    "--tolerance",
    metavar="ERROR",
    help="With `--data none`, in place of --max-drop: how far any output may be off on synthetic samples, as a share "
    "of its standard deviation.  [default: 10%]",
)
@options.metric
@click.option("--max-latency", metavar="TIME", help="Median latency to stay below: `5ms`.")
@click.option(
    "--max-size",
    metavar="SIZE",
    help="Size of the model to stay below: `2MB`. A model that has it is taken although it is slower, where the one "
    "that came is larger.",
)
@click.option(
    "--budget", metavar="TIME", default="10m", show_default=True, help="Time for everything: `90s`, `10m`, `1h`."
)
@click.option(
    "--backends",
    metavar="NAMES",
    default="",
    help="Backends to try, separated by commas.  [default: all that are installed]",
)
@click.option(
    "--threads",
    metavar="N[,N]",
    default="1",
    show_default=True,
    help="Threads of one inference; several numbers are all tried: `1,2`.",
)
@click.option(
    "--out",
    type=Path,
    metavar="FOLDER",
    help="Directory of the result.  [default: MODEL with the ending .edgewise]",
)
@click.option("--overwrite", is_flag=True, help="Replace another run's results in --out.")
@click.option("--accept-uncertified", is_flag=True, help="Take the best model even if its certificate falls short.")
@click.option("--calibration", metavar="SAMPLES", help="Samples for statistics alone; no labels needed.")
@click.option("--select", metavar="SAMPLES", help="Samples for the search alone (with --certify).")
@click.option("--certify", metavar="SAMPLES", help="Samples for the certificate alone (with --select).")
@options.reading
@options.seed
@json_option
def optimize(
    model: Path,
    *,
    data: str,
    max_drop: str | None,
    tolerance: str | None,
    metric: str | None,
    max_latency: str | None,
    max_size: str | None,
    budget: str,
    backends: str,
    threads: str,
    out: Path | None,
    overwrite: bool,
    accept_uncertified: bool,
    calibration: str | None,
    select: str | None,
    certify: str | None,
    label: str | None,
    settings: Path | None,
    shape: tuple[str, ...],
    state: tuple[str, ...],
    seed: int,
    json: bool,
) -> None:
    """Make a model as small and fast as this machine allows, without losing more accuracy than you allow.

    Writes a bundle, a certificate and a report. Without samples (`--data none`) nothing is certified: synthetic ones
    are drawn from what the model tells of its inputs, and no model is shipped whose outputs on them leave the
    --tolerance. Interrupted runs continue where they stopped.
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
            max_drop=None if max_drop is None else fraction(max_drop),
            tolerance=None if tolerance is None else fraction(tolerance, "--tolerance"),
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
        click.echo(indent(encode(result.run)).decode())
    else:
        click.echo(summary(result.run, files=files_of(result.folder)))
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
            f"`--threads` has to be a number, or numbers separated by commas. Received `{text}`.",
            hint="For example `--threads 1,2`.",
        ) from error
