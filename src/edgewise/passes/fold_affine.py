"""A constant factor or summand behind Conv, ConvTranspose, Gemm or MatMul goes into its weights.

Legal when the constant is one number a channel (or one in all) and nothing else reads the output before it. This
makes a bias of Add behind Conv or Gemm, and merges batch normalisation that an exporter has already taken apart into
Mul and Add. Worth it because each of these reads and writes the whole activation. A MatMul takes factors but no
summands: both runtimes add the bias of a MatMul of any rank while the tile is in a register.
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.linear import AFFINE, Linear, read_affine, read_linear
from edgewise.passes.merge_affine import into_previous
from edgewise.passes.rewriting import Declined, Edit, Outcome, SitePass


class FoldAffine(SitePass):
    """Merge Mul, Div, Add and Sub with a constant into the linear operator before it."""

    name = "fold_affine"
    operators = frozenset(AFFINE)

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one Mul, Div, Add or Sub."""
        for value in node.inputs:
            linear = read_linear(value.producer()) if value is not None else None
            if isinstance(linear, Linear):
                break
        else:
            return None
        affine = read_affine(node, linear.channels, linear.channel_axis)
        if affine is None:
            return None
        if isinstance(affine, str):
            return Declined(affine)
        return into_previous(node, affine, linear, edit)
