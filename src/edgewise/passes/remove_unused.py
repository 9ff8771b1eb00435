"""Nodes, initializers, functions and operator sets that nothing reads go.

Always legal; inputs and outputs of the model stay. Worth it for the file's size, and because runtimes load what is
there.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.passes.protocol import Findings
from edgewise.passes.rewriting import all_graphs
from edgewise.passes.wrapped import WrappedPass
from edgewise.records.findings import Change


class RemoveUnused(WrappedPass):
    """Remove what nothing reads."""

    name = "remove_unused"
    says = "removed: nothing reads it"
    says_of_weight = "removed: nothing reads it"

    def passes(self) -> tuple[ir.passes.PassBase, ...]:
        """Return onnx-ir's passes."""
        unused_functions: ir.passes.PassBase = common.RemoveUnusedFunctionsPass()  # type: ignore[no-untyped-call]
        return (common.RemoveUnusedNodesPass(), unused_functions, common.RemoveUnusedOpsetsPass())

    def rewrite(self, model: ir.Model) -> Findings:
        """Remove what nothing reads, in the bodies of If, Loop and Scan as well."""
        functions, domains = set(model.functions), set(model.graph.opset_imports)
        findings = super().rewrite(model)
        for graph in list(all_graphs(model))[1:]:
            for name, value in list(graph.initializers.items()):
                if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                    del graph.initializers[name]
                    what = f"weight {self.says_of_weight}"
                    findings.changes.append(Change(stage=self.name, node=name, what=what))
        for identifier in sorted(functions - set(model.functions)):
            what = "function removed: nothing calls it"
            findings.changes.append(Change(stage=self.name, node=identifier[1], what=what))
        for domain in sorted(domains - set(model.graph.opset_imports)):
            what = "operator set removed: no node is from it"
            findings.changes.append(Change(stage=self.name, node=domain or "ai.onnx", what=what))
        return findings
