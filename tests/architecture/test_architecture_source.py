"""Habits of the source that a machine can check; STYLE.md has the reasons."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

FILE_LINES: Final = 500
FUNCTION_LINES: Final = 60
CLASS_LINES: Final = 300

# Independent cases, one after the other: they keep to the limit of files alone.
LISTS_OF_CASES: Final = ("tests/", "src/edgewise/testing/")

# What may be larger than STYLE.md says, each with its reason. Empty, and meant to stay so.
ALLOWED: Final[dict[str, str]] = {}

# Written with brackets, so that this file does not match itself.
LEAKS: Final = {
    "a path of somebody's machine": re.compile(r"(?<![\w.])/(wor[k]|roo[t]|hom[e]/\w+|User[s]/\w+|op[t]/\w+)/"),
    "the address of a package registry": re.compile(
        r"pypi\.or[g]|pythonhosted\.or[g]|pytorch\.org/wh[l]|npmjs\.or[g]|registry\.npmj[s]|index-ur[l]|find-link[s]"
    ),
    "a file address": re.compile(r"file:/[/]/"),
}


def tracked(*suffixes: str) -> list[Path]:
    """Return the files that git tracks and that end in one of `suffixes` (all of them where none is given)."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so there is no list of tracked files")
    listing = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listing.stdout.split("\0") if name.endswith(suffixes or ("",)) and name]
    return [path for path in paths if path.is_file()]


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's body, its docstring left out."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def too_large(path: Path) -> list[str]:
    """Return what is larger in a Python file than STYLE.md says."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text()
    found = []
    if (lines := text.count("\n")) >= FILE_LINES:
        found.append(f"{name}: {lines} lines")
    if name.startswith(LISTS_OF_CASES):
        return found
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := body_lines(node)) >= FUNCTION_LINES:
            found.append(f"{name}: `{node.name}` has {lines} lines")
        if isinstance(node, ast.ClassDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) >= CLASS_LINES:
            found.append(f"{name}: class `{node.name}` has {lines} lines")
    return found


def test_files_functions_and_classes_are_small() -> None:
    found = [entry for path in tracked(".py") for entry in too_large(path)]
    assert [entry for entry in found if entry.split(":")[0] not in ALLOWED] == []


def test_the_sizes_are_really_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    long = tmp_path / "long.py"
    long.write_text("def f():\n    '''Say.\n\n    More.'''\n" + "    g()\n" * FUNCTION_LINES + "\n" * FILE_LINES)

    assert too_large(long) == [
        f"long.py: {FUNCTION_LINES + 4 + FILE_LINES} lines",
        f"long.py: `f` has {FUNCTION_LINES} lines",
    ]


def test_there_are_no_relative_imports() -> None:
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in tracked(".py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


def test_every_exception_from_a_rule_has_its_code_and_a_reason() -> None:
    mark = re.compile(r"#\s*(?:ruff:\s*)?noqa|#\s*type:\s*ignore")
    whole = re.compile(r"#\s*(?:(?:ruff: )?noqa: [A-Z]+\d+(?:, ?[A-Z]+\d+)*\W+\w.{5,}|type: ignore\[[\w, -]+\])")
    bare = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked(".py")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark.search(line) and not whole.search(line)
    ]
    assert bare == []


@pytest.mark.parametrize("leak", LEAKS)
def test_no_tracked_file_names(leak: str) -> None:
    pattern = LEAKS[leak]
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # models and arrays
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


def test_names_say_what_a_module_is_about() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "manager", "misc", "tools"}
    assert [path for path in tracked(".py") if vague & {path.stem, *path.relative_to(ROOT).parts}] == []


def test_the_tests_mirror_the_source() -> None:
    folders = {path.name for path in (ROOT / "src/edgewise").iterdir() if any(path.glob("**/*.py"))}
    tested = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("**/test_*.py"))}
    assert sorted(folders - {"__pycache__"} - tested) == []
