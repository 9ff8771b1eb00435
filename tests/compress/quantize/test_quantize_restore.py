"""Nodes of quantized graphs back in floating point: which numbers come out, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.target import Target
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.plan import observed_tensors, plan
from edgewise.compress.quantize.restore import dequantized, matched, quantized_nodes, restored
from edgewise.compress.statistics import collect, observe
from edgewise.errors import ContractError
from edgewise.records.candidate import Quantize
from edgewise.records.tensors import Array, Feeds, Run
from edgewise.testing.graphs import GraphBuilder, depthwise_net, random_feeds

MakeRun = Callable[[ir.Model], Run]


def quantized(model: ir.Model, target: Target, make_run: MakeRun) -> ir.Model:
    feeds = [random_feeds(model, seed=seed) for seed in range(4)]
    names = observed_tensors(model, target)
    statistics = collect(make_run(observe(model, names)), feeds, names)
    return apply(model, plan(model, statistics, target, Quantize(ranges="min-max")))


def chain() -> ir.Model:
    """Return Conv, Relu, MaxPool, Conv, Conv, Flatten."""
    b = GraphBuilder("chain")
    x = b.input("x", (1, 3, 8, 8))
    y = b.node("Conv", x, b.weight(8, 3, 3, 3), b.weight(8, fan_in=4), name="first", pads=[1, 1, 1, 1])
    y = b.node("MaxPool", b.node("Relu", y, name="relu"), name="pool", kernel_shape=[2, 2], strides=[2, 2])
    y = b.node("Conv", y, b.weight(8, 8, 3, 3), b.weight(8, fan_in=4), name="second")
    y = b.node("Conv", y, b.weight(4, 8, 1, 1), name="third")
    b.output(b.node("Flatten", y, name="flat"), "y", (1, 16))
    return b.build()


def outputs(make_run: MakeRun, model: ir.Model, feeds: Feeds) -> Array:
    return next(iter(make_run(model)(feeds).values()))


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("target_name", ["needs_output_pairs", "gives_float"])
@pytest.mark.parametrize("make", [chain, depthwise_net])
def test_all_nodes_restored_are_the_original_bit_for_bit(
    make: Callable[[], ir.Model], target_name: str, request: pytest.FixtureRequest, ort_run: MakeRun
) -> None:
    model = make()
    result = quantized(model, request.getfixturevalue(target_name), ort_run)
    nodes = quantized_nodes(result)
    back = restored(result, nodes, reference=model)
    assert kinds(back) == kinds(model)
    assert [value.name for value in back.graph.outputs] == [value.name for value in model.graph.outputs]
    feeds = random_feeds(model, seed=9)
    assert np.array_equal(outputs(ort_run, back, feeds), outputs(ort_run, model, feeds))
    assert not np.array_equal(outputs(ort_run, result, feeds), outputs(ort_run, model, feeds))


def test_the_nodes_on_integers_are_named_without_those_that_only_move_values(
    needs_output_pairs: Target, ort_run: MakeRun
) -> None:
    model = chain()
    result = quantized(model, needs_output_pairs, ort_run)
    assert quantized_nodes(result) == ("first", "second", "third")
    assert quantized_nodes(model) == ()
    assert matched(result, model) == ("first", "second", "third")


def test_one_node_restored_leaves_its_neighbours_on_integers(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    model = chain()
    result = quantized(model, needs_output_pairs, ort_run)
    before = ir.to_proto(result).SerializeToString(deterministic=True)
    back = restored(result, ["second"], reference=model)
    assert ir.to_proto(result).SerializeToString(deterministic=True) == before
    assert quantized_nodes(back) == ("first", "third")
    second = next(node for node in back.graph if node.name == "second")
    made_by = [None if value is None else value.producer() for value in second.inputs]
    # The pool only moved integers for its sake: it reads what the Relu makes.
    assert [None if node is None else node.op_type for node in made_by] == ["MaxPool", None, None]
    assert made_by[0] is not None
    assert made_by[0].inputs[0] is not None
    assert made_by[0].inputs[0].producer().op_type == "Relu"  # type: ignore[union-attr]
    third = next(node for node in back.graph if node.name == "third")
    assert third.inputs[0] is not None
    assert third.inputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]


def test_a_restored_node_equals_the_plan_that_keeps_it_float(gives_float: Target, ort_run: MakeRun) -> None:
    model = chain()
    feeds = random_feeds(model, seed=5)
    result = quantized(model, gives_float, ort_run)
    back = restored(result, ["first", "second"], reference=model)
    third = next(node for node in back.graph if node.name == "third")
    # What is left: the pair in front of the third, its weights; nothing behind.
    assert kinds(back).count("QuantizeLinear") == 1
    weight = third.inputs[1]
    assert weight is not None
    assert weight.producer() is not None
    tapped = ort_run(observe(back, ["second_out"]))(feeds)["second_out"]
    assert np.array_equal(tapped, ort_run(observe(model, ["second_out"]))(feeds)["second_out"])


def test_a_pair_that_others_read_stays_for_them(gives_float: Target, ort_run: MakeRun) -> None:
    b = GraphBuilder("fork")
    x = b.input("x", (1, 4, 6, 6))
    left = b.node("Conv", x, b.weight(4, 4, 1, 1), name="left")
    right = b.node("Conv", x, b.weight(4, 4, 1, 1), name="right")
    b.output(left, "a", (1, 4, 6, 6))
    b.output(right, "b", (1, 4, 6, 6))
    model = b.build()
    result = quantized(model, gives_float, ort_run)
    back = restored(result, ["left"], reference=model)
    feeds = random_feeds(model, seed=3)
    exact, rounded, mixed = (ort_run(one)(feeds) for one in (model, result, back))
    assert np.array_equal(mixed["a"], exact["a"])
    assert np.array_equal(mixed["b"], rounded["b"])
    assert not np.array_equal(rounded["b"], exact["b"])


def test_without_a_reference_the_rounded_weights_stay(gives_float: Target, ort_run: MakeRun) -> None:
    model = chain()
    result = quantized(model, gives_float, ort_run)
    back = restored(result, quantized_nodes(result))
    assert kinds(back) == kinds(model)
    weight = next(node for node in back.graph if node.name == "second").inputs[1]
    stored = next(node for node in result.graph if node.name == "second").inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    assert stored is not None
    maker = stored.producer()
    assert maker is not None
    expected = dequantized(maker)
    assert expected is not None
    assert np.array_equal(weight.const_value.numpy(), expected)


def test_weights_of_another_scale_are_not_taken(gives_float: Target, ort_run: MakeRun) -> None:
    model = chain()
    result = quantized(model, gives_float, ort_run)
    other = chain()
    weight = next(node for node in other.graph if node.name == "second").inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.5, name=weight.name)
    assert matched(result, other) == ("first", "third")
    back = restored(result, ["second"], reference=other)
    plain = restored(result, ["second"])
    feeds = random_feeds(model, seed=1)
    assert np.array_equal(outputs(ort_run, back, feeds), outputs(ort_run, plain, feeds))


@pytest.mark.parametrize("reference", [True, False])
def test_an_activation_that_only_a_range_stood_for_is_put_back(*, reference: bool, ort_run: MakeRun) -> None:
    model = _two_gemms(relu=True)
    back = restored(_two_gemms(relu=False, pair=True), ["one", "two"], reference=model if reference else None)
    assert [kind for kind in kinds(back) if kind in {"Gemm", "Relu"}] == ["Gemm", "Relu", "Gemm"]
    feeds = random_feeds(model, seed=2)
    assert np.allclose(outputs(ort_run, back, feeds), outputs(ort_run, model, feeds), atol=0.3 if not reference else 0)
    plain = restored(_two_gemms(relu=False, pair=True), ["one", "two"], reference=_two_gemms(relu=False))
    assert "Relu" not in kinds(plain)


def _two_gemms(*, relu: bool, pair: bool = False) -> ir.Model:
    """Return Gemm, Relu, Gemm; with `pair` the weights are integers and a range from 0 may stand for the Relu."""
    b = GraphBuilder("gemms")
    value = b.input("x", (1, 8))
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        weight = draw.standard_normal((8, 8)).astype(np.float32)
        held = b.constant(weight, f"{name}_w")
        if pair:
            scale = b.constant(np.float32(np.abs(weight).max() / 127))
            zero = b.constant(np.int8(0))
            integers = np.rint(weight / (np.abs(weight).max() / 127)).astype(np.int8)
            held = b.node("DequantizeLinear", b.constant(integers, f"{name}_quantized"), scale, zero)
            scales = (b.constant(np.float32(0.05)), b.constant(np.uint8(128 if name == "one" else 0)))
            value = b.node("DequantizeLinear", b.node("QuantizeLinear", value, *scales), *scales)
        value = b.node("Gemm", value, held, name=name)
        if relu and name == "one":
            value = b.node("Relu", value, name="relu")
    b.output(value, "y", (1, 8))
    return b.build()


def test_blocks_of_four_bits_are_dequantized() -> None:
    integers = np.arange(-8, 8, dtype=np.int8).reshape(4, 4).astype(ml_dtypes.int4)
    scale = np.array([[0.5, 1, 2, 4], [1, 1, 1, 0.25]], np.float32)
    node = ir.node(
        "DequantizeLinear",
        [
            ir.Value(name="q", const_value=ir.tensor(integers)),
            ir.Value(name="s", const_value=ir.tensor(scale)),
        ],
        {"axis": 0, "block_size": 2},
    )
    for value in node.inputs:
        assert value is not None
        ir.Graph([], [], nodes=[], initializers=[value])
    found = dequantized(node)
    assert found is not None
    assert np.array_equal(found, integers.astype(np.float32) * np.repeat(scale, 2, axis=0))


def test_a_node_that_does_not_work_on_integers_is_refused(gives_float: Target, ort_run: MakeRun) -> None:
    model = chain()
    with pytest.raises(ContractError, match="`flat`"):
        restored(model, ["flat"])
    with pytest.raises(ContractError, match="`nobody`"):
        restored(quantized(model, gives_float, ort_run), ["nobody"])


def test_a_node_that_moves_integers_for_others_stays_on_them(gives_float: Target, ort_run: MakeRun) -> None:
    b = GraphBuilder("shared")
    y = b.node("Conv", b.input("x", (1, 4, 8, 8)), b.weight(4, 4, 1, 1), name="first")
    y = b.node("MaxPool", y, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    b.output(b.node("Conv", y, b.weight(4, 4, 1, 1), name="left"), "a", (1, 4, 4, 4))
    b.output(b.node("Conv", y, b.weight(4, 4, 1, 1), name="right"), "b", (1, 4, 4, 4))
    model = b.build()
    result = quantized(model, gives_float, ort_run)
    alone, both = (restored(result, nodes, reference=model) for nodes in (["left"], ["left", "right"]))

    def before_pool(graph: ir.Model) -> str:
        value = next(node for node in graph.graph if node.name == "pool").inputs[0]
        assert value is not None
        maker = value.producer()
        assert maker is not None
        return maker.op_type

    assert before_pool(alone) == "DequantizeLinear"
    assert before_pool(both) == "Conv"
    feeds = random_feeds(model, seed=4)
    assert np.array_equal(ort_run(alone)(feeds)["b"], ort_run(result)(feeds)["b"])
