"""`edgewise run`: a bundle at work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np

from edgewise.bundle.read import Bundle
from edgewise.cli.command import command
from edgewise.errors import BundleError, DataError, UserError
from edgewise.records.codec import Record, encode
from edgewise.runtime.engine import Engine, Input
from edgewise.samples.folder import ImageSource
from edgewise.samples.open import open_source
from edgewise.samples.preprocessing import Preprocessing
from edgewise.samples.source import Source

STANDARD_INPUT: Final = "-"


class Refusal(Record, frozen=True, kw_only=True):
    """What stands in the place of an answer to a line of standard input that cannot be answered.

    Attributes:
        input: What the sample was called.
        error: What has to hold, what came instead, where.
        hint: The cure, or None.
    """

    input: str
    error: str
    hint: str | None


@command(
    "edgewise run model.edgewise --input photo.jpg",
    "ls photos/*.jpg | edgewise run model.edgewise",
    "echo '[[0.1, 0.2], [0.3, 0.4]]' | edgewise run model.edgewise",
)
@click.argument("bundle", type=Path, help="Directory that `edgewise optimize` wrote.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SAMPLES",
    help="File or folder: images, .npy, .npz, .csv; `-` reads standard input. May be given several times.  "
    "[default: -]",
)
@click.option("--rung", metavar="NAME", help="Name of the rung.  [default: the bundle's default]")
def run(bundle: Path, *, inputs: tuple[str, ...], rung: str | None) -> None:
    """Run a bundle; every answer is one line of JSON on standard output.

    A line of standard input is the path of a file or folder, or the sample itself as JSON: nested lists, or lists by
    input name. Each line is answered at once.

    A file that cannot be answered ends the command. A line of standard input that cannot be answered gets a line with
    `error` and `hint` in place of an answer, the next line is read, and the exit code is 2 at the end.
    """
    opened = Bundle.load(bundle)
    preprocessing = opened.manifest.preprocessing or Preprocessing()
    given = [
        None if spec == STANDARD_INPUT else (spec, open_source(spec, preprocessing))
        for spec in inputs or (STANDARD_INPUT,)
    ]  # all are opened before the first is answered: a misspelt name costs no work
    refused = 0
    with Engine(opened, rung) as engine:
        for place in given:
            if place is None:
                refused += _answer_lines(engine, preprocessing)
            else:
                for name, sample in _samples(*place):
                    _write(engine.answer(sample, name=name, carry=True))
    if refused:
        raise DataError(
            f"Every line of standard input has to be answered, but {refused} could not be.",
            hint="The output has a line with `error` for each of them.",
        )


def _answer_lines(engine: Engine, preprocessing: Preprocessing) -> int:
    """Answer each line of standard input as it comes, and return how many could not be answered."""
    refused = 0
    for number, line in enumerate(sys.stdin.buffer, start=1):
        text = os.fsdecode(line).strip()
        if not text:
            continue
        is_json = text[0] in "[{"
        name = f"line {number}" if is_json else text
        try:
            if is_json:
                samples = iter([(name, _parsed(text, number))])
            else:
                samples = _samples(text, open_source(text, preprocessing))
            for called, sample in samples:
                _write(engine.answer(sample, name=called, carry=True))
        except BundleError:
            raise
        except UserError as error:
            refused += 1
            _write(Refusal(input=_printable(name), error=_printable(error.message), hint=error.hint))
    return refused


def _samples(spec: str, source: Source) -> Iterator[tuple[str, Input]]:
    name = _printable(spec)
    for index in range(len(source)):
        if isinstance(source, ImageSource):
            called = _printable(str(source.files[index]))
        else:
            called = name if len(source) == 1 else f"{name}[{index}]"
        yield called, source[index]


def _parsed(text: str, number: int) -> Input:
    try:
        value: Any = msgspec.json.decode(text)
        if isinstance(value, Mapping):
            return {str(name): np.array(array) for name, array in value.items()}
        return np.array(value)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise DataError(
            f"Line {number} of standard input has to be a path or a sample as JSON, but: {error}.",
            hint="A sample is written as nested lists of numbers, or as lists by input name.",
        ) from error


def _printable(text: str) -> str:
    """Return a text without the bytes that are no UTF-8, which file names may hold and JSON may not."""
    return os.fsencode(text).decode(errors="replace")


def _write(record: Record) -> None:
    sys.stdout.write(encode(record).decode() + "\n")
    sys.stdout.flush()
