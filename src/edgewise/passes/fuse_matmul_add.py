"""MatMul followed by Add becomes Gemm where both operands are matrices.

Legal when both have rank 2 and the summand broadcasts onto the product without enlarging it. Worth it because Gemm
takes the bias while the result is in registers, and because everything that merges into a bias finds one there. At
higher rank MatMul and Add stay: a Gemm would need a Reshape on either side, and both runtimes fuse the pair by
themselves.
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.rewriting import (
    Declined,
    Done,
    Edit,
    Outcome,
    SitePass,
    is_operator,
    label,
    rank,
    static_shape,
    why_not_private,
)

GEMM_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})


class FuseMatMulAdd(SitePass):
    """Make a Gemm of MatMul and Add."""

    name = "fuse_matmul_add"
    operators = frozenset({"Add"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Merge one Add into the MatMul before it."""
        for product, summand in (node.inputs, reversed(node.inputs)):
            matmul = None if product is None else product.producer()
            if product is None or summand is None or matmul is None or not is_operator(matmul, "MatMul"):
                continue
            if reason := why_not_private(product, node) or _why_not(matmul, product, summand):
                return Declined(reason)
            new = edit.node("Gemm", [*matmul.inputs, summand], name=matmul.name)
            edit.swap(node, [node, matmul], new)
            return Done(f"merged Add and MatMul `{label(matmul)}` into one Gemm")
        return None


def _why_not(matmul: ir.Node, product: ir.Value, summand: ir.Value) -> str | None:
    ranks = [rank(value) for value in matmul.inputs]
    if None in ranks:
        return "the rank of an operand of the MatMul is not known"
    if ranks != [2, 2]:
        return f"an operand of the MatMul has rank {max(r for r in ranks if r is not None)}, and Gemm takes matrices"
    if product.dtype is not None and product.dtype not in GEMM_TYPES:
        return f"the MatMul is in {product.dtype.name}"
    summand_shape = static_shape(summand)
    if summand_shape is None or product.shape is None:
        return "the shape of the summand is not known"
    rows, columns = product.shape
    allowed = ((1, columns), (1, rows))
    if len(summand_shape) > 2 or any(
        size not in sizes for size, sizes in zip(reversed(summand_shape), allowed, strict=False)
    ):
        return f"the summand of shape {list(summand_shape)} would enlarge the product"
    return None
