"""The standard operators are raised to the version that later passes need.

Legal where onnx's version converter can do it. Not one of the default passes: `formats` raises what it reads to the
version that every default pass but `fuse_gelu` needs, and beyond that a newer version has costs of its own in some
runtimes (see `formats.opset`).
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.errors import ModelError
from edgewise.formats.opset import raise_opset
from edgewise.passes.protocol import Findings, Pass
from edgewise.passes.rewriting import opset
from edgewise.records.findings import Change, Decline


class RaiseOpset(Pass):
    """Raise the version of the standard operators.

    Args:
        minimum: The version to reach.
    """

    name = "raise_opset"

    def __init__(self, minimum: int) -> None:
        self._minimum = minimum

    def rewrite(self, model: ir.Model) -> Findings:
        """Convert every node."""
        before = opset(model)
        try:
            raised = raise_opset(model, self._minimum)
        except ModelError as error:
            return Findings(declines=[Decline(stage=self.name, node="", operator="", reason=error.message)])
        if raised is model:
            return Findings()
        model.graph, model.ir_version = raised.graph, raised.ir_version
        what = f"raised the operator set from {before} to {opset(model)}"
        return Findings([Change(stage=self.name, node="", what=what)])
