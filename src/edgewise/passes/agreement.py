"""How far outputs may move when only the order of the arithmetic changes.

Merging a scale into weights, or a bias into a product, changes which intermediate results are rounded. A dot product
of K terms has a relative rounding error of at most K u (Higham, "Accuracy and Stability of Numerical Algorithms",
2nd ed., section 3.1), and with random signs of lambda sqrt(K) u except with a probability of 2 exp(-lambda**2 / 2) a
product (Higham and Mary, 2019, "A New Approach to Probabilistic Rounding Error Analysis", theorem 2.4). Over L such
operators in a row the errors add up. That a layer does not magnify the error of the one before it is an assumption:
normalisation and residual sums make it hold in practice. A wrong rewrite changes outputs by orders of magnitude more
than this bound.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgewise.passes.linear import LINEAR
from edgewise.passes.rewriting import all_nodes, constant, input_at, is_operator, static_shape
from edgewise.records.tensors import Array, Outputs

LAMBDA = 8.0
"""The bound fails for one dot product with a probability of 2 exp(-32), 3e-14."""

RECURRENT = ("LSTM", "GRU", "RNN")


def tolerance(model: ir.Model) -> float:
    """Return the bound on the difference of an output, in units of its largest magnitude times u.

    It is `LAMBDA * sum over the nodes of sqrt(K)`, with K = 1 for a node that is no product: it rounds once.
    """
    total = 1.0
    for node in all_nodes(model):
        total += _terms(node) ** 0.5 if is_operator(node, *LINEAR, *RECURRENT) else 1.0
    return LAMBDA * total


def _terms(node: ir.Node) -> float:
    """Return the number of products in a sum, 1 where it is not known."""
    weight = constant(input_at(node, 1))
    shape = static_shape(input_at(node, 1)) if weight is None else weight.shape
    if shape is None or len(shape) < 2 or 0 in shape:
        return 1.0
    if is_operator(node, "Conv"):
        return math.prod(shape[1:])
    if is_operator(node, "ConvTranspose"):
        return math.prod(shape) / shape[1]
    if is_operator(node, *RECURRENT) or (is_operator(node, "Gemm") and node.attributes.get_int("transB", 0) == 1):
        return shape[-1]
    return shape[-2]


def difference(before: Outputs, after: Outputs, bound: float) -> str | None:
    """Return how the outputs differ by more than the order of the arithmetic explains, or None.

    Args:
        before: Outputs by name.
        after: The same after a rewrite.
        bound: What `tolerance` returned.

    Returns:
        A clause with the output, the measured difference and the bound. What is no float has to be equal.
    """
    for name, expected in before.items():
        actual = after.get(name)
        if actual is None:
            return f"output `{name}` is missing afterwards"
        if actual.shape != expected.shape:
            return f"output `{name}` had the shape {list(expected.shape)} and now has {list(actual.shape)}"
        if clause := _difference(name, expected, actual, bound):
            return clause
    return None


def _difference(name: str, expected: Array, actual: Array, bound: float) -> str | None:
    if not np.issubdtype(expected.dtype, np.floating):
        wrong = int((expected != actual).sum())
        return f"{wrong} of {expected.size} values of output `{name}` changed" if wrong else None
    if expected.size == 0:
        return None
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
        return f"output `{name}` is not finite at other places than before"
    if not finite.any():
        return None
    exact, now = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
    scale = max(float(np.abs(exact).max()), float(np.finfo(expected.dtype).tiny))
    moved = float(np.abs(exact - now).max()) / scale
    allowed = bound * float(np.finfo(expected.dtype).eps) / 2
    # NaN compares as False with everything: written so that it counts as a difference.
    return (
        None
        if moved <= allowed
        else f"output `{name}` moved by {moved:.2g} of its largest value; rounding explains {allowed:.2g}"
    )
