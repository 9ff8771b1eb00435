"""The help texts: as they were, and with examples that can be copied."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import click
import pytest
from tests.cli.conftest import COLUMNS, Said

from edgewise.cli.app import COMMANDS, app
from edgewise.cli.command import Command

LINES = [(), *((name,) for name in COMMANDS), *(("bundle", name) for name in ("verify", "pack", "unpack"))]


def leaves() -> list[tuple[tuple[str, ...], Command]]:
    """Return every command that does something, with the words that call it."""
    context = click.Context(app)
    found: list[tuple[tuple[str, ...], Command]] = []
    for name in COMMANDS:
        command = app.get_command(context, name)
        if isinstance(command, click.Group):
            for sub in command.list_commands(context):
                inner = command.get_command(context, sub)
                assert isinstance(inner, Command)
                found.append(((name, sub), inner))
        else:
            assert isinstance(command, Command)
            found.append(((name,), command))
    return found


LEAVES = dict(leaves())


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_help(words: tuple[str, ...], edgewise: Callable[..., Said], golden: Callable[..., None]) -> None:
    said = edgewise(*words, "--help")
    assert said.code == 0
    assert not said.err
    assert max(map(len, said.out.splitlines())) <= COLUMNS
    golden("-".join(("help", *words)), said.out, exact=True)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_each_command_shows_an_example_that_parses(words: tuple[str, ...], edgewise: Callable[..., Said]) -> None:
    command = LEAVES[words]
    assert command.examples
    shown = edgewise(*words, "--help").out.partition("\nExample")[2]
    for example in command.examples:
        assert f"\n  {example}\n" in shown
        called = shlex.split(example.rpartition("| ")[2])
        assert called[: len(words) + 1] == ["edgewise", *words]
        with command.make_context(" ".join(words), called[len(words) + 1 :]) as context:
            assert context.params


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_each_option_is_explained_in_a_sentence(words: tuple[str, ...]) -> None:
    command = LEAVES[words]
    assert command.help
    for parameter in command.params:
        text = parameter.help
        assert text, parameter.name
        assert re.fullmatch(r"[^\[].*[.`]", text.partition("  [default")[0]), parameter.name


def test_the_table_names_each_command_as_it_names_itself() -> None:
    assert {words[0] for words in LEAVES} == set(COMMANDS)
    for (name, *rest), command in LEAVES.items():
        assert command.name == (rest or [name])[-1]


def test_version(edgewise: Callable[..., Said]) -> None:
    said = edgewise("--version")
    assert (said.code, said.out.split()[0], said.err) == (0, "edgewise", "")


def test_without_a_command_it_helps_and_fails(edgewise: Callable[..., Said]) -> None:
    said = edgewise()
    assert said.code == 2
    assert not said.out
    assert "optimize" in said.err
