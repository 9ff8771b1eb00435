"""Linear nodes as matrix products: the input as rows of patches, the weights as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.errors import ContractError
from edgewise.records.tensors import Array

Rows = npt.NDArray[np.float32]

_STEP_MULTIPLIER: Final = 2654435761
"""An odd number near 2**32 / golden ratio: its multiples, modulo any step, lie far apart."""


class Unfolding(Protocol):
    """How one linear node is a product of matrices: `output[p, g] = matrix(weight)[g] @ rows[p, g]`, without the bias.

    A position `p` is one place at which the node makes all of its output channels: a row of a Gemm or MatMul, a batch
    index with a place in space of a Conv. Positions are counted in the order of the output, its channels left out.

    Attributes:
        groups: Groups G of channels that do not see each other; output channel `m` is row `m % R` of group `m // R`.
        outputs: Output channels R of each group.
        columns: Inputs K of each output, `kernel` for each input channel; columns of one channel are neighbours.
        kernel: Columns of one input channel.
    """

    @property
    def groups(self) -> int: ...  # noqa: D102 - described by the class

    @property
    def outputs(self) -> int: ...  # noqa: D102 - described by the class

    @property
    def columns(self) -> int: ...  # noqa: D102 - described by the class

    @property
    def kernel(self) -> int: ...  # noqa: D102 - described by the class

    def positions(self, shape: Sequence[int]) -> int:
        """Return how many positions there are for an activation of `shape`."""

    def rows(self, activation: Array, chosen: npt.NDArray[np.int64]) -> Rows:
        """Return the inputs of the positions `chosen`, shape `[P, G, K]`, float32."""

    def matrix(self, weight: Array) -> npt.NDArray[np.float64]:
        """Return weights in the node's layout as a matrix for each group, shape `[G, R, K]`."""

    def restore(self, matrix: Array) -> Array:
        """Return a matrix for each group in the node's layout; keeps the element type."""

    def restore_blocks(self, scales: Array) -> Array:
        """Return numbers for blocks of input channels, shape `[G, R, B]`, in the node's layout.

        The axis of the input channels has B entries, and those of the kernel have one.
        """

    def blocks(self, scales: Array) -> npt.NDArray[np.float64]:
        """Return what `restore_blocks` gave, shape `[G, R, B]`, float64."""


