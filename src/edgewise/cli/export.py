"""`edgewise export`: a bundle's model for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.pipeline.export import FORMATS
from edgewise.pipeline.export import export as run_export


def export(
    bundle: Annotated[Path, typer.Argument(help="Directory that `edgewise optimize` wrote.", show_default=False)],
    *,
    to: Annotated[str, typer.Option(help=f"Format: {', '.join(FORMATS)}.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="named like the bundle, beside it")
    ] = None,
    rung: Annotated[str | None, typer.Option(help="Name of the rung.", show_default="the bundle's default")] = None,
) -> None:
    """Write a bundle's model as ONNX or OpenVINO IR, and print the files' names.

    Example: edgewise export model.edgewise --to onnx --out model_int8.onnx
    """
    suffix = ".xml" if to == "openvino" else ".onnx"
    place = out or bundle.resolve().with_name(f"{bundle.resolve().stem}_optimized{suffix}")
    for path in run_export(bundle, to=to, out=place, rung=rung):
        typer.echo(str(path))
