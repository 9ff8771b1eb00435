"""Options that several commands share, and how they become requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from edgewise.cli.quantities import pairs
from edgewise.errors import RecipeError
from edgewise.formats.shapes import parse_shape
from edgewise.pipeline.request import DataRequest

F = TypeVar("F", bound=Callable[..., Any])

model: Final = click.argument("model", type=Path, help="ONNX file.")
samples: Final = click.option(
    "--data",
    metavar="SAMPLES",
    required=True,
    help="Samples: .npz, .npy, .csv, a folder of images, or `package.module:function`.",
)
samples_or_none: Final = click.option(
    "--data",
    metavar="SAMPLES",
    required=True,
    help="Samples: .npz, .npy, .csv, a folder of images, or `package.module:function`; `none` where there are none.",
)
metric: Final = click.option(
    "--metric",
    metavar="NAME",
    help="top1, top5, accuracy, auc, f1, map, miou, rmse, mae, psnr, agreement, cosine, or `package.module:object`.  "
    "[default: chosen by labels and outputs]",
)
seed: Final = click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the split and of every draw."
)
shape: Final = click.option(
    "--shape",
    multiple=True,
    metavar="INPUT=SIZES",
    help="Shape of an input with dynamic dimensions other than the batch: `x=1,3,48,320`; `?` stays dynamic.",
)

_reading: Final = (
    click.option(
        "--label",
        metavar="NAME",
        help="Name of the labels: an array of an .npz, a column of a .csv.  [default: y or label]",
    ),
    click.option(
        "--settings",
        type=Path,
        metavar="FILE",
        help="TOML file with a [preprocessing] table.  [default: edgewise.toml beside the samples, if there]",
    ),
    shape,
    click.option(
        "--state",
        multiple=True,
        metavar="OUTPUT=INPUT",
        help="Output that a recurrent model feeds back, and the input that takes it.",
    ),
)


def reading(function: F) -> F:
    """Add the options that say how samples are read: --label, --settings, --shape, --state."""
    for option in reversed(_reading):
        function = option(function)
    return function


def count(text: str) -> int:
    """Return a whole number of 1 or more, as click asks for it.

    Raises:
        BadParameter: If it is none.
    """
    try:
        found = int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise click.BadParameter(f"it has to be a whole number of 1 or more. Received `{text}`.")
    return found


number: Final = partial(click.option, type=count, metavar="N", show_default=True)
"""An option that takes a whole number of 1 or more."""


def shapes(texts: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """Return `--shape` options as shapes by input name.

    Raises:
        RecipeError: If one cannot be read, or names an input twice.
    """
    found: dict[str, tuple[int | None, ...]] = {}
    for text in texts:
        name, sizes = parse_shape(text)
        if name in found:
            raise RecipeError(f"`--shape` has to name an input once. Received `{name}` twice.", hint="Leave one out.")
        found[name] = sizes
    return found


def data_request(
    spec: str,
    *,
    label: str | None,
    settings: Path | None,
    shape: Sequence[str],
    state: Sequence[str],
    seed: int = 0,
    calibration: str | None = None,
    select: str | None = None,
    certify: str | None = None,
) -> DataRequest:
    """Return what the options say about samples."""
    return DataRequest(
        samples=spec,
        calibration=calibration,
        select=select,
        certify=certify,
        label=label,
        settings=None if settings is None else str(settings),
        shapes=shapes(shape),
        state=pairs(state, "--state"),
        seed=seed,
    )
