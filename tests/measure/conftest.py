"""A backend that does what it is told, in worker processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgewise.backends.protocol import Artifact
from edgewise.measure.process import Entry
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Array, Port

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def fake_command() -> tuple[str, ...]:
    return (sys.executable, str(FAKE_WORKER))


@pytest.fixture
def fake_entry(tmp_path: Path) -> Callable[..., Entry]:
    """Return a function that makes an entry whose session follows a script."""

    def make(name: str, *, threads: int = 1, **script: object) -> Entry:
        port = Port(name="x", dtype="float32", shape=(1,))
        data = json.dumps({"name": name, **script}).encode()
        artifact = Artifact.of(
            {"script.json": data}, backend="fake", options=RunOptions(threads=threads), inputs=(port,), outputs=(port,)
        )
        folder = tmp_path / name
        artifact.write(folder)
        return Entry(name, folder, artifact.spec)

    return make


@pytest.fixture
def feeds() -> list[dict[str, Array]]:
    return [{"x": np.full((1,), value, np.float32)} for value in (1.0, 2.0, 3.0)]
