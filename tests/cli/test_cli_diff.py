"""What `edgewise diff` says of a quantized model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.cli.conftest import Said

from edgewise.cli.diff import render
from edgewise.formats.onnx import save
from edgewise.pipeline.diff import Difference
from edgewise.testing.graphs import GraphBuilder


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a model of two Gemms and a MatMul, the same with 8-bit Gemms (one far too coarse), and samples."""
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal((8, 8)).astype(np.float32) for name in ("fine", "coarse")}
    for path, quantized in ((tmp_path / "a.onnx", False), (tmp_path / "b.onnx", True)):
        b = GraphBuilder("gemms")
        value = b.input("x", (1, 8))
        for name, weight in weights.items():
            held = b.constant(weight, f"{name}_weight")
            if quantized:
                scale = np.float32(np.abs(weight).max() / (127 if name == "fine" else 1))
                stored = b.constant(np.rint(weight / scale).astype(np.int8))
                held = b.node("DequantizeLinear", stored, b.constant(scale), b.constant(np.int8(0)))
                grid = (b.constant(np.float32(0.25)), b.constant(np.uint8(128)))
                value = b.node("DequantizeLinear", b.node("QuantizeLinear", value, *grid), *grid)
            value = b.node("Gemm", value, held, name=name)
        value = b.node("MatMul", value, b.constant(np.eye(8, dtype=np.float32)), name="head")
        b.output(b.node("Softmax", value, name="soft"), "y", (1, 8))
        save(b.build(), path)
    x = draw.standard_normal((12, 8)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x, y=draw.integers(0, 8, 12))
    return tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "s.npz"


def test_the_layers_of_a_quantized_model(
    files: tuple[Path, Path, Path], edgewise: Callable[..., Said], golden: Callable[..., None]
) -> None:
    first, second, samples = files
    said = edgewise("diff", first, second, "--data", samples)
    assert (said.code, said.err) == (0, "")
    golden("diff-quantized", said.out)
    layers = [line.split()[0] for line in said.out.splitlines() if line.startswith(("fine ", "coarse "))]
    assert layers == ["coarse", "fine"]


def test_the_same_for_programs(files: tuple[Path, Path, Path], edgewise: Callable[..., Said]) -> None:
    first, second, samples = files
    said = edgewise("diff", first, second, "--data", samples, "--json")
    found = msgspec.json.decode(said.out, type=Difference).quantization
    assert found is not None
    assert [layer.node for layer in found.layers] == ["coarse", "fine"]
    assert [layer.node for layer in found.floats] == ["head"]
    assert found.metric == "top1"


@pytest.mark.slow
def test_what_the_worst_layer_costs(files: tuple[Path, Path, Path], edgewise: Callable[..., Said]) -> None:
    first, second, samples = files
    said = edgewise("diff", first, second, "--data", samples, "--costs", "1", "--time", "1s")
    assert said.code == 0, said.err
    heading = next(line for line in said.out.splitlines() if line.startswith("layer"))
    assert "costs us" in heading
    rows = [line for line in said.out.splitlines() if line.startswith(("fine ", "coarse "))]
    assert " to " in rows[0]
    assert " to " not in rows[1].split("rounding")[0]


def test_a_time_that_is_none_is_refused(files: tuple[Path, Path, Path], edgewise: Callable[..., Said]) -> None:
    first, second, samples = files
    said = edgewise("diff", first, second, "--data", samples, "--costs", "1", "--time", "soon")
    assert said.code == 2
    assert "`--time`" in said.err


@pytest.mark.parametrize(("share", "said_so"), [(0.1, True), (0.3, False)])
def test_damage_that_layers_do_jointly_is_said_to_be_so(
    share: float, said_so: bool, files: tuple[Path, Path, Path], edgewise: Callable[..., Said]
) -> None:
    first, second, samples = files
    result = msgspec.json.decode(edgewise("diff", first, second, "--data", samples, "--json").out, type=Difference)
    found = result.quantization
    assert found is not None
    changed = msgspec.structs.replace
    layers = tuple(changed(layer, gained=share * found.whole.damage) for layer in found.layers)
    harmful = changed(layers[0], gained=-found.whole.damage)
    words = render(changed(result, quantization=changed(found, layers=(*layers, harmful))), 5)
    assert ("all layers together take away 20% of the damage: several do it jointly" in words) == said_so
    assert "jointly" not in render(result, 5)


def test_what_cannot_be_compared_is_said_where_weights_were_not_found(
    files: tuple[Path, Path, Path], edgewise: Callable[..., Said]
) -> None:
    first, second, samples = files
    result = msgspec.json.decode(edgewise("diff", first, second, "--data", samples, "--json").out, type=Difference)
    assert result.quantization is not None
    assert "scaled" not in render(result, 5)
    lost = msgspec.structs.replace(result.quantization, weights_found=1)
    words = render(msgspec.structs.replace(result, quantization=lost), 5)
    assert "found in A for 1 layers" in words
    assert "tensors in between may differ for that alone" in words


def test_scaled_channels_and_joint_layers_are_mentioned(
    files: tuple[Path, Path, Path], edgewise: Callable[..., Said]
) -> None:
    first, second, samples = files
    result = msgspec.json.decode(edgewise("diff", first, second, "--data", samples, "--json").out, type=Difference)
    found = result.quantization
    assert found is not None
    changed = msgspec.structs.replace
    joint = changed(found, layers=(), joint=("fine", "coarse"), joint_share=0.8)
    words = render(changed(result, quantization=joint, rescaled=("a", "b")), 5)
    assert "Together in floating point, `fine`, `coarse` take away 80%." in words
    assert "A's are scaled likewise here, in 2 tensors" in words
