"""The proof of the coupling and of the cut by brute force: what is left equals the whole with the units zeroed.

Both models compute the same sums but for terms that are exactly zero, so that they differ by the order of the
arithmetic alone (see `passes.agreement`).
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.analysis.coupling import Coupling, couple
from edgewise.compress.prune.cut import cut, widths
from edgewise.compress.prune.dead import dead
from edgewise.errors import RecipeError
from edgewise.passes.agreement import difference, tolerance
from edgewise.passes.contract import interface
from edgewise.pipeline.inputs import load_model
from edgewise.records.tensors import Feeds, Outputs
from edgewise.testing.channel_images import IMAGE_STEPS
from edgewise.testing.channel_sequences import SEQUENCE_STEPS
from edgewise.testing.graphs import random_feeds
from edgewise.testing.random_channels import random_channels
from edgewise.testing.zeroed_units import zeroed

ZOO = Path(os.environ.get("EDGEWISE_ZOO", Path(__file__).parents[3] / ".." / "shared" / "zoo"))

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "ppocrv4_mobile_rec": {"x": (1, 3, 48, 320)},
    "silero_vad": {"input": (1, 576), "state": (2, 1, 128)},
}


FEEDS: dict[str, Feeds] = {"silero_vad": {"sr": np.array(16000, np.int64)}}


def run(model: ir.Model, feeds: Feeds) -> Outputs:
    """Return the outputs of ONNX Runtime, its optimizations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def some_units(coupling: Coupling, random: np.random.Generator, share: float | None) -> dict[str, list[int]]:
    """Return units of random groups: a share of each group, or a random one of some."""
    removed = {}
    for group in coupling.groups:
        part = random.random() if share is None else share
        count = min(group.size - 1, max(1, round(part * group.size)))
        if share is not None or random.random() < 0.6:
            removed[group.name] = sorted(int(unit) for unit in random.permutation(group.size)[:count])
    return removed


def prove(model: ir.Model, coupling: Coupling, removed: dict[str, list[int]], fed: Feeds | None = None) -> None:
    """Fail unless the cut model and the one with zeros agree; what would empty a part has to be refused."""
    try:
        after = cut(model, removed, coupling)
    except RecipeError as error:
        assert "Nothing would be left" in error.message  # noqa: PT017 - most draws are no error
        return
    assert interface(after) == interface(model)
    feeds = {**random_feeds(model), **(fed or {})}
    reason = difference(run(zeroed(model, removed, coupling), feeds), run(after, feeds), tolerance(model))
    assert reason is None, (reason, removed)


def prove_together(model: ir.Model, seed: int) -> int:
    """Prove random units of random groups. Returns how many groups there are."""
    coupling = couple(model)
    prove(model, coupling, some_units(coupling, np.random.default_rng(seed), None))
    return len(coupling.groups)


def prove_each(model: ir.Model, seed: int) -> None:
    """Prove every group alone, and random ones together."""
    random = np.random.default_rng(seed)
    coupling = couple(model)
    for group in coupling.groups:
        alone = Coupling((group,), ())
        prove(model, alone, some_units(alone, random, 0.4))
    prove(model, coupling, some_units(coupling, random, None))


@pytest.mark.parametrize("step", [*IMAGE_STEPS, *SEQUENCE_STEPS])
def test_networks_of_one_kind_of_step(step: str) -> None:
    assert sum(prove_together(random_channels(seed, steps=2, only={step}), seed) for seed in range(4)) >= 1


@settings(max_examples=6)
@given(st.integers(0, 2**31))
def test_random_networks(seed: int) -> None:
    prove_together(random_channels(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("step", [*IMAGE_STEPS, *SEQUENCE_STEPS])
def test_each_group_of_networks_of_one_kind_of_step(step: str) -> None:
    for seed in range(8):
        prove_each(random_channels(seed, steps=4, only={step}), seed)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.integers(0, 2**31))
def test_each_group_of_many_random_networks(seed: int) -> None:
    prove_each(random_channels(seed, steps=4 + seed % 14), seed)


@settings(max_examples=5)
@given(st.integers(0, 2**31))
def test_dead_units_cost_nothing(seed: int) -> None:
    """Zero some rows of weights: whatever is found dead is free."""
    model = random_channels(seed)
    random = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        if value.const_value is not None and (value.name or "").startswith("weight") and random.random() < 0.5:
            array = np.array(value.const_value.numpy())
            array[random.permutation(len(array))[: len(array) // 3]] = 0
            value.const_value = ir.tensor(array, name=value.name)
    coupling = couple(model)
    after = cut(model, dead(model, coupling), coupling)
    feeds = random_feeds(model)
    assert difference(run(model, feeds), run(after, feeds), tolerance(model)) is None


def zoo_models() -> list[str]:
    if not (ZOO / "zoo.toml").exists():
        return []
    entries = tomllib.loads((ZOO / "zoo.toml").read_text())["model"]
    return [entry["path"] for entry in entries if entry["path"].endswith(".onnx")]


@pytest.mark.slow
@pytest.mark.skipif(not (ZOO / "zoo.toml").exists(), reason=f"the model zoo is not at {ZOO}; set EDGEWISE_ZOO")
@pytest.mark.parametrize("path", zoo_models())
def test_a_third_of_every_group_of_the_zoo(path: str) -> None:
    model = load_model(ZOO / path, SHAPES.get(Path(path).stem, {})).fixed
    coupling = couple(model)
    removed = some_units(coupling, np.random.default_rng(0), 0.3)
    assert [width.removed for width in widths(model, coupling, removed)] == [len(units) for units in removed.values()]
    prove(model, coupling, removed, FEEDS.get(Path(path).stem))
