"""A constant that is multiplied with or added to the data of Conv, Gemm or MatMul goes into its weights.

Typical of input scaling inside the model, `(x - 127.5) / 127.5`, and of learned scales. Legal when the constant is one
number a channel, nothing else reads the result, and, for summands, the convolution pads nothing. Worth it because
the operation reads and writes the whole activation. Runs after `fold_affine`: backwards is always legal where forwards
is, and needs no sum over the weights.
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.linear import AFFINE, read_affine
from edgewise.passes.merge_affine import input_axis, input_channels, into_next, next_linear
from edgewise.passes.rewriting import Declined, Edit, Outcome, SitePass


class FoldAffineIntoNext(SitePass):
    """Merge Mul, Div, Add and Sub with a constant into the linear operator that reads it."""

    name = "fold_affine_into_next"
    operators = frozenset(AFFINE)

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one Mul, Div, Add or Sub."""
        linear = next_linear(node)
        if linear is None or isinstance(linear, str):
            # With several readers this is the ordinary sum of a residual block, not a missed fusion,
            # unless one operand is constant.
            return None if linear is None or read_affine(node, 1, -1) is None else Declined(linear)
        affine = read_affine(node, input_channels(linear), input_axis(linear))
        if affine is None:
            return None
        if isinstance(affine, str):
            return Declined(affine)
        return into_next(node, affine, linear, edit)
