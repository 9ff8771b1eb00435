"""What every command has: documented arguments, options in the user's words, and examples that can be copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Settings of all commands. Lines of help longer than 100 columns are hard to read, however wide the terminal is."""


class Command(click.Command):
    """A command whose help ends with examples.

    Args:
        examples: Command lines, as they are typed; a test parses each of them.
        options: What `click.Command` takes.
    """

    def __init__(self, *, examples: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(**options)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line of its own, never wrapped."""
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Example" if len(self.examples) == 1 else "Examples"):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def command(*examples: str, name: str | None = None) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function; its docstring is the help text.

    Args:
        examples: Command lines, the simplest first.
        name: Name of the command; by default the function's.
    """

    def made(function: Callable[..., None]) -> Command:
        decorate = click.command(name, cls=Command, examples=examples, context_settings=CONTEXT)
        return decorate(function)

    return made


json_option: Final = click.option("--json", is_flag=True, help="Print one JSON document instead of text.")
"""The option of every command whose result a program may want to read."""
