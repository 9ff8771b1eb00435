from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.target import Target
from edgewise.compress.quantize.placement import Placement, place
from edgewise.testing.graphs import GraphBuilder, lstm_net, transformer_block


def edges(placement: Placement) -> dict[str, list[tuple[str, int]] | str]:
    """Sites by name: who reads the integers, or `all`."""
    return {
        site.value.name or "": "all"
        if site.readers is None
        else [(node.name or node.op_type, slot) for node, slot in site.readers]
        for site in placement.sites
    }


def reasons(placement: Placement) -> dict[str, str]:
    return {decline.node: decline.reason for decline in placement.declines}


def chosen(placement: Placement) -> set[str | None]:
    return {node.name for node, _ in placement.weighted} | {node.name for node in placement.others}


def conv(b: GraphBuilder, value: str, name: str, *, inputs: int = 4, outputs: int = 4) -> str:
    return b.node("Conv", value, b.weight(outputs, inputs, 3, 3), name=name, pads=[1, 1, 1, 1])


def start(name: str = "net") -> GraphBuilder:
    b = GraphBuilder(name)
    b.input("x", [1, 4, 8, 8])
    return b


class TestConvolutions:
    def test_the_pair_goes_behind_the_activation(self, needs_output_pairs: Target) -> None:
        b = start()
        relu = b.node("Relu", conv(b, "x", "c1"))
        clip = b.node("Clip", conv(b, relu, "c2"), b.constant(np.float32(0)), b.constant(np.float32(6)))
        b.output(b.node("Sigmoid", conv(b, clip, "c3")), "y")
        placement = place(b.build(), needs_output_pairs)
        assert edges(placement) == {"x": [("c1", 0)], relu: "all", clip: "all", "c3_out": "all"}
        assert placement.declines == ()

    def test_a_kernel_that_gives_float_needs_no_pair_behind_it(self, gives_float: Target) -> None:
        b = start()
        relu = b.node("Relu", conv(b, "x", "c1"), name="relu")
        b.output(b.node("Sigmoid", conv(b, relu, "c2")), "y")
        b.output(b.node("Exp", relu, name="exp"), "z")
        assert edges(place(b.build(), gives_float)) == {"x": [("c1", 0)], "relu_out": [("c2", 0)]}

    def test_an_activation_with_a_second_reader_of_its_input_is_not_fused(self, needs_output_pairs: Target) -> None:
        b = start()
        c1 = conv(b, "x", "c1")
        b.output(b.node("Relu", c1, name="relu"), "y")
        b.output(conv(b, c1, "c2"), "z")
        assert edges(place(b.build(), needs_output_pairs)) == {"x": [("c1", 0)], "c1_out": "all", "z": "all"}

    def test_a_clip_with_computed_bounds_is_not_fused(self, needs_output_pairs: Target) -> None:
        b = start()
        b.input("top", [])
        clip = b.node("Clip", conv(b, "x", "c1"), b.constant(np.float32(0)), "top")
        b.output(conv(b, clip, "c2"), "y")
        assert edges(place(b.build(), needs_output_pairs)) == {
            "x": [("c1", 0)],
            "c1_out": "all",
            clip: [("c2", 0)],
            "y": "all",
        }

    def test_a_float_reader_of_what_float_makes_keeps_the_float(self, needs_output_pairs: Target) -> None:
        b = start()
        tanh = b.node("Tanh", "x", name="tanh")
        b.output(conv(b, tanh, "c1"), "y")
        b.output(b.node("Exp", tanh), "z")
        assert edges(place(b.build(), needs_output_pairs))["tanh_out"] == [("c1", 0)]

    def test_a_residual_sum_is_8_bit(self, needs_output_pairs: Target) -> None:
        b = start()
        c1 = b.node("Relu", conv(b, "x", "c1"), name="relu")
        total = b.node("Relu", b.node("Add", conv(b, c1, "c2"), c1, name="add"), name="relu2")
        b.output(conv(b, total, "c3"), "y")
        placement = place(b.build(), needs_output_pairs)
        assert chosen(placement) == {"c1", "c2", "add", "c3"}
        assert set(edges(placement)) == {"x", "relu_out", "c2_out", "relu2_out", "y"}

    @pytest.mark.parametrize("operator", ["MaxPool", "Transpose", "Pad"])
    def test_moves_between_8_bit_operators_share_the_range(self, needs_output_pairs: Target, operator: str) -> None:
        b = start()
        relu = b.node("Relu", conv(b, "x", "c1"), name="relu")
        made = {
            "MaxPool": lambda: b.node("MaxPool", relu, name="move", kernel_shape=[2, 2]),
            "Transpose": lambda: b.node("Transpose", relu, name="move", perm=[0, 1, 3, 2]),
            "Pad": lambda: b.node("Pad", relu, b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), name="move"),
        }[operator]()
        b.output(conv(b, made, "c2"), "y")
        placement = place(b.build(), needs_output_pairs)
        assert placement.shared == ((frozenset({"relu_out", "move_out"}), frozenset({"relu_out"})),)

    def test_everything_that_is_joined_shares_the_range_of_all(self, needs_output_pairs: Target) -> None:
        b = start()
        parts = [b.node("Relu", conv(b, "x", f"c{k}"), name=f"r{k}") for k in (1, 2)]
        joined = b.node("Concat", *parts, name="join", axis=1)
        pooled = b.node("MaxPool", joined, name="pool", kernel_shape=[2, 2])
        b.output(conv(b, pooled, "c3", inputs=8), "y")
        ((names, sources),) = place(b.build(), needs_output_pairs).shared
        assert names == {"r1_out", "r2_out", "join_out", "pool_out"}
        assert sources == {"r1_out", "r2_out"}

    def test_an_operator_that_may_change_the_range_shares_none(self, needs_output_pairs: Target) -> None:
        target = dataclasses.replace(needs_output_pairs, same_range_operators=frozenset())
        b = start()
        pooled = b.node("MaxPool", conv(b, "x", "c1"), name="pool", kernel_shape=[2, 2])
        b.output(conv(b, pooled, "c2"), "y")
        placement = place(b.build(), target)
        assert placement.shared == ()
        assert "pool" in chosen(placement)

    def test_a_graph_output_in_the_middle_is_read_by_all(self, needs_output_pairs: Target, gives_float: Target) -> None:
        b = start()
        b.output(conv(b, "x", "c1"), "middle")
        b.output(conv(b, "middle", "c2"), "y")
        model = b.build()
        assert edges(place(model, needs_output_pairs))["middle"] == "all"
        assert edges(place(model, gives_float))["middle"] == [("c2", 0)]


