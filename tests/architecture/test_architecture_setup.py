"""The set-up: what the Makefile says on the wrong machine, what is pinned, what the wheel carries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, Final

import onnx
import pytest

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEMO: Final = {"digits.onnx", "digits.npz", "edgewise.toml", "ATTRIBUTION.md"}
DEMO_BYTES: Final = 5_000_000
MAKE: Final = shutil.which("make")

needs_make = pytest.mark.skipif(MAKE is None, reason="`make` is not installed")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in a copy of the repository's root that has its Makefile alone."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "constraints.txt", folder)
    # What an outer `make test` hands down must not reach the inner one.
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "VENV"}}
    command = [str(MAKE), "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def interpreter(folder: Path, script: str) -> Path:
    """Return the path of a program in `folder` that stands for another Python."""
    path = folder / "another-python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@needs_make
def test_an_older_python_is_refused_with_a_hint(tmp_path: Path) -> None:
    old = interpreter(tmp_path, 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')

    result = make(tmp_path, f"PYTHON={old}", "test")

    assert result.returncode != 0
    assert "edgewise needs Python 3.11 or newer" in result.stdout
    assert "which is Python 3.9.2" in result.stdout
    assert "make PYTHON=" in result.stdout
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_no_python_is_refused_with_a_hint(tmp_path: Path) -> None:
    result = make(tmp_path, "PYTHON=no-such-python", "demo")

    assert result.returncode != 0
    assert "there is no `no-such-python` here" in result.stdout


@needs_make
def test_a_python_that_makes_no_environments_is_refused_with_a_hint(tmp_path: Path) -> None:
    # Debian's python3 without python3-venv.
    bare = interpreter(tmp_path, 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')

    result = make(tmp_path, f"PYTHON={bare}", "test")

    assert result.returncode != 0
    assert "apt-get install python3-venv" in result.stdout


def pins(name: str) -> dict[str, str]:
    """Return the version that a constraints file pins each package to, by normalized name."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), [line for line in lines if line.count("==") != 1]
    return {normalized(package): version for package, version in pairs}


def normalized(package: str) -> str:
    """Return a package's name in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", package).lower()


def requirements() -> dict[str, str]:
    """Return what pyproject.toml asks for: the least version of each package."""
    lines = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        lines += extra
    for group in PROJECT["dependency-groups"].values():
        lines += [line for line in group if isinstance(line, str)]
    pairs = [line.split(">=") for line in lines]
    return {normalized(name): version for name, version in pairs}


def test_everything_asked_for_is_pinned() -> None:
    assert sorted(set(requirements()) - set(pins("constraints.txt"))) == []


def test_the_pin_of_torch_is_the_small_one() -> None:
    assert pins("constraints.txt")["torch"] == "2.13.0"


def test_no_pin_names_a_place() -> None:
    for name in ("constraints.txt", "constraints-lowest.txt"):
        assert re.findall(r".*(?:@|://|--|\+).*", (ROOT / name).read_text()) == []


def test_the_lowest_versions_are_those_that_are_promised() -> None:
    # constraints-lowest.txt is what `make test-lowest` installs; benchmarks and linters make no promise.
    promised = requirements()
    lowest = pins("constraints-lowest.txt")
    wrong = {
        package: (lowest.get(normalized(package)), promised[normalized(package)])
        for line in [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["openvino"]]
        for package in [line.split(">=")[0]]
        if not same_version(lowest.get(normalized(package), ""), promised[normalized(package)])
    }
    assert wrong == {}


def same_version(one: str, other: str) -> bool:
    """Return whether two versions are equal, as 2.0 and 2.0.0 are."""

    def parts(version: str) -> list[str]:
        found = version.split(".")
        while found[-1] == "0":
            found.pop()
        return found

    return parts(one) == parts(other)


def test_ci_calls_every_target() -> None:
    text = (ROOT / ".ci/run").read_text()
    for target in ("lint", "types", "imports", "test", "test-all", "demo"):
        assert re.search(rf"^stage \S+ .*\b{target}\b", text, re.MULTILINE), target
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_every_target_of_the_makefile_is_explained() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    explained = {word for line in re.findall(r"@echo 'make (.*)'", text) for word in line.split()}
    assert set(phony) - {"help", "browser"} - explained == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from what lies here."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_carries_the_demo(wheel: zipfile.ZipFile) -> None:
    sizes = {Path(info.filename).name: info.file_size for info in wheel.infolist() if "edgewise/demo/" in info.filename}
    assert set(sizes) == DEMO
    assert sum(sizes.values()) < DEMO_BYTES


def test_the_wheel_carries_every_module_and_template(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "src/edgewise"
    here = {
        path.relative_to(ROOT / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    inside = {name for name in wheel.namelist() if name.startswith("edgewise/")}
    assert inside == here


def test_the_wheel_carries_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgewise"}
    assert any(name.endswith("LICENSE") for name in wheel.namelist())
    assert "edgewise/py.typed" in wheel.namelist()


def test_the_demo_model_is_what_the_demo_needs() -> None:
    path = ROOT / "src/edgewise/demo/digits.onnx"
    assert 1_000_000 <= path.stat().st_size <= 3_000_000
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    # There is something to fold, and the batch is asked of edgewise, not fixed by the exporter.
    assert "BatchNormalization" in {node.op_type for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
