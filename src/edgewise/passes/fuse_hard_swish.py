"""HardSwish and HardSigmoid spelled out become HardSwish and HardSigmoid.

`x clip(x + 3, 0, 6) / 6` (Howard et al., 2019, equation 2), with the division before or after the product, or as a
multiplication by a sixth, and `HardSigmoid(1/6, 1/2)` times x. Legal from opset 14 on for HardSwish. Worth it because
the spelled form reads and writes the activation four times.
"""

from __future__ import annotations

import onnx_ir as ir

from edgewise.passes.algebra import close, plus, product
from edgewise.passes.fuse_clips import Clamp, read_clamp
from edgewise.passes.rewriting import Declined, Done, Edit, Outcome, SitePass, is_operator, why_not_closed

FIRST_OPSET = 14


class FuseHardSwish(SitePass):
    """Recognise HardSwish, and HardSigmoid where it stands alone."""

    name = "fuse_hard_swish"
    operators = frozenset({"Mul", "Div"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Recognise the HardSwish or HardSigmoid that ends at one product."""
        whole = product(node.outputs[0])
        if len(whole.factors) == 1:
            return self._sigmoid(node, whole.coefficient, whole.factors[0], list(whole.nodes), edit)
        if len(whole.factors) != 2:
            return None
        for x, gate in (whole.factors, whole.factors[::-1]):
            nodes = _gate(gate, x, whole.coefficient)
            if nodes is None:
                continue
            dead = list(dict.fromkeys([*whole.nodes, *nodes]))
            if edit.opset < FIRST_OPSET:
                return Declined(f"HardSwish exists from opset {FIRST_OPSET} on and the model has {edit.opset}")
            if reason := why_not_closed(node, dead):
                return Declined(reason)
            edit.swap(node, dead, edit.node("HardSwish", [x], name=node.name))
            return Done(f"replaced {len(dead)} nodes by HardSwish")
        return None

    def _sigmoid(self, node: ir.Node, coefficient: float, gate: ir.Value, nodes: list[ir.Node], edit: Edit) -> Outcome:
        found = _clip(gate)
        if found is None or not close(coefficient, 1 / 6):
            return None
        x, inner = found
        readers = [use.node for use in node.outputs[0].uses()]
        if any(is_operator(reader, "Mul") and x in reader.inputs for reader in readers):
            return None  # The product behind it makes it a HardSwish.
        dead = [*nodes, *inner]
        if reason := why_not_closed(node, dead):
            return Declined(reason)
        attributes = {"alpha": 1 / 6, "beta": 0.5}
        edit.swap(node, dead, edit.node("HardSigmoid", [x], attributes, name=node.name))
        return Done(f"replaced {len(dead)} nodes by HardSigmoid")


def _clip(gate: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    """Return `x` and the nodes of `clip(x + 3, 0, 6)`, or None."""
    clip = gate.producer()
    clamp = None if clip is None else read_clamp(clip)
    if clip is None or not isinstance(clamp, Clamp) or (clamp.low, clamp.high) != (0.0, 6.0):
        return None
    sum_ = plus(clamp.source)
    return (sum_[0], [clip, sum_[2]]) if sum_ is not None and sum_[1] == 3.0 else None


def _gate(gate: ir.Value, x: ir.Value, coefficient: float) -> list[ir.Node] | None:
    """Return the nodes of the gate that makes `coefficient * x * gate` a HardSwish of `x`, or None."""
    producer = gate.producer()
    if producer is not None and is_operator(producer, "HardSigmoid") and producer.inputs[0] is x:
        alpha, beta = producer.attributes.get_float("alpha", 0.2), producer.attributes.get_float("beta", 0.5)
        fits = close(alpha, 1 / 6) and close(beta, 0.5) and close(coefficient, 1.0)
        return [producer] if fits else None
    found = _clip(gate)
    return found[1] if found is not None and found[0] is x and close(coefficient, 1 / 6) else None