class TestTransformers:
    @pytest.mark.parametrize("target_name", ["needs_output_pairs", "gives_float"])
    def test_only_products_with_weights_are_8_bit(self, request: pytest.FixtureRequest, target_name: str) -> None:
        model = transformer_block()
        placement = place(model, request.getfixturevalue(target_name))
        assert placement.weighted
        assert {node.op_type for node, _ in placement.weighted} <= {"MatMul", "Gemm"}
        sensitive = {"Softmax", "LayerNormalization", "ReduceMean", "Sub", "Pow", "Sqrt", "Div", "Erf"}
        for site in placement.sites:
            readers = [node for node, _ in site.value.uses()] if site.readers is None else [n for n, _ in site.readers]
            assert not sensitive & {node.op_type for node in readers}
        assert "Add" not in {node.op_type for node in placement.others}

    def test_a_product_of_activations_says_why_not(self, gives_float: Target) -> None:
        b = GraphBuilder("scores")
        b.input("q", [1, 4, 4])
        b.input("k", [1, 4, 4])
        b.output(b.node("MatMul", "q", "k", name="scores"), "y")
        assert "both of its operands are activations" in reasons(place(b.build(), gives_float))["scores"]


class TestDeclines:
    def reason(self, b: GraphBuilder, target: Target, node: str) -> str:
        placement = place(b.build(), target)
        assert node not in chosen(placement)
        return reasons(placement)[node]

    def test_weights_that_are_not_constant(self, gives_float: Target) -> None:
        b = start()
        b.input("w", [4, 4, 3, 3])
        b.output(b.node("Conv", "x", "w", name="c"), "y")
        assert self.reason(b, gives_float, "c") == "its weights `w` are not constant"

    def test_weights_that_a_caller_may_override(self, gives_float: Target) -> None:
        b = start()
        b.constant(np.ones((4, 4, 3, 3), np.float32), "w")
        b.input("w", [4, 4, 3, 3])
        b.output(b.node("Conv", "x", "w", name="c"), "y")
        assert self.reason(b, gives_float, "c") == "its weights `w` are not constant"

    @pytest.mark.parametrize(("name", "value"), [("alpha", 0.5), ("beta", 2.0)])
    def test_gemm_factors(self, gives_float: Target, name: str, value: float) -> None:
        b = GraphBuilder("gemm")
        b.input("x", [1, 4])
        attributes: dict[str, Any] = {name: value}
        b.output(b.node("Gemm", "x", b.weight(4, 3), b.weight(3), name="g", **attributes), "y")
        assert f"its `{name}` is {value:g}" in self.reason(b, gives_float, "g")

    @pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
    def test_a_constant_on_the_left(self, gives_float: Target, operator: str) -> None:
        b = GraphBuilder("left")
        b.input("x", [4, 3])
        b.output(b.node(operator, b.weight(5, 4), "x", name="g"), "y")
        assert "its constant is the left operand" in self.reason(b, gives_float, "g")

    def test_nothing_but_constants(self, gives_float: Target) -> None:
        b = GraphBuilder("folded")
        b.input("x", [5, 3])
        product = b.node("MatMul", b.weight(5, 4), b.weight(4, 3), name="g")
        b.output(b.node("Add", "x", product), "y")
        assert "all of its operands are constant" in self.reason(b, gives_float, "g")

    def test_float16_weights_and_vectors(self, gives_float: Target) -> None:
        b = GraphBuilder("half")
        b.input("h", [1, 4], "float16")
        b.input("x", [1, 4])
        b.output(b.node("MatMul", "h", b.constant(np.ones((4, 3), np.float16)), name="g"), "y", dtype="float16")
        b.output(b.node("MatMul", "x", b.constant(np.ones(4, np.float32)), name="v"), "z")
        assert "float16" in self.reason(b, gives_float, "g")
        assert "a vector" in self.reason(b, gives_float, "v")

    def test_nan_in_weights_and_biases(self, gives_float: Target) -> None:
        b = start()
        nan = np.full((4, 4, 1, 1), np.nan, np.float32)
        b.output(b.node("Conv", "x", b.constant(nan, "w"), name="c"), "y")
        b.output(b.node("Conv", "x", b.weight(4, 4, 1, 1), b.constant(nan[:, 0, 0, 0], "b"), name="d"), "z")
        assert self.reason(b, gives_float, "c") == "its weights `w` hold NaN or infinities"
        assert self.reason(b, gives_float, "d") == "its bias `b` holds NaN or infinities"

    def test_biases_that_do_not_fit(self, gives_float: Target) -> None:
        b = GraphBuilder("gemm")
        b.input("x", [2, 4])
        b.input("c", [3])
        b.output(b.node("Gemm", "x", b.weight(4, 3), "c", name="dynamic"), "y")
        b.output(b.node("Gemm", "x", b.weight(4, 3), b.weight(2, 3, name="rows"), name="matrix"), "z")
        assert self.reason(b, gives_float, "dynamic") == "its bias `c` is not constant"
        assert "has the shape [2, 3]" in self.reason(b, gives_float, "matrix")

    def test_recurrent_operators_and_subgraphs(self, gives_float: Target) -> None:
        found = place(lstm_net(), gives_float).declines
        assert any(decline.operator == "LSTM" and "recurrent" in decline.reason for decline in found)
        inner, other = GraphBuilder("then"), GraphBuilder("else")
        inner.output(inner.node("MatMul", "x", inner.weight(4, 4)), "y_then", [1, 4])
        other.output(other.node("Identity", "x"), "y_else", [1, 4])
        b = GraphBuilder("branch")
        b.input("x", [1, 4])
        b.input("flag", [], "bool")
        b.output(b.node("If", "flag", name="if", then_branch=inner.graph(), else_branch=other.graph()), "y", [1, 4])
        assert self.reason(b, gives_float, "if") == "it has subgraphs, which stay float"

    def test_an_operator_without_a_kernel(self, gives_float: Target) -> None:
        target = dataclasses.replace(gives_float, quantized_operators=frozenset({"Gemm"}))
        b = start()
        b.output(conv(b, "x", "c"), "y")
        assert self.reason(b, target, "c") == "`free` has no 8-bit kernel for Conv"

    def test_followers_without_8_bit_neighbours(self, needs_output_pairs: Target) -> None:
        b = start()
        c1, c2 = conv(b, "x", "c1"), conv(b, "x", "c2")
        b.output(b.node("Add", c1, c2, name="last"), "y")
        b.output(conv(b, b.node("Add", b.node("Exp", "x"), c1, name="mixed"), "c3"), "z")
        b.output(conv(b, b.node("Add", c1, b.constant(np.float32(1)), name="shift"), "c4"), "w")
        assert self.reason(b, needs_output_pairs, "last") == "no 8-bit operator reads `y`"
        assert "is not made by an 8-bit operator" in self.reason(b, needs_output_pairs, "mixed")
        assert self.reason(b, needs_output_pairs, "shift") == "one of its operands is constant"

    def test_moves_that_would_leave_the_range(self, needs_output_pairs: Target) -> None:
        target = dataclasses.replace(needs_output_pairs, same_range_operators=frozenset())
        b = start()
        pads = b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
        padded = b.node("Pad", conv(b, "x", "c1"), pads, b.constant(np.float32(9)), name="pad")
        b.output(conv(b, padded, "c2"), "y")
        scales = b.constant(np.array([1, 1, 2, 2], np.float32))
        resized = b.node("Resize", conv(b, "x", "c3"), "", scales, name="resize", mode="cubic")
        b.output(conv(b, resized, "c4"), "z")
        pooled = b.nodes("MaxPool", conv(b, "x", "c5"), outputs=2, name="pool", kernel_shape=[2, 2])
        b.output(conv(b, pooled[0], "c6"), "v")
        b.output(pooled[1], "indices", dtype="int64")
        assert "other than zero" in self.reason(b, target, "pad")
        assert "cubic" in self.reason(b, target, "resize")
        assert "indices" in self.reason(b, target, "pool")

    def test_a_move_that_stays_float_is_not_mentioned(self, needs_output_pairs: Target) -> None:
        b = start()
        b.output(b.node("Flatten", b.node("Exp", "x")), "y")
        assert place(b.build(), needs_output_pairs) == Placement((), (), (), (), ())

    def test_an_operator_of_another_domain_is_left_alone(self, gives_float: Target) -> None:
        b = start()
        b.output(conv(b, "x", "c"), "y")
        model = b.build()
        model.graph[0].domain = "com.example"
        assert place(model, gives_float).weighted == ()


def test_what_has_no_known_rank_stays_float(gives_float: Target) -> None:
    b = start()
    value = conv(b, conv(b, "x", "c1"), "c2")
    value = b.node("Add", value, conv(b, "x", "c3"), name="add")
    b.output(conv(b, value, "c4"), "y")
    model = b.build()
    reason = "the number of dimensions of what it reads or makes is not known"
    assert place(model, gives_float).declines == ()
    by_name = {node.name: node for node in model.graph}
    by_name["add"].outputs[0].shape = None
    assert reasons(place(model, gives_float)) == {"add": reason, "c4": reason}
    by_name["c1"].outputs[0].shape = None
    assert reasons(place(model, gives_float)) == {"c1": reason, "c2": reason, "add": reason, "c4": reason}


def test_planning_does_not_change_the_model(needs_output_pairs: Target) -> None:
    b = start()
    b.output(conv(b, conv(b, "x", "c1"), "c2"), "y")
    model = b.build()
    before = ir.to_proto(model).SerializeToString()
    place(model, needs_output_pairs)
    assert ir.to_proto(model).SerializeToString() == before
