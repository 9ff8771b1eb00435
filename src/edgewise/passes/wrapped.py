"""Passes of onnx-ir behind our contract: the difference they made comes out as changes.

They report only whether something changed. What changed is read off the graph: nodes that went, and initializers
that came or went.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import onnx_ir as ir

from edgewise.passes.protocol import Findings, Pass
from edgewise.passes.rewriting import all_graphs, all_nodes, label
from edgewise.records.findings import Change


class WrappedPass(Pass):
    """One or several passes of onnx-ir, applied in turn."""

    says: ClassVar[str]
    """What happened to a node that went, in the past tense, for example "removed: nothing reads it"."""

    says_of_weight: ClassVar[str]
    """What happened to an initializer that went."""

    @abc.abstractmethod
    def passes(self) -> tuple[ir.passes.PassBase, ...]:
        """Return the passes in run order."""

    def rewrite(self, model: ir.Model) -> Findings:
        """Apply the passes and report which nodes and initializers went."""
        nodes = {id(node): (node, label(node), node.op_type) for node in all_nodes(model)}
        weights = [name for graph in all_graphs(model) for name in graph.initializers]
        for wrapped in self.passes():
            wrapped(model)
        left = {id(node) for node in all_nodes(model)}
        kept = {name for graph in all_graphs(model) for name in graph.initializers}
        findings = Findings()
        for key, (_, name, operator) in nodes.items():
            if key not in left:
                findings.changes.append(Change(stage=self.name, node=name, what=f"{operator} {self.says}"))
        for name in weights:
            if name not in kept:
                findings.changes.append(Change(stage=self.name, node=name, what=f"weight {self.says_of_weight}"))
        return findings
