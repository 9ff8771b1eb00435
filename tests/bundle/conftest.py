"""Bundles of a small model for ONNX Runtime, and of a backend that is made up."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact
from edgewise.bundle.manifest import Manifest
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.records.candidate import Candidate, Fuse, Quantize, RunOptions
from edgewise.records.machine import Machine
from edgewise.records.tensors import Array, Feeds, Outputs, Port

HERE = Machine(
    cpu="a processor",
    architecture="x86_64",
    isa=("avx2",),
    cores=2,
    memory_bytes=2**30,
    system="Linux 6",
    governor=None,
    load=None,
    python="3.11",
    packages={},
)


class FakeSession:
    """`y = factor * x`, the factor being what the artifact's file says."""

    def __init__(self, artifact: Artifact) -> None:
        self.factor = np.float32(artifact.files["factor"].decode())
        self.inputs, self.outputs = artifact.spec.inputs, artifact.spec.outputs

    def run(self, feeds: Feeds) -> Outputs:
        return {"y": feeds["x"] * self.factor}

    def close(self) -> None:
        pass


class FakeBackend:
    """A backend whose arithmetic a test can change."""

    session: type[FakeSession] = FakeSession

    def open(self, artifact: Artifact) -> FakeSession:
        return self.session(artifact)


@pytest.fixture
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    backend = FakeBackend()
    module = types.ModuleType("fake_bundle_backend")
    vars(module)["BACKEND"] = backend
    monkeypatch.setitem(sys.modules, "fake_bundle_backend", module)
    monkeypatch.setitem(registry.BACKENDS, "fake", registry.Entry("fake_bundle_backend", extra=None, says="Fake"))
    return backend


def fake_rung(factor: str = "2", *, int8: bool = False, threads: int = 1) -> NewRung:
    options = RunOptions(threads=threads)
    artifact = Artifact.of(
        {"factor": factor.encode()},
        backend="fake",
        options=options,
        inputs=(Port(name="x", dtype="float32", shape=(1, 4)),),
        outputs=(Port(name="y", dtype="float32", shape=(1, 4)),),
    )
    steps = (Fuse(), Quantize()) if int8 else ()
    candidate = Candidate(steps=steps, backend="fake", options=options)
    return NewRung(candidate=candidate, artifact=artifact, certificate=None, certified=True, timing=None)


@pytest.fixture
def make_rung() -> Callable[..., NewRung]:
    return fake_rung


@pytest.fixture
def contract() -> Contract:
    return Contract(model="model.onnx", machine=HERE, created="2026-11-22T16:00:00Z")


@pytest.fixture
def feeds() -> list[dict[str, Array]]:
    return [{"x": np.linspace(-1, 1 + i, 4, dtype=np.float32).reshape(1, 4)} for i in range(3)]


@pytest.fixture
def written(
    request: pytest.FixtureRequest, tmp_path: Path, contract: Contract, feeds: list[dict[str, Array]]
) -> tuple[Path, Manifest]:
    request.getfixturevalue("fake_backend")
    folder = tmp_path / "out"
    ladder = [fake_rung(), fake_rung("2.01", int8=True)]
    return folder, write(folder, ladder, default=1, contract=contract, vectors=feeds)
