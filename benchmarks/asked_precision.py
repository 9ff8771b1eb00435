"""What runtimes do when precision is not asked for by name (docs/adr/0007-precision-by-name.md).

    python benchmarks/asked_precision.py [--json FILE]

A product of float32 activations with float32 or 4-bit weights runs once as the runtime chooses and once as edgewise
asks. The error is the largest difference from the same product in float64, as a share of the largest value. No model
of the zoo is needed: `--zoo` is taken because every benchmark takes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from edgewise.backends import registry
from edgewise.measure.machine import describe
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Array
from rows import Row, finish

ROWS: Final = 64
WIDTH: Final = 512
BLOCK: Final = 32
COMMAND: Final = "python benchmarks/asked_precision.py"
ASKED: Final = 1e-5
"""Float32 sums of 512 products: the bound 512 x 6e-8 is 3e-5 of the sum of magnitudes; errors average out below it."""


def problem(weights: str) -> tuple[onnx.ModelProto, Array, Array]:
    """Return a graph with one product, its input, and the answer in float64.

    Args:
        weights: `float32`, or `int4` with a float32 scale for each block of 32 along the sum.
    """
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    if weights == "float32":
        w = random.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        initializers = [onnx.numpy_helper.from_array(w, "w")]
        exact = w.astype(np.float64)
    else:
        q = random.integers(-8, 8, size=(WIDTH, WIDTH))
        scale = random.uniform(0.01, 0.02, size=(WIDTH // BLOCK, WIDTH)).astype(np.float32)
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=0, block_size=BLOCK),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
        initializers = [
            helper.make_tensor("q", TensorProto.INT4, q.shape, q.ravel()),
            onnx.numpy_helper.from_array(scale, "scale"),
        ]
        exact = q.astype(np.float64) * np.repeat(scale.astype(np.float64), BLOCK, axis=0)
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "product", shapes[:1], shapes[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, x, x.astype(np.float64) @ exact


def as_it_chooses(backend: str, model: onnx.ModelProto, x: Array) -> Array:
    """Run the graph with the runtime's own defaults."""
    data = model.SerializeToString()
    if backend == "ort":
        import onnxruntime

        return np.asarray(onnxruntime.InferenceSession(data).run(None, {"x": x})[0])
    from edgewise.backends.openvino.session import core

    compiled: Any = core().compile_model(core().read_model(data), "CPU")
    return np.array(compiled([x])[0])


def as_asked(backend: str, model: onnx.ModelProto, x: Array) -> Array:
    """Run the graph as edgewise does."""
    entry = registry.get(backend)
    session = entry.open(entry.compile(ir.from_proto(model), RunOptions(precision="fp32")))
    try:
        return session.run({"x": x})["y"]
    finally:
        session.close()


def main() -> None:
    """Run, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, help="not used here")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    arguments = parser.parse_args()

    rows = []
    for backend in registry.ready():
        for weights in ("float32", "int4"):
            model, x, exact = problem(weights)
            for how, run, ask in (("as it chooses", as_it_chooses, None), ("as asked", as_asked, ASKED)):
                error = float(np.abs(run(backend, model, x) - exact).max() / np.abs(exact).max())
                met = ask is None or error <= ask
                rows.append(
                    Row(
                        row=f"{backend}, {weights} weights, {how}",
                        value=error,
                        unit="of max",
                        ask="none" if ask is None else f"<= {ask:g}",
                        met=met,
                        n=ROWS * WIDTH,
                        command=COMMAND,
                    )
                )
    absent = [name for name, entry in registry.BACKENDS.items() if entry.fast and name not in registry.ready()]
    finish(rows, describe(), arguments.json, left_out=[f"{name}, because it is not installed" for name in absent])


if __name__ == "__main__":
    main()
