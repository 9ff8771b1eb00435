"""Graphs opened in ONNX Runtime: the judge of what a graph computes, whatever backend it is going to run in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

import onnx_ir as ir

from edgewise.backends import registry
from edgewise.backends.protocol import Session
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Run

JUDGE: Final = RunOptions(graph_optimization="off")
"""How ONNX Runtime runs a graph whose numbers are the reference: exactly as it is written."""


def open_judge(model: ir.Model, options: RunOptions = JUDGE) -> Session:
    """Open a graph in ONNX Runtime, by default exactly as it is written.

    Raises:
        BackendError: If ONNX Runtime refuses it.
    """
    backend = registry.get("ort")
    return backend.open(backend.compile(model, options))


@contextmanager
def opened(model: ir.Model) -> Iterator[Run]:
    """Open a graph in ONNX Runtime with its optimizations, to run many samples through it."""
    with closing(open_judge(model, RunOptions())) as session:
        yield session.run
