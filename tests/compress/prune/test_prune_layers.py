"""Regions taken out of graphs: the same numbers as with the branch's contribution zeroed, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewise.compress.prune.layers import drop, replace
from edgewise.compress.prune.regions import Region, find_regions
from edgewise.compress.prune.stand_in import Affine, Linear
from edgewise.errors import ContractError
from edgewise.passes.apply import optimize
from edgewise.records.tensors import Array, Run
from edgewise.testing.graphs import GraphBuilder, conv_net, depthwise_net, random_feeds, transformer_block
from edgewise.testing.random_graphs import random_network

MakeRun = Callable[[ir.Model], Run]


def optimized(make: Callable[[], ir.Model]) -> ir.Model:
    return optimize(make())[0]


def region_of(model: ir.Model, name: str) -> Region:
    return next(region for region in find_regions(model).found if region.name == name)


def zeroed(model: ir.Model, region: Region) -> ir.Model:
    """Return the model with what is added to the entry multiplied by zero."""
    copy = model.clone()
    add = next(node for node in copy.graph if node.outputs[0].name == region.core)
    slot = next(index for index, value in enumerate(add.inputs) if value is not None and value.name != region.entry)
    zero = ir.Value(name="zero_factor", const_value=ir.tensor(np.float32(0)))
    copy.graph.register_initializer(zero)
    product = ir.node("Mul", [add.inputs[slot], zero], name="zeroing")
    product.outputs[0].name = "zeroing_out"
    copy.graph.insert_before(add, product)
    add.replace_input_with(slot, product.outputs[0])
    return copy


def bare_residual() -> ir.Model:
    """Return Relu of x + Conv(x): the activation has to stay, and entry and exit are the model's own."""
    b = GraphBuilder("bare")
    x = b.input("x", (1, 4, 8, 8))
    y = b.node("Conv", x, b.weight(4, 4, 3, 3), pads=[1, 1, 1, 1], name="conv")
    b.output(b.node("Relu", b.node("Add", x, y, name="add"), name="relu"), "y", (1, 4, 8, 8))
    return b.build()


@pytest.mark.parametrize(
    "make", [conv_net, depthwise_net, transformer_block, lambda: transformer_block(standard=True), bare_residual]
)
def test_a_dropped_branch_is_a_branch_times_zero(make: Callable[[], ir.Model], any_run: MakeRun) -> None:
    model = optimized(make)
    branches = [region for region in find_regions(model).found if region.kind == "branch"]
    assert branches
    feeds = random_feeds(model, seed=3)
    for region in branches:
        result = drop(model, region)
        names = [value.name for value in model.graph.outputs]
        assert [value.name for value in result.graph.outputs] == names
        left = {node.name for node in result.graph}
        assert not left & (set(region.nodes) - {"residual1", "residual2"})
        expected, got = any_run(zeroed(model, region))(feeds), any_run(result)(feeds)
        for name in names:
            # The same operations in the same order: fused kernels differ by a few roundings.
            np.testing.assert_allclose(got[str(name)], expected[str(name)], rtol=1e-5, atol=1e-5)


def test_dropping_leaves_the_model_that_was_given_and_its_weights(ort_run: MakeRun) -> None:
    model = optimized(conv_net)
    feeds = random_feeds(model)
    before = ort_run(model)(feeds)["scores"]
    result = drop(model, region_of(model, "block_relu_out"))
    assert np.array_equal(ort_run(model)(feeds)["scores"], before)
    assert "block_a_weight" not in result.graph.initializers
    assert "stem_weight" in result.graph.initializers


