"""What ONNX Runtime's 8-bit kernels do, for plans to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgewise.analysis.target import Target
from edgewise.backends.processor import is_x86
from edgewise.backends.saturation import ActivationType, exactness

if TYPE_CHECKING:
    from edgewise.backends.protocol import Backend

MOVES: Final = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Gather",
        "Resize",
        "Pad",
        "Split",
        "Identity",
    }
)
"""Operators that move or select values: ONNX Runtime drops the Q/DQ pairs around them when both have one range."""

GIVES_FLOAT: Final = frozenset({"Gemm", "MatMul"})
"""Operators whose 8-bit kernel can write float32: QGemm, MatMulIntegerToFloat. Others need a Q/DQ pair behind."""

QUANTIZED: Final = GIVES_FLOAT | MOVES | {"Conv", "Add", "AveragePool", "GlobalAveragePool", "Concat"}


def describe(backend: Backend) -> Target:
    """Return the target; `backend` runs the probe that finds out where sums saturate."""
    x86 = is_x86()
    activation_type: ActivationType = "uint8" if x86 else "int8"
    exact = exactness(backend, activation_type)
    return Target(
        backend="ort",
        activation_type=activation_type,
        exact_product_bits=exact.bits,
        exact_product_source=exact.source,
        quantized_operators=QUANTIZED,
        same_range_operators=MOVES | {"Concat"},
        float_types=("float32",),
        width_steps=16 if x86 else 8,
        float_output_operators=GIVES_FLOAT,
        stored_weight_bits=frozenset({2, 4, 8}),
    )
