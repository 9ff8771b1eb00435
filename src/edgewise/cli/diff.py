"""`edgewise diff`: where two models part."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.cli import options
from edgewise.cli.command import command, json_option
from edgewise.cli.console import progress
from edgewise.cli.tables import table
from edgewise.pipeline.diff import Difference, TensorError
from edgewise.pipeline.diff import diff as run_diff
from edgewise.records.codec import encode, indent


@command("edgewise diff model.onnx model.edgewise --data samples.npz")
@click.argument("first", metavar="A", type=Path, help="ONNX file or bundle: the reference.")
@click.argument("second", metavar="B", type=Path, help="ONNX file or bundle.")
@options.samples
@options.number("--samples", default=32, help="How many samples to run.")
@options.number("--top", default=20, help="How many tensors to show.")
@options.reading
@json_option
def diff(
    first: Path,
    second: Path,
    *,
    data: str,
    samples: int,
    top: int,
    label: str | None,
    settings: Path | None,
    shape: tuple[str, ...],
    state: tuple[str, ...],
    json: bool,
) -> None:
    """Compare every tensor that two models share; the nodes that add most of the error come first."""
    with progress() as shown:
        result = run_diff(
            first,
            second,
            data=options.data_request(data, label=label, settings=settings, shape=shape, state=state),
            samples=samples,
            progress=shown,
        )
    click.echo(indent(encode(result)).decode() if json else render(result, top))


def render(result: Difference, top: int) -> str:
    """Return the culprits as a table, and how many tensors are equal."""
    culprits = result.culprits()
    equal = len(result.tensors) - len(culprits)
    summary = f"{len(result.tensors)} shared tensors over {result.samples} samples: {equal} equal, {len(culprits)} off"
    if not culprits:
        return summary
    headings = ("tensor", "operator", "SQNR dB", "adds dB", "largest difference")
    return f"{summary}\n\n{table(headings, [_row(error) for error in culprits[:top]], right=(2, 3, 4))}"


def _row(error: TensorError) -> tuple[str, ...]:
    return (
        error.tensor,
        error.operator,
        "-" if error.sqnr_db is None else f"{error.sqnr_db:.1f}",
        "-" if error.arises_db is None else f"{error.arises_db:+.1f}",
        f"{error.largest:.4g}",
    )
