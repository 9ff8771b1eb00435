"""What OpenVINO's 8-bit kernels do, for plans to read."""

from __future__ import annotations

from typing import Final

from edgewise.analysis.target import Target
from edgewise.backends.processor import exact_product_bits, features, is_x86

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
"""Operators that move or select values: in 8 bits they are exact when input and output share one range."""

GIVES_FLOAT: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool"})
"""Operators whose 8-bit kernel can write float32."""

QUANTIZED: Final = GIVES_FLOAT | MOVES | {"Concat"}


def describe(precisions: tuple[str, ...]) -> Target:
    """Return the target; `precisions` are the values of `RunOptions.precision` that the backend honours."""
    x86 = is_x86()
    return Target(
        backend="openvino",
        activation_type="uint8" if x86 else "int8",
        exact_product_bits=exact_product_bits(features(), x86=x86),
        quantized_operators=QUANTIZED,
        same_range_operators=MOVES | {"Concat"},
        float_types=("float32", "bfloat16") if "bf16" in precisions else ("float32",),
        width_steps=16 if x86 else 8,
        float_output_operators=GIVES_FLOAT,
    )
