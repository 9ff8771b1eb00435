"""`edgewise bench`: latency and memory, measured in turns."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.cli import options
from edgewise.cli.command import command, json_option
from edgewise.cli.console import progress
from edgewise.cli.quantities import seconds
from edgewise.cli.tables import table
from edgewise.pipeline.bench import Bench
from edgewise.pipeline.bench import bench as run_bench
from edgewise.records.codec import encode, indent


@command(
    "edgewise bench model.onnx model.edgewise",
    "edgewise bench model.onnx --data samples.npz --backends ort,openvino --time 30s",
)
@click.argument("models", nargs=-1, required=True, type=Path, help="ONNX files and bundles.")
@click.option("--data", metavar="SAMPLES", help="Samples to run on.  [default: random numbers]")
@options.reading
@click.option(
    "--backends",
    metavar="NAMES",
    default="ort",
    show_default=True,
    help="Where model files are run, separated by commas; bundles decide for themselves.",
)
@options.number("--threads", default=1, help="Threads of one inference for model files.")
@click.option("--time", metavar="TIME", default="10s", show_default=True, help="Time for the timing: `30s`, `2m`.")
@json_option
def bench(
    models: tuple[Path, ...],
    *,
    data: str | None,
    label: str | None,
    settings: Path | None,
    shape: tuple[str, ...],
    state: tuple[str, ...],
    backends: str,
    threads: int,
    time: str,
    json: bool,
) -> None:
    """Measure models and bundles in turns, so that whatever the machine does meets all of them alike.

    Ratios are against the first one named.
    """
    request = None
    if data is not None:
        request = options.data_request(data, label=label, settings=settings, shape=shape, state=state, seed=0)
    with progress() as shown:
        result = run_bench(
            models,
            data=request,
            shapes=options.shapes(shape),
            backends=[name.strip() for name in backends.split(",")],
            threads=threads,
            budget_s=seconds(time, "--time"),
            progress=shown,
        )
    click.echo(indent(encode(result)).decode() if json else render(result))


def render(result: Bench) -> str:
    """Return the measurements as a table."""
    headings = ("model", "median", "p90", "p99", "max", "n", "speed", "95 % interval", "peak", "cold start", "size")
    rows = []
    for row in result.rows:
        latency, cold = row.latency, row.cold_start
        first_answer_ms = cold.import_ms + cold.load_ms + cold.first_run_ms
        rows.append(
            (
                row.name,
                *(f"{us / 1e3:.3f} ms" for us in (latency.median_us, latency.p90_us, latency.p99_us, latency.max_us)),
                str(latency.runs),
                f"{row.speedup.value:.2f}x",
                f"{row.speedup.low:.2f} to {row.speedup.high:.2f}",
                f"{row.memory.peak_bytes / 2**20:.0f} MiB",
                f"{first_answer_ms:.0f} ms",
                f"{row.size_bytes / 1e6:.2f} MB",
            )
        )
    machine = result.machine
    load = "unknown" if machine.load is None else f"{machine.load:.2f}"
    return f"{table(headings, rows, right=range(1, len(headings)))}\n\n{machine.cpu}, load {load}"
