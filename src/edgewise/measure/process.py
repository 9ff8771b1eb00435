"""A worker as its parent sees it: started, asked, and always ended."""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TypeVar

import msgspec
import numpy as np

from edgewise import errors
from edgewise.backends.protocol import ArtifactSpec
from edgewise.errors import BackendError, ContractError, EdgewiseError
from edgewise.measure.messages import Failed, Load, Loaded, Reply, Request, Times, Turn, Warm, Warmed
from edgewise.measure.turns import write_feeds
from edgewise.records.codec import encode
from edgewise.records.tensors import Array, Feeds

WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "edgewise.measure.worker")
"""`-P`: a file of the user's that happens to be named `queue.py` must not be imported instead of Python's own."""

PATIENCE_S: Final = 300.0
"""A worker that says nothing for this long, beyond what it was asked to do, is taken for stuck."""

R = TypeVar("R", Loaded, Warmed, Times)


@dataclass(frozen=True)
class Entry:
    """A candidate to measure.

    Attributes:
        name: Its name, for messages.
        folder: Folder of its artifact.
        spec: What must be known to open it.
    """

    name: str
    folder: Path
    spec: ArtifactSpec


def _contiguous(array: Array) -> Array:
    # numpy.ascontiguousarray gives an array without dimensions one.
    return np.ascontiguousarray(array).reshape(np.shape(array))


@contextlib.contextmanager
def feeds_file(feeds: Sequence[Feeds]) -> Iterator[Path]:
    """Write `feeds` to a temporary file for workers to read.

    Raises:
        ContractError: If there are none.
    """
    if not feeds:
        raise ContractError("Measuring needs at least one sample to run on. Received none.")
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        path = Path(folder) / "feeds.npz"
        write_feeds(path, [{name: _contiguous(array) for name, array in feed.items()} for feed in feeds])
        yield path


class WorkerProcess:
    """One worker. As a context manager it is ended on the way out, whatever happened.

    Args:
        entry: What it runs.
        feeds: File of `feeds_file`.
        cores: Cores to stay on; empty for any.
        command: How a worker is started.
        patience_s: Seconds of silence, beyond the work itself, after which it is taken for stuck.
    """

    def __init__(
        self,
        entry: Entry,
        feeds: Path,
        *,
        cores: Sequence[int] = (),
        command: Sequence[str] = WORKER_COMMAND,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._entry = entry
        self._feeds = feeds
        self._patience_s = patience_s
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        try:
            self._process = subprocess.Popen(
                [*command, ",".join(map(str, cores)) or "any"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
            )
        except OSError as error:
            self._words.close()
            raise BackendError(f"A process has to start to measure `{entry.name}`, but: {error.strerror}.") from error
        self._replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._decoder = msgspec.json.Decoder(Reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def load(self) -> Loaded:
        """Open the artifact and run it once.

        Raises:
            EdgewiseError: What the backend raised; `BackendError` if the process died or is stuck.
        """
        request = Load(folder=str(self._entry.folder), spec=self._entry.spec, feeds=str(self._feeds))
        return self._ask(request, Loaded)

    def warm(self, *, limit_ns: int) -> Warmed:
        """Run until the speed no longer changes. Raises as `load` does."""
        return self._ask(Warm(limit_ns=limit_ns), Warmed, working_s=limit_ns / 1e9)

    def turn(self, *, slice_ns: int, untimed_ns: int = 0) -> Times:
        """Run for a while. Raises as `load` does."""
        request = Turn(untimed_ns=untimed_ns, slice_ns=slice_ns)
        return self._ask(request, Times, working_s=(slice_ns + untimed_ns) / 1e9)

    def close(self) -> None:
        """End the process and wait for its end. May be called again."""
        self._process.kill()
        self._process.wait()
        # The pipe must not be closed under the listener. It ends with the pipe, unless a runtime has left behind a
        # process of its own that holds the other end.
        self._listener.join(timeout=1.0)
        stdout = None if self._listener.is_alive() else self._process.stdout
        for stream in (self._process.stdin, stdout, self._words):
            if stream is not None:
                # Closing sends what is left of a request, possibly to a process that died.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _listen(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._replies.put(line)
        self._replies.put(None)

    def _ask(self, request: Request, kind: type[R], *, working_s: float = 0.0) -> R:
        if self._process.stdin is None:
            raise ContractError("A worker has to be started with a pipe as its standard input.")
        try:
            self._process.stdin.write(encode(request) + b"\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=working_s + self._patience_s)
        except (BrokenPipeError, ConnectionResetError):
            line = None
        except queue.Empty:
            raise BackendError(
                f"`{self._entry.name}` has to answer within {self._patience_s:g} s, but its process is stuck."
            ) from None
        if line is None:
            raise self._death()
        reply = self._decoder.decode(line)
        if isinstance(reply, Failed):
            raise _error(reply, self._entry.name)
        if not isinstance(reply, kind):
            raise ContractError(f"A worker has to reply with `{kind.__name__}`. Received `{type(reply).__name__}`.")
        return reply

    def _death(self) -> BackendError:
        """Return the error that says how the process ended and what it last wrote."""
        code = self._process.wait()
        self._words.seek(0, 2)
        self._words.seek(max(0, self._words.tell() - 4000))
        words = self._words.read().decode(errors="replace").strip().splitlines()
        last = f" Its last words: {words[-1].strip()}" if words else ""
        hint = None
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if -code == getattr(signal, "SIGKILL", None):
                hint = "The system kills processes when memory runs out: `dmesg` says so. A smaller model may fit."
        else:
            how = f"ended with status {code}"
        return BackendError(f"`{self._entry.name}` has to run to its end, but its process {how}.{last}", hint=hint)


def _error(reply: Failed, name: str) -> EdgewiseError:
    """Return the error of the worker as one of this process, with the candidate's name."""
    kind = getattr(errors, reply.kind, BackendError)
    error: EdgewiseError = kind(f"`{name}`: {reply.message}", hint=reply.hint)
    return error
