"""The public names of edgewise: changing them is a decision, and this list is where it is seen."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Final

import pytest

import edgewise

GOLDEN: Final = ["Bundle", "EdgewiseError", "Engine", "__version__", "bench", "load", "optimize", "prune", "quantize"]
CALLABLES: Final = [name for name in GOLDEN if not name.startswith("_")]


def test_the_public_names_are_these() -> None:
    assert sorted(edgewise.__all__) == GOLDEN
    assert dir(edgewise) == GOLDEN


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_name_loads_and_is_documented(name: str) -> None:
    found = getattr(edgewise, name)
    assert callable(found)
    assert inspect.getdoc(found)
    assert found.__module__.startswith("edgewise.")


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    source = ast.parse(Path(edgewise.__file__).read_text())
    typed = {
        alias.name: node.module
        for branch in source.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(typed) == CALLABLES
    for name, module in typed.items():
        assert getattr(edgewise, name) is getattr(importlib.import_module(str(module)), name)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = edgewise.no_such_name
