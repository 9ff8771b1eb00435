"""How `edgewise inspect` groups what was declined."""

from __future__ import annotations

from collections.abc import Callable

from tests.cli.conftest import Bench, Said

from edgewise.cli.inspect import _declines
from edgewise.records.findings import Decline


def decline(node: str, reason: str) -> Decline:
    """Return the decline of an Add."""
    return Decline(stage="quantize", node=node, operator="Add", reason=reason)


DECLINES = [decline("a", "its input `x` is float"), decline("b", "one operand is constant")]
DECLINES += [decline("c", "its input `y` is float"), decline("d", "its input `y` is float")]


def test_one_line_a_reason_whatever_it_names() -> None:
    assert _declines(DECLINES, verbose=False) == (
        "  3x Add: its input `y` is float, and likewise\n  1x Add: one operand is constant"
    )


def test_one_line_a_node_when_asked() -> None:
    lines = _declines(DECLINES, verbose=True).splitlines()
    assert lines[0] == "  a (Add): its input `x` is float"
    assert len(lines) == 4


def test_shapes_that_are_asked_for(bench: Bench, edgewise: Callable[..., Said]) -> None:
    said = edgewise("inspect", bench.model, "--shape", "image=2,3,16,16")
    assert said.code == 0
    assert "image float32 [2, 3, 16, 16]" in said.out
