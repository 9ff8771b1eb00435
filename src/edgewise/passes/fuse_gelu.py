"""Gelu spelled with Erf, or with the Tanh approximation, becomes Gelu.

`x/2 (1 + erf(x / sqrt 2))` and `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3)))` (Hendrycks and Gimpel, 2016, section
2), however the factors are ordered and whether the cube is Pow or a product. Legal from opset 20 on, where ONNX has
Gelu. Worth it because the spelled form reads and writes the activation five to nine times.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgewise.passes.algebra import Product, close, plus, product
from edgewise.passes.rewriting import Declined, Done, Edit, Outcome, SitePass, is_operator, scalar, why_not_closed

FIRST_OPSET = 20


class FuseGelu(SitePass):
    """Recognise Gelu."""

    name = "fuse_gelu"
    operators = frozenset({"Mul", "Div"})

    def visit(self, node: ir.Node, edit: Edit) -> Outcome:
        """Recognise the Gelu that ends at one product."""
        whole = product(node.outputs[0])
        if len(whole.factors) != 2 or not close(whole.coefficient, 0.5):
            return None
        for x, gate in (whole.factors, whole.factors[::-1]):
            found = _gate(gate, x)
            if found is None:
                continue
            approximate, inner = found
            dead = [*whole.nodes, *inner]
            if edit.opset < FIRST_OPSET:
                return Declined(f"Gelu exists from opset {FIRST_OPSET} on and the model has {edit.opset}")
            if reason := why_not_closed(node, dead):
                return Declined(reason)
            new = edit.node("Gelu", [x], {"approximate": approximate}, name=node.name)
            edit.swap(node, list(dict.fromkeys(dead)), new)
            return Done(f"replaced {len(dead)} nodes by Gelu ({approximate})")
        return None


def _gate(gate: ir.Value, x: ir.Value) -> tuple[str, list[ir.Node]] | None:
    """Return the approximation and the nodes of `1 + erf(...)` or `1 + tanh(...)` of `x`, or None."""
    sum_ = plus(gate)
    if sum_ is None or not close(sum_[1], 1.0):
        return None
    function = sum_[0].producer()
    if function is None or not is_operator(function, "Erf", "Tanh") or function.inputs[0] is None:
        return None
    argument = product(function.inputs[0])
    nodes = [sum_[2], function, *argument.nodes]
    if function.op_type == "Erf":
        fits = argument.factors == (x,) and close(argument.coefficient, math.sqrt(0.5))
        return ("none", nodes) if fits else None
    cubic = _cubic(argument, x)
    return None if cubic is None else ("tanh", nodes + cubic)


def _cubic(argument: Product, x: ir.Value) -> list[ir.Node] | None:
    """Return the nodes behind `sqrt(2/pi) (x + 0.044715 x**3)`, or None."""
    if not close(argument.coefficient, math.sqrt(2 / math.pi)):
        return None
    if len(argument.factors) == 1:
        node = argument.factors[0].producer()
        if node is None or not is_operator(node, "Add"):
            return None
        for one, other in (node.inputs, reversed(node.inputs)):
            if one is x and other is not None and (nodes := _power(other, x, 3)) is not None:
                return [node, *nodes]
        return None
    others = [value for value in argument.factors if value is not x]
    sum_ = plus(others[0]) if len(argument.factors) == 2 and len(others) == 1 else None
    if sum_ is None or not close(sum_[1], 1.0):
        return None
    nodes = _power(sum_[0], x, 2)
    return None if nodes is None else [sum_[2], *nodes]


def _power(value: ir.Value, x: ir.Value, exponent: int) -> list[ir.Node] | None:
    """Return the nodes behind `0.044715 x**exponent`, or None."""
    term = product(value)
    if not close(term.coefficient, 0.044715):
        return None
    nodes, total = list(term.nodes), 0
    for factor in term.factors:
        power = factor.producer()
        if factor is x:
            total += 1
        elif power is not None and is_operator(power, "Pow") and power.inputs[0] is x:
            total += int(scalar(power.inputs[1]) or 0)
            nodes.append(power)
        elif power is not None and is_operator(power, "Mul") and all(operand is x for operand in power.inputs):
            total += 2
            nodes.append(power)
        else:
            return None
    return nodes if total == exponent else None
