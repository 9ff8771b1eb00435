"""What every pass keeps: the base class checks it after each application.

A pass is a class in a file of its own, named by a verb. `rewrite` does the work on a private copy and returns what it
did and what it declined, each with node and reason. `apply` checks the contract: the model is still legal ONNX in the
standard domain, inputs and outputs have the same names, types and shapes, and a pass that says that it did nothing
left the graph as it was.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from edgewise.records.findings import Change, Decline


@dataclass
class Findings:
    """What a pass did and declined, in graph order."""

    changes: list[Change] = field(default_factory=list)
    declines: list[Decline] = field(default_factory=list)


class Pass(abc.ABC):
    """One rewrite of the graph."""

    name: ClassVar[str]
    """The module's name, a verb: `fold_batch_norm`."""

    @abc.abstractmethod
    def rewrite(self, model: ir.Model) -> Findings:
        """Rewrite `model` in place and say what was done and declined."""
