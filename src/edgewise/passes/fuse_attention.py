"""Scaled dot-product attention spelled out becomes Attention.

`softmax(c Q K^T) V` (Vaswani et al., 2017, equation 1) on values of shape [batch, heads, length, depth]. Legal from
opset 23 on. Not one of the default passes: measured on one AVX-512 core, ONNX Runtime 1.32 runs the operator as fast
as the spelled form (197 us both for six in a row of 99 x 64, 2.0 ms both for three heads of 197 x 64) and OpenVINO
2026.4 is 7 % slower with it. It is here for runtimes with a fused kernel.
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.algebra import product
from edgewise.passes.merge_transposes import permutation
from edgewise.passes.rewriting import (
    Declined,
    Done,
    Edit,
    Outcome,
    SitePass,
    input_at,
    is_operator,
    rank,
    why_not_closed,
)

FIRST_OPSET = 23
SWAP_LAST_TWO = (0, 1, 3, 2)


class FuseAttention(SitePass):
    """Recognise attention."""

    name = "fuse_attention"
    operators = frozenset({"MatMul"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:  # noqa: PLR0911 - one return a reason
        """Recognise the attention that ends at one product with the values."""
        weights, values = input_at(node, 0), input_at(node, 1)
        softmax = None if weights is None else weights.producer()
        if softmax is None or values is None or not is_operator(softmax, "Softmax") or softmax.inputs[0] is None:
            return None
        if softmax.attributes.get_int("axis", -1) not in {-1, 3}:
            return Declined("its Softmax does not run over the keys")
        found = _scores(softmax.inputs[0])
        if found is None:
            return None
        scale, query, key, nodes = found
        if [rank(query), rank(values)] != [4, 4]:
            return Declined("its operands are not known to have the shape [batch, heads, length, depth]")
        if edit.opset < FIRST_OPSET:
            return Declined(f"Attention exists from opset {FIRST_OPSET} on and the model has {edit.opset}")
        dead = [node, softmax, *nodes]
        if reason := why_not_closed(node, dead):
            return Declined(reason)
        edit.swap(node, dead, edit.node("Attention", [query, key, values], {"scale": scale}, name=node.name))
        return Done(f"replaced {len(dead)} nodes by Attention")


def _scores(value: ir.Value) -> tuple[float, ir.Value, ir.Value, list[ir.Node]] | None:
    """Return the scale, the queries, the keys and the nodes of `c Q K^T`, or None."""
    scaled = product(value, root=False)
    matmul = scaled.factors[0].producer() if len(scaled.factors) == 1 else None
    if matmul is None or not is_operator(matmul, "MatMul") or scaled.coefficient <= 0:
        return None
    query, transposed = input_at(matmul, 0), input_at(matmul, 1)
    transpose = None if transposed is None else transposed.producer()
    if query is None or transpose is None or not is_operator(transpose, "Transpose"):
        return None
    key = input_at(transpose, 0)
    if key is None or permutation(transpose) != SWAP_LAST_TWO:
        return None
    return scaled.coefficient, query, key, [*scaled.nodes, matmul, transpose]
