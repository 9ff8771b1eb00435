"""Bias correction: rounding weights shifts the mean of a layer's output; the bias takes the shift back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.nodes import Weighted, attribute
from edgewise.compress.quantize import affine
from edgewise.records.tensors import Array


def weight_error_shift(
    node: ir.Node, operands: Weighted, weight: Array, scales: Array, means: npt.NDArray[np.floating[Any]], *, bits: int
) -> npt.NDArray[np.float64] | None:
    """Return by how much rounding the weights lowers the mean of each output channel of `node`.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with the
    observed means of the inputs in place of those that batch normalization implies. Closed form, one layer at a time:
    no layer's correction depends on another's. Padding is left out of account (a border sees fewer inputs).

    Args:
        node: A Conv or Gemm.
        operands: Its operands.
        weight: Its weights.
        scales: The scales of the weights, one for each index on `operands.axis`, or a single one.
        means: Mean of each input channel, shape `[C]`.
        bits: Width of the integers.

    Returns:
        The shift of each output channel, shape `[M]`, to be added to the bias; None for operators that it is not
        defined for here.
    """
    largest = 2 ** (bits - 1) - 1
    integers = np.clip(affine.quantize_array(weight, scales, 0, np.int8, axis=operands.axis), -largest, largest)
    return lost_means(node, operands, weight - affine.dequantize_array(integers, scales, 0, axis=operands.axis), means)


def lost_means(
    node: ir.Node, operands: Weighted, lost: Array, means: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float64] | None:
    """Return the mean of each output channel of `node` that its weights lose with `lost`, which was taken from them.

    Args:
        node: A Conv or Gemm.
        operands: Its operands.
        lost: The weights minus those that take their place, float32.
        means: Mean of each input channel, shape `[C]`.

    Returns:
        What is to be added to the bias, shape `[M]`; None for other operators.
    """
    if node.op_type == "Gemm":
        matrix = lost if operands.axis == 0 else lost.T
        return _product(matrix, means)
    if node.op_type != "Conv":
        return None
    groups = int(attribute(node, "group", 1))
    kernel = lost.reshape(groups, lost.shape[0] // groups, lost.shape[1], -1).sum(axis=-1, dtype=np.float64)
    shift: npt.NDArray[np.float64] = np.einsum("gmc,gc->gm", kernel, means.reshape(groups, -1)).reshape(-1)
    return shift


def _product(matrix: Array, means: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    product: npt.NDArray[np.float64] = matrix.astype(np.float64) @ means.astype(np.float64)
    return product
