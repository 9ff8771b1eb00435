"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text


class Count(ProgressColumn):
    """How many steps of how many are done; nothing where a stage has no steps."""

    def render(self, task: Task) -> Text:
        """Return the text for one stage."""
        return Text("" if task.total in {None, 1} else f"{task.completed:.0f}/{task.total:.0f}", justify="right")


class Left(ProgressColumn):
    """The time that a stage still takes, as far as its pace tells."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return the text for one stage."""
        if task.finished or task.time_remaining is None:
            return Text("")
        return Text(f"{timedelta(seconds=int(task.time_remaining))} left", style="progress.remaining")


class Bars:
    """Draws stages as progress bars."""

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
            task = next(task for task in self._progress.tasks if task.id == self._task)
            done = task.completed or 1
            self._progress.update(self._task, total=done, completed=done, what="")


@contextmanager
def bars() -> Iterator[Bars]:
    """Draw bars on standard error while the block runs."""
    with Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        Count(),
        TimeElapsedColumn(),
        Left(),
        TextColumn("[dim]{task.fields[what]}"),
        console=Console(stderr=True, highlight=False),
    ) as drawn:
        yield Bars(drawn)