def spread(total: int, most: int, sample: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of `total` positions, evenly spread, which move from sample to sample.

    Args:
        total: How many there are.
        most: How many to take, >= 1.
        sample: Number of the sample.
    """
    step = -(-total // most)
    if step <= 1:
        return np.arange(total)
    # A step that divides no dimension visits all rows and columns alike.
    while math.gcd(step, total) != 1:
        step += 1
    return np.arange((sample * _STEP_MULTIPLIER) % step, total, step)


@dataclass(frozen=True)
class Dense:
    """A Gemm or MatMul with one constant matrix.

    Attributes:
        outputs: Output channels.
        columns: Input channels.
        left_transposed: Whether the activation is `[K, P]` (`transA`); it has then two axes.
        right_transposed: Whether the weights are `[M, K]` (`transB`), not `[K, M]`.
    """

    outputs: int
    columns: int
    left_transposed: bool = False
    right_transposed: bool = False

    @property
    def groups(self) -> int:
        """Always 1."""
        return 1

    @property
    def kernel(self) -> int:
        """Always 1."""
        return 1

    def positions(self, shape: Sequence[int]) -> int:
        """Return how many rows there are, batch axes included."""
        return math.prod(shape) // self.columns

    def rows(self, activation: Array, chosen: npt.NDArray[np.int64]) -> Rows:
        """Return the rows `chosen`, shape `[P, 1, K]`."""
        matrix = activation.T if self.left_transposed else activation.reshape(-1, self.columns)
        return matrix[chosen].astype(np.float32, copy=False)[:, None, :]

    def matrix(self, weight: Array) -> npt.NDArray[np.float64]:
        """Return the weights, shape `[1, M, K]`."""
        return np.asarray(weight if self.right_transposed else weight.T, np.float64, order="C")[None]

    def restore(self, matrix: Array) -> Array:
        """Return `[1, M, K]` in the layout of the weights."""
        return np.ascontiguousarray(matrix[0] if self.right_transposed else matrix[0].T)

    def restore_blocks(self, scales: Array) -> Array:
        """Return `[1, M, B]` as `[M, B]` or `[B, M]`."""
        return self.restore(scales)

    def blocks(self, scales: Array) -> npt.NDArray[np.float64]:
        """Return `[M, B]` or `[B, M]` as `[1, M, B]`."""
        return self.matrix(scales)


@dataclass(frozen=True)
class Window:
    """A Conv, or a ConvTranspose as the Conv of its input with zeros between the values.

    Attributes:
        groups: Groups of channels.
        outputs: Output channels of each group.
        channels: Input channels of each group.
        size: The kernel, one number for each axis of space, as all below.
        strides: Steps of the window.
        dilations: Steps within the window.
        pads: Padding before and behind each axis; negative numbers crop. None with `auto_pad`.
        auto_pad: `SAME_UPPER` or `SAME_LOWER`, or empty.
        stuffing: Every value is followed by so many zeros less one; all ones for a Conv.
        transposed: Whether the weights are those of a ConvTranspose: `[C, R, ...]`, and the kernel is reversed.
    """

    groups: int
    outputs: int
    channels: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    auto_pad: str
    stuffing: tuple[int, ...]
    transposed: bool = False

    @property
    def kernel(self) -> int:
        """Columns of one input channel."""
        return math.prod(self.size)

    @property
    def columns(self) -> int:
        """Inputs of each output."""
        return self.channels * self.kernel

    @property
    def _spans(self) -> tuple[int, ...]:
        return tuple((size - 1) * dilation + 1 for size, dilation in zip(self.size, self.dilations, strict=True))

    def _padding(self, space: Sequence[int]) -> tuple[tuple[int, int], ...]:
        if self.pads is not None:
            return self.pads
        padding = []
        for length, span, stride in zip(space, self._spans, self.strides, strict=True):
            total = max((-(-length // stride) - 1) * stride + span - length, 0)
            less, more = total // 2, total - total // 2
            padding.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return tuple(padding)

    def _stuffed(self, space: Sequence[int]) -> tuple[int, ...]:
        return tuple((length - 1) * step + 1 for length, step in zip(space, self.stuffing, strict=True))

    def _places(self, space: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output in space."""
        stuffed = self._stuffed(space)
        return tuple(
            max(0, (length + sum(pad) - span) // stride + 1)
            for length, pad, span, stride in zip(
                stuffed, self._padding(stuffed), self._spans, self.strides, strict=True
            )
        )

    def positions(self, shape: Sequence[int]) -> int:
        """Return how many places there are, for all samples of a batch."""
        return shape[0] * math.prod(self._places(shape[2:]))

    def rows(self, activation: Array, chosen: npt.NDArray[np.int64]) -> Rows:
        """Return the patches of the places `chosen`, shape `[P, G, K]`."""
        places = self._places(activation.shape[2:])
        padded = self._padded(activation.astype(np.float32, copy=False))
        axes = tuple(range(2, activation.ndim))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self._spans, axes)
        windows = windows[_every(self.dilations)]
        batch, *where = np.unravel_index(chosen, (activation.shape[0], *places))
        index = tuple(place * stride for place, stride in zip(where, self.strides, strict=True))
        # Indices with a slice between them come first in the result: [P, C, kernel ...].
        patches: Rows = windows[(batch, slice(None), *index)].reshape(len(chosen), self.groups, self.columns)
        return patches

    def _padded(self, activation: Rows) -> Rows:
        """Return `activation` with zeros between the values and around them."""
        space = self._stuffed(activation.shape[2:])
        padding = self._padding(space)
        if space == activation.shape[2:] and not any(any(pad) for pad in padding):
            return activation
        around = tuple((max(before, 0), max(after, 0)) for before, after in padding)
        shape = tuple(length + sum(pad) for length, pad in zip(space, around, strict=True))
        result = np.zeros((*activation.shape[:2], *shape), np.float32)
        inner = [slice(before, before + length) for length, (before, _) in zip(space, around, strict=True)]
        stuffed = result[_trailing(inner)]
        stuffed[_every(self.stuffing)] = activation
        cropped = [
            slice(max(-before, 0), length - max(-after, 0))
            for length, (before, after) in zip(shape, padding, strict=True)
        ]
        kept: Rows = result[_trailing(cropped)]
        return kept

    def matrix(self, weight: Array) -> npt.NDArray[np.float64]:
        """Return the weights, shape `[G, R, K]`."""
        values = np.asarray(weight, np.float64)
        if self.transposed:
            values = values.reshape(self.groups, self.channels, self.outputs, *self.size).swapaxes(1, 2)
            values = values[_every([-1] * len(self.size))]
        matrices: npt.NDArray[np.float64] = values.reshape(self.groups, self.outputs, self.columns)
        return matrices

    def restore(self, matrix: Array) -> Array:
        """Return `[G, R, K]` in the layout of the weights."""
        values = matrix.reshape(self.groups, self.outputs, self.channels, *self.size)
        return self._layout(values)

    def restore_blocks(self, scales: Array) -> Array:
        """Return `[G, R, B]` in the layout of the weights, with ones for the axes of the kernel."""
        return self._layout(scales.reshape(*scales.shape, *(1 for _ in self.size)))

    def blocks(self, scales: Array) -> npt.NDArray[np.float64]:
        """Return what `restore_blocks` gave, shape `[G, R, B]`."""
        values = np.asarray(scales, np.float64)
        if self.transposed:
            return values.reshape(self.groups, -1, self.outputs).swapaxes(1, 2)
        return values.reshape(self.groups, self.outputs, -1)

    def _layout(self, values: Array) -> Array:
        """Return `[G, R, C, kernel ...]` in the layout of the weights."""
        if self.transposed:
            values = values.swapaxes(1, 2)[_every([-1] * len(self.size))]
        return np.ascontiguousarray(values.reshape(-1, *values.shape[2:]))


def _trailing(slices: Sequence[slice]) -> tuple[Any, ...]:
    """Return an index that takes `slices` of the last axes."""
    return (..., *slices)


def _every(steps: Sequence[int]) -> tuple[Any, ...]:
    """Return an index that takes every `steps`-th entry of the last axes."""
    return _trailing([slice(None, None, step) for step in steps])


def unfolding(node: ir.Node, weight: Array) -> Unfolding | str:
    """Return how `node` is a product of matrices, or why it is none here, as a clause.

    Args:
        node: A Conv, ConvTranspose, Gemm or MatMul, whose input 0 is the activation.
        weight: Its weights, input 1.

    Raises:
        ContractError: If `node` is another operator.
    """
    match node.op_type:
        case "MatMul":
            if weight.ndim != 2:
                return "its weights are a stack of matrices"
            return Dense(outputs=weight.shape[1], columns=weight.shape[0])
        case "Gemm":
            right = bool(_number(node, "transB", 0))
            outputs, columns = weight.shape if right else weight.shape[::-1]
            return Dense(outputs, columns, bool(_number(node, "transA", 0)), right)
        case "Conv":
            return _conv(node, weight)
        case "ConvTranspose":
            return _conv_transpose(node, weight)
    raise ContractError(f"Only linear operators are products of matrices. Received `{node.op_type}`.")


def _conv(node: ir.Node, weight: Array) -> Window:
    size = tuple(weight.shape[2:])
    groups = _number(node, "group", 1)
    auto_pad = _text(node, "auto_pad")
    pads: tuple[tuple[int, int], ...] | None = None
    if auto_pad == "VALID":
        pads = ((0, 0),) * len(size)
    elif auto_pad in {"", "NOTSET"}:
        pads = _pads(node, len(size))
    return Window(
        groups=groups,
        outputs=weight.shape[0] // groups,
        channels=weight.shape[1],
        size=size,
        strides=_numbers(node, "strides", 1, len(size)),
        dilations=_numbers(node, "dilations", 1, len(size)),
        pads=pads,
        auto_pad=auto_pad if pads is None else "",
        stuffing=(1,) * len(size),
    )


def _conv_transpose(node: ir.Node, weight: Array) -> Window | str:
    if "output_shape" in node.attributes or _text(node, "auto_pad") not in {"", "NOTSET", "VALID"}:
        return "its padding follows from the shape of its output"
    size = tuple(weight.shape[2:])
    groups = _number(node, "group", 1)
    dilations = _numbers(node, "dilations", 1, len(size))
    extra = _numbers(node, "output_padding", 0, len(size))
    pads = ((0, 0),) * len(size) if _text(node, "auto_pad") == "VALID" else _pads(node, len(size))
    reach = [(length - 1) * dilation for length, dilation in zip(size, dilations, strict=True)]
    return Window(
        groups=groups,
        outputs=weight.shape[1],
        channels=weight.shape[0] // groups,
        size=size,
        strides=(1,) * len(size),
        dilations=dilations,
        pads=tuple((far - pad[0], far - pad[1] + more) for far, pad, more in zip(reach, pads, extra, strict=True)),
        auto_pad="",
        stuffing=_numbers(node, "strides", 1, len(size)),
        transposed=True,
    )


def _pads(node: ir.Node, axes: int) -> tuple[tuple[int, int], ...]:
    pads = _numbers(node, "pads", 0, 2 * axes)
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def _numbers(node: ir.Node, name: str, default: int, count: int) -> tuple[int, ...]:
    found = node.attributes.get(name)
    return (default,) * count if found is None else tuple(int(value) for value in found.as_ints())


def _number(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _text(node: ir.Node, name: str) -> str:
    found = node.attributes.get(name)
    return "" if found is None else found.as_string()
