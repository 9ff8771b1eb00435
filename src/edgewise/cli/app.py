"""The commands, as a table, and the one place where errors become exit codes."""

from __future__ import annotations

import difflib
import errno
import os
import select
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

import click

from edgewise import __version__
from edgewise.cli.command import CONTEXT
from edgewise.cli.console import fail
from edgewise.errors import EdgewiseError, InternalError, OutputError, ResourceError, UserError

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

_STOPPED: Final = "Interrupted."
_RESUMES: Final = "Interrupted. What was finished is kept; the same command goes on from there."
_LESS_MEMORY: Final = "Try a smaller batch or shape with `--shape`, or a machine with more memory."
_FREE_SPACE: Final = "Free some space or choose another disk; what was finished before is kept."
_INSTALL: Final = "`pip install edgewise` brings all that the commands need; the README says what a device needs."
_FAULT: Final = (
    "This is a fault of edgewise. Please report it with the lines above and the output of `edgewise inspect` for the "
    "model."
)


@dataclass(frozen=True)
class Entry:
    """One command.

    Attributes:
        place: `module:attribute` of the command; loaded when it is called, so that `run` stays light on a device.
        says: What it does, in one line.
        interrupted: What is said after Ctrl-C; nothing where stopping is how the command is ended.
    """

    place: str
    says: str
    interrupted: str = _STOPPED


COMMANDS: Final = {
    "optimize": Entry(
        "edgewise.cli.optimize:optimize", "Make a model as small and fast as this machine allows.", _RESUMES
    ),
    "prune": Entry("edgewise.cli.prune:prune", "Remove neurons, layers or weights, and make up for them."),
    "run": Entry("edgewise.cli.run:run", "Run a bundle on files, a folder or standard input.", ""),
    "report": Entry("edgewise.cli.report:report", "Write the HTML report of a run again."),
    "inspect": Entry("edgewise.cli.inspect:inspect", "What a model holds, costs, and what can be done with it."),
    "bench": Entry("edgewise.cli.bench:bench", "Latency and memory of models or bundles, measured in turns."),
    "eval": Entry("edgewise.cli.evaluate:evaluate", "The metric of one model; of two, what the second loses."),
    "diff": Entry("edgewise.cli.diff:diff", "Where two models part, tensor by tensor."),
    "export": Entry("edgewise.cli.export:export", "Write a bundle's model as ONNX or OpenVINO IR."),
    "bundle": Entry("edgewise.cli.bundle:bundle", "Check a bundle where it lies; pack and unpack it."),
    "doctor": Entry("edgewise.cli.doctor:doctor", "What this machine has, and which backends are ready."),
    "demo": Entry("edgewise.cli.demo:demo", "The main job on a model and samples that come with edgewise.", _RESUMES),
}


class Commands(click.Group):
    """The group of all commands, loaded one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  the base class decides
        """Return the names of all commands, the most used first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Load one command.

        Raises:
            UsageError: If there is none of this name.
        """
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            close = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            meant = f" Did you mean `{close[0]}`?" if close else ""
            raise click.UsageError(f"There is no command `{cmd_name}`.{meant}", ctx)
        module, _, attribute = entry.place.partition(":")
        found: click.Command = getattr(import_module(module), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  as above
        """Write the table of commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.says) for name, entry in COMMANDS.items()])


@click.group(cls=Commands, context_settings=CONTEXT, epilog="`edgewise COMMAND --help` says more, with an example.")
@click.version_option(__version__, message="edgewise %(version)s", help="Print the version and leave.")
def app() -> None:
    """Make a trained model as small, fast and frugal as the device allows, with proof; then run it there."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code: 0, 2 (the user can fix it), 70 (we must) or 130 (Ctrl-C)."""
    try:
        with app.make_context("edgewise", list(arguments)) as context:
            app.invoke(context)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except Exception as error:  # noqa: BLE001  this is the place that errors come to
        return _failed(error, arguments)
    return 0


def _interrupted(arguments: Sequence[str]) -> int:
    name = _called(arguments).removeprefix("edgewise ")
    said = COMMANDS[name].interrupted if name in COMMANDS else _STOPPED
    if said:
        sys.stderr.write(f"{said}\n")
    return INTERRUPTED


def _called(arguments: Sequence[str]) -> str:
    """Return the command that was called, as it is typed."""
    name = next((word for word in arguments if not word.startswith("-")), "")
    return f"edgewise {name}" if name in COMMANDS else "edgewise"


def _failed(error: Exception, arguments: Sequence[str]) -> int:
    if isinstance(error, BrokenPipeError) and _reader_has_gone():
        # Nothing is wrong with `edgewise ... | head`; nothing more can be said to it, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    known = _as_ours(error)
    if known is None:
        traceback.print_exception(error)
        met = f"edgewise met something that it does not expect: {type(error).__name__}: {error}"
        known = InternalError(met, hint=_FAULT)
    if known.hint is None and isinstance(known, UserError):
        known.hint = f"`{_called(arguments)} --help` shows how it is called."
    return fail(known)


def _as_ours(error: Exception) -> EdgewiseError | None:
    """Return an error as one of edgewise's, or None where it is unforeseen."""
    match error:
        case EdgewiseError():
            return error
        case click.UsageError():
            return UserError(error.format_message())
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] != "edgewise":
            return UserError(f"This command needs the package `{name}`, which is not installed.", hint=_INSTALL)
        case MemoryError():
            return ResourceError("The machine has too little memory for this model.", hint=_LESS_MEMORY)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG, filename=name, strerror=reason):
            where = f" `{name}`" if name else ""
            return OutputError(f"The output{where} has to have room on its disk, but: {reason}.", hint=_FREE_SPACE)
        case _:
            return None


def _reader_has_gone() -> bool:
    """Return whether nobody reads standard output any more; pipes to other processes break, too."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
