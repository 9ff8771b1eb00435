"""Affine quantization of arrays: real = scale x (integer - zero point). Knows no graph.

Every function here is bit-exact with ONNX `QuantizeLinear` and `DequantizeLinear` (opset 13 and newer): division in
float32, rounding half to even, then saturation.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgewise.errors import RecipeError
from edgewise.records.tensors import Array

FloatArray = npt.NDArray[np.floating[Any]]

SMALLEST_SCALE: Final = float(np.finfo(np.float32).tiny)
"""Smallest scale: a subnormal one is flushed to zero by some kernels, which then divide by zero."""

_ROUNDING_BLOCK: Final = 1 << 16

_THRESHOLDS: Final = 16

_LOWEST_THRESHOLD: Final = {8: 0.7, 7: 0.7, 6: 0.6, 5: 0.45, 4: 0.3, 3: 0.2, 2: 0.1}
"""Smallest clipping threshold that is tried, as a share of the largest magnitude, by bits: the fewer integers there
are, the more a finer step for the many is worth against the few that are clipped. Empirical: with it, the error of
normal and Laplace weights in rows of 9 to 10,000 is within 2 % of what 400 thresholds reach."""

_REFITS: Final = 3


def parameters(low: float, high: float, dtype: npt.DTypeLike) -> tuple[float, int]:
    """Return the scale and zero point with which `dtype` covers `[low, high]`.

    Zero is always exactly representable: the range is widened to hold it, and the zero point is an integer of
    `dtype`. (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 2.1: zero padding must not add an error.)

    Args:
        low: Smallest value to represent, in the tensor's own unit, finite.
        high: Largest value to represent, >= `low`, finite.
        dtype: An integer type of 8 or 16 bits.

    Returns:
        The scale, > 0 and a normal float32, and the zero point; scale 1 and zero point 0 for the range `[0, 0]`.

    Raises:
        RecipeError: If the range is not finite or reversed.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise RecipeError(f"A range has to be finite with `low <= high`. Received `[{low}, {high}]`.")
    limits = np.iinfo(dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return 1.0, 0
    scale = float(np.float32((high - low) / (limits.max - limits.min)))
    scale = max(scale, SMALLEST_SCALE)
    zero_point = limits.min - round(low / scale)
    return scale, int(np.clip(zero_point, limits.min, limits.max))


def quantize_array(
    values: Array,
    scale: Array | float,
    zero_point: Array | int,
    dtype: npt.DTypeLike,
    *,
    axis: int | None = None,
    block: int = 0,
) -> Array:
    """Return `saturate(round_half_even(values / scale) + zero_point)` as `dtype`.

    Args:
        values: Real numbers, any shape. Infinities saturate; NaN is not allowed.
        scale: One number, or with `axis` one for each index along it, shape `[C]`, > 0.
        zero_point: Likewise, within `dtype`.
        dtype: Integer type of the result.
        axis: The axis along which scales differ, or None for one scale.
        block: With a number above 0, that many neighbours along `axis` share a scale: `scale` has as many axes as
            `values`, as many entries on `axis` as there are blocks (the last may be shorter), and 1 or as many entries
            as `values` on the others. `zero_point` is then one number.

    Returns:
        Integers of the shape of `values`.

    Source: ONNX operator `QuantizeLinear`, opset 13; with blocks opset 21.
    """
    limits = np.iinfo(dtype)
    scales = _spread(np.asarray(scale, np.float32), values.shape, axis, block)
    zeros = _along(np.asarray(zero_point, np.float64), values.ndim, axis)
    # Overflow to infinity is meant here: it saturates, as it does in every runtime.
    with np.errstate(over="ignore"):
        rounded = np.rint(np.asarray(values, np.float32) / scales)
    # float64 holds every int32 and the sum of two of them exactly; float32 would not.
    integers: Array = np.clip(rounded + zeros, limits.min, limits.max).astype(dtype)
    return integers


def round_trip(values: Array, scale: float, zero_point: int, dtype: npt.DTypeLike) -> npt.NDArray[np.float32]:
    """Return `values` rounded to integers and back, bit by bit as the other two do it, with one array of memory.

    Args:
        values: Real numbers, any shape. Infinities saturate; NaN is not allowed.
        scale: One number, > 0.
        zero_point: One number, within `dtype`.
        dtype: Type of the integers, at most 16 bits wide: their sums are exact in float32.
    """
    limits = np.iinfo(dtype)
    with np.errstate(over="ignore"):
        result = np.divide(np.asarray(values, np.float32), np.float32(scale))
    np.rint(result, out=result)
    # The zero point is taken out of the limits instead of added and subtracted: integers below 2 ** 24 stay exact.
    np.clip(result, np.float32(limits.min - zero_point), np.float32(limits.max - zero_point), out=result)
    return np.multiply(result, np.float32(scale), out=result)


def dequantize_array(
    integers: Array, scale: Array | float, zero_point: Array | int, *, axis: int | None = None, block: int = 0
) -> npt.NDArray[np.float32]:
    """Return `(integers - zero_point) * scale` as float32.

    Args:
        integers: What `quantize_array` gave, any shape.
        scale: One number, or with `axis` one for each index along it, shape `[C]`.
        zero_point: Likewise.
        axis: The axis along which scales differ, or None for one scale.
        block: Neighbours along `axis` that share a scale, or 0; see `quantize_array`.

    Returns:
        Real numbers of the shape of `integers`.

    Source: ONNX operator `DequantizeLinear`, opset 13; with blocks opset 21.
    """
    scales = _spread(np.asarray(scale, np.float32), integers.shape, axis, block)
    zeros = _along(np.asarray(zero_point, np.int64), integers.ndim, axis)
    real: npt.NDArray[np.float32] = (integers.astype(np.int64) - zeros).astype(np.float32) * scales
    return real


def symmetric_scales(weight: Array, *, axis: int | None, bits: int = 8) -> npt.NDArray[np.float32]:
    """Return the scales that map each channel's largest magnitude onto the largest signed `bits`-bit integer.

    The most negative integer is left unused, so that the integers are symmetric around zero (LiteRT 8-bit
    quantization specification, "Symmetric vs asymmetric").

    Args:
        weight: Weights, any shape, finite.
        axis: The axis of the output channels, or None for one scale for all.
        bits: Width of the integers, 2 to 8. With 7 they stay within +-63, so that a sum of two products with 8-bit
            activations cannot saturate 16 bits on processors without a dot-product instruction.

    Returns:
        Scales > 0, shape `[C]`, or `[]` without `axis`. A channel so small that its scale would not be a normal
        float32 gets scale 1: its integers are zero, and nothing divides by zero.

    Raises:
        RecipeError: If `bits` is out of range.
    """
    if not 2 <= bits <= 8:
        raise RecipeError(f"Weights have to have 2 to 8 bits. Received `bits={bits}`.")
    largest = 2 ** (bits - 1) - 1
    others = None if axis is None else tuple(k for k in range(weight.ndim) if k != axis % weight.ndim)
    magnitude = np.max(np.abs(weight), axis=others, initial=0.0).astype(np.float64)
    scales = (magnitude / largest).astype(np.float32)
    return np.where(scales < SMALLEST_SCALE, np.float32(1.0), scales).astype(np.float32)


def least_squares_scales(weight: Array, *, axis: int | None, bits: int = 8) -> npt.NDArray[np.float32]:
    """Return the scales of at most `symmetric_scales` that minimise each channel's squared rounding error.

    Sixteen clipping thresholds between the largest magnitude and a share of it (0.7 with 8 bits, less with fewer) are
    tried; 1 is one of them, so that the error is never larger than without clipping. (Nahshan et al. 2021, "Loss Aware
    Post-training Quantization", start from the minimum of the same kind of objective.) With fewer than 7 bits, the best
    of them is then refitted in turns with the integers: for given integers `q`, the scale `<w, q> / <q, q>` is the
    least-squares one.

    Args:
        weight: Weights, any shape, finite.
        axis: The axis of the output channels, or None for one scale for all.
        bits: Width of the integers, 2 to 8.

    Returns:
        Scales > 0, shape `[C]`, or `[]` without `axis`.

    Raises:
        RecipeError: If `bits` is out of range.
    """
    weight = np.asarray(weight, np.float32)
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    scales = _row_scales(rows, bits)
    return scales.reshape(()) if axis is None else scales


def block_scales(
    weight: Array, *, axis: int, block: int, shared: tuple[int, ...] = (), bits: int = 8
) -> npt.NDArray[np.float32]:
    """Return the scales of blocks of weights that minimise each block's squared rounding error.

    They are found as `least_squares_scales` finds those of channels.

    Args:
        weight: Weights, any shape, finite.
        axis: The axis of the input channels, which is cut into blocks.
        block: Length of a block, >= 1; the last one may be shorter.
        shared: Axes along which all weights of a block share its scale as well: those of a kernel.
        bits: Width of the integers, 2 to 8.

    Returns:
        Scales > 0, with the axes of `weight`: as many entries on `axis` as there are blocks, one on each of `shared`.

    Raises:
        RecipeError: If `bits` is out of range.
    """
    weight, axis = np.asarray(weight, np.float32), axis % weight.ndim
    count = -(-weight.shape[axis] // block)
    # Zeros change neither the largest magnitude nor the error.
    padding = [(0, count * block - weight.shape[axis] if k == axis else 0) for k in range(weight.ndim)]
    parts = np.pad(weight, padding).reshape(*weight.shape[:axis], count, block, *weight.shape[axis + 1 :])
    inner = [axis + 1, *(k + (k > axis) for k in shared)]
    parts = np.moveaxis(parts, inner, range(-len(inner), 0))
    outer = parts.shape[: -len(inner)]
    scales = _row_scales(parts.reshape(int(np.prod(outer)), -1), bits).reshape(outer)
    return np.expand_dims(scales, tuple(shared))


def _row_scales(rows: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    """Return the scale of each row of `[R, K]` that `least_squares_scales` chooses, shape `[R]`."""
    best = np.atleast_1d(symmetric_scales(rows, axis=0, bits=bits))
    largest = np.float32(2 ** (bits - 1) - 1)
    # A few rows at a time: temporaries stay small however large the layer is.
    step = max(1, _ROUNDING_BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        best[part] = _searched(rows[part], best[part], largest, bits)
    return best


def _searched(
    rows: npt.NDArray[np.float32], whole: npt.NDArray[np.float32], largest: np.float32, bits: int
) -> npt.NDArray[np.float32]:
    best, least = whole.copy(), np.full(len(rows), np.inf)

    def offer(scales: npt.NDArray[np.float32]) -> None:
        with np.errstate(over="ignore"):  # an infinite error is no better than any other
            error = np.square(rows - _rounded(rows, scales, largest) * scales[:, None]).sum(axis=1, dtype=np.float64)
        better = error < least
        least[better], best[better] = error[better], scales[better]

    for fraction in np.linspace(1.0, _LOWEST_THRESHOLD[bits], _THRESHOLDS):
        offer(np.maximum(whole * np.float32(fraction), np.float32(SMALLEST_SCALE)))
    for _ in range(_REFITS if bits < 7 else 0):
        integers = _rounded(rows, best, largest)
        energy = np.square(integers).sum(axis=1)
        fitted = (rows * integers).sum(axis=1) / np.maximum(energy, 1)
        offer(np.clip(fitted, np.float32(SMALLEST_SCALE), whole))
    return best


def _rounded(
    rows: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], largest: np.float32
) -> npt.NDArray[np.float32]:
    integers: npt.NDArray[np.float32] = np.clip(np.rint(rows / scales[:, None]), -largest, largest)
    return integers


def _spread(scales: Array, shape: tuple[int, ...], axis: int | None, block: int) -> Array:
    """Return `scales` so that they broadcast with an array of `shape`."""
    if axis is None or not block:
        return _along(scales, len(shape), axis)
    return np.repeat(scales, block, axis=axis).take(range(shape[axis]), axis=axis)


def _along(values: Array, ndim: int, axis: int | None) -> Array:
    """Return `values` so that it broadcasts along `axis` of an array with `ndim` axes."""
    if axis is None or values.ndim == 0:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)
