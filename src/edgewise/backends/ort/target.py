"""What ONNX Runtime's 8-bit kernels do, for plans to read."""

from __future__ import annotations

from edgewise.analysis.target import Target
from edgewise.backends.processor import exact_product_bits, features, is_x86

QUANTIZED: frozenset[str] = frozenset({"Conv", "Gemm", "MatMul", "Add", "Mul"})


def describe() -> Target:
    """Return the target."""
    x86 = is_x86()
    return Target(
        backend="ort",
        activation_type="uint8" if x86 else "int8",
        exact_product_bits=exact_product_bits(features(), x86=x86),
        quantized_operators=QUANTIZED,
        same_range_operators=frozenset(),
        float_types=("float32",),
        width_steps=16 if x86 else 8,
    )
