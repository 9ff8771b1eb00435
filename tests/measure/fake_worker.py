"""A worker whose backend does what the artifact's JSON says. Started by tests in the place of the real one."""

from __future__ import annotations

import importlib.machinery
import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact
from edgewise.errors import ResourceError
from edgewise.measure import worker
from edgewise.records.tensors import Feeds, Outputs


class FakeSession:
    """Runs a script: how long a run takes, and at which run what goes wrong."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        self.runs = 0
        # Touched, so that it is resident.
        self.held = b"1" * script.get("allocate", 0)

    def run(self, feeds: Feeds) -> Outputs:
        self.runs += 1
        until = time.perf_counter() + self.script.get("busy_us", 0) / 1e6
        while time.perf_counter() < until:
            pass
        if self.script.get("chatty"):
            print("this would break the protocol", flush=True)
        if log := self.script.get("log"):
            if self.script.get("cold") and not Path(log).exists():
                time.sleep(0.5)  # the first process of all finds nothing in any cache
            with Path(log).open("a") as file:
                file.write(f"{self.script['name']} {feeds['x'].ravel()[0]:g}\n")
        for what, run in self.script.items():
            if what in ACCIDENTS and run == self.runs:
                ACCIDENTS[what]()
        return {"y": feeds["x"]}


def hang() -> None:
    time.sleep(3600)


def die() -> None:
    print("the fake gives up", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    print("the fake leaves", file=sys.stderr, flush=True)
    os._exit(3)


def refuse() -> None:
    raise ResourceError("The fake has to have more.", hint="Give it more.")


def run_out_of_memory() -> None:
    raise MemoryError


ACCIDENTS = {
    "hang_at_run": hang,
    "die_at_run": die,
    "exit_at_run": leave,
    "refuse_at_run": refuse,
    "out_of_memory_at_run": run_out_of_memory,
}


def spin() -> None:
    while True:
        pass


class FakeBackend:
    name = "fake"

    def open(self, artifact: Artifact) -> FakeSession:
        script = json.loads(artifact.files["script.json"])
        if (seconds := script.get("fork_for_s")) and os.fork() == 0:
            time.sleep(seconds)  # with everything that it inherited
            os._exit(0)
        if script.get("spin"):
            threading.Thread(target=spin, daemon=True).start()
        return FakeSession(script)


def register() -> None:
    module = types.ModuleType("fake_backend")
    module.__spec__ = importlib.machinery.ModuleSpec("fake_backend", None, is_package=True)
    module.__path__ = []
    vars(module)["BACKEND"] = FakeBackend()
    sys.modules["fake_backend"] = module
    registry.BACKENDS["fake"] = registry.Entry("fake_backend", extra=None, says="fake")


if __name__ == "__main__":
    register()
    worker.main(sys.argv[1:])
