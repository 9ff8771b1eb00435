"""Graphs as PyTorch modules: the numbers of the reference, batches, weights there and back, refusals by name."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.errors import ModelError
from edgewise.records.tensors import Array, Feeds
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder

torch = pytest.importorskip("torch", reason="torch is an extra: pip install 'edgewise[torch]'")

from onnx.reference import ReferenceEvaluator  # noqa: E402 - only where torch is

from edgewise.formats.torch import declines, stacked, to_model, to_module  # noqa: E402 - only where torch is

ZOO = Path(__file__).parents[3] / "shared" / "zoo"


def run(model: ir.Model, feeds: list[Feeds], *, quantized: bool = False) -> list[dict[str, Array]]:
    """Return the module's outputs, sample by sample, computed together."""
    with torch.no_grad():
        outputs = to_module(model, quantized=quantized)(stacked(feeds))
    return [{name: tensor[k].numpy() for name, tensor in outputs.items()} for k in range(len(feeds))]


def reference(model: ir.Model, feeds: Feeds) -> Mapping[str, Array]:
    names = [str(value.name) for value in model.graph.outputs]
    return dict(zip(names, ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds)), strict=True))


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float) -> None:
    """Compare outputs; `tolerance` is relative to the largest value of each."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * max(1.0, float(np.abs(value).max())))


def small_net() -> ir.Model:
    b = GraphBuilder("net")
    value = b.node("Relu", b.node("Conv", b.input("x", (1, 3, 8, 8)), b.weight(4, 3, 3, 3), name="c1"), name="r1")
    value = b.node("Reshape", value, b.constant(np.array([1, -1])), name="flat")
    half = b.node("Mul", value, b.constant(np.float32(0.5)), name="half")
    b.output(b.node("Gemm", half, b.weight(144, 5), b.weight(5, fan_in=4), name="head"), "y", (1, 5))
    return b.build()


def images(count: int, shape: tuple[int, ...] = (1, 3, 8, 8)) -> list[Feeds]:
    random = np.random.default_rng(7)
    return [{"x": random.standard_normal(shape, dtype=np.float32)} for _ in range(count)]


def test_samples_that_run_together_give_what_each_gives_alone() -> None:
    feeds = images(3)
    # Sums of at most 144 products in float32, in any order: 2 * 144 * 2^-24 of the sum over absolute values, which is
    # here below 10 times the largest result.
    for found, feed in zip(run(small_net(), feeds), feeds, strict=True):
        assert_same(found, reference(small_net(), feed), tolerance=2 * 144 * 2.0**-24 * 10)


def test_weights_are_parameters_and_the_numbers_of_formulas_are_not() -> None:
    module = to_module(small_net())

    assert sorted(p.numel() for p in module.trained.values()) == [5, 108, 720]
    assert len(list(module.parameters())) == 3


def test_a_changed_weight_is_written_back_and_nothing_else() -> None:
    model = small_net()
    module = to_module(model)
    name = next(name for name, p in module.trained.items() if p.numel() == 720)
    with torch.no_grad():
        module.trained[name].mul_(2)

    written = to_model(module)

    before, after = (
        {str(n): v.const_value.numpy() for n, v in m.graph.initializers.items() if v.const_value}
        for m in (model, written)
    )
    np.testing.assert_array_equal(after.pop(name), 2 * before.pop(name))
    assert before.keys() == after.keys()
    for other, value in before.items():
        np.testing.assert_array_equal(after[other], value)
    assert [n.name for n in written.graph] == [n.name for n in model.graph]
    assert_same(reference(written, images(1)[0]), run(written, images(1))[0], tolerance=1e-4)


def test_values_inside_are_given_when_asked_for() -> None:
    with torch.no_grad():
        given = to_module(small_net())(stacked(images(2)), ["c1_out"])

    assert list(given) == ["y", "c1_out"]
    assert tuple(given["c1_out"].shape) == (2, 1, 4, 6, 6)


def test_every_weight_gets_a_gradient() -> None:
    module = to_module(small_net())
    module(stacked(images(2)))["y"].square().sum().backward()

    assert all(float(p.grad.abs().sum()) > 0 for p in module.parameters())


def branching(on: str) -> ir.Model:
    """Return a model with an If that depends on an integer input, or on the numbers of the sample."""
    then, other = GraphBuilder("then", seed=1), GraphBuilder("other", seed=2)
    for inner, name in ((then, "a"), (other, "b")):
        inner.output(inner.node("Identity", inner.weight(1, 4, name=f"w_{name}"), name=f"give_{name}"), name, (1, 4))
    b = GraphBuilder("outer")
    x = b.input("x", (1, 4))
    if on == "rate":
        condition = b.node("Equal", b.input("rate", (), "int64"), b.constant(np.int64(3)))
    else:
        condition = b.node("Greater", b.node("ReduceMax", x, keepdims=0), b.constant(np.float32(0)))
    chosen = b.node("If", condition, then_branch=then.graph(), else_branch=other.graph())
    b.output(b.node("Mul", x, chosen), "y", (1, 4))
    return b.build()


@pytest.mark.parametrize("on", ["rate", "numbers"])
def test_branches_follow_what_they_depend_on(on: str) -> None:
    feeds: list[Feeds] = [{"x": np.array([[sign, -4, -2, -8]], np.float32)} for sign in (-1, 1)]
    if on == "rate":
        feeds = [{**feed, "rate": np.array(3)} for feed in feeds]
    model = branching(on)

    for found, feed in zip(run(model, feeds), feeds, strict=True):
        assert_same(found, reference(model, feed), tolerance=0)
    assert {name[2:] for name in to_module(model).trained} == {"w_a", "w_b"}
    assert_same(reference(to_model(to_module(model)), feeds[0]), reference(model, feeds[0]), tolerance=0)


def test_a_loop_runs_its_body() -> None:
    inner = GraphBuilder("body")
    for name, dtype in (("i", "int64"), ("going", "bool")):
        inner.input(name, (), dtype)
    carried = inner.node("Mul", inner.input("state", (1, 4)), inner.weight(1, 4, name="w"), name="times")
    inner.output(inner.node("Identity", "going"), "on", (), "bool")
    row = inner.node("Neg", carried)
    inner.output(carried, "next", (1, 4))
    inner.output(row, "row", (1, 4))
    b = GraphBuilder("outer")
    x = b.input("x", (1, 4))
    last, rows = b.nodes("Loop", b.constant(np.int64(3)), "", x, outputs=2, body=inner.graph())
    b.output(last, "last", (1, 4))
    b.output(rows, "rows", (3, 1, 4))
    model = b.build()
    feeds = images(2, (1, 4))

    w = next(array for name, array in to_module(model).arrays().items() if name.endswith("w"))
    for found, feed in zip(run(model, feeds), feeds, strict=True):
        powers = np.stack([feed["x"] * w**k for k in (1, 2, 3)])
        # Three products, each rounded once on either side.
        assert_same(found, {"last": powers[2], "rows": -powers}, tolerance=6 * 2.0**-24)


def test_integer_weights_are_trained_on_their_grid() -> None:
    model = graphs.weight_only_net(bits=8)
    module = to_module(model, quantized=True)
    feed: Feeds = {"image": np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)}
    assert_same(run(model, [feed], quantized=True)[0], reference(model, feed), tolerance=1e-4)
    stored = module.arrays()
    name = next(n for n, array in stored.items() if array.dtype == np.int8 and array.shape[2:] == (3, 3))
    weight, before = module.trained[name], stored[name]
    module(stacked([feed]))["scores"].sum().backward()
    assert float(weight.grad.abs().sum()) > 0

    with torch.no_grad():
        weight.mul_(0.5)
    after = to_model(module).graph.initializers[name].const_value

    assert after is not None
    assert after.dtype == ir.DataType.INT8
    assert np.abs(after.numpy().astype(int) * 2 - before.astype(int)).max() <= 1
    np.testing.assert_array_equal(to_module(model, quantized=True).arrays()[name], before)


def test_the_gradient_passes_rounding_but_not_the_ends() -> None:
    x = np.array([[0.3, 5.0, -400.0, 400.0]], np.float32)
    b = GraphBuilder("net")
    scale, zero = b.constant(np.float32(0.5)), b.constant(np.int8(0))
    step = b.node("QuantizeLinear", b.input("x", (1, 4)), scale, zero)
    b.output(b.node("DequantizeLinear", step, scale, zero), "y", (1, 4))
    feed = torch.from_numpy(x)[None].requires_grad_()

    given = to_module(b.build())({"x": feed})["y"]
    given.sum().backward()

    np.testing.assert_array_equal(given.detach().numpy()[0], [[0.5, 5.0, -64.0, 63.5]])
    np.testing.assert_array_equal(feed.grad.numpy()[0], [[1, 1, 0, 0]])


def test_unknown_operators_are_refused_by_name() -> None:
    b = GraphBuilder("net")
    value = b.node("Hardmax", b.input("x", (1, 4)), name="odd")
    b.output(b.node("Relu", value), "y", (1, 4))
    model = b.build()

    assert [(one.operator, one.node) for one in declines(model)] == [("Hardmax", "odd")]
    with pytest.raises(ModelError, match="`Hardmax` odd"):
        to_module(model)


def test_the_older_form_of_group_norm_is_refused() -> None:
    graph = GraphBuilder("net", opset=20)
    graph.output(graph.node("Relu", graph.input("x", (1, 4))), "y", (1, 4))
    model = graph.build()
    node = model.graph[0]
    node.op_type = "GroupNormalization"

    assert "before opset 21" in declines(model)[0].reason


def test_an_old_opset_is_refused() -> None:
    b = GraphBuilder("net", opset=11)
    b.output(b.node("Relu", b.input("x", (1, 4))), "y", (1, 4))

    with pytest.raises(ModelError, match="opset is 11, and 13"):
        to_module(b.build())


def test_operators_of_other_domains_are_refused() -> None:
    b = GraphBuilder("net")
    b.output(b.node("Gelu", b.input("x", (1, 4)), domain="com.microsoft"), "y", (1, 4))

    assert "com.microsoft" in declines(b.build())[0].reason


def test_samples_of_several_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match="one shape"):
        stacked([*images(1), *images(1, (1, 3, 9, 9))])


def test_without_torch_the_cure_is_named() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import edgewise.formats.torch\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    # `None` makes Python raise the error of a missing module under torch's own name.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "BackendMissingError" in result.stdout
    assert "pip install 'edgewise[torch]'" in result.stdout


def zoo_models() -> list[Any]:
    if not (ZOO / "zoo.toml").is_file():
        return []
    described = tomllib.loads((ZOO / "zoo.toml").read_text())["model"]
    return [one for one in described if one["format"] == "onnx" and one["name"] != "silero_vad"]


@pytest.mark.slow
@pytest.mark.skipif(not zoo_models(), reason="the models of the zoo are not here")
@pytest.mark.parametrize("described", zoo_models(), ids=lambda one: one["name"])
def test_trained_models_give_the_numbers_of_onnx_runtime(described: dict[str, Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    loading = importlib.import_module("edgewise.pipeline.inputs")
    passes = importlib.import_module("edgewise.passes.apply")
    shapes = {"x": (1, 3, 48, None)} if described["name"].startswith("ppocr") else {}
    model, _ = passes.optimize(loading.load_model(ZOO / described["path"], shapes).fixed)
    random = np.random.default_rng(3)
    sizes = [d if isinstance(d, int) else 320 for d in model.graph.inputs[0].shape or ()]
    name = str(model.graph.inputs[0].name)
    feeds: list[Feeds] = [{name: random.standard_normal(sizes, dtype=np.float32)} for _ in range(2)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    for found, feed in zip(run(model, feeds), feeds, strict=True):
        expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feed)), strict=True))
        # Some 60 layers of sums of some 1,000 products each, errors of random sign: sqrt(60 * 1000) * 2^-24 = 1.5e-5.
        assert_same(found, expected, tolerance=5e-5)
