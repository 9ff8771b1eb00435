"""What depends on constants alone is computed once, now; Shape of a known shape counts as constant.

Legal for deterministic operators. Quantize and DequantizeLinear stay (they say how weights are stored), and so does
what would make the file grow: a result may have at most 1,024 elements more than the constants that vanish with it.
onnxscript's folder does the work: it also inlines If with a constant condition.
"""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir
from onnxscript.optimizer import fold_constants_ir

from edgewise.passes.protocol import Findings, Pass
from edgewise.passes.rewriting import Edit, all_nodes, constant, is_operator, label
from edgewise.records.findings import Change, Decline

MOST_NEW_ELEMENTS = 1024
MOST_INPUT_ELEMENTS = 1 << 24
"""Elements of the largest constant that is computed with: 64 MiB of float32, below a second each."""
MOST_ROUNDS = 8
"""Rounds of folding; each needs what the one before made constant, and two are the most seen in real models."""


class FoldConstants(Pass):
    """Compute constant sub-graphs."""

    name = "fold_constants"

    def rewrite(self, model: ir.Model) -> Findings:
        """Fold until nothing folds."""
        findings = Findings()
        nodes = {id(node): (node, label(node), node.op_type, _names(node)) for node in all_nodes(model)}
        try:
            for _ in range(MOST_ROUNDS):
                if not fold_constants_ir(
                    model,
                    onnx_shape_inference=True,
                    input_size_limit=MOST_INPUT_ELEMENTS,
                    output_size_limit=MOST_NEW_ELEMENTS,
                ).modified:
                    break
        except RuntimeError as error:
            # The folder names the node that its evaluator failed on; what was folded before stands.
            reason = f"the evaluator failed: {error}"
            findings.declines.append(Decline(stage=self.name, node="", operator="", reason=reason))
        _lift(model, nodes.keys())
        left = {id(node) for node in all_nodes(model)}
        for key, (node, name, operator, inputs) in nodes.items():
            what = None
            if key not in left:
                what = f"folded {operator}"
            elif inputs != _names(node):
                what = f"let {operator} read past what returns its input"
            if what is not None:
                findings.changes.append(Change(stage=self.name, node=name, what=what))
        return findings


def _names(node: ir.Node) -> list[str | None]:
    return [None if value is None else value.name for value in node.inputs]


def _lift(model: ir.Model, known: Container[int]) -> None:
    """Make initializers of the Constant nodes that the folder left: it spells them in a way that is new in opset 12."""
    edit = Edit(model)
    for node in list(all_nodes(model)):
        if id(node) in known or not is_operator(node, "Constant"):
            continue
        array = constant(node.outputs[0])
        if array is not None and not node.outputs[0].is_graph_output():
            edit.bypass(node, edit.constant(node, node.outputs[0].name or "constant", array))
