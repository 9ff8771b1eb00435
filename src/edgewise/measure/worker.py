"""One process that runs one candidate: `python -m edgewise.measure.worker CORES`, started by `process.py`.

Only the standard library is imported here, so that what the candidate itself needs can be timed. The process pins
itself before anything else, because threads inherit the cores of the thread that starts them. It ends as soon as its
standard input does: a parent that is killed leaves nothing behind, not even in the middle of an inference.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from typing import BinaryIO


def main(arguments: list[str]) -> int:
    """Serve requests until standard input ends.

    Args:
        arguments: The cores to stay on, separated by commas; `any` for all.

    Returns:
        Never, in practice: the process ends with status 0 when standard input does.
    """
    # Ctrl-C in a terminal reaches every process of the group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pinned = _pin(arguments[0])
    replies = _private_output()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    started = time.perf_counter_ns()
    from edgewise.measure.turns import Turns  # noqa: PLC0415 - imports are timed, and come after pinning

    turns = Turns(pinned=pinned, imported_ns=time.perf_counter_ns() - started)
    while True:
        turns.begin_to_wait()
        line = requests.get()
        turns.end_waiting()
        replies.write(turns.answer(line) + b"\n")
        replies.flush()


def _pin(cores: str) -> bool:
    if cores == "any" or not hasattr(os, "sched_setaffinity"):
        return False
    wanted = {int(core) for core in cores.split(",")}
    try:
        os.sched_setaffinity(0, wanted)
    except OSError:  # a container may take cores away at any time
        return False
    return os.sched_getaffinity(0) == wanted


def _private_output() -> BinaryIO:
    """Return what was standard output; what runtimes print goes to standard error from now on."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "wb")


def _listen(stream: BinaryIO, requests: queue.SimpleQueue[bytes]) -> None:
    for line in stream:
        requests.put(line)
    # The parent closed the pipe or died. Not `sys.exit`: the main thread may be inside the runtime for minutes.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
