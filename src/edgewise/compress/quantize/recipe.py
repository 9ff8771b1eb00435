"""Names of quantization schemes, parsed and printed in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgewise.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Widths of weights and activations.

    Attributes:
        weight_bits: Bits of a weight; symmetric, one scale for each output channel.
        activation_bits: Bits of an activation; one scale for each tensor.
    """

    weight_bits: int
    activation_bits: int

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """Return the scheme `name`, for example `w8a8`.

        Raises:
            RecipeError: If it is no name of a scheme, or one that cannot be made yet.
        """
        match = re.fullmatch(r"w(\d+)a(\d+)", name)
        if match is None:
            raise RecipeError(f"A quantization scheme has to look like `w8a8`. Received `{name}`.")
        scheme = cls(weight_bits=int(match[1]), activation_bits=int(match[2]))
        if (scheme.weight_bits, scheme.activation_bits) != (8, 8):
            raise RecipeError(f"Weights and activations have to have 8 bits. Received `{name}`.", hint="Use `w8a8`.")
        return scheme

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"
