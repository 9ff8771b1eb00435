"""What OpenVINO's 8-bit kernels do, for plans to read."""

from __future__ import annotations

from edgewise.analysis.target import Target
from edgewise.backends.processor import exact_product_bits, features, is_x86

QUANTIZED: frozenset[str] = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def describe(precisions: tuple[str, ...]) -> Target:
    """Return the target; `precisions` are the values of `RunOptions.precision` that the backend honours."""
    x86 = is_x86()
    return Target(
        backend="openvino",
        activation_type="uint8" if x86 else "int8",
        exact_product_bits=exact_product_bits(features(), x86=x86),
        quantized_operators=QUANTIZED,
        same_range_operators=frozenset(),
        float_types=("float32", "bfloat16") if "bf16" in precisions else ("float32",),
        width_steps=16 if x86 else 8,
        float_output_operators=QUANTIZED,
        fuses_residual_add=True,
    )
