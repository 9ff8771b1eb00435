"""The ONNX operator Resize in PyTorch: along each axis a weighted sum of at most four neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewise.formats.torch_layers import Call
from edgewise.formats.torch_missing import missing

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise missing() from error

Tensor: TypeAlias = "torch.Tensor"
Floats: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

_PLACES: Final = frozenset({"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"})


def why_not_resize(call: Call) -> str | None:
    """Return why a Resize is refused."""
    if (place := call.get("coordinate_transformation_mode", "half_pixel")) not in _PLACES:
        return f"its coordinate_transformation_mode `{place}` is not supported"
    if call.get("antialias", 0):
        return "it smooths before it makes smaller (antialias)"
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the aspect ratio"
    return None


def resize(
    call: Call, x: Tensor, _: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Resize `x` by `scales` or to `sizes`, of all axes or of those that `axes` names.

    Source: the formulas of the ONNX standard, operator Resize, version 19.
    """
    axes = [axis % x.dim() for axis in call.get("axes", range(x.dim()))]
    if sizes is not None and sizes.numel():
        wanted = [int(n) for n in sizes.tolist()]
        factors = [n / x.shape[axis] for n, axis in zip(wanted, axes, strict=True)]
    else:
        factors = [] if scales is None else [float(factor) for factor in scales.tolist()]
        wanted = [int(np.floor(x.shape[axis] * factor)) for axis, factor in zip(axes, factors, strict=True)]
    for axis, n, factor in zip(axes, wanted, factors, strict=True):
        if n != x.shape[axis] or factor != 1:
            x = _along(x, axis, *_neighbours(call, x.shape[axis], n, factor))
    return x


def _along(x: Tensor, axis: int, indices: Indices, weights: Floats) -> Tensor:
    """Return the sum over `k` of `weights[k] * x[indices[k]]` along one axis."""
    shape = [-1 if k == axis else 1 for k in range(x.dim())]
    total: Tensor | None = None
    for index, weight in zip(indices, weights, strict=True):
        taken = x.index_select(axis, torch.from_numpy(index).to(x.device))
        if not np.all(weight == 1):
            taken = taken * torch.from_numpy(weight).to(x.device, x.dtype).reshape(shape)
        total = taken if total is None else total + taken
    return total


def _neighbours(call: Call, size: int, wanted: int, factor: float) -> tuple[Indices, Floats]:
    """Return for each of K neighbours and each of `wanted` places its index and weight, shapes `[K, wanted]`."""
    at = _places(call, size, wanted, factor)
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        found = _rounded(call.get("nearest_mode", "round_prefer_floor"), at)
        return np.clip(found, 0, size - 1)[None], np.ones((1, wanted))
    base = np.floor(at)
    part = at - base
    if mode == "linear":
        offsets: Sequence[int] = (0, 1)
        weights = np.stack([1 - part, part])
    else:
        offsets = (-1, 0, 1, 2)
        weights = _cubic(part, call.get("cubic_coeff_a", -0.75))
    indices = np.stack([base.astype(np.int64) + offset for offset in offsets])
    if call.get("exclude_outside", 0):
        weights = np.where((indices >= 0) & (indices < size), weights, 0)
        weights = weights / weights.sum(axis=0)
    return np.clip(indices, 0, size - 1), weights


def _places(call: Call, size: int, wanted: int, factor: float) -> Floats:
    """Return where each output place lies in the input."""
    x = np.arange(wanted, dtype=np.float64)
    place = call.get("coordinate_transformation_mode", "half_pixel")
    if place == "asymmetric":
        return x / factor
    if place == "align_corners":
        return x * (size - 1) / (wanted - 1) if wanted > 1 else 0 * x
    if place == "pytorch_half_pixel" and wanted == 1:
        return 0 * x
    # Where the output has not exactly the size that the factor makes, `half_pixel_symmetric` centres its places.
    offset = size / 2 * (1 - wanted / (factor * size)) if place == "half_pixel_symmetric" else 0.0
    return offset + (x + 0.5) / factor - 0.5


def _rounded(mode: str, at: Floats) -> Indices:
    if mode == "floor":
        return np.floor(at).astype(np.int64)
    if mode == "ceil":
        return np.ceil(at).astype(np.int64)
    if mode == "round_prefer_ceil":
        return np.floor(at + 0.5).astype(np.int64)
    return np.ceil(at - 0.5).astype(np.int64)


def _cubic(part: Floats, a: float) -> Floats:
    """Return the weights of the four neighbours at distances 1 + part, part, 1 - part and 2 - part.

    Source: Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", equation 4, with its a free.
    """

    def near(d: Floats) -> Floats:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Floats) -> Floats:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return np.stack([far(1 + part), near(part), near(1 - part), far(2 - part)])
