"""The table of backends, and what happens where a runtime is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import pytest

from edgewise.backends import registry
from edgewise.errors import BackendMissingError, RecipeError

PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "reference": "onnx"}


def _absent(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make `package` look as if it were not installed."""
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Refuse(package), *sys.meta_path])


class _Refuse:
    """An import hook under which one package does not exist."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        del path, target
        if name == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("name", registry.BACKENDS)
def test_each_entry_leads_to_a_backend_of_its_name(name: str) -> None:
    assert registry.get(name).name == name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"`ort`, `openvino`, `reference`.*`tensorrt`"):
        registry.get("tensorrt")


@pytest.mark.parametrize("name", registry.BACKENDS)
def test_a_missing_package_names_the_cure(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    session = importlib.import_module(f"edgewise.backends.{name}.session")
    _absent(monkeypatch, PACKAGES[name])
    extra = registry.BACKENDS[name].extra
    for ask in (registry.get(name).version, session.runtime):
        with pytest.raises(BackendMissingError) as raised:
            ask()
        assert f"`{PACKAGES[name]}`" in raised.value.message
        assert raised.value.hint == f"pip install '{'edgewise' if extra is None else f'edgewise[{extra}]'}'"
    assert name not in registry.ready()


def test_a_broken_install_shows_its_own_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is missing inside of onnxruntime is not onnxruntime missing."""
    session = importlib.import_module("edgewise.backends.ort.session")
    broken = type("Broken", (_Refuse,), {"find_spec": _broken_spec})("onnxruntime")
    for name in [name for name in sys.modules if name.split(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="flatbuffers"):
        session.runtime()


def _broken_spec(self: object, name: str, path: object = None, target: object = None) -> None:
    del self, path, target
    if name == "onnxruntime":
        raise ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers")


def test_the_reference_is_not_offered_for_use() -> None:
    assert "reference" not in registry.ready()
    assert "ort" in registry.ready()
