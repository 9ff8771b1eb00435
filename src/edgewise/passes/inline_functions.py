"""Calls of the model's own functions are replaced by their bodies.

Always legal. Worth it because rewrites look at neighbours, and a call hides them. onnx-ir's inliner does the work.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.passes.protocol import Findings, Pass
from edgewise.passes.rewriting import all_nodes, label
from edgewise.records.findings import Change


class InlineFunctions(Pass):
    """Inline the model's own functions."""

    name = "inline_functions"

    def rewrite(self, model: ir.Model) -> Findings:
        """Inline every call."""
        if not model.functions:
            return Findings()
        calls = [(label(n), n.op_type) for n in all_nodes(model) if n.op_identifier() in model.functions]
        common.InlinePass()(model)
        changes = [Change(stage=self.name, node=name, what=f"inlined function {kind}") for name, kind in calls]
        if not calls:
            changes = [Change(stage=self.name, node="", what="removed functions that nothing calls")]
        return Findings(changes)
