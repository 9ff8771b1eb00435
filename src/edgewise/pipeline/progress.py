"""How a job tells what it is doing. The command line draws it; a library call stays quiet."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears what a job does."""

    def stage(self, title: str, steps: int | None = None) -> None:
        """A new stage begins; the one before it is finished. `steps` is None where their number is not known."""

    def step(self, what: str = "") -> None:
        """One step of the stage is done."""

    def note(self, sentence: str) -> None:
        """Something that the user should know at once."""


class Quiet:
    """Hears nothing."""

    def stage(self, title: str, steps: int | None = None) -> None:
        """Do nothing."""

    def step(self, what: str = "") -> None:
        """Do nothing."""

    def note(self, sentence: str) -> None:
        """Do nothing."""
