"""Another basis for the units of a product `q k^T` that changes nothing, in which few units hold most of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.coupling import Axis, Group
from edgewise.analysis.values import VIEWS, is_standard
from edgewise.compress.nodes import constant
from edgewise.records.tensors import Array

Matrices = npt.NDArray[np.float64]

_FLOOR: Final = 1e-6
"""Smallest eigenvalue of a Gram matrix, relative to its largest: the basis stays well conditioned in float32."""


@dataclass(frozen=True)
class Basis:
    """A basis for each head.

    Attributes:
        left: `A` with `q' = q A`, shape `[H, D, D]`.
        right: `B` with `k' = k B` and `A B^T = I`, shape `[H, D, D]`.
        strengths: What each unit of the new basis adds to the mean square of the product, in falling order, shape
            `[H, D]`.
    """

    left: Matrices
    right: Matrices
    strengths: Matrices


def principal_basis(left_gram: Matrices, right_gram: Matrices) -> Basis:
    """Return the basis in which the first units of `q k^T` hold as much of it as any so many can.

    With `P = Gq^(1/2) Gk^(1/2) = U s V^T`, the basis is `A = Gq^(-1/2) U s^(1/2)` and `B = Gk^(-1/2) V s^(1/2)`. The
    mean square of `q M k^T` over all pairs of places is `||Gq^(1/2) M Gk^(1/2)||_F^2`, which the truncated singular
    value decomposition brings nearest to that of `M = I`.

    Args:
        left_gram: Mean of `q^T q` of each head, shape `[H, D, D]`.
        right_gram: Mean of `k^T k`, likewise; about the mean of `k` where a softmax over its places follows.

    Source: Eckart and Young 1936, theorem of the nearest matrix of lower rank; Wang et al. 2024, "SVD-LLM", section 3.1
    (whitening before truncation), here from both sides.
    """
    left, left_inverse = _roots(left_gram)
    right, right_inverse = _roots(right_gram)
    u, s, vt = np.linalg.svd(left @ right)
    scale = np.sqrt(s)[:, None, :]
    return Basis(left_inverse @ u * scale, right_inverse @ vt.swapaxes(1, 2) * scale, s**2)


def _roots(gram: Matrices) -> tuple[Matrices, Matrices]:
    """Return the square root of each matrix and its inverse, small eigenvalues raised."""
    values, vectors = np.linalg.eigh(gram)
    largest = np.where(values[:, -1:] > 0, values[:, -1:], 1.0)
    roots = np.sqrt(np.maximum(values, _FLOOR * largest))[:, None, :]
    transposed = vectors.swapaxes(1, 2)
    return vectors * roots @ transposed, vectors / roots @ transposed


@dataclass(frozen=True, eq=False)
class Makers:
    """The constants that make both operands of a product.

    Attributes:
        left: Those of `q`, with the axes along which the units lie.
        right: Those of `k`.
        heads: How often each unit is there in them.
    """

    left: tuple[Axis, ...]
    right: tuple[Axis, ...]
    heads: int


def makers_of(model: ir.Model, group: Group, sources: Sequence[str]) -> Makers | str:
    """Return the constants that make the two operands of a product, or why their basis cannot be changed, as a clause.

    Args:
        model: The model.
        group: The group whose units the product sums over.
        sources: Names of the two operands.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    found = []
    for name in sources:
        made = _constants(values.get(name), group)
        if isinstance(made, str):
            return made
        found.append(made)
    counts = {tuple(np.bincount(axis.units, minlength=group.size)) for side in found for axis in side}
    names = [axis.value for side in found for axis in side]
    heads = {number for several in counts for number in several}
    if len(heads) != 1 or len(set(names)) < len(names):
        return "its operands share weights, or have different numbers of heads"
    return Makers(tuple(found[0]), tuple(found[1]), int(heads.pop()))


def _constants(value: ir.Value | None, group: Group) -> list[Axis] | str:
    """Return the constants that make `value`, all of them linear in the units, or why not."""
    axes = {(axis.value, axis.axis): axis for axis in group.axes}
    found: list[Axis] = []
    while value is not None and (node := value.producer()) is not None:
        if len(value.uses()) != 1 or value.is_graph_output():
            return f"`{value.name}` is read more than once"
        operands = [operand for operand in node.inputs if operand is not None]
        constants = [operand for operand in operands if constant(operand) is not None]
        own = [axis for operand in constants for axis in axes.values() if axis.value == operand.name]
        if any(len(operand.uses()) != 1 for operand in constants if operand.name in {axis.value for axis in own}):
            return "other nodes read its weights as well"
        if any((axis.units < 0).any() for axis in own):
            return "its weights make other values as well"
        if is_standard(node, "MatMul", "Gemm") and len(own) == len(constants) and len(own) >= 1:
            return [*found, *own]
        if is_standard(node, "Add") and len(own) == 1:
            found.extend(own)
        elif not _is_scalar_or_view(node, constants):
            return f"{node.op_type} stands between its weights and the product"
        value = next((operand for operand in operands if constant(operand) is None), None)
    return "it is not made by a layer with constant weights"


def _is_scalar_or_view(node: ir.Node, constants: Sequence[ir.Value]) -> bool:
    if is_standard(node, *VIEWS, "Transpose"):
        return True
    values = [constant(value) for value in constants]
    return is_standard(node, "Mul", "Div") and len(values) == 1 and values[0] is not None and values[0].size == 1


def rotated(model: ir.Model, makers: Makers, basis: Basis) -> dict[str, Array]:
    """Return the constants of both operands in another basis, by name.

    Args:
        model: The model.
        makers: The constants.
        basis: The basis, of as many heads.
    """
    result = {}
    for side, change in ((makers.left, basis.left), (makers.right, basis.right)):
        for axis in side:
            old = constant(model.graph.initializers.get(axis.value))
            if old is None:
                continue
            # The n-th position of a unit belongs to the n-th head: [H, D] in the order of the units.
            places = np.stack([np.flatnonzero(axis.units == unit) for unit in range(change.shape[1])], axis=1)
            rows = np.moveaxis(old.astype(np.float64), axis.axis, 0)
            new = rows.copy()
            for head, at in enumerate(places):
                new[at] = np.tensordot(change[head].T, rows[at], axes=1)
            result[axis.value] = np.ascontiguousarray(np.moveaxis(new, 0, axis.axis)).astype(old.dtype)
    return result
