"""BatchNormalization behind Conv, ConvTranspose or Gemm goes into their weights.

Legal when the parameters are constant, the normalisation is in inference mode, and nothing else reads the unscaled
output. Worth it because the normalisation reads and writes the whole activation for two operations an element:
on a CPU it costs as much as a cheap convolution. onnxscript has the same rewrite; it declines where a weight is shared
and does not list the site.
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.linear import read_batch_norm, read_linear
from edgewise.passes.merge_affine import batch_norm_axis_fits, into_previous
from edgewise.passes.rewriting import Declined, Edit, Outcome, SitePass


class FoldBatchNorm(SitePass):
    """Merge BatchNormalization into the linear operator before it."""

    name = "fold_batch_norm"
    operators = frozenset({"BatchNormalization"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one BatchNormalization."""
        affine = read_batch_norm(node)
        if isinstance(affine, str):
            return Declined(affine)
        linear = read_linear(affine.source.producer())
        if linear is None:
            return Declined(f"`{affine.source.name}` is not computed by Conv, ConvTranspose or Gemm")
        if isinstance(linear, str):
            return Declined(linear)
        if not batch_norm_axis_fits(node, linear):
            return Declined("axis 1, which it scales, is not the channel axis of the MatMul before it")
        return into_previous(node, affine, linear, edit)
