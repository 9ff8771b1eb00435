"""Processor flags and what follows from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.backends.processor import exact_product_bits, features, has_bfloat16, is_x86


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx2 avx512_vnni", "Features\t: fpu avx2 avx512_vnni"])
def test_flags_of_the_first_processor_are_read(tmp_path: Path, line: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n\nprocessor : 1\nflags : other\n")
    assert features(tmp_path / "cpuinfo") == frozenset({"fpu", "avx2", "avx512_vnni"})


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path: Path) -> None:
    assert features(tmp_path / "absent") is None
    (tmp_path / "other").write_text("something else\n")
    assert features(tmp_path / "other") is None
    assert exact_product_bits(None, x86=True) == 7
    assert not has_bfloat16(None)


@pytest.mark.parametrize(
    ("flags", "x86", "bits"),
    [({"avx2"}, True, 7), ({"avx2", "avx_vnni"}, True, 8), ({"avx512_vnni"}, True, 8), ({"asimd"}, False, 8)],
)
def test_exact_bits(flags: set[str], x86: bool, bits: int) -> None:
    assert exact_product_bits(frozenset(flags), x86=x86) == bits


def test_seven_bits_cannot_saturate_a_pair() -> None:
    assert 2 * 255 * 64 <= np.iinfo(np.int16).max < 2 * 255 * 128


@pytest.mark.parametrize(("flag", "expected"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)])
def test_bfloat16(flag: str, expected: bool) -> None:
    assert has_bfloat16(frozenset({flag})) is expected


@pytest.mark.parametrize(("machine", "expected"), [("x86_64", True), ("AMD64", True), ("aarch64", False)])
def test_architecture(machine: str, expected: bool) -> None:
    assert is_x86(machine) is expected
