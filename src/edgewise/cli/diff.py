"""`edgewise diff`: where two models part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options
from edgewise.cli.console import progress
from edgewise.cli.tables import table
from edgewise.pipeline.diff import Difference, TensorError
from edgewise.pipeline.diff import diff as run_diff
from edgewise.records.codec import encode, indent


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="ONNX file or bundle: the reference.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="ONNX file or bundle.", show_default=False)],
    *,
    data: options.Samples,
    samples: Annotated[int, typer.Option(min=1, help="How many samples to run.")] = 32,
    top: Annotated[int, typer.Option(min=1, help="How many tensors to show.")] = 20,
    label: options.Label = None,
    settings: options.Settings = None,
    shape: options.Shapes = None,
    state: options.State = None,
    json: options.Json = False,
) -> None:
    """Compare every tensor that two models share; the nodes that add most of the error come first.

    Example: edgewise diff model.onnx model.edgewise --data samples.npz
    """
    with progress() as shown:
        result = run_diff(
            first,
            second,
            data=options.data_request(data, label=label, settings=settings, shape=shape, state=state, seed=0),
            samples=samples,
            progress=shown,
        )
    typer.echo(indent(encode(result)).decode() if json else render(result, top))


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
