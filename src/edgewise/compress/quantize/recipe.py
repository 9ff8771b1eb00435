"""Names of quantization schemes, parsed and printed in one place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from edgewise.errors import RecipeError

WEIGHT_BITS: Final = (8, 6, 4, 3, 2)

ACTIVATION_BITS: Final = (8, 16)

GROUP_SIZES: Final = (16, 32, 64, 128, 256)
"""Input channels that may share a scale: what kernels with such scales take (`MatMulNBits`: powers of two from 16)."""

_NAME: Final = re.compile(r"w([1-9]\d*)(?:g([1-9]\d*))?(?:a([1-9]\d*))?")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Widths of weights and activations.

    Attributes:
        weight_bits: Bits of a weight, one of `WEIGHT_BITS`; symmetric.
        activation_bits: Bits of an activation, one of `ACTIVATION_BITS`, one scale for each tensor; None for float
            activations: integers are then no more than how weights are stored.
        group: Input channels of an output channel that share a scale, one of `GROUP_SIZES`; 0 for one scale for all.
    """

    weight_bits: int
    activation_bits: int | None = None
    group: int = 0

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """Return the scheme `name`: `w8a8`, `w4a16`, `w4` (weights alone) or `w4g32` (a scale for 32 input channels).

        Raises:
            RecipeError: If it is no name of a scheme, or one that no runtime computes.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise RecipeError(
                f"A quantization scheme has to look like `w8a8`, `w4` or `w4g32`. Received `{name}`.",
                hint=f"Weights (w) have {_listed(WEIGHT_BITS)} bits, activations (a) {_listed(ACTIVATION_BITS)}, or "
                f"none for weights alone; groups (g) have {_listed(GROUP_SIZES)} input channels.",
            )
        weights, group, activations = (None if part is None else int(part) for part in match.groups())
        _check("Weights", "bits", weights, WEIGHT_BITS, name)
        _check("Activations", "bits", activations, ACTIVATION_BITS, name)
        _check("Groups", "input channels", group, GROUP_SIZES, name)
        if group and activations:
            raise RecipeError(
                f"Groups of weights need float activations: integer kernels add up all the inputs of an output before "
                f"they multiply with its scale, so that none takes a scale for each group. Received `{name}`.",
                hint=f"Use `w{weights}a{activations}`, or `w{weights}g{group}` for weights alone.",
            )
        return cls(weight_bits=weights or 0, activation_bits=activations, group=group or 0)

    @property
    def is_weight_only(self) -> bool:
        """Whether activations stay float."""
        return self.activation_bits is None

    def __str__(self) -> str:
        group = f"g{self.group}" if self.group else ""
        activations = "" if self.activation_bits is None else f"a{self.activation_bits}"
        return f"w{self.weight_bits}{group}{activations}"


def _check(what: str, unit: str, received: int | None, allowed: Iterable[int], name: str) -> None:
    if received is not None and received not in allowed:
        raise RecipeError(f"{what} have to have {_listed(allowed)} {unit}. Received `{name}`.")


def _listed(numbers: Iterable[int]) -> str:
    *first, last = map(str, sorted(numbers))
    return f"{', '.join(first)} or {last}"
