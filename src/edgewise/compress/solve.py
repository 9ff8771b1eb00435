"""The linear algebra that second-order compression shares: least squares, and rounding to a grid.

Everything minimises the layer-wise error. With `x` the layer's inputs in the float model and `x_hat` those that it gets
after everything before it was compressed, the mean of `||W x - Q x_hat||^2` is

    tr[(W - Q) S (W - Q)^T] + 2 tr[W D (W - Q)^T] + constant,   S = mean x_hat x_hat^T,   D = mean (x - x_hat) x_hat^T,

which, with `V` its minimum over all real matrices, is `tr[(Q - V) S (Q - V)^T]` and another constant. (Frantar and
Alistarh 2022, "Optimal Brain Compression", for `x = x_hat`; Li et al. 2025, "GPTAQ", and Zhong et al. 2024, "ERQ", keep
the two inputs apart.) So there are two steps: `refit` gives `V`, and rounding needs `V` and `S` alone. Where a bias is
free, both moments are about the means: `mean W x - mean Q x_hat` then goes into the bias.

Weights are stacks of matrices `[G, R, K]`: G independent groups, R outputs and K inputs each. Gram matrices are
`[G, K, K]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewise.errors import ContractError

Stack = npt.NDArray[np.float64]

Mask = npt.NDArray[np.bool_]

_BLOCK: Final = 64
"""Columns that are worked on one by one before all others are updated with one product of matrices."""

_SOLVED: Final = 1e-20
"""Conjugate gradients end where the squared, preconditioned residual has become so much smaller."""

_SMALLEST_SCALE: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Grid:
    """Symmetric integers, and the scales that make real numbers of them.

    Attributes:
        scales: One for each block of columns of each row, shape `[G, R, B]`, > 0, values of float32.
        width: Columns of a block; the last block may be shorter. `width >= K` gives one scale a row.
        largest: Largest integer; the smallest is its negative.
    """

    scales: Stack
    width: int
    largest: int

    def steps(self, columns: int) -> Stack:
        """Return the scale of every entry, shape `[G, R, K]`, or `[G, R, 1]` where a row has one."""
        if self.scales.shape[2] == 1:
            return self.scales
        return np.repeat(self.scales, self.width, axis=2)[:, :, :columns]

    def round(self, weight: Stack) -> Stack:
        """Return the nearest integers, halves to even, saturated; shape `[G, R, K]`."""
        return np.clip(np.rint(weight / self.steps(weight.shape[2])), -self.largest, self.largest)

    def real(self, integers: Stack) -> Stack:
        """Return `integers` times their scales."""
        return integers * self.steps(integers.shape[2])


def damped(gram: Stack, ridge: float) -> Stack:
    """Return `gram` plus `ridge` times the mean of its diagonal on the diagonal.

    A positive semidefinite matrix becomes definite. Groups whose inputs are all zero get the identity: there every
    weight is as good as any other, and the nearest one is kept.

    Args:
        gram: Symmetric, shape `[G, K, K]`.
        ridge: How much, relative to the mean of each group's diagonal, > 0.

    Source: Frantar et al. 2022, "GPTQ", section 3, step 3 (1 % there).
    """
    if ridge <= 0:
        raise ContractError(f"The ridge has to be positive. Received {ridge}.")
    mean = np.einsum("gkk->g", gram) / gram.shape[1]
    result = gram.copy()
    np.einsum("gkk->gk", result)[:] += np.where(mean > 0, ridge * mean, 1.0)[:, None]
    return result


def refit(weight: Stack, gram: Stack, drift: Stack, ridge: float) -> Stack:
    """Return the real matrix `V` that makes `mean ||W x - V x_hat||^2 + r ||V - W||^2` smallest.

    `V = W + W D (S + r I)^-1`: ridge regression of what the compression upstream took from the output on what is left
    of the inputs. Its normal equations are solved by an LU decomposition of each group.

    Args:
        weight: `W`, shape `[G, R, K]`.
        gram: `S = mean x_hat x_hat^T`, shape `[G, K, K]`; about the means where a bias is free.
        drift: `D = mean (x - x_hat) x_hat^T`, shape `[G, K, K]`; likewise. For pruning, `x_hat` is `x` with zeros.
        ridge: `r`, relative to the mean of each group's diagonal of `S`, > 0. See `damped`.

    Source: Zhong et al. 2024, "ERQ: Error Reduction for Post-Training Quantization of Vision Transformers" (its first
    step, a ridge regression); Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
    Calibration".
    """
    if not drift.any():
        return weight.copy()
    lost = weight @ drift
    change = np.linalg.solve(damped(gram, ridge), lost.swapaxes(1, 2)).swapaxes(1, 2)
    return np.asarray(weight + change, np.float64)


def refit_kept(weight: Stack, gram: Stack, kept: Mask, start: Stack, *, steps: int = 60) -> Stack:
    """Return the matrix `V` with zeros outside of `kept` that makes `(V - W) S (V - W)^T` smallest, row by row.

    Conjugate gradients on the kept entries of every row at once, with the diagonal as preconditioner: a direct solution
    would factor one matrix a row. The error falls in every step, and is the least one after as many steps as a row
    keeps entries; with a damped Gram matrix far fewer do.

    Args:
        weight: `W`, shape `[G, R, K]`.
        gram: Symmetric positive definite (see `damped`), shape `[G, K, K]`.
        kept: Which entries may be other than zero, shape `[G, R, K]`.
        start: Where to start, zero outside of `kept`, shape `[G, R, K]`.
        steps: Most steps.

    Source: Hestenes and Stiefel 1952, "Methods of Conjugate Gradients for Solving Linear Systems"; the least squares
    are those of the weights that Optimal Brain Surgeon leaves (Hassibi and Stork 1993, eq. 5).
    """
    inverse = kept / np.einsum("gkk->gk", gram)[:, None, :]
    result = start.copy()
    residual = ((weight - start) @ gram) * kept
    direction = inverse * residual
    slope = (residual * direction).sum(axis=2, keepdims=True)
    enough = _SOLVED * slope
    for _ in range(steps):
        if (slope <= enough).all():
            break
        image = (direction @ gram) * kept
        curve = (direction * image).sum(axis=2, keepdims=True)
        length = np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
        result += length * direction
        residual -= length * image
        ahead = inverse * residual
        before, slope = slope, (residual * ahead).sum(axis=2, keepdims=True)
        direction = ahead + np.divide(slope, before, out=np.zeros_like(slope), where=before > 0) * direction
    return result


def error(difference: Stack, gram: Stack) -> Stack:
    """Return `d^T S d` for every row `d` of `difference` `[G, R, K]`; shape `[G, R]`."""
    return np.asarray(np.einsum("grk,grk->gr", difference @ gram, difference), np.float64)


def round_columns(weight: Stack, gram: Stack, grid: Grid, *, kept: Mask | None = None) -> Stack:
    """Return integers that were rounded column by column, each error made up for by the columns still to come.

    GPTQ in the order of decreasing diagonal of the Gram matrix ("act-order"), in the form of Babai's nearest plane:
    with `S = L L^T` the error is `||(W - Q) L||^2`, whose column i holds only columns j >= i of `W - Q`. So the last
    column is rounded first, and column i is rounded about `w_i + sum_(j > i) (w_j - q_j) L_ji / L_ii`: the same numbers
    as with the Cholesky factor of the inverse, without an inverse.

    Args:
        weight: The real matrix to round, shape `[G, R, K]`.
        gram: Symmetric positive definite (see `damped`), shape `[G, K, K]`.
        grid: The integers.
        kept: Which entries may be other than zero, shape `[G, R, K]`; None for all of them.

    Returns:
        Integers as float64, shape `[G, R, K]`; zeros where `kept` is false, made up for like any other error (Frantar
        and Alistarh 2023, "SparseGPT", section 3.5).

    Source: Frantar et al. 2022, "GPTQ", eq. 2 and algorithm 1; Frantar and Alistarh 2022, "Optimal Brain Compression"
    (each column's update); Chen et al. 2025, "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane
    Algorithm".
    """
    groups, _, columns = weight.shape
    # Ascending, because the last column is rounded first.
    order = np.argsort(np.einsum("gkk->gk", gram), axis=1, kind="stable")
    part = np.arange(groups)[:, None]
    lower = np.linalg.cholesky(gram[part[:, :, None], order[:, :, None], order[:, None, :]])
    diagonal = np.einsum("gkk->gk", lower)
    steps = np.broadcast_to(grid.steps(columns), weight.shape)
    # [G, K, R]: a column of all rows lies in one piece.
    targets = weight.swapaxes(1, 2)[part, order]
    steps = steps.swapaxes(1, 2)[part, order]
    allowed = None if kept is None else kept.swapaxes(1, 2)[part, order]
    errors = np.zeros_like(targets)
    integers = np.zeros_like(targets)
    for end in range(columns, 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        pull = lower[:, end:, start:end].swapaxes(1, 2) @ errors[:, end:]
        for column in range(end - 1, start - 1, -1):
            inner = lower[:, None, column + 1 : end, column] @ errors[:, column + 1 : end]
            push = (pull[:, column - start] + inner[:, 0]) / diagonal[:, column, None]
            step = steps[:, column]
            chosen = np.clip(np.rint((targets[:, column] + push) / step), -grid.largest, grid.largest)
            if allowed is not None:
                chosen *= allowed[:, column]
            integers[:, column] = chosen
            errors[:, column] = targets[:, column] - chosen * step
    result = np.empty_like(integers)
    result[part, order] = integers
    return np.ascontiguousarray(result.swapaxes(1, 2))


def coordinate_descent(
    integers: Stack, weight: Stack, gram: Stack, grid: Grid, *, sweeps: int = 3, kept: Mask | None = None
) -> Stack:
    """Return integers that no change of a single one improves, or the best that `sweeps` reach.

    One column after the other, in the order of decreasing diagonal, each entry takes the grid's exact minimum with all
    others fixed. An entry changes only where the error becomes smaller, so `error(real(integers) - weight, gram)` never
    grows.

    Args:
        integers: Where to start, shape `[G, R, K]`.
        weight: The real matrix to come near to, shape `[G, R, K]`.
        gram: Symmetric positive definite (see `damped`), shape `[G, K, K]`.
        grid: The integers.
        sweeps: Most passes over all columns.
        kept: Which entries may change, shape `[G, R, K]`; None for all of them.

    Source: Zhang et al. 2024, "COMQ: A Backpropagation-Free Algorithm for Post-Training Quantization" (its
    coordinate descent over integers), with the Gram matrix in place of the inputs.
    """
    groups, _, columns = weight.shape
    order = np.argsort(-np.einsum("gkk->gk", gram), axis=1, kind="stable")
    part = np.arange(groups)[:, None]
    matrix = gram[part[:, :, None], order[:, :, None], order[:, None, :]]
    diagonal = np.einsum("gkk->gk", matrix)
    steps = np.broadcast_to(grid.steps(columns), weight.shape).swapaxes(1, 2)[part, order]
    now = integers.swapaxes(1, 2)[part, order]
    allowed = None if kept is None else kept.swapaxes(1, 2)[part, order]
    gradient = matrix @ (now * steps - weight.swapaxes(1, 2)[part, order])
    for _ in range(sweeps):
        changed = False
        for start in range(0, columns, _BLOCK):
            end = min(columns, start + _BLOCK)
            moves = np.zeros_like(now[:, start:end])
            for column in range(start, end):
                # What earlier columns of this block changed; other blocks are in the gradient already.
                inner = matrix[:, None, column, start:column] @ moves[:, : column - start]
                slope, curve = gradient[:, column] + inner[:, 0], diagonal[:, column, None]
                step, old = steps[:, column], now[:, column]
                new = np.clip(np.rint(old - slope / (curve * step)), -grid.largest, grid.largest)
                move = (new - old) * step
                smaller = move * (2.0 * slope + curve * move) < 0
                if allowed is not None:
                    smaller &= allowed[:, column]
                moves[:, column - start] = np.where(smaller, move, 0.0)
                now[:, column] = np.where(smaller, new, old)
            if moves.any():
                changed = True
                gradient += matrix[:, :, start:end] @ moves
        if not changed:
            break
    result = np.empty_like(now)
    result[part, order] = now
    return np.ascontiguousarray(result.swapaxes(1, 2))


def rescale(integers: Stack, weight: Stack, gram: Stack, grid: Grid, *, floor: Stack | None = None) -> Grid:
    """Return the grid whose scales fit `integers` best, one block of columns after the other.

    With the integers z of a row's block fixed, the error is a parabola in its scale s: its minimum moves s by
    `-(z . g) / (z . S z)`, with g the gradient. A scale changes only where the error becomes smaller, its rounding to
    float32 included, so `error(real(integers) - weight, gram)` never grows.

    Args:
        integers: Shape `[G, R, K]`.
        weight: The real matrix to come near to, shape `[G, R, K]`.
        gram: Symmetric positive definite (see `damped`), shape `[G, K, K]`.
        grid: The scales to start from.
        floor: Scales stay at or above these, shape that broadcasts to that of the scales; None for no floor.

    Source: Zhang et al. 2024, "COMQ" (its update of the scale), here for each block.
    """
    columns = weight.shape[2]
    least = _SMALLEST_SCALE if floor is None else np.maximum(floor, _SMALLEST_SCALE)
    scales = grid.scales.copy()
    gradient = (grid.real(integers) - weight) @ gram
    for block in range(scales.shape[2]):
        part = slice(block * grid.width, min(columns, (block + 1) * grid.width))
        codes = integers[:, :, part]
        curve = ((codes @ gram[:, part, part]) * codes).sum(axis=2)
        slope = (codes * gradient[:, :, part]).sum(axis=2)
        old = scales[:, :, block]
        # At most halved: the best scale of integers that fit badly may be zero or negative.
        lowest = np.maximum(np.broadcast_to(least, scales.shape)[:, :, block], old / 2)
        new = np.maximum(old - slope / np.where(curve > 0, curve, np.inf), lowest)
        new = new.astype(np.float32).astype(np.float64)
        # Rounding to float32 and the bound below may have led uphill.
        move = new - old
        smaller = move * (2.0 * slope + curve * move) < 0
        scales[:, :, block] = np.where(smaller, new, old)
        move = np.where(smaller, move, 0.0)
        if block + 1 < scales.shape[2]:
            gradient += (move[:, :, None] * codes) @ gram[:, part]
    return Grid(scales, grid.width, grid.largest)


def search_scales(
    weight: Stack, importance: Stack, grid: Grid, *, lowest: float, tries: int, floor: Stack | None = None
) -> Grid:
    """Return the grid that clips each block of each row where the weighted rounding error is least.

    Thresholds between `lowest` and 1 times the block's largest magnitude are tried, 1 among them.

    Args:
        weight: Shape `[G, R, K]`.
        importance: Weight of each column, for example the diagonal of the Gram matrix, shape `[G, K]`, >= 0.
        grid: Says the width of a block and the largest integer; its scales' values are not used, its shape is.
        lowest: Smallest fraction of the largest magnitude, in (0, 1).
        tries: How many fractions, >= 1.
        floor: Scales stay at or above these; None for no floor.

    Source: as `affine.least_squares_scales`; the weights are the diagonal terms of `tr[(W - Q) S (W - Q)^T]`.
    """
    least = np.broadcast_to(_SMALLEST_SCALE if floor is None else np.maximum(floor, _SMALLEST_SCALE), grid.scales.shape)
    best = np.ones_like(grid.scales)
    for block in range(grid.scales.shape[2]):
        part = slice(block * grid.width, (block + 1) * grid.width)
        best[:, :, block] = _search_block(
            weight[:, :, part],
            importance[:, None, part],
            np.linspace(1.0, lowest, tries),
            grid.largest,
            least[:, :, block],
        )
    return Grid(best, grid.width, grid.largest)


def _search_block(
    weight: Stack, importance: Stack, fractions: npt.NDArray[np.float64], largest: int, least: Stack
) -> Stack:
    """Return the best scale of each row of one block, shape `[G, R]`."""
    values = weight.astype(np.float32)
    weights = np.sqrt(importance / np.maximum(importance.max(axis=2, keepdims=True), _SMALLEST_SCALE))
    weights = weights.astype(np.float32)
    peak = np.abs(values).max(axis=2, initial=0.0)
    whole = np.where(peak / largest < _SMALLEST_SCALE, 1.0, peak / largest)
    lowest_error = np.full(peak.shape, np.inf)
    best = np.maximum(whole, least).astype(np.float32)
    for fraction in fractions:
        scales = np.maximum(whole * fraction, least).astype(np.float32)
        rounded = values / scales[:, :, None]
        np.rint(rounded, out=rounded)
        np.clip(rounded, -largest, largest, out=rounded)
        rounded *= scales[:, :, None]
        rounded -= values
        rounded *= weights
        found = np.einsum("grk,grk->gr", rounded, rounded)
        better = found < lowest_error
        lowest_error = np.where(better, found, lowest_error)
        best = np.where(better, scales, best)
    return best.astype(np.float64)
