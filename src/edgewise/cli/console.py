"""What the user sees on standard error: progress, notes, errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edgewise.errors import EdgewiseError


def stderr() -> Console:
    """Return a console on standard error as it is now."""
    return Console(stderr=True, highlight=False)


def fail(error: EdgewiseError) -> None:
    """Print an error in one or two lines."""
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    if error.hint is not None:
        console.print(f"[bold]hint:[/] {escape(error.hint)}", soft_wrap=True)


class Bars:
    """Draws stages as progress bars on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def stage(self, title: str, steps: int | None = None) -> None:
        """Finish the bar before, begin a new one."""
        self._finish()
        self._task = self._progress.add_task(escape(title), total=steps, what="")

    def step(self, what: str = "") -> None:
        """Move the bar on."""
        if self._task is not None:
            self._progress.update(self._task, advance=1, what=escape(what))

    def note(self, sentence: str) -> None:
        """Print a sentence above the bars."""
        self._progress.console.print(escape(sentence), soft_wrap=True)

    def _finish(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._task]
            self._progress.update(self._task, total=task.completed or 1, completed=task.completed or 1, what="")


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
    console = stderr()
    if not console.is_terminal:
        yield Notes()
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[what]}"),
        console=console,
    ) as bars:
        yield Bars(bars)
