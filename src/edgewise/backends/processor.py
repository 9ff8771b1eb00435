"""What the processor can do, as far as it decides about 8-bit and bfloat16 kernels. Standard library only."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

_FLAG_LINES = re.compile(r"^(?:flags|Features)\s*:\s*(.*)$", re.MULTILINE)

_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})
"""x86 instructions that sum 8-bit products in 32 bits. Without them `vpmaddubsw` adds pairs in 16 bits, saturating
(Intel 64 and IA-32 manual, vol. 2, PMADDUBSW)."""

_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Multiplication of bfloat16 in hardware; `bf16` is Arm's (FEAT_BF16)."""


@functools.cache
def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Return the feature flags of the first processor as Linux names them, or None where they cannot be read.

    All processors of a machine are taken to be alike; on big.LITTLE systems Linux lists what all have.
    """
    try:
        match = _FLAG_LINES.search(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return None if match is None else frozenset(match.group(1).split())


def is_x86(machine: str | None = None) -> bool:
    """Return whether `machine` (this one by default) is an x86 processor."""
    return (machine or platform.machine()).lower() in {"x86_64", "amd64", "i386", "i686", "x86"}


def exact_product_bits(flags: frozenset[str] | None, *, x86: bool) -> int:
    """Return the weight bits up to which 8-bit kernels sum products exactly: 8 or 7.

    x86 without a dot-product instruction saturates in pairs, which 7-bit weights avoid: 2 x 255 x 64 < 2**15. Arm
    kernels widen to 16 bits before each product is added to 32, so they are exact. Where nothing can be read: 7.
    """
    if not x86:
        return 8
    return 8 if flags is not None and flags & _DOT_PRODUCTS else 7


def has_bfloat16(flags: frozenset[str] | None) -> bool:
    """Return whether bfloat16 products are done in hardware; where nothing can be read, False."""
    return flags is not None and bool(flags & _BFLOAT16)
