"""How far two right computations of the same thing may lie apart. Derived from the arithmetic, never from trying.

Source of the bounds: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition (2002), section 3.1.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from edgewise.records.tensors import Array

UNIT_ROUNDOFF: Final = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding to nearest: half the distance from 1 to the next number."""

_APPROXIMATION = 16
"""Unit roundoffs that a kernel may spend on erf, tanh, exp and the like. Not derived: a demand, four bits of 24."""


def gamma(terms: int, unit: float) -> float:
    """Return the factor gamma_n = n u / (1 - n u) by which n roundings may spoil a result (Higham, lemma 3.1).

    Args:
        terms: Number of roundings, n.
        unit: Unit roundoff, u; `n u` has to be below 1.
    """
    return terms * unit / (1 - terms * unit)


def sum_of_products(magnitude: Array, terms: int, *, inputs: Literal["float32", "bfloat16"] = "float32") -> Array:
    """Return the largest distance between two float32 sums of products in any order (Higham, equation 3.5, twice).

    Args:
        magnitude: The same sums over absolute values, `sum |a_i| |b_i|` (bias included).
        terms: Number of products and of other additions in a sum.
        inputs: Type to which one of the two rounds its factors, and its result, before and after.

    Returns:
        The bound, shape of `magnitude`.
    """
    bound = 2 * gamma(terms + 1, UNIT_ROUNDOFF["float32"])
    if inputs == "bfloat16":
        bound += gamma(3, UNIT_ROUNDOFF["bfloat16"])  # two factors and the result
    return np.asarray(bound * magnitude)


def approximated(values: Array) -> Array:
    """Return the largest distance between two float32 kernels of a function such as tanh, at results `values`."""
    return np.asarray(_APPROXIMATION * UNIT_ROUNDOFF["float32"] * np.maximum(1.0, np.abs(values)))


def one_step(scale: float) -> float:
    """Return the distance of neighbours on a grid of step `scale`, with room for the rounding of the step itself.

    Two right int8 kernels may round a value that lies half-way between two steps, up to float error, either way.
    """
    return scale * (1 + 2.0**-20)
