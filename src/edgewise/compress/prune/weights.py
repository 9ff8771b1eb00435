"""Which single weights of a layer become zero, and how those that stay make up for it: arrays alone.

The error is that of `compress/solve.py`: `(Q - V) S (Q - V)^T` for every row. One column after the other is pruned,
and its error is made up for by the columns still to come; which entries go is decided for a block of columns at a time,
on weights that have already made up for the blocks before it. At the end those that stay are fitted by least squares.

Source: Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", sections
3.3 (adaptive masks), 3.4 (N:M) and 3.5 (together with rounding); Frantar and Alistarh 2022, "Optimal Brain Compression"
(the error of one weight). Here the Gram matrix is factored in place of its inverse, as in `solve.round_columns`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewise.compress.solve import Grid, Mask, Stack, coordinate_descent, refit_kept, round_columns
from edgewise.errors import ContractError, RecipeError

_BLOCK: Final = 64
"""Columns whose entries are chosen together; SparseGPT has 128."""

MOST_SPARSE: Final = 0.95
"""Largest share that an allocation takes from one layer. Empirical: a layer that keeps less passes nothing on."""


@dataclass(frozen=True)
class Unstructured:
    """Any entry may be zero. No dense kernel is faster for it; the file is smaller."""

    @property
    def words(self) -> str:
        """What it is called."""
        return "unstructured"


@dataclass(frozen=True)
class KeptOfEvery:
    """N:M: of every `width` neighbouring input channels, at one place of the kernel, an output keeps `kept`.

    2:4 is what the sparse tensor cores of NVIDIA's Ampere and later compute with; processors have no kernels for it.

    Attributes:
        kept: N, >= 1.
        width: M, > N.
    """

    kept: int
    width: int

    def __post_init__(self) -> None:
        if not 1 <= self.kept < self.width:
            raise RecipeError(f"N:M needs 1 <= N < M. Received {self.kept}:{self.width}.")

    @property
    def words(self) -> str:
        """What it is called."""
        return f"{self.kept}:{self.width}"


@dataclass(frozen=True)
class Blocks:
    """Blocks of `outputs` neighbouring rows and `inputs` neighbouring input channels are zero or kept as a whole.

    1 output and 4 inputs are the blocks of TensorFlow Lite's sparse fully connected kernels; 4 outputs and 1 input are
    those of XNNPACK's sparse 1x1 convolutions (`spmm`, its kernels `32x4`). The last block of a column may be
    shorter.

    Attributes:
        outputs: Rows of a block, >= 1.
        inputs: Input channels of a block, at one place of the kernel, >= 1.
    """

    outputs: int
    inputs: int

    def __post_init__(self) -> None:
        if min(self.outputs, self.inputs) < 1:
            raise RecipeError(f"Blocks need at least one output and input. Received {self.outputs}x{self.inputs}.")

    @property
    def words(self) -> str:
        """What it is called."""
        return f"{self.outputs}x{self.inputs} blocks"


Pattern: TypeAlias = Unstructured | KeptOfEvery | Blocks


def share_of_zeros(pattern: Pattern, sparsity: float) -> float:
    """Return the share of zeros that a pattern makes of `sparsity`: N:M has its own.

    Raises:
        RecipeError: If `sparsity` is not in [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise RecipeError(f"The share of weights to remove has to be at least 0 and less than 1. Received {sparsity}.")
    return 1 - pattern.kept / pattern.width if isinstance(pattern, KeptOfEvery) else sparsity


def why_not(pattern: Pattern, channels: int) -> str:
    """Return why a layer with so many input channels cannot have a pattern, as a clause; empty where it can."""
    width = _width(pattern)
    return f"its {channels} input channels are no multiple of {width}" if channels % width else ""


def saliency(weight: Stack, gram: Stack) -> Stack:
    """Return the error that removing each entry alone makes, with all others of its row making up for it.

    `w_i^2 / [S^-1]_ii`, shape `[G, R, K]`.

    Args:
        weight: Shape `[G, R, K]`.
        gram: `S`, symmetric positive definite (see `solve.damped`), shape `[G, K, K]`.

    Source: Hassibi and Stork 1993, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", eq. 5.
    """
    inverse = np.einsum("gkk->gk", np.linalg.inv(gram))
    return np.asarray(weight**2 / inverse[:, None, :], np.float64)


def tile_scores(scores: Stack, pattern: Pattern, kernel: int) -> Stack:
    """Return the scores of what goes as a whole: their sums over blocks, or the scores as they are, reordered.

    Args:
        scores: One for each entry, shape `[G, R, K]`.
        pattern: Where zeros may be.
        kernel: Columns of one input channel.
    """
    return _tiles(scores[:, :, _arranged(scores.shape[2], kernel)], pattern)


def magnitude_mask(weight: Stack, pattern: Pattern, sparsity: float, *, kernel: int = 1) -> Mask:
    """Return which entries stay where the smallest magnitudes go: what second-order pruning has to beat."""
    order = _arranged(weight.shape[2], kernel)
    kept = np.empty(weight.shape, np.bool_)
    scores = weight[:, :, order] ** 2
    chosen = ~_removed(scores, pattern, _count(scores, pattern, sparsity))
    kept[:, :, order] = chosen
    return kept


def prune_columns(
    weight: Stack, gram: Stack, pattern: Pattern, sparsity: float, *, kernel: int = 1
) -> tuple[Stack, Mask]:
    """Return pruned weights, and which of them stay.

    How many entries of each block of columns go follows from `saliency` over the whole layer; which ones, from the
    weights as they are when the block's turn comes.

    Args:
        weight: The real matrix to prune, shape `[G, R, K]`.
        gram: Symmetric positive definite (see `solve.damped`), shape `[G, K, K]`.
        pattern: Where zeros may be.
        sparsity: Share of zeros in [0, 1); N:M has its own.
        kernel: Columns of one input channel: `Unfolding.kernel`.

    Returns:
        Weights, zero where the mask is false; shape `[G, R, K]` each.

    Raises:
        RecipeError: If `sparsity` is not in [0, 1).
        ContractError: If the pattern does not fit the layer (see `why_not`).
    """
    groups, _, columns = weight.shape
    if reason := why_not(pattern, columns // kernel):
        raise ContractError(f"A layer is pruned to a pattern that it can have, but {reason}.")
    order = _order(gram, pattern, kernel)
    part = np.arange(groups)[:, None]
    lower = np.linalg.cholesky(gram[part[:, :, None], order[:, :, None], order[:, None, :]])
    targets = weight.swapaxes(1, 2)[part, order]
    quota = _quotas(saliency(weight, gram).swapaxes(1, 2)[part, order].swapaxes(1, 2), pattern, sparsity)
    diagonal = np.einsum("gkk->gk", lower)
    made, errors, kept = np.zeros_like(targets), np.zeros_like(targets), np.ones(targets.shape, np.bool_)
    for (start, end), gone in zip(reversed(_cuts(columns, pattern)), reversed(quota), strict=True):
        pull = lower[:, end:, start:end].swapaxes(1, 2) @ errors[:, end:] / diagonal[:, start:end, None]
        within = lower[:, start:end, start:end] * _together(end - start, pattern)
        scores = (within.swapaxes(1, 2) @ (targets[:, start:end] + pull)) ** 2
        kept[:, start:end] = ~_removed(scores.swapaxes(1, 2), pattern, gone).swapaxes(1, 2)
        for column in range(end - 1, start - 1, -1):
            inner = lower[:, None, column + 1 : end, column] @ errors[:, column + 1 : end]
            chosen = targets[:, column] + pull[:, column - start] + inner[:, 0] / diagonal[:, column, None]
            made[:, column] = chosen * kept[:, column]
            errors[:, column] = targets[:, column] - made[:, column]
    result, mask = np.empty_like(made), np.empty_like(kept)
    result[part, order], mask[part, order] = made, kept
    allowed = np.ascontiguousarray(mask.swapaxes(1, 2))
    return refit_kept(weight, gram, allowed, np.ascontiguousarray(result.swapaxes(1, 2))), allowed


def prune_and_round(
    weight: Stack, gram: Stack, grid: Grid, pattern: Pattern, sparsity: float, *, kernel: int = 1
) -> tuple[Stack, Mask]:
    """Return integers of which a share is zero, and which entries stay; the arguments are those of `prune_columns`.

    What stays is fitted before it is rounded. SparseGPT prunes and rounds each column in one go (section 3.5): without
    that fit, the error was 1.5 times as large on random matrices with half of the entries gone.
    """
    target, kept = prune_columns(weight, gram, pattern, sparsity, kernel=kernel)
    integers = round_columns(target, gram, grid, kept=kept)
    return coordinate_descent(integers, target, gram, grid, kept=kept), kept


def allocate(scores: Sequence[npt.NDArray[np.float64]], sparsity: float) -> tuple[float, ...]:
    """Return the share of zeros of each layer, where one threshold on the scores of all of them makes `sparsity`.

    No layer gives more than `MOST_SPARSE`; the others then give the rest as long as there is any.

    Args:
        scores: `saliency` of each layer's weights, made comparable: divided by the variance of the layer's output, and
            multiplied with what that layer's error does to the model, where it is known.
        sparsity: Share of zeros over all layers in [0, `MOST_SPARSE`].

    Raises:
        RecipeError: If `sparsity` is out of range.

    Source: Singh and Alistarh 2020, "WoodFisher: Efficient Second-Order Approximation for Neural Network Compression",
    section 4 (joint pruning of all layers by one threshold).
    """
    if not 0 <= sparsity <= MOST_SPARSE:
        raise RecipeError(f"At least 0 and at most {MOST_SPARSE} of all weights can go. Received {sparsity}.")
    if not scores:
        return ()
    # What a layer has to keep in any case is never below the threshold.
    free = [np.sort(layer, axis=None)[: math.floor(MOST_SPARSE * layer.size)] for layer in scores]
    together = np.concatenate(free)
    count = min(round(sparsity * sum(layer.size for layer in scores)), together.size)
    if count == 0:
        return (0.0,) * len(scores)
    threshold = np.partition(together, count - 1)[count - 1]
    return tuple(
        int(np.searchsorted(one, threshold, side="right")) / layer.size for one, layer in zip(free, scores, strict=True)
    )


def _arranged(columns: int, kernel: int) -> npt.NDArray[np.int64]:
    """Return the columns in an order in which input channels are neighbours, one place of the kernel after another."""
    return np.arange(columns).reshape(-1, kernel).T.reshape(-1)


def _width(pattern: Pattern) -> int:
    match pattern:
        case KeptOfEvery():
            return pattern.width
        case Blocks():
            return pattern.inputs
    return 1


def _order(gram: Stack, pattern: Pattern, kernel: int) -> npt.NDArray[np.int64]:
    """Return the columns of each group, least first, `[G, K]`; those of one tile stay together.

    The last column is pruned first: the most active ones, while most others can still make up for them.
    """
    arranged = _arranged(gram.shape[1], kernel)
    power = np.einsum("gkk->gk", gram)[:, arranged]
    width = _width(pattern)
    tiles = power.reshape(len(gram), -1, width).sum(axis=2)
    places = np.argsort(tiles, axis=1, kind="stable")[:, :, None] * width + np.arange(width)
    return np.asarray(arranged[places.reshape(len(gram), -1)], np.int64)


def _together(columns: int, pattern: Pattern) -> Mask:
    """Return which pairs of columns go together: the error of a tile is that of its columns one after the other."""
    tile = np.arange(columns) // (pattern.inputs if isinstance(pattern, Blocks) else 1)
    return np.asarray(tile[:, None] == tile)


def _cuts(columns: int, pattern: Pattern) -> list[tuple[int, int]]:
    """Return where blocks of columns start and end; none divides a tile."""
    width = _width(pattern)
    step = max(1, _BLOCK // width) * width
    return [(start, min(start + step, columns)) for start in range(0, columns, step)]


def _tiles(scores: Stack, pattern: Pattern) -> Stack:
    """Return the sum of the scores of each tile, shape `[G, R / outputs, K / inputs]`; as given without blocks."""
    if not isinstance(pattern, Blocks):
        return scores
    groups, rows, columns = scores.shape
    across = scores.reshape(groups, rows, columns // pattern.inputs, pattern.inputs).sum(axis=3)
    return np.asarray(np.add.reduceat(across, np.arange(0, rows, pattern.outputs), axis=1), np.float64)


def _count(scores: Stack, pattern: Pattern, sparsity: float) -> int:
    """Return how many tiles of a layer go."""
    return round(share_of_zeros(pattern, sparsity) * _tiles(scores, pattern).size)


def _quotas(scores: Stack, pattern: Pattern, sparsity: float) -> list[int]:
    """Return how many tiles go in each block of columns."""
    gone = _removed(scores, pattern, _count(scores, pattern, sparsity)).astype(np.float64)
    quotas = []
    for start, end in _cuts(scores.shape[2], pattern):
        tiles = _tiles(gone[:, :, start:end], pattern)
        quotas.append(int(np.count_nonzero(tiles)))
    return quotas


def _removed(scores: Stack, pattern: Pattern, count: int) -> Mask:
    """Return which entries go, shape of `scores`: the `count` tiles with the smallest sums, or M - N of every M."""
    if isinstance(pattern, KeptOfEvery):
        inside = scores.reshape(*scores.shape[:2], -1, pattern.width)
        rank = np.argsort(np.argsort(inside, axis=3, kind="stable"), axis=3, kind="stable")
        return np.asarray(rank < pattern.width - pattern.kept).reshape(scores.shape)
    tiles = _tiles(scores, pattern)
    gone = np.zeros(tiles.size, np.bool_)
    gone[np.argsort(tiles, axis=None, kind="stable")[:count]] = True
    whole = gone.reshape(tiles.shape)
    if isinstance(pattern, Blocks):
        whole = whole.repeat(pattern.outputs, axis=1)[:, : scores.shape[1]].repeat(pattern.inputs, axis=2)
    return whole
