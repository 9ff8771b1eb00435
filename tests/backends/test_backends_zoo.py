"""Real models on the fast backends: each runs and agrees, or says at which nodes it cannot."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.backends import registry
from edgewise.errors import BackendError
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Array, Feeds, Outputs

_ZOO = Path(os.environ.get("EDGEWISE_ZOO", Path(__file__).parents[3] / "shared" / "zoo"))
_FILES = sorted(_ZOO.glob("*/*.onnx"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _FILES, reason=f"no models in `{_ZOO}`; EDGEWISE_ZOO names the folder"),
    pytest.mark.skipif(find_spec("openvino") is None, reason="needs pip install 'edgewise[openvino]'"),
]

_SIZES = {"height": 48, "width": 160}
_NEEDS = {
    "binary_model": ("LSTM", "`HardSigmoid`"),
    "regression_model": ("LSTM", "`HardSigmoid`"),
    "silero_vad": ("Conv", "rank"),
}
"""Models that OpenVINO does not read as they are: an operator, and a word of the reason."""


def _feeds(model: ir.Model) -> dict[str, Array]:
    """Return inputs of a sensible size: dynamic images 48 x 160, sound 576 samples, everything else 1."""
    feeds = {}
    random = np.random.default_rng(0)
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        shape = [size if isinstance(size, int) else 1 for size in value.shape or ()]
        if len(shape) == 4 and shape[2:] == [1, 1]:
            shape[2:] = [_SIZES["height"], _SIZES["width"]]
        if value.name == "sr":
            feeds["sr"] = np.array(16000, np.int64)
            continue
        if shape == [1, 1] and value.name == "input":
            shape = [1, 576]
        feeds[str(value.name)] = random.standard_normal(shape).astype(np.float32)
    return feeds


def _run(backend: str, model: ir.Model, feeds: Feeds) -> Outputs:
    runtime = registry.get(backend)
    return runtime.open(runtime.compile(model, RunOptions())).run(feeds)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_real_models_agree_or_say_why_not(path: Path) -> None:
    model = ir.load(path)
    feeds = _feeds(model)
    expected = _run("ort", model, feeds)
    assert all(np.isfinite(array).all() for array in expected.values())
    if path.stem in _NEEDS:
        operator, word = _NEEDS[path.stem]
        declines = registry.get("openvino").why_not(model)
        assert operator in {decline.operator for decline in declines}
        assert any(word in decline.reason for decline in declines)
        with pytest.raises(BackendError):
            _run("openvino", model, feeds)
        return
    received = _run("openvino", model, feeds)
    for name, array in expected.items():
        # 60 layers whose errors add up, sums of up to 5,000 terms of mixed sign that grow like their root.
        bound = 60 * np.sqrt(5000) * 2.0**-24 * max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(received[name], array, rtol=0, atol=bound)
