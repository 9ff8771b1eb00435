"""Products and sums with scalar constants, read through nested Mul, Div and Add, so that spelling does not matter."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewise.passes.rewriting import is_operator, scalar, sole_reader


@dataclass(frozen=True)
class Product:
    """`coefficient` times every one of `factors`.

    Attributes:
        coefficient: Product of all scalar constants.
        factors: The values that are not constant, sorted by nothing.
        nodes: The Mul and Div nodes that were read through.
    """

    coefficient: float
    factors: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]


def product(value: ir.Value, *, root: bool = True) -> Product:
    """Return `value` as a product.

    Values that something else reads, too, are factors: taking them apart would not make them go.

    Args:
        value: The value.
        root: Whether `value` itself may have other readers.
    """
    number = scalar(value)
    if number is not None:
        return Product(number, (), ())
    node = value.producer()
    if node is None or not is_operator(node, "Mul", "Div") or not (root or sole_reader(value) is not None):
        return Product(1.0, (value,), ())
    left, right = node.inputs
    if left is None or right is None:
        return Product(1.0, (value,), ())
    first = product(left, root=False)
    if node.op_type == "Div":
        divisor = scalar(right)
        if not divisor:
            return Product(1.0, (value,), ())
        return Product(first.coefficient / divisor, first.factors, (node, *first.nodes))
    # `x * x` reads x twice: that is two readings by one node, and x stays a factor.
    second = product(right, root=False)
    return Product(
        first.coefficient * second.coefficient,
        first.factors + second.factors,
        (node, *first.nodes, *second.nodes),
    )


def plus(value: ir.Value) -> tuple[ir.Value, float, ir.Node] | None:
    """Return `(x, c, node)` where `value` is `x + c` with a scalar constant, or None."""
    node = value.producer()
    if node is None or not is_operator(node, "Add"):
        return None
    for one, other in (node.inputs, reversed(node.inputs)):
        number = scalar(other)
        if one is not None and number is not None:
            return one, number, node
    return None


def close(number: float, expected: float) -> bool:
    """Return whether two constants are the same number but for rounding to float16 (2**-11) on the way."""
    return abs(number - expected) <= 2.0**-10 * abs(expected)
