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
        """Apply the passes and report which nodes and initializers went, and which nodes were changed."""
        nodes = {id(node): (node, label(node), node.op_type, _form(node)) for node in all_nodes(model)}
        weights = [name for graph in all_graphs(model) for name in graph.initializers]
        for wrapped in self.passes():
            wrapped(model)
        left = {id(node) for node in all_nodes(model)}
        kept = {name for graph in all_graphs(model) for name in graph.initializers}
        changed = []
        for key, (node, name, operator, form) in nodes.items():
            if key not in left:
                changed.append((name, f"{operator} {self.says}"))
            elif form != _form(node):
                changed.append((name, f"{operator} reads, returns or spells out less"))
        changed += [(name, f"weight {self.says_of_weight}") for name in weights if name not in kept]
        return Findings([Change(stage=self.name, node=name, what=what) for name, what in changed])


def _form(node: ir.Node) -> tuple[frozenset[str | None], int, tuple[str | None, ...], frozenset[str]]:
    """Return what a pass of onnx-ir can trim of a node that stays: inputs, outputs, attributes."""
    names = frozenset(None if value is None else value.name for value in node.inputs)
    return names, len(node.inputs), tuple(value.name for value in node.outputs), frozenset(node.attributes)
