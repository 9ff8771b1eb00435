"""What a backend's kernels do exactly, as far as plans must know it. Backends describe it, plans read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where 8-bit graphs run fast and exactly on one backend and one machine.

    Attributes:
        backend: Name of the backend.
        activation_type: Element type of quantized activations that the fast kernels take.
        exact_product_bits: Weight bits up to which 8-bit products are summed without saturation: 8, or 7 where pairs
            of products saturate in 16 bits. The backend finds out by running (`backends/saturation.py`).
        quantized_operators: Operators that have an 8-bit kernel. For each of them Q/DQ pairs go on every input,
            and on the output where the output is read by another of them.
        same_range_operators: Operators whose 8-bit kernel needs the output to have the range of its inputs.
        float_types: Types of floating-point arithmetic that the machine does natively.
        width_steps: Channel counts are fast at multiples of this number.
        float_output_operators: Operators of `quantized_operators` whose 8-bit kernel can also give float32. The output
            of any other gets a Q/DQ pair even where only float operators read it: without, its kernel would be float.
        exact_product_source: How `exact_product_bits` is known: `measured`, or why it was not.
        stored_weight_bits: Widths in which its files can hold integer weights that are dequantized again.
    """

    backend: str
    activation_type: Literal["uint8", "int8"]
    exact_product_bits: int
    quantized_operators: frozenset[str]
    same_range_operators: frozenset[str]
    float_types: tuple[str, ...]
    width_steps: int
    float_output_operators: frozenset[str] = frozenset()
    exact_product_source: str = ""
    stored_weight_bits: frozenset[int] = frozenset({4, 8})
