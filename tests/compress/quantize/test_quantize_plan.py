from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.target import Target
from edgewise.compress.nodes import Weighted
from edgewise.compress.quantize import affine
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.bias import weight_error_shift
from edgewise.compress.quantize.operators import weighted
from edgewise.compress.quantize.placement import KEPT
from edgewise.compress.quantize.plan import Plan, QuantizedWeight, keep_float, observed_tensors, plan
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.errors import ContractError, RecipeError
from edgewise.records.arrays import StoredArray
from edgewise.records.candidate import Quantize
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, conv_net, random_feeds

MakeRun = Callable[[ir.Model], Run]


def joined() -> ir.Model:
    b = GraphBuilder("joined")
    b.input("x", [1, 4, 8, 8])
    small = b.node("Relu", b.node("Conv", "x", b.constant(np.full((2, 4, 1, 1), 0.1, np.float32))), name="small")
    large = b.node("Relu", b.node("Conv", "x", b.constant(np.full((2, 4, 1, 1), 10, np.float32))), name="large")
    both = b.node("Concat", small, large, name="both", axis=1)
    b.output(b.node("Conv", both, b.weight(3, 4, 3, 3), name="last"), "y")
    return b.build()


def planned(model: ir.Model, target: Target, make_run: MakeRun, step: Quantize | None = None) -> Plan:
    names = observed_tensors(model, target)
    feeds = [random_feeds(model, seed=seed) for seed in range(3)]
    return plan(model, collect(make_run(observe(model, names)), feeds, names), target, step or Quantize())


