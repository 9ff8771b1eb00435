"""BatchNormalization in front of Conv or Gemm goes into their weights: pre-activation networks, normalised inputs.

`W (s x + t) + b = (W s) x + (b + W t)`. Legal when nothing else reads the normalised value and the convolution pads
nothing: its zeros stand behind the normalisation, and moving it behind them would turn zero into the shift.
Worth it for the same reason as `fold_batch_norm`, after which it runs: what could go backwards has gone.
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.linear import read_batch_norm
from edgewise.passes.merge_affine import batch_norm_axis_fits, into_next, next_linear
from edgewise.passes.rewriting import Declined, Edit, Outcome, SitePass


class FoldBatchNormIntoNext(SitePass):
    """Merge BatchNormalization into the linear operator that reads it."""

    name = "fold_batch_norm_into_next"
    operators = frozenset({"BatchNormalization"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one BatchNormalization."""
        linear = next_linear(node)
        if linear is None:
            return None
        if isinstance(linear, str):
            return Declined(linear)
        affine = read_batch_norm(node)
        if isinstance(affine, str):
            return Declined(affine)
        if not batch_norm_axis_fits(node, linear):
            return Declined("axis 1, which it scales, is not the channel axis of the MatMul that reads it")
        return into_next(node, affine, linear, edit)
