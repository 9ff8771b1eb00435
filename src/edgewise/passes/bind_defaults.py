"""Inputs that have a default value (an initializer of the same name) become constants with that value.

Files of IR version 3, and some exporters after it, list every weight as an input. Such an input may be left out by
the caller, who then gets the default; edgewise never feeds one. Worth it because no runtime folds what a caller may
replace. This is the one pass that takes inputs away, and only those that no one has to give.
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.protocol import Findings, Pass
from edgewise.records.findings import Change

FIRST_IR_VERSION_WITHOUT = 4
"""From this IR version on, an initializer need not be an input (ONNX, "Versioning", IR version 4)."""


class BindDefaults(Pass):
    """Make constants of inputs that have a default."""

    name = "bind_defaults"

    def rewrite(self, model: ir.Model) -> Findings:
        """Take every input with a default off the inputs."""
        findings = Findings()
        for value in list(model.graph.inputs):
            if value.name in model.graph.initializers:
                model.graph.inputs.remove(value)
                what = "took the input away: its default is its value"
                findings.changes.append(Change(stage=self.name, node=value.name or "", what=what))
        if findings.changes:
            model.ir_version = max(model.ir_version, FIRST_IR_VERSION_WITHOUT)
        return findings
