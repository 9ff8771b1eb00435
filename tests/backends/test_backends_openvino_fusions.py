"""Chains of 8-bit MatMuls without a bias, which OpenVINO would compute wrongly with one thread."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.backends import registry
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Array, Outputs
from edgewise.testing.graphs import GraphBuilder

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs pip install 'edgewise[openvino]'")

WIDTH = 16
STEP = 0.03


def _chain(between: str, *, rank: int = 2) -> ir.Model:
    """Return two 8-bit MatMuls with `between` between the first and the quantization behind it."""
    b = GraphBuilder("chain", seed=0)
    shape = (1,) * (rank - 1) + (WIDTH,)
    value = b.node("MatMul", _quantized(b, b.input("x", shape), 97), _weight(b, 0), name="first")
    if between == "bias":
        value = b.node("Add", value, b.weight(WIDTH, fan_in=1))
    elif between == "zeros":
        value = b.node("Add", value, b.constant(np.zeros(WIDTH, np.float32)))
    elif between == "scale":
        value = b.node("Mul", value, b.constant(np.float32(1.5)))
    elif between != "nothing":
        value = b.node(between, value)
    zero_point = 0 if between == "Relu" else 139
    value = b.node("MatMul", _quantized(b, value, zero_point), _weight(b, 1), name="second")
    b.output(value, "y", shape)
    return b.build()


def _quantized(b: GraphBuilder, value: str, zero_point: int) -> str:
    grid = b.constant(np.float32(STEP)), b.constant(np.uint8(zero_point))
    return b.node("DequantizeLinear", b.node("QuantizeLinear", value, *grid), *grid)


def _weight(b: GraphBuilder, seed: int) -> str:
    random = np.random.default_rng(seed)
    integers = random.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
    steps = random.uniform(0.001, 0.004, WIDTH).astype(np.float32)
    return b.node(
        "DequantizeLinear", b.constant(integers), b.constant(steps), b.constant(np.zeros(WIDTH, np.int8)), axis=1
    )


def _run(backend: str, model: ir.Model, x: Array, *, exact: bool = False) -> Outputs:
    options = RunOptions(graph_optimization="off") if exact else RunOptions()
    made = registry.get(backend)
    session = made.open(made.compile(model, options))
    try:
        return session.run({"x": x})
    finally:
        session.close()


@pytest.mark.parametrize("between", ["nothing", "Relu", "Identity", "zeros", "scale", "bias", "Tanh"])
def test_chains_of_8_bit_products_are_what_onnx_says(between: str) -> None:
    """The sums are integers and exact; a value may fall into the next step where it is rounded at its border.

    That moves an output by at most STEP x |weight| <= 0.03 x 127 x 0.004; two such borders are granted. Unfixed, the
    outputs are zeros, or in the billions.
    """
    model = _chain(between)
    x = np.random.default_rng(2).standard_normal((1, WIDTH)).astype(np.float32)
    expected = _run("ort", model, x, exact=True)["y"]
    np.testing.assert_allclose(_run("openvino", model, x)["y"], expected, rtol=1e-5, atol=2 * STEP * 127 * 0.004)
    assert np.abs(expected).max() > 10 * STEP * 127 * 0.004


@pytest.mark.parametrize(
    ("between", "rank", "met"),
    [("nothing", 2, True), ("Relu", 2, True), ("zeros", 2, True), ("bias", 2, False), ("Tanh", 2, False),
     ("nothing", 3, False)],
)  # fmt: skip
def test_the_code_generator_is_off_only_where_it_would_be_wrong(between: str, rank: int, *, met: bool) -> None:
    artifact = registry.get("openvino").compile(_chain(between, rank=rank), RunOptions())
    assert (b"<snippets" in artifact.files["model.xml"]) == met
