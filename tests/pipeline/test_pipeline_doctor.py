"""What this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.backends import registry
from edgewise.errors import BackendMissingError
from edgewise.pipeline import doctor
from edgewise.pipeline.doctor import diagnose


def test_every_backend_is_listed_and_the_ledger_named() -> None:
    found = diagnose()
    assert [health.name for health in found.backends] == list(registry.BACKENDS)
    health = found.backends[0]
    assert (health.state, health.says, health.cure) == ("ready", "ONNX Runtime", "")
    assert "fp32" in health.precisions
    assert found.ledger.endswith("certify-sets.sqlite")
    assert found.energy
    assert found.machine.cores >= 1


@pytest.mark.parametrize(
    ("error", "state", "cure"),
    [
        (BackendMissingError("no", hint="pip install it"), "missing", "pip install it"),
        (ImportError("libtbb.so: wrong ELF class"), "broken", "libtbb.so: wrong ELF class"),
    ],
    ids=["missing", "broken"],
)
def test_a_backend_that_is_not_ready_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception, state: str, cure: str
) -> None:
    def fails(_backend: object) -> str:
        raise error

    monkeypatch.setattr(type(registry.get("openvino")), "version", fails)
    health = next(health for health in diagnose().backends if health.name == "openvino")
    assert (health.state, health.cure, health.version) == (state, cure, "")


def test_graphics_processors_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, text in (("0000:01", "Model: \t A Card\nIRQ: 1\n"), ("0000:02", "")):
        (tmp_path / "driver/nvidia/gpus" / number).mkdir(parents=True)
        (tmp_path / "driver/nvidia/gpus" / number / "information").write_text(text)
    assert doctor._gpus(tmp_path) == ("A Card", "0000:02")
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")  # type: ignore[attr-defined]
    assert "driver lists no processor" in doctor._gpus(tmp_path / "none")[0]
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)  # type: ignore[attr-defined]
    assert doctor._gpus(tmp_path / "none") == ()
