"""Options that several commands share, and how they become requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.quantities import pairs
from edgewise.errors import RecipeError
from edgewise.formats.shapes import parse_shape
from edgewise.pipeline.request import DataRequest

Model = Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)]
Samples = Annotated[
    str,
    typer.Option(
        "--data",
        help="Samples: .npz, .npy, .csv, a folder of images, or `package.module:function`.",
        show_default=False,
    ),
]
Label = Annotated[str | None, typer.Option("--label", help="Name of the labels in an .npz file.", show_default="y")]
Settings = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help="TOML file with a [preprocessing] table.",
        show_default="edgewise.toml beside the samples, if there",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        help="Shape of an input with dynamic dimensions other than the batch: `x=1,3,48,320`; `?` stays dynamic.",
        show_default=False,
    ),
]
State = Annotated[
    list[str] | None,
    typer.Option("--state", help="OUTPUT=INPUT that a recurrent model feeds back.", show_default=False),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="top1, top5, auc, f1, map, miou, rmse, mae, psnr, agreement, cosine, or `package.module:object`.",
        show_default="chosen by labels and outputs",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the split and of every draw.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]


def shapes(texts: Sequence[str] | None) -> dict[str, tuple[int | None, ...]]:
    """Return `--shape` options as shapes by input name.

    Raises:
        RecipeError: If one cannot be read, or names an input twice.
    """
    found: dict[str, tuple[int | None, ...]] = {}
    for text in texts or ():
        name, shape = parse_shape(text)
        if name in found:
            raise RecipeError(f"`--shape` names the input `{name}` twice.")
        found[name] = shape
    return found


def data_request(
    samples: str,
    *,
    label: str | None,
    settings: Path | None,
    shape: Sequence[str] | None,
    state: Sequence[str] | None,
    seed: int,
    calibration: str | None = None,
    select: str | None = None,
    certify: str | None = None,
) -> DataRequest:
    """Return what the options say about samples."""
    return DataRequest(
        samples=samples,
        calibration=calibration,
        select=select,
        certify=certify,
        label=label,
        settings=None if settings is None else str(settings),
        shapes=shapes(shape),
        state=pairs(state or (), "--state"),
        seed=seed,
    )
