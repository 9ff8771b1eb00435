"""`edgewise run`: a bundle at work."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

from edgewise.bundle.read import Bundle
from edgewise.errors import DataError
from edgewise.records.codec import encode
from edgewise.records.tensors import Port
from edgewise.runtime.engine import Engine, Input
from edgewise.samples.open import open_source
from edgewise.samples.preprocessing import Preprocessing

STANDARD_INPUT = "-"


def run(
    bundle: Annotated[Path, typer.Argument(help="Directory that `edgewise optimize` wrote.", show_default=False)],
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="File or folder: images, .npy, .npz, .csv; `-` reads standard input, each line a path or JSON.",
            show_default="-",
        ),
    ] = None,
    rung: Annotated[str | None, typer.Option(help="Name of the rung.", show_default="the bundle's default")] = None,
) -> None:
    """Run a bundle; every answer is one line of JSON on standard output.

    A line of standard input is the path of a file, or the sample itself as JSON: nested lists, or lists by input name.

    Example: edgewise run model.edgewise --input photo.jpg
    """
    opened = Bundle.load(bundle)
    with Engine(opened, rung) as engine:
        samples = _samples(inputs or [STANDARD_INPUT], opened)
        try:
            for answer in engine.stream(samples):
                sys.stdout.write(encode(answer).decode() + "\n")
                sys.stdout.flush()
        except KeyboardInterrupt:
            # Every answer so far is on its own line and complete; nothing else has to be ended.
            return


def _samples(inputs: list[str], bundle: Bundle) -> Iterator[tuple[str, Input]]:
    preprocessing = bundle.manifest.preprocessing or Preprocessing()
    for given in inputs:
        if given == STANDARD_INPUT:
            yield from _lines(bundle.manifest.inputs, preprocessing)
        else:
            yield from _files(given, preprocessing)


def _files(spec: str, preprocessing: Preprocessing) -> Iterator[tuple[str, Input]]:
    source = open_source(spec, preprocessing)
    for index in range(len(source)):
        yield (spec if len(source) == 1 else f"{spec}[{index}]"), source[index]


def _lines(inputs: tuple[Port, ...], preprocessing: Preprocessing) -> Iterator[tuple[str, Input]]:
    for number, line in enumerate(sys.stdin, start=1):
        text = line.strip()
        if not text:
            continue
        if text[0] in "[{":
            yield f"line {number}", _parsed(text, number, inputs)
        else:
            yield from _files(text, preprocessing)


def _parsed(text: str, number: int, inputs: tuple[Port, ...]) -> Input:
    types = {port.name: np.dtype(port.dtype) for port in inputs}
    try:
        value: Any = msgspec.json.decode(text)
        if isinstance(value, Mapping):
            return {str(name): np.array(array, dtype=types.get(str(name))) for name, array in value.items()}
        return np.array(value, dtype=next(iter(types.values())) if len(types) == 1 else None)
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise DataError(
            f"Line {number} of standard input has to be a path or a sample as JSON, but: {error}.",
            hint="A sample is written as nested lists of numbers, or as lists by input name.",
        ) from error
