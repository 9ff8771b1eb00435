"""Run by a test in a process whose processor lacks instructions: what 8-bit and 7-bit weights give there, as JSON.

    python saturating_net.py BACKEND

`deviation` is the largest difference from the same quantized graph in exact arithmetic (its nodes as they are
written, in ONNX Runtime), as a share of the largest output; `sqnr_db` is against the float model.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import onnx_ir as ir

from edgewise.backends import registry
from edgewise.backends.saturation import exactness
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.plan import observed_tensors, plan
from edgewise.compress.statistics import collect, observe
from edgewise.passes.apply import optimize
from edgewise.records.candidate import Quantize, RunOptions
from edgewise.records.tensors import Array, Feeds
from edgewise.testing import graphs

AS_WRITTEN = RunOptions(graph_optimization="off")


def run(backend: str, model: ir.Model, feeds: list[Feeds], options: RunOptions) -> Array:
    """Return the scores of each feed."""
    entry = registry.get(backend)
    session = entry.open(entry.compile(model, options))
    try:
        return np.stack([session.run(feed)["scores"] for feed in feeds])
    finally:
        session.close()


def main(backend: str) -> None:
    """Print the findings."""
    random = np.random.default_rng(0)
    feeds: list[Feeds] = [
        {"image": (random.standard_normal((1, 3, 16, 16)) + 2 * random.standard_normal((1, 3, 1, 1))).astype("float32")}
        for _ in range(8)
    ]
    target = registry.get(backend).target()
    model, _ = optimize(graphs.conv_net(channels=32))
    names = observed_tensors(model, target)
    observer = registry.get("ort")
    session = observer.open(observer.compile(observe(model, names), RunOptions()))
    statistics = collect(session.run, feeds, names)
    original = run("ort", model, feeds, RunOptions())
    deviation, sqnr = {}, {}
    for bits in (8, 7):
        narrow = dataclasses.replace(target, exact_product_bits=bits)
        quantized = apply(model, plan(model, statistics, narrow, Quantize(ranges="min-max")))
        exact = run("ort", quantized, feeds, AS_WRITTEN)
        here = run(backend, quantized, feeds, RunOptions())
        deviation[bits] = float(np.abs(here - exact).max() / np.abs(exact).max())
        sqnr[bits] = float(10 * np.log10((original**2).mean() / ((original - here) ** 2).mean()))
    found = exactness(registry.get(backend))
    print(
        json.dumps(
            {
                "bits": target.exact_product_bits,
                "source": target.exact_product_source,
                "saturated": found.saturated,
                "deviation": deviation,
                "sqnr_db": sqnr,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
