"""Numbers with units, as people type them: `1%`, `10m`, `5ms`, `2MB`, `OUT=IN`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from edgewise.errors import RecipeError

_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_MICROSECONDS: Final = {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}
# Storage is counted in powers of ten where the unit says so, and in powers of two where it has an `i` (IEC 80000-13).
_BYTES: Final = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _number_and_unit(text: str, flag: str, units: Mapping[str, float], example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµ]*)\s*", text)
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in units:
        known = ", ".join(f"`{name}`" for name in units)
        raise RecipeError(
            f"`{flag}` has to be a number with one of the units {known}. Received `{text}`.",
            hint=f"For example `{flag} {example}`.",
        )
    return float(match.group(1)) * units[unit]


def seconds(text: str, flag: str = "--budget") -> float:
    """Return the seconds that `text` says: `90s`, `10m`, `1h`.

    Raises:
        RecipeError: If it is not a number with such a unit.
    """
    return _number_and_unit(text, flag, _SECONDS, "10m")


def microseconds(text: str, flag: str = "--max-latency") -> float:
    """Return the microseconds that `text` says: `800us`, `5ms`.

    Raises:
        RecipeError: If it is not a number with such a unit.
    """
    return _number_and_unit(text, flag, _MICROSECONDS, "5ms")


def size_bytes(text: str, flag: str = "--max-size") -> int:
    """Return the bytes that `text` says: `900kB`, `2MB`, `1MiB`.

    Raises:
        RecipeError: If it is not a number with such a unit.
    """
    return round(_number_and_unit(text, flag, _BYTES, "2MB"))


def fraction(text: str, flag: str = "--max-drop") -> float:
    """Return the fraction that `text` says: `1%` and `0.01` are the same.

    Raises:
        RecipeError: If it is not a number above 0 and below 1.
    """
    stripped = text.strip()
    try:
        found = float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
    except ValueError as error:
        raise RecipeError(
            f"`{flag}` has to be a number or a percentage. Received `{text}`.", hint=f"For example `{flag} 1%`."
        ) from error
    if not 0 < found < 1:
        raise RecipeError(
            f"`{flag}` has to be above 0 and below 100 %. Received `{text}`.",
            hint=f"For example `{flag} 1%`, which is 0.01.",
        )
    return found


def pairs(texts: Sequence[str], flag: str) -> dict[str, str]:
    """Return `A=B` texts as a mapping.

    Raises:
        RecipeError: If one has no `=`, nothing on one side of it, or a name twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        left, equals, right = (part.strip() for part in text.partition("="))
        if not (left and equals and right):
            raise RecipeError(
                f"`{flag}` has to be `OUTPUT=INPUT`. Received `{text}`.",
                hint="Name the output, then the input that takes it at the next step.",
            )
        if left in found:
            raise RecipeError(f"`{flag}` has to name an output once. Received `{left}` twice.", hint="Leave one out.")
        found[left] = right
    return found
