"""The commands, as a table, and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Final, NoReturn

import typer

from edgewise import __version__
from edgewise.cli.console import fail
from edgewise.errors import EdgewiseError, InternalError, OutputError, ResourceError

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

_LESS_MEMORY: Final = "Try a smaller batch or shape with `--shape`, or a machine with more memory."
_FREE_SPACE: Final = "Free some space or choose another disk with `--out`; what was finished before is kept."


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: The module that holds it; loaded when the command is called, so that `run` stays light on a device.
        says: What it does, in one line.
        function: Its function, or a Typer app where the command has commands of its own.
    """

    module: str
    says: str
    function: str


COMMANDS: Final = {
    "optimize": Command("edgewise.cli.optimize", "Make a model as small and fast as this machine allows.", "optimize"),
    "run": Command("edgewise.cli.run", "Run a bundle on files, a folder or standard input.", "run"),
    "report": Command("edgewise.cli.report", "Write the HTML report of a run again.", "report"),
    "inspect": Command("edgewise.cli.inspect", "What a model holds, costs, and what can be done with it.", "inspect"),
    "bench": Command("edgewise.cli.bench", "Latency and memory of models or bundles, measured in turns.", "bench"),
    "eval": Command("edgewise.cli.evaluate", "The metric of one model; of two, what the second loses.", "evaluate"),
    "diff": Command("edgewise.cli.diff", "Where two models part, layer by layer.", "diff"),
    "export": Command("edgewise.cli.export", "Write a bundle's model as ONNX or OpenVINO IR.", "export"),
    "bundle": Command("edgewise.cli.bundle", "Check a bundle where it lies.", "app"),
    "doctor": Command("edgewise.cli.doctor", "What this machine has, and which backends are ready.", "doctor"),
    "demo": Command("edgewise.cli.demo", "The main job on a model and samples that come with edgewise.", "demo"),
}


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code: 0, 2 (the user can fix it), 70 (we must) or 130 (Ctrl-C)."""
    try:
        _app(arguments)(list(arguments), prog_name="edgewise")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _app(arguments: Sequence[str]) -> typer.Typer:
    app = typer.Typer(
        help="Makes a trained model as small, fast and frugal as the device allows, with proof; then runs it there.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    called = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        if name != called:
            # Only its line in the list of commands is needed.
            app.command(name, help=command.says)(_never_called)
            continue
        target = getattr(import_module(command.module), command.function)
        if isinstance(target, typer.Typer):
            for registered in target.registered_commands:
                assert registered.callback is not None  # noqa: S101  # every command was made from a function
                registered.callback = _guarded(registered.callback)
            app.add_typer(target, name=name, help=command.says)
        else:
            app.command(name)(_guarded(target))
    return app


def _show_version(value: bool) -> None:  # typer calls it with the option's value
    if value:
        typer.echo(f"edgewise {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[  # `_show_version` has dealt with it
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _never_called() -> None:
    pass


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Turn errors of a command into a message and an exit code."""

    @functools.wraps(function)
    def guarded(**options: Any) -> None:
        try:
            function(**options)
        except EdgewiseError as error:
            _leave(error, error)
        except KeyboardInterrupt as error:
            sys.stderr.write("Interrupted. What was finished is kept; the same command goes on from there.\n")
            raise typer.Exit(INTERRUPTED) from error
        except MemoryError as error:
            _leave(ResourceError("The machine has too little memory for this model.", hint=_LESS_MEMORY), error)
        except (BrokenPipeError, typer.Exit):
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _unexpected(error) from error
            full = OutputError(f"The disk has to have room for the output, but it is full: {error}.", hint=_FREE_SPACE)
            _leave(full, error)
        except Exception as error:
            raise _unexpected(error) from error

    return guarded


def _leave(error: EdgewiseError, cause: BaseException) -> NoReturn:
    fail(error)
    raise typer.Exit(error.exit_code) from cause


def _unexpected(error: Exception) -> typer.Exit:
    traceback.print_exc()
    fail(
        InternalError(
            f"edgewise met something that it does not expect: {type(error).__name__}: {error}",
            hint="This is a fault of edgewise. Please report it with the lines above and the output of "
            "`edgewise inspect` for the model.",
        )
    )
    return typer.Exit(InternalError.exit_code)
