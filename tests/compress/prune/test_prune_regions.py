"""Which parts of a graph can go as a whole: what is known of them, and every reason why others cannot."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgewise.analysis.cost import layer_costs, total_macs
from edgewise.compress.prune.regions import Region, Regions, find_regions
from edgewise.errors import ContractError
from edgewise.passes.apply import optimize
from edgewise.testing.graphs import GraphBuilder, conv_net, depthwise_net, lstm_net, mlp, transformer_block
from edgewise.testing.random_graphs import random_network


def named(regions: Regions, name: str) -> Region:
    return next(region for region in regions.found if region.name == name)


def reasons(regions: Regions) -> list[str]:
    return [decline.reason for decline in regions.declines]


def test_a_residual_block_is_a_branch_and_its_activation_goes_where_the_entry_is_not_negative() -> None:
    model, _ = optimize(conv_net())
    region = named(find_regions(model), "block_relu_out")
    assert (region.kind, region.entry, region.core) == ("branch", "stem_relu_out", "block_add_out")
    assert not region.keeps_activation
    assert region.nodes == ("block_a_conv", "block_a_relu", "block_b_conv", "block_add")
    assert region.macs == sum(cost.macs for cost in layer_costs(model) if cost.node.startswith("block"))
    assert region.parameters == 2 * (8 * 8 * 9 + 8)
    assert region.channels is not None
    assert (region.channels.axis, region.channels.strides, region.channels.macs) == (1, (1, 1), 8 * 8 * 16 * 16)


def test_an_activation_stays_where_the_entry_may_be_negative() -> None:
    b = GraphBuilder("bare")
    x = b.input("x", (1, 4, 8, 8))
    y = b.node("Conv", x, b.weight(4, 4, 3, 3), pads=[1, 1, 1, 1], name="conv")
    b.output(b.node("Relu", b.node("Add", x, y, name="add"), name="relu"), "y", (1, 4, 8, 8))
    region = named(find_regions(b.build()), "y")
    assert region.keeps_activation
    assert (region.core, region.exit) == ("add_out", "y")


@pytest.mark.parametrize(("high", "stays"), [(6.0, False), (4.0, True)])
def test_a_clip_goes_where_the_entry_is_within_it(high: float, *, stays: bool) -> None:
    b = GraphBuilder("clips")
    low = b.constant(np.float32(0))
    x = b.node("Clip", b.input("x", (1, 4, 8, 8)), low, b.constant(np.float32(6)), name="before")
    y = b.node("Conv", x, b.weight(4, 4, 1, 1), name="conv")
    y = b.node("Clip", b.node("Add", y, x, name="add"), low, b.constant(np.float32(high)), name="behind")
    b.output(y, "y", (1, 4, 8, 8))
    assert named(find_regions(b.build()), "y").keeps_activation == stays


@pytest.mark.parametrize("standard", [True, False])
def test_sub_layers_of_a_transformer_are_branches_however_they_are_written(standard: bool) -> None:
    model, _ = optimize(transformer_block(standard=standard))
    found = find_regions(model)
    branches = [region for region in found.found if region.kind == "branch"]
    assert [(region.entry, region.exit) for region in branches] == [
        ("tokens", "residual1_out"),
        ("residual1_out", "out"),
    ]
    assert all(region.channels is not None and region.channels.axis == 2 for region in branches)
    both = [region for region in found.found if (region.entry, region.exit) == ("tokens", "out")]
    assert [region.kind for region in both] == ["stretch"]
    assert both[0].macs == total_macs(layer_costs(model)) == sum(region.macs for region in branches)


def test_post_norm_sub_layers_are_branches_in_front_of_their_normalization() -> None:
    b = GraphBuilder("post", opset=20)
    x = b.input("x", (1, 5, 8))
    for index in range(2):
        y = b.node("MatMul", b.node("Relu", b.node("MatMul", x, b.weight(8, 16))), b.weight(16, 8))
        y = b.node("Add", x, y, name=f"add{index}")
        x = b.node("LayerNormalization", y, b.weight(8), b.weight(8), name=f"norm{index}")
    b.output(x, "y", (1, 5, 8))
    branches = [region for region in find_regions(b.build()).found if region.kind == "branch"]
    assert [region.exit for region in branches] == ["add0_out", "add1_out"]


def test_regions_of_other_widths_or_sizes_are_mappings_that_cost_less() -> None:
    b = GraphBuilder("down")
    x = b.input("x", (1, 4, 9, 9))
    y = b.node("Relu", b.node("Conv", x, b.weight(6, 4, 3, 3), pads=[1] * 4, strides=[2, 2], name="first"))
    b.output(b.node("Conv", y, b.weight(6, 6, 3, 3), pads=[1] * 4, name="second"), "y", (1, 6, 5, 5))
    region = next(one for one in find_regions(b.build()).found if (one.entry, one.exit) == ("x", "y"))
    assert region.kind == "mapping"
    assert not region.can_drop
    assert region.channels is not None
    assert (region.channels.entry, region.channels.exit, region.channels.strides) == (4, 6, (2, 2))
    assert region.channels.macs == 4 * 6 * 25 < region.macs


def test_sizes_that_no_step_makes_have_no_linear_map() -> None:
    b = GraphBuilder("valid")
    x = b.input("x", (1, 4, 9, 9))
    b.output(b.node("Conv", x, b.weight(4, 4, 3, 3), name="conv"), "y", (1, 4, 7, 7))
    found = find_regions(b.build())
    assert found.found == ()
    assert reasons(found) == ["nothing in it lies between two values such that nothing else leaves"]


def test_longer_stretches_are_listed_as_far_as_is_asked_for() -> None:
    b = GraphBuilder("chain")
    x = b.input("x", (1, 4, 8, 8))
    for index in range(4):
        x = b.node("Relu", b.node("Conv", x, b.weight(4, 4, 1, 1), name=f"conv{index}"), name=f"relu{index}")
    b.output(x, "y", (1, 4, 8, 8))
    model = b.build()
    assert [len(find_regions(model, longest=count).found) for count in (1, 2, 4)] == [4, 7, 10]
    names = [region.name for region in find_regions(model, longest=4).found]
    assert len(set(names)) == 10
    assert "relu0_out..relu2_out" in names
    with pytest.raises(ContractError, match="at least one region"):
        find_regions(model, longest=0)


def test_what_is_read_outside_or_an_output_keeps_a_branch() -> None:
    b = GraphBuilder("leaks")
    x = b.input("x", (1, 4, 8, 8))
    inner = b.node("Conv", x, b.weight(4, 4, 1, 1), name="inner")
    first = b.node("Add", x, b.node("Relu", inner, name="relu"), name="first")
    given = b.node("Conv", first, b.weight(4, 4, 1, 1), name="given")
    second = b.node("Add", first, given, name="second")
    b.output(b.node("Mul", second, inner, name="late"), "y", (1, 4, 8, 8))
    b.output(given, "inside", (1, 4, 8, 8))
    found = find_regions(b.build())
    assert not [region for region in found.found if region.kind == "branch"]
    assert reasons(found) == [
        "`inner_out` inside of it is also read by `late`",
        "`inside` inside of it is an output of the model",
    ]


def test_a_branch_that_reads_something_else_stays() -> None:
    b = GraphBuilder("two")
    x, other = b.input("x", (1, 4)), b.input("other", (1, 4))
    y = b.node("Add", x, b.node("MatMul", b.node("Mul", x, other), b.weight(4, 4), name="product"), name="add")
    b.output(y, "y", (1, 4))
    found = find_regions(b.build())
    assert [region.kind for region in found.found] == ["stretch"]
    assert reasons(found) == ["what is added to `x` depends on more than that"]


def test_dynamic_sizes_that_are_not_known_to_agree_keep_a_branch() -> None:
    b = GraphBuilder("dynamic")
    x = b.input("x", (1, 4, 8, "width"))
    y = b.node("Conv", x, b.weight(4, 4, 3, 3), pads=[1] * 4, name="conv")
    b.output(b.node("Add", x, y, name="add"), "y", (1, 4, 8, "out"))
    found = find_regions(b.build())
    assert not [region for region in found.found if region.kind == "branch"]
    assert reasons(found)[0] == "`x` and `y` are not known to have the same shape"


def test_a_dynamic_batch_does_not_matter() -> None:
    model, _ = optimize(conv_net(batch="n"))
    assert named(find_regions(model), "block_relu_out").kind == "branch"


def test_quantized_models_are_declined() -> None:
    b = GraphBuilder("quantized")
    scale, zero = b.constant(np.float32(0.1)), b.constant(np.uint8(128))
    x = b.node("QuantizeLinear", b.input("x", (1, 4)), scale, zero, name="q")
    x = b.node("DequantizeLinear", x, scale, zero, name="dq")
    b.output(b.node("MatMul", x, b.weight(4, 4)), "y", (1, 4))
    found = find_regions(b.build())
    assert found.found == ()
    assert reasons(found) == ["the model is quantized already: layers are pruned before that"]


def test_no_region_contains_a_node_with_a_body_or_what_its_body_reads() -> None:
    body = GraphBuilder("body")
    body.output(body.node("Identity", "mid_out", name="inner"), "captured")
    other = GraphBuilder("other")
    other.output(other.node("Neg", "mid_out", name="negated"), "negative")
    b = GraphBuilder("branches")
    x = b.input("x", (1, 4))
    mid = b.node("MatMul", x, b.weight(4, 4), name="mid")
    is_positive = b.node("Greater", b.node("ReduceSum", x, keepdims=0), b.constant(np.float32(0)), name="is_positive")
    chosen = b.node("If", is_positive, name="choice", then_branch=body.graph(), else_branch=other.graph())
    y = b.node("Add", mid, b.node("MatMul", chosen, b.weight(4, 4), name="last"), name="add")
    b.output(y, "y", (1, 4))
    proto = helper.make_model(b.graph(), opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    found = find_regions(ir.from_proto(proto))
    assert "its body is not looked into" in reasons(found)
    assert not any("choice" in region.nodes for region in found.found)
    # `mid` alone may go: what the bodies read is then the entry itself.
    assert {region.exit for region in found.found} <= {"mid_out", "last_out"}


def test_shared_weights_are_not_counted_as_gone() -> None:
    b = GraphBuilder("shared")
    x, weight = b.input("x", (1, 4)), b.weight(4, 4)
    first = b.node("MatMul", x, weight, name="first")
    b.output(b.node("MatMul", first, weight, name="second"), "y", (1, 4))
    found = find_regions(b.build(), longest=2)
    assert {region.name: region.parameters for region in found.found} == {"first_out": 0, "y": 0, "x..y": 16}


def test_models_without_products_between_equal_shapes_have_reasons() -> None:
    assert find_regions(lstm_net()).found == ()
    assert all(region.kind == "mapping" for region in find_regions(mlp()).found)


def test_a_linear_bottleneck_is_a_branch_without_an_activation() -> None:
    model, _ = optimize(depthwise_net())
    region = named(find_regions(model), "residual_add_out")
    assert (region.kind, region.core, region.keeps_activation) == ("branch", "residual_add_out", False)


@given(seed=st.integers(0, 2**16))
def test_regions_of_random_graphs_have_one_entry_and_one_exit(seed: int) -> None:
    model = random_network(seed)
    producers = {value.name: node for node in model.graph for value in node.outputs}
    for region in find_regions(model, longest=3).found:
        inside = {node for node in model.graph if (node.name or node.outputs[0].name) in region.nodes}
        made = {value for node in inside for value in node.outputs}
        for node in inside:
            for value in node.inputs:
                if value is not None and value not in made:
                    assert value.name == region.entry or not _depends_on_inputs(value)
        for value in made - {producers[region.core].outputs[0]}:
            assert not value.is_graph_output()
            assert all(reader in inside for reader in value.consumers())


def _depends_on_inputs(value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return value.is_graph_input()
    return any(_depends_on_inputs(given) for given in node.inputs if given is not None)
