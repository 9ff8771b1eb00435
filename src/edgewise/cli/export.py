"""`edgewise export`: a bundle's model for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.cli.command import command
from edgewise.pipeline.export import FORMATS
from edgewise.pipeline.export import export as run_export


@command("edgewise export model.edgewise --to onnx --out model_int8.onnx")
@click.argument("bundle", type=Path, help="Directory that `edgewise optimize` wrote.")
@click.option("--to", metavar="FORMAT", required=True, help=f"Format: {' or '.join(FORMATS)}.")
@click.option(
    "--out",
    type=Path,
    metavar="FILE",
    help="File to write; no file is ever replaced.  [default: named like the bundle, beside it]",
)
@click.option("--rung", metavar="NAME", help="Name of the rung.  [default: the bundle's default]")
def export(bundle: Path, *, to: str, out: Path | None, rung: str | None) -> None:
    """Write a bundle's model as ONNX or OpenVINO IR, and print the files' names."""
    suffix = ".xml" if to == "openvino" else ".onnx"
    place = out or bundle.resolve().with_name(f"{bundle.resolve().stem}_optimized{suffix}")
    for path in run_export(bundle, to=to, out=place, rung=rung):
        click.echo(str(path))
