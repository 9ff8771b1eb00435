"""Real models with real data: 8 bits lose next to nothing. Skipped where the model zoo is absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from edgewise.analysis.target import Target
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.plan import observed_tensors, plan
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.formats import onnx
from edgewise.formats.shapes import fix_shapes
from edgewise.passes.apply import optimize
from edgewise.records.candidate import Quantize
from edgewise.records.tensors import Run

ZOO = Path(os.environ.get("EDGEWISE_ZOO", Path(__file__).parents[4] / "shared" / "zoo"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ZOO.is_dir(), reason=f"the model zoo is not at {ZOO}; EDGEWISE_ZOO says where it is"),
]

MakeRun = Callable[[ir.Model], Run]


MODELS = {
    "cnn": ("ecg/ecg_cnn.onnx", "ecg/mitbih_beats.npz"),
    "transformer": ("kws/kwt1.onnx", "kws/kwt1_features.npz"),
}


@pytest.mark.parametrize("target_name", ["needs_output_pairs", "gives_float"])
@pytest.mark.parametrize("case", MODELS)
def test_the_drop_is_small(
    case: str, target_name: str, request: pytest.FixtureRequest, any_run: MakeRun, ort_run: MakeRun
) -> None:
    path, data = MODELS[case]
    model = fix_shapes(onnx.load(ZOO / path), {})
    with np.load(ZOO / data) as arrays:
        x, y = arrays["x"].astype(np.float32), arrays["y"]
    port = model.graph.inputs[0]
    assert port.name is not None
    assert port.shape is not None
    shape = [size if isinstance(size, int) else 1 for size in port.shape]
    feeds = [{port.name: sample.reshape(shape)} for sample in x[:600]]
    target: Target = request.getfixturevalue(target_name)
    names = observed_tensors(model, target)
    statistics = collect(ort_run(observe(model, names)), feeds[:100], names)
    result = apply(model, plan(model, statistics, target, Quantize()))

    def right(run: Run) -> npt.NDArray[np.bool_]:
        answers = [int(np.argmax(next(iter(run(feed).values())))) for feed in feeds[100:]]
        hits: npt.NDArray[np.bool_] = np.equal(np.array(answers), y[100:600])
        return hits

    before, after = right(ort_run(model)), right(any_run(result))
    # A drop of 1 point on 500 samples, or a standard error of the paired difference where that is more.
    room = max(0.01, float(np.std(before.astype(float) - after.astype(float))) / np.sqrt(len(before)))
    assert before.mean() - after.mean() <= room


@pytest.mark.parametrize(("scheme", "most"), [("w4", 0.16), ("w8", 0.27)])
def test_weights_alone_make_a_file_as_small_as_their_width_promises(
    scheme: str, most: float, gives_float: Target
) -> None:
    path = ZOO / "imagenet" / "efficientnet_lite0.onnx"
    model, _ = optimize(fix_shapes(onnx.load(path), {}))
    result = apply(model, plan(model, Statistics({}, 1), gives_float, Quantize(scheme=scheme)))
    assert len(ir.to_proto(result).SerializeToString()) <= most * path.stat().st_size
