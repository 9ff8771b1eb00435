"""Imports point down: the contracts of pyproject.toml hold, and each of them bites."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
CONTRACTS: Final = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]

# For each contract one import that it has to refuse. None of them is refused by two contracts where that can be helped.
BREACHES: Final = {
    "A folder imports only from folders below it": ("records/codec.py", "edgewise.passes.protocol"),
    "What runs on the device carries no optimizer": ("samples/source.py", "pydantic"),
    "A report draws from records alone": ("report/__init__.py", "edgewise.measure"),
    "Search knows no models": ("search/__init__.py", "onnx"),
    "Backends do not know each other": ("backends/reference/__init__.py", "edgewise.backends.ort"),
    "onnxruntime has one adapter file": ("cli/__init__.py", "onnxruntime"),
    "openvino has one adapter file": ("cli/__init__.py", "openvino"),
    "torch has its adapter files": ("compress/gram.py", "torch"),
    "Passes, compression and formats never run a model": ("compress/__init__.py", "edgewise.backends.registry"),
    "Pruning and quantization do not know each other": (
        "compress/prune/__init__.py",
        "edgewise.compress.quantize.plan",
    ),
}


def lint(folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package `edgewise` below `folder/src`; its output comes without colours."""
    result = subprocess.run(
        [
            *(sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"),
            *("--config", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    # Older versions colour their output whatever NO_COLOR says.
    result.stdout = re.sub(r"\x1b\[[\d;]*m", "", result.stdout)
    return result


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the source that a test may spoil."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_contracts_hold(tmp_path: Path) -> None:
    result = lint(ROOT, tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in result.stdout


def test_every_contract_bites(copy: Path, tmp_path: Path) -> None:
    assert list(BREACHES) == CONTRACTS, "each contract needs an import here that it refuses"
    for path, module in BREACHES.values():
        with (copy / "src/edgewise" / path).open("a") as file:
            file.write(f"\nimport {module}\n")

    result = lint(copy, tmp_path / "cache")

    verdicts = {name: f"{name} BROKEN" in result.stdout for name in CONTRACTS}
    assert all(verdicts.values()), f"{json.dumps(verdicts, indent=2)}\n{result.stdout}{result.stderr}"


def test_a_new_folder_needs_a_place_among_the_layers(copy: Path, tmp_path: Path) -> None:
    (copy / "src/edgewise/utils").mkdir()
    (copy / "src/edgewise/utils/__init__.py").write_text("")

    result = lint(copy, tmp_path / "cache")

    assert result.returncode != 0
    assert "edgewise.utils" in result.stdout


def test_the_reference_evaluator_stays_with_the_reference() -> None:
    # import-linter takes whole packages only, and `onnx` itself is imported in more places than its evaluator.
    users = {
        path.relative_to(ROOT / "src/edgewise").parent.as_posix()
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and str(node.module).startswith("onnx.reference"))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("onnx.reference") for alias in node.names))
    }
    assert users <= {"backends/reference", "testing"}


def test_the_package_itself_imports_next_to_nothing() -> None:
    # On a device `import edgewise` is paid for at every cold start. -S -E: what site-packages' own .pth files import is
    # none of ours.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); import edgewise; "
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-S", "-E", "-c", code, str(ROOT / "src")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)

    loaded = result.stdout.split()
    outside = [name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names | {"edgewise"}]
    assert outside == []
    assert [name for name in loaded if name.startswith("edgewise")] == ["edgewise"]
    assert len(loaded) < 50, loaded