def test_tensors_with_one_range_get_the_one_that_holds_all(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    made = {tensor.name: tensor for tensor in planned(joined(), needs_output_pairs, ort_run).tensors}
    alike = [made[name] for name in ("small_out", "large_out", "both_out")]
    assert len({(tensor.scale, tensor.zero_point) for tensor in alike}) == 1
    apart = dataclasses.replace(needs_output_pairs, same_range_operators=frozenset())
    made = {tensor.name: tensor for tensor in planned(joined(), apart, ort_run).tensors}
    assert made["small_out"].scale < made["large_out"].scale / 50
    assert alike[0].scale == pytest.approx(made["large_out"].scale, rel=0.02)


@pytest.mark.parametrize(("activation_type", "zero"), [("uint8", 0), ("int8", -128)])
def test_what_comes_from_a_relu_starts_at_the_smallest_integer(
    activation_type: Any, zero: int, needs_output_pairs: Target, ort_run: MakeRun
) -> None:
    target = dataclasses.replace(needs_output_pairs, activation_type=activation_type)
    made = planned(joined(), target, ort_run)
    assert made.activation_type == activation_type
    assert {tensor.zero_point for tensor in made.tensors if tensor.name == "large_out"} == {zero}


def test_every_range_method_makes_a_plan_that_says_so(gives_float: Target, ort_run: MakeRun) -> None:
    methods: tuple[Any, ...] = ("min-max", "percentile", "entropy", "mse")
    plans = [planned(conv_net(), gives_float, ort_run, Quantize(ranges=method)) for method in methods]
    assert [made.ranges for made in plans] == list(methods)
    widest = {tensor.name: tensor.scale for tensor in plans[0].tensors}
    assert all(tensor.scale <= widest[tensor.name] * (1 + 1e-6) for made in plans for tensor in made.tensors)


def test_a_plan_lists_its_nodes_and_reasons(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    made = planned(joined(), needs_output_pairs, ort_run)
    assert "last" in made.nodes
    assert "both" in made.nodes
    assert made.backend == "strict"
    assert made.scheme == "w8a8"
    target = dataclasses.replace(needs_output_pairs, quantized_operators=frozenset({"Gemm"}))
    assert {decline.operator for decline in planned(joined(), target, ort_run).declines} == {"Conv"}


def test_statistics_of_another_model_are_an_error(gives_float: Target, ort_run: MakeRun) -> None:
    feeds = [random_feeds(joined())]
    statistics = collect(ort_run(joined()), feeds, ["y"])
    with pytest.raises(ContractError, match="has none"):
        plan(joined(), statistics, gives_float, Quantize())


def test_an_unknown_scheme_is_an_error(gives_float: Target) -> None:
    with pytest.raises(RecipeError, match="`w2a2`"):
        plan(joined(), Statistics({}, 1), gives_float, Quantize(scheme="w2a2"))


def node_of(model: ir.Model, operator: str) -> tuple[ir.Node, Weighted]:
    node = next(node for node in model.graph if node.op_type == operator)
    operands = weighted(node)
    assert isinstance(operands, Weighted)
    return node, operands


@pytest.mark.parametrize(("groups", "kernel"), [(1, [1, 1]), (2, [1, 1]), (4, [3, 3])])
def test_the_bias_takes_the_mean_error_back(groups: int, kernel: list[int], ort_run: MakeRun) -> None:
    """With inputs that are the same everywhere in a channel and no padding the closed form is exact."""
    b = GraphBuilder("conv")
    b.input("x", [1, 4, 3, 3])
    name = b.weight(8, 4 // groups, *kernel, name="w")
    b.output(b.node("Conv", "x", name, group=groups), "y")
    model = b.build()
    node, operands = node_of(model, "Conv")
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    weight = tensor.numpy()
    scales = affine.symmetric_scales(weight, axis=0, bits=4)
    means = np.random.default_rng(1).standard_normal(4)
    shift = weight_error_shift(node, operands, weight, scales, means, bits=4)
    rounded = affine.dequantize_array(affine.quantize_array(weight, scales, 0, np.int8, axis=0), scales, 0, axis=0)
    feeds = {"x": np.broadcast_to(means.astype(np.float32)[None, :, None, None], (1, 4, 3, 3)).copy()}
    exact = ort_run(model)(feeds)["y"]
    model.graph.initializers["w"].const_value = ir.Tensor(rounded, name="w")
    lower = ort_run(model)(feeds)["y"]
    assert shift is not None
    # float32 sums of at most 36 products.
    room = 40 * 2**-24 * np.abs(exact).max() + 36 * 2**-24 * np.abs(weight).max() * np.abs(means).max() * 2
    assert np.abs(exact - lower - shift[None, :, None, None]).max() <= room
    assert np.abs(shift).max() > 1e-3


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_bias_of_a_gemm(transposed: int) -> None:
    b = GraphBuilder("gemm")
    b.input("x", [1, 6])
    b.output(b.node("Gemm", "x", b.weight(*([3, 6] if transposed else [6, 3]), name="w"), transB=transposed), "y")
    model = b.build()
    node, operands = node_of(model, "Gemm")
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    weight = tensor.numpy()
    scales = affine.symmetric_scales(weight, axis=operands.axis, bits=4)
    integers = affine.quantize_array(weight, scales, 0, np.int8, axis=operands.axis)
    lost = weight - affine.dequantize_array(integers, scales, 0, axis=operands.axis)
    means = np.arange(6.0)
    shift = weight_error_shift(node, operands, weight, scales, means, bits=4)
    expected = (lost if transposed else lost.T).astype(np.float64) @ means
    assert shift is not None
    assert shift.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_every_layer_with_a_bias_input_gets_its_correction(gives_float: Target, ort_run: MakeRun) -> None:
    made = planned(conv_net(), gives_float, ort_run)
    assert all(weight.bias_slot == 2 and len(weight.bias_shift) == len(weight.scales) for weight in made.weights)


def test_the_correction_lowers_the_mean_error_of_the_output(gives_float: Target, ort_run: MakeRun) -> None:
    b = GraphBuilder("wide")
    b.input("x", [1, 64, 4, 4])
    b.output(b.node("Conv", b.node("Abs", "x"), b.weight(32, 64, 1, 1)), "y")
    model = b.build()
    target = dataclasses.replace(gives_float, exact_product_bits=4)
    made = planned(model, target, ort_run)
    plain = msgspec.structs.replace(made, weights=tuple(_without_shift(weight) for weight in made.weights))
    feeds = [random_feeds(model, seed=seed) for seed in range(20, 40)]

    def mean_error(one: Plan) -> float:
        run, exact = ort_run(apply(model, one)), ort_run(model)
        errors = np.mean([run(feed)["y"] - exact(feed)["y"] for feed in feeds], axis=(0, 1, 3, 4))
        return float(np.abs(errors).mean())

    assert mean_error(made) < 0.3 * mean_error(plain)


def _without_shift(weight: QuantizedWeight) -> QuantizedWeight:
    return msgspec.structs.replace(weight, bias_shift=(), bias_slot=None)


def test_nodes_that_are_kept_stay_float_and_say_so(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    model, target = joined(), needs_output_pairs
    whole = planned(model, target, ort_run)
    first = whole.nodes[0]
    edited = keep_float(model, whole, target, [first])
    assert {decline.node: decline.reason for decline in edited.declines}[first] == KEPT
    assert set(whole.nodes) - set(edited.nodes) == {first, "both"}  # followers need 8-bit neighbours
    assert whole.weights[1:] == edited.weights
    kept = {tensor.name: tensor.scale for tensor in edited.tensors}
    assert kept.items() <= {tensor.name: tensor.scale for tensor in whole.tensors}.items()
    operators = [node.op_type for node in apply(model, edited).graph]
    assert operators.count("DequantizeLinear") < [node.op_type for node in apply(model, whole).graph].count(
        "DequantizeLinear"
    )


def test_keeping_nodes_when_the_plan_is_made_gives_the_plan_that_is_edited_later(
    needs_output_pairs: Target, ort_run: MakeRun
) -> None:
    model, target = joined(), needs_output_pairs
    names = observed_tensors(model, target)
    feeds = [random_feeds(model, seed=seed) for seed in range(3)]
    statistics = collect(ort_run(observe(model, names)), feeds, names)
    chosen = {tensor: (-1.0, 1.0 + index) for index, tensor in enumerate(names)}
    whole = plan(model, statistics, target, Quantize(ranges="output"), chosen=chosen)
    direct = plan(model, statistics, target, Quantize(ranges="output"), chosen=chosen, keep=["last"])
    assert keep_float(model, whole, target, ["last"]) == direct
    assert keep_float(model, whole, target, []) == whole


def test_ranges_by_the_output_have_to_be_chosen_before(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    model, target = joined(), needs_output_pairs
    with pytest.raises(ContractError, match="chosen before"):
        planned(model, target, ort_run, Quantize(ranges="output"))
    names = observed_tensors(model, target)
    statistics = collect(ort_run(observe(model, names)), [random_feeds(model)], names)
    with pytest.raises(ContractError, match="needs a range"):
        plan(model, statistics, target, Quantize(), chosen={})


def test_integers_that_a_plan_gives_are_written_as_they_are(needs_output_pairs: Target, ort_run: MakeRun) -> None:
    model = joined()
    whole = planned(model, needs_output_pairs, ort_run)
    given = np.arange(8, dtype=np.int8).reshape(2, 4, 1, 1)
    first, *others = whole.weights
    weights = (msgspec.structs.replace(first, integers=StoredArray.of(given)), *others)
    graph = apply(model, msgspec.structs.replace(whole, weights=weights)).graph
    stored = [value.const_value.numpy() for value in graph.initializers.values() if value.const_value is not None]
    assert any(array.dtype == np.int8 and np.array_equal(array, given) for array in stored)
