"""How `edgewise inspect` groups what was declined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Bench, Said

from edgewise.cli.declines import grouped
from edgewise.cli.inspect import _backend
from edgewise.compress.quantize.reasons import write_reasons
from edgewise.formats.onnx import save
from edgewise.pipeline.inspect import BackendView
from edgewise.records.findings import Decline
from edgewise.testing.graphs import mlp, quantized_conv


def decline(node: str, reason: str) -> Decline:
    """Return the decline of an Add."""
    return Decline(stage="quantize", node=node, operator="Add", reason=reason)


DECLINES = [decline("a", "its input `x` is float"), decline("b", "one operand is constant")]
DECLINES += [decline("c", "its input `y` is float"), decline("d", "its input `y` is float")]


def test_one_line_a_reason_whatever_it_names() -> None:
    assert grouped(DECLINES, verbose=False) == (
        "  3x Add: its input `y` is float, and likewise\n  1x Add: one operand is constant"
    )


def test_one_line_a_node_when_asked() -> None:
    lines = grouped(DECLINES, verbose=True).splitlines()
    assert lines[0] == "  a (Add): its input `x` is float"
    assert len(lines) == 4


def test_shapes_that_are_asked_for(bench: Bench, edgewise: Callable[..., Said]) -> None:
    said = edgewise("inspect", bench.model, "--shape", "image=2,3,16,16")
    assert said.code == 0
    assert "image float32 [2, 3, 16, 16]" in said.out


def test_reasons_that_two_backends_share_are_listed_once() -> None:
    views = [BackendView(backend=name, state="runs", floats=tuple(DECLINES)) for name in ("ort", "openvino")]
    assert _backend(views[1], views[:1], verbose=True).splitlines() == [
        "openvino: runs",
        "  int8: 0 nodes",
        "  float: 4 nodes, as in ort",
    ]
    other = BackendView(backend="openvino", state="runs", floats=tuple(DECLINES[:1]))
    assert "a (Add)" in _backend(other, views[:1], verbose=True)


def test_what_stayed_float_when_the_model_was_quantized_is_shown(tmp_path: Path, edgewise: Callable[..., Said]) -> None:
    model = mlp()
    write_reasons(model, DECLINES)
    save(model, tmp_path / "m.onnx")
    assert (
        "when it was quantized:\n  3x Add: its input `y` is float, and likewise"
        in edgewise("inspect", tmp_path / "m.onnx").out
    )


def test_what_can_be_pruned(tmp_path: Path, edgewise: Callable[..., Said]) -> None:
    save(mlp(), tmp_path / "m.onnx")
    said = edgewise("inspect", tmp_path / "m.onnx").out
    section = said.partition("prunable:\n")[2].partition("\n\n")[0].splitlines()
    assert section[0].startswith("  units: ")
    assert section[1].startswith("  layers: ")
    assert section[2].startswith("  pinned: ")
    assert "compares them with each other" in section[-1]
    verbose = edgewise("inspect", tmp_path / "m.onnx", "--verbose").out
    assert " units, made by " in verbose


def test_of_a_quantized_model_nothing_is_pruned(tmp_path: Path, edgewise: Callable[..., Said]) -> None:
    save(quantized_conv(), tmp_path / "m.onnx")
    said = edgewise("inspect", tmp_path / "m.onnx").out
    assert "\nprunable: nothing of this model, because it is quantized already; prune the float one\n" in said


def test_what_was_declined_when_it_was_pruned_is_shown_apart(tmp_path: Path, edgewise: Callable[..., Said]) -> None:
    model = mlp()
    write_reasons(model, [Decline(stage="prune_neurons", node="a", operator="Gemm", reason="too few"), *DECLINES])
    save(model, tmp_path / "m.onnx")
    said = edgewise("inspect", tmp_path / "m.onnx").out
    assert "declined when it was pruned:\n  1x Gemm: too few\n" in said
    assert "when it was quantized:\n  3x Add" in said
