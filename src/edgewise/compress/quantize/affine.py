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
    values: Array, scale: Array | float, zero_point: Array | int, dtype: npt.DTypeLike, *, axis: int | None = None
) -> Array:
    """Return `saturate(round_half_even(values / scale) + zero_point)` as `dtype`.

    Args:
        values: Real numbers, any shape. Infinities saturate; NaN is not allowed.
        scale: One number, or with `axis` one for each index along it, shape `[C]`, > 0.
        zero_point: Likewise, within `dtype`.
        dtype: Integer type of the result.
        axis: The axis along which scales differ, or None for one scale.

    Returns:
        Integers of the shape of `values`.

    Source: ONNX operator `QuantizeLinear`, opset 13.
    """
    limits = np.iinfo(dtype)
    scales = _along(np.asarray(scale, np.float32), values.ndim, axis)
    zeros = _along(np.asarray(zero_point, np.float64), values.ndim, axis)
    # Overflow to infinity is meant here: it saturates, as it does in every runtime.
    with np.errstate(over="ignore"):
        rounded = np.rint(np.asarray(values, np.float32) / scales)
    # float64 holds every int32 and the sum of two of them exactly; float32 would not.
    integers: Array = np.clip(rounded + zeros, limits.min, limits.max).astype(dtype)
    return integers


def dequantize_array(
    integers: Array, scale: Array | float, zero_point: Array | int, *, axis: int | None = None
) -> npt.NDArray[np.float32]:
    """Return `(integers - zero_point) * scale` as float32.

    Args:
        integers: What `quantize_array` gave, any shape.
        scale: One number, or with `axis` one for each index along it, shape `[C]`.
        zero_point: Likewise.
        axis: The axis along which scales differ, or None for one scale.

    Returns:
        Real numbers of the shape of `integers`.

    Source: ONNX operator `DequantizeLinear`, opset 13.
    """
    scales = _along(np.asarray(scale, np.float32), integers.ndim, axis)
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

    Sixteen clipping thresholds between 0.7 and 1 times the largest magnitude are tried; 1 is one of them, so that the
    error is never larger than without clipping. (Nahshan et al. 2021, "Loss Aware Post-training Quantization",
    start from the minimum of the same kind of objective.)

    Args:
        weight: Weights, any shape, finite.
        axis: The axis of the output channels, or None for one scale for all.
        bits: Width of the integers, 2 to 8.

    Returns:
        Scales > 0, shape `[C]`, or `[]` without `axis`.

    Raises:
        RecipeError: If `bits` is out of range.
    """
    full = symmetric_scales(weight, axis=axis, bits=bits)
    if axis is None:
        rows = np.asarray(weight, np.float32).reshape(1, -1)
    else:
        rows = np.moveaxis(np.asarray(weight, np.float32), axis, 0).reshape(weight.shape[axis], -1)
    largest = np.float32(2 ** (bits - 1) - 1)
    best = np.atleast_1d(full).copy()
    # A few rows at a time: temporaries stay small however large the layer is.
    step = max(1, _ROUNDING_BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        block, whole = rows[part], best[part].copy()
        least = np.full(len(block), np.inf)
        for fraction in np.linspace(1.0, 0.7, 16):
            scales = np.maximum(whole * np.float32(fraction), np.float32(SMALLEST_SCALE))
            integers = np.clip(np.rint(block / scales[:, None]), -largest, largest)
            error = np.square(block - integers * scales[:, None]).sum(axis=1, dtype=np.float64)
            better = error < least
            least = np.where(better, error, least)
            best[part] = np.where(better, scales, best[part])
    return best.reshape(full.shape)


def _along(values: Array, ndim: int, axis: int | None) -> Array:
    """Return `values` so that it broadcasts along `axis` of an array with `ndim` axes."""
    if axis is None or values.ndim == 0:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)
