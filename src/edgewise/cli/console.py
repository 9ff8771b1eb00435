"""What the user sees on standard error: progress, notes, errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edgewise.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.cli.bars import Bars


def fail(error: EdgewiseError) -> int:
    """Print an error in one or two lines and return its exit code."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
    if error.hint is not None:
        click.echo(f"{click.style('hint:', bold=True)} {error.hint}", err=True)
    return error.exit_code


class Notes:
    """Prints notes alone: for logs and pipes."""

    def stage(self, title: str, steps: int | None = None) -> None:
        """Do nothing."""

    def step(self, what: str = "") -> None:
        """Do nothing."""

    def note(self, sentence: str) -> None:
        """Print the sentence."""
        sys.stderr.write(f"{sentence}\n")


@contextmanager
def progress() -> Iterator[Bars | Notes]:
    """Draw bars while the block runs; only print notes where standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield Notes()
        return
    from edgewise.cli.bars import bars  # noqa: PLC0415  only a terminal needs it

    with bars() as drawn:
        yield drawn