def test_an_output_that_becomes_an_input_keeps_its_name(ort_run: MakeRun) -> None:
    b = GraphBuilder("only")
    b.output(b.node("MatMul", b.input("x", (2, 4)), b.weight(4, 4), name="product"), "y", (2, 4))
    model = b.build()
    result = drop(model, region_of(model, "y"))
    assert [node.op_type for node in result.graph] == ["Identity"]
    feeds = random_feeds(model)
    assert np.array_equal(ort_run(result)(feeds)["y"], feeds["x"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(seed=st.integers(0, 2**16))
def test_what_is_left_of_random_graphs_is_legal_and_has_the_same_outputs(seed: int, ort_run: MakeRun) -> None:
    model = random_network(seed)
    feeds = random_feeds(model, seed=1)
    shapes = {name: array.shape for name, array in ort_run(model)(feeds).items()}
    for region in find_regions(model).found[:4]:
        result = drop(model, region) if region.can_drop else model
        assert {name: array.shape for name, array in ort_run(result)(feeds).items()} == shapes


def mapped(values: Array, stand_in: Affine | Linear, axis: int, strides: tuple[int, ...]) -> Array:
    """Return the map as einsum has it."""
    taken = np.moveaxis(
        values[(slice(None),) * (axis + 1) + tuple(slice(None, None, step) for step in strides)], axis, -1
    )
    if isinstance(stand_in, Affine):
        made = taken * stand_in.scale + stand_in.shift
    else:
        made = np.einsum("...c,mc->...m", taken, stand_in.matrix) + stand_in.shift
    return np.moveaxis(made, -1, axis)


def rows_net(*shape: int) -> ir.Model:
    """Return two products of matrices on the last axis of x, y of the same shape."""
    b = GraphBuilder("rows")
    x = b.node("MatMul", b.input("x", shape), b.weight(shape[-1], 4 * shape[-1]), name="up")
    b.output(b.node("MatMul", x, b.weight(4 * shape[-1], shape[-1]), name="down"), "y", shape)
    return b.build()


def down_net() -> ir.Model:
    b = GraphBuilder("down")
    x = b.input("x", (2, 4, 9, 9))
    y = b.node("Relu", b.node("Conv", x, b.weight(6, 4, 3, 3), pads=[1] * 4, strides=[2, 2], name="first"))
    b.output(b.node("Conv", y, b.weight(6, 6, 3, 3), pads=[1] * 4, name="second"), "y", (2, 6, 5, 5))
    return b.build()


@pytest.mark.parametrize(
    ("make", "operators"),
    [
        (down_net, ["Conv"]),
        (lambda: rows_net(5, 4), ["Gemm"]),
        (lambda: rows_net(2, 5, 4), ["MatMul", "Add"]),
    ],
)
def test_a_full_map_computes_what_einsum_does(
    make: Callable[[], ir.Model], operators: list[str], any_run: MakeRun
) -> None:
    model = make()
    region = next(one for one in find_regions(model).found if (one.entry, one.exit) == ("x", "y"))
    channels = region.channels
    assert channels is not None
    random = np.random.default_rng(0)
    stand_in = Linear(random.standard_normal((channels.exit, channels.entry)), random.standard_normal(channels.exit))
    result = replace(model, region, stand_in)
    assert [node.op_type for node in result.graph if node.op_type != "Identity"] == operators
    feeds = random_feeds(model)
    expected = mapped(feeds["x"], stand_in, channels.axis, channels.strides)
    # Sums of 4 or 8 terms in float32, rounded once each.
    np.testing.assert_allclose(any_run(result)(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_scale_and_a_shift_for_each_channel(scaled: bool, ort_run: MakeRun) -> None:
    model = bare_residual()
    region = region_of(model, "y")
    scale = np.array([0.5, 2.0, -1.0, 1.0]) if scaled else np.ones(4)
    stand_in = Affine(scale, np.array([0.1, -0.2, 0.3, 0.0]))
    result = replace(model, region, stand_in)
    assert [node.op_type for node in result.graph] == ["Mul"] * scaled + ["Add", "Relu"]
    feeds = random_feeds(model)
    expected = np.maximum(mapped(feeds["x"], stand_in, 1, (1, 1)), 0)
    np.testing.assert_allclose(ort_run(result)(feeds)["y"], expected, rtol=1e-6, atol=1e-6)


def test_stand_ins_that_do_not_fit_are_refused() -> None:
    model = down_net()
    region = next(one for one in find_regions(model).found if (one.entry, one.exit) == ("x", "y"))
    with pytest.raises(ContractError, match="their shapes differ"):
        drop(model, region)
    with pytest.raises(ContractError, match="from 4 channels to 6"):
        replace(model, region, Affine(np.ones(4), np.zeros(4)))
    with pytest.raises(ContractError, match="from 4 channels to 6"):
        replace(model, region, Linear(np.ones((4, 4)), np.zeros(4)))
    with pytest.raises(ContractError, match="has to be finite as float32"):
        replace(model, region, Linear(np.full((6, 4), 1e300), np.zeros(6)))
    with pytest.raises(ContractError, match="belongs to one graph"):
        replace(conv_net(), region, Linear(np.ones((6, 4)), np.zeros(6)))


def made_net(kernel: int, strides: int, *, read: bool = False) -> ir.Model:
    """Return a Conv, whose output another node may read, and a region behind it with twice the stride."""
    b = GraphBuilder("made")
    x = b.input("x", (1, 3, 17, 17))
    pads, weight = [kernel // 2] * 4, b.weight(8, 3, kernel, kernel)
    x = b.node("Conv", x, weight, b.weight(8, fan_in=4), pads=pads, strides=[strides] * 2, name="maker")
    y = b.node("Relu", b.node("Conv", x, b.weight(16, 8, 3, 3), pads=[1] * 4, strides=[2, 2], name="first"))
    size = {1: 9, 2: 5}[strides]
    b.output(b.node("Conv", y, b.weight(8, 16, 3, 3), pads=[1] * 4, name="second"), "y", (1, 8, size, size))
    if read:
        b.output(b.node("Neg", x, name="reader"), "z", None)
    return b.build()


@pytest.mark.parametrize(("kernel", "strides", "read"), [(3, 1, False), (3, 2, False), (1, 1, False), (3, 1, True)])
def test_a_map_behind_a_convolution_of_its_own_becomes_one_with_it(
    kernel: int, strides: int, read: bool, any_run: MakeRun
) -> None:
    model = made_net(kernel, strides, read=read)
    region = next(one for one in find_regions(model).found if (one.entry, one.exit) == ("maker_out", "y"))
    random = np.random.default_rng(0)
    stand_in = Linear(random.standard_normal((8, 8)), random.standard_normal(8))
    result = replace(model, region, stand_in)
    convolutions = [node for node in result.graph if node.op_type == "Conv"]
    assert len(convolutions) == (2 if read else 1)
    feeds = random_feeds(model)
    b = observed(model, "maker_out")
    expected = mapped(any_run(b)(feeds)["maker_out"], stand_in, 1, (2, 2))
    # Sums of 27 products, then of 8: a few roundings of numbers near 10.
    np.testing.assert_allclose(any_run(result)(feeds)["y"], expected, rtol=1e-4, atol=1e-4)


def observed(model: ir.Model, name: str) -> ir.Model:
    """Return the model with one more output."""
    copy = model.clone()
    copy.graph.outputs.append(next(v for node in copy.graph for v in node.outputs if v.name == name))
    return copy


def test_a_map_is_merged_only_where_that_multiplies_no_more() -> None:
    b = GraphBuilder("narrow")
    x = b.node("Gemm", b.input("x", (1, 32)), b.weight(2, 32), transB=1, name="narrow")
    y = b.node("Relu", b.node("Gemm", x, b.weight(64, 2), transB=1, name="up"))
    b.output(b.node("Gemm", y, b.weight(32, 64), transB=1, name="down"), "y", (1, 32))
    model = b.build()
    region = next(one for one in find_regions(model).found if (one.entry, one.exit) == ("narrow_out", "y"))
    result = replace(model, region, Linear(np.ones((32, 2)), np.zeros(32)))
    assert [node.op_type for node in result.graph].count("Gemm") == 2
