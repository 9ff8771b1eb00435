"""Random chains scaled bit by bit, and what the sets say about themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewise.compress.quantize.channel_groups import (
    constant_at,
    divide,
    find_groups,
    largest_weights,
    layout_of,
    magnitudes,
    observed_tensors,
)
from edgewise.compress.statistics import collect, observe
from edgewise.errors import ContractError
from edgewise.passes.contract import signature
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, conv_net, mlp, random_feeds

MakeRun = Callable[[ir.Model], Run]


def chain(steps: list[str], *, channels: int = 6, seed: int = 0) -> ir.Model:
    """Return a convolutional net of `steps`; input `x` `[1, 3, 5, 5]`, output `y`."""
    b = GraphBuilder("chain", seed=seed)
    value = b.node("Conv", b.input("x", (1, 3, 5, 5)), b.weight(channels, 3, 1, 1), b.weight(channels, fan_in=4))
    for step in steps:
        match step:
            case "depthwise":
                value = b.node("Conv", value, b.weight(channels, 1, 3, 3), group=channels, pads=[1] * 4)
            case "grouped":
                value = b.node("Conv", value, b.weight(channels, channels // 2, 1, 1), b.weight(channels), group=2)
            case "dense":
                value = b.node("Conv", value, b.weight(channels, channels, 1, 1), b.weight(channels))
            case "residual":
                branch = b.node("Relu", b.node("Conv", value, b.weight(channels, channels, 1, 1)))
                value = b.node("Add", value, branch)
            case "inner":
                value = b.node("Add", value, b.node("Conv", value, b.weight(channels, channels, 1, 1)))
            case "PRelu":
                value = b.node("PRelu", value, b.weight(channels, 1, 1))
            case "MaxPool":
                value = b.node("MaxPool", value, kernel_shape=[3, 3], pads=[1] * 4)
            case _:
                value = b.node(step, value)
    flat = b.node("Flatten", b.node("GlobalAveragePool", value))
    b.output(b.node("Gemm", flat, b.weight(4, channels), b.weight(4), transB=1), "y")
    return b.build()


STEPS = [
    "depthwise",
    "grouped",
    "dense",
    "residual",
    "inner",
    "PRelu",
    "Relu",
    "LeakyRelu",
    "MaxPool",
    "Clip",
    "Sigmoid",
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(STEPS), max_size=8), seed=st.integers(0, 999))
def test_random_chains_stay_bit_by_bit(steps: list[str], seed: int, ort_run: MakeRun) -> None:
    model = chain(steps, seed=seed)
    before = signature(model)
    copy = model.clone()
    random = np.random.default_rng(seed)
    for group in find_groups(copy)[0]:
        assert divide(copy, group, np.exp2(random.integers(-8, 9, group.size).astype(np.float64))) is None
    feeds = random_feeds(model, seed=seed)
    assert np.array_equal(ort_run(model)(feeds)["y"], ort_run(copy)(feeds)["y"])
    assert signature(model) == before


def test_a_residual_stage_is_one_set() -> None:
    groups, _ = find_groups(conv_net())
    # BatchNormalization is not fused here: nothing carries scales through it but into the head.
    assert all(writer.node.op_type == "Gemm" for group in groups for writer in group.writers)
    (group,) = find_groups(chain(["residual", "Relu", "residual"]))[0][:1]
    assert len(group.writers) == 3
    assert [reader.node.op_type for reader in group.readers] == ["Conv", "Conv", "Gemm"]
    assert group.size == 6
    assert not group.is_normalized


def test_a_bias_that_two_layers_share_is_scaled_for_each_alone(ort_run: MakeRun) -> None:
    b = GraphBuilder("shared_bias")
    bias = b.weight(8, fan_in=1)
    hidden = b.node("Relu", b.node("Gemm", b.input("x", (1, 8)), b.weight(8, 8), bias))
    b.output(b.node("Gemm", hidden, b.weight(8, 8), bias), "y")
    model = b.build()
    copy = model.clone()
    (group,) = find_groups(copy)[0]
    assert divide(copy, group, np.exp2(np.arange(8))) is None
    feeds = random_feeds(model)
    assert np.array_equal(ort_run(model)(feeds)["y"], ort_run(copy)(feeds)["y"])
    assert bias in copy.graph.initializers


def test_weights_in_constant_nodes_leave_no_node_behind() -> None:
    model = mlp()
    value = next(iter(model.graph.initializers.values()))
    node = ir.node("Constant", [], {"value": value.const_value}, name="held")
    node.outputs[0].name = "held_out"
    node.outputs[0].const_value = value.const_value
    value.replace_all_uses_with(node.outputs[0])
    model.graph.initializers.pop(value.name or "")
    model.graph.insert_before(model.graph[0], node)
    (group,) = find_groups(model)[0]
    assert divide(model, group, np.full(group.size, 2.0)) is None
    assert "Constant" not in [one.op_type for one in model.graph]


@pytest.mark.parametrize("factor", [2.0**-140, 2.0**140])
def test_constants_that_would_leave_float32_are_declined_and_nothing_changes(factor: float) -> None:
    model = mlp()
    before = signature(model)
    (group,) = find_groups(model)[0]
    assert "would leave the range of float32" in (divide(model, group, np.full(group.size, factor)) or "")
    assert signature(model) == before


def test_magnitudes_are_those_of_what_the_readers_read(ort_run: MakeRun) -> None:
    model = chain(["Relu", "MaxPool"])
    (group,) = find_groups(model)[0]
    names = observed_tensors(model)
    assert names == group.observed()
    feeds = [random_feeds(model, seed=seed) for seed in range(3)]
    run = ort_run(observe(model, names))
    seen = magnitudes(group, collect(run, feeds, names))
    (name,) = names
    assert seen is not None
    assert np.allclose(seen, np.max([np.abs(run(feed)[name]).max(axis=0) for feed in feeds], axis=0), rtol=0, atol=0)
    assert magnitudes(group, collect(run, feeds, list(names))) is None


def test_largest_weights_go_over_all_readers() -> None:
    (group,) = find_groups(chain(["residual"]))[0]
    arrays = [np.abs(constant_at(one.node, 1)) for one in group.readers]
    expected = np.maximum(arrays[0].max(axis=(0, 2, 3)), arrays[1].max(axis=0))
    assert np.array_equal(largest_weights(group.readers, group.size), expected)


def test_nodes_that_are_in_no_set_are_an_error() -> None:
    model = chain(["Relu"])
    (group,) = find_groups(model)[0]
    reader = group.readers[0]
    reader.node.replace_input_with(1, model.graph.inputs[0])
    with pytest.raises(ContractError, match="are not constant"):
        layout_of(reader)
    with pytest.raises(ContractError, match="has to be constant"):
        constant_at(reader.node, 1)
