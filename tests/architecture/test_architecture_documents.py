"""What the documents say is so: links lead somewhere, commands, targets, files and names exist."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from edgewise.cli.app import COMMANDS

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md")])
BASES: Final = (ROOT, ROOT / "src/edgewise")
README: Final = ROOT / "README.md"


def name(path: Path) -> str:
    """Return how a test names a document."""
    return path.relative_to(ROOT).as_posix()


def each_document() -> pytest.MarkDecorator:
    """Run a test for every document."""
    return pytest.mark.parametrize("document", DOCUMENTS, ids=name)


def heading_links(text: str) -> set[str]:
    """Return the anchors of a document's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_document()
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue  # the network is not asked
        path, _, anchor = target.partition("#")
        there = (document.parent / path) if path else document
        if not there.exists() or (anchor and anchor not in heading_links(there.read_text())):
            lost.append(target)
    assert lost == []


@each_document()
def test_files_that_are_named_exist(document: Path) -> None:
    # Words in capitals stand for names that the reader chooses: `backends/NAME/session.py`. A star is a pattern.
    lost = []
    for word in re.findall(r"`([\w.*-]+/[\w.*/-]*)`", document.read_text()):
        is_path = word.endswith((".py", ".md", ".toml", ".txt", ".svg", "/")) and not word.startswith("samples/")
        is_pattern = re.search(r"[A-Z]{2,}", word) and not word.endswith(".md")
        if is_path and not is_pattern and not any(list(base.glob(word.rstrip("/"))) for base in BASES):
            lost.append(word)
    assert lost == []


@each_document()
def test_targets_of_make_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = document.read_text()
    asked = re.findall(r"`make ([a-z][a-z -]*)`", text)
    asked += re.findall(r"^ *make ([a-z][a-z -]*?) *(?:#.*)?$", text, re.MULTILINE)
    assert {word for line in asked for word in line.split()} - targets == set()


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each call of the command line in a document."""
    for line in re.findall(r"`(edgewise [^`]+)`", text) + re.findall(r"^ {4}(edgewise .+)$", text, re.MULTILINE):
        yield line.split("#")[0].split()[1:]


@each_document()
def test_commands_exist(document: Path) -> None:
    called = {words[0] for words in commands(document.read_text())}
    assert {word for word in called if word[0].islower()} - set(COMMANDS) == set()


def test_the_readme_names_every_command() -> None:
    assert {words[0] for words in commands(README.read_text())} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_in_the_documents_exist(command: str) -> None:
    options = {
        word
        for document in DOCUMENTS
        for words in commands(document.read_text())
        if words[0] == command
        for word in words
        if word.startswith("--")
    }
    if not options:
        pytest.skip(f"no document gives an option of `{command}`")
    answer = subprocess.run(
        [sys.executable, "-m", "edgewise", command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert {option for option in options if not re.search(rf"{option}\b", answer)} == set()


@each_document()
def test_python_in_the_documents_uses_what_exists(document: Path) -> None:
    for snippet in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edgewise":
                assert hasattr(importlib.import_module("edgewise"), node.attr)
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edgewise"):
                assert all(hasattr(importlib.import_module(str(node.module)), alias.name) for alias in node.names)


def test_decisions_are_numbered_without_gaps_and_have_their_parts() -> None:
    pages = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        titles = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
        assert titles == ["Context", "Decision", "Cost", "Measurement"], page.name


def test_the_changelog_has_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    version = importlib.import_module("edgewise").__version__
    assert f"## [{version}]" in text or "## [Unreleased]" in text


def test_the_picture_is_readable_without_the_network() -> None:
    picture = (ROOT / "docs/flow.svg").read_text()
    assert set(re.findall(r"https?://[^\"\s]+", picture)) == {"http://www.w3.org/2000/svg"}
    assert "<title" in picture
