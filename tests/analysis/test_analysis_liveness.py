"""The peak of live activations."""

from __future__ import annotations

from edgewise.analysis.liveness import activation_peak_bytes
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder

KIB = 1024
SHAPE = (1, 256)  # 1 KiB of float32


def test_a_chain_of_element_wise_nodes_needs_the_input_and_one_buffer() -> None:
    b = GraphBuilder("chain")
    value = b.input("x", SHAPE)
    for operator in ("Relu", "Sigmoid", "Tanh"):
        value = b.node(operator, value)
    b.output(value, "y", SHAPE)
    # The input is the caller's and is not written over; the rest works in place.
    assert activation_peak_bytes(b.build()) == 2 * KIB


def test_a_view_is_its_operand() -> None:
    b = GraphBuilder("view")
    b.output(b.node("Flatten", b.input("x", (1, 16, 16))), "y", SHAPE)
    assert activation_peak_bytes(b.build()) == KIB


def test_a_view_keeps_its_operand_alive() -> None:
    b = GraphBuilder("late")
    x = b.input("x", SHAPE)
    first = b.node("MatMul", x, b.weight(256, 256))
    view = b.node("Unsqueeze", first, b.constant([0]))
    second = b.node("MatMul", x, b.weight(256, 256))
    b.output(b.node("Add", b.node("MatMul", second, b.weight(256, 256)), view), "y", (1, *SHAPE))
    # At the third product: the view's buffer, the second product and its own result; the input has died.
    assert activation_peak_bytes(b.build()) == 3 * KIB


def test_a_residual_keeps_two() -> None:
    b = GraphBuilder("residual")
    x = b.node("Relu", b.input("x", SHAPE))
    value = b.node("MatMul", b.node("MatMul", x, b.weight(256, 256)), b.weight(256, 256))
    b.output(b.node("Add", x, value), "y", SHAPE)
    assert activation_peak_bytes(b.build()) == 3 * KIB


def test_weights_do_not_count() -> None:
    b = GraphBuilder("weights")
    b.output(b.node("MatMul", b.input("x", SHAPE), b.weight(256, 256)), "y", SHAPE)
    assert activation_peak_bytes(b.build()) == 2 * KIB


def test_an_operand_that_is_read_again_is_not_written_over() -> None:
    b = GraphBuilder("again")
    first = b.node("Relu", b.input("x", SHAPE))
    second = b.node("Sigmoid", first)
    b.output(b.node("Concat", first, second, axis=1), "y", (1, 512))
    assert activation_peak_bytes(b.build()) == 4 * KIB


def test_a_body_counts_while_it_runs() -> None:
    # The input and the branch's result, [1, 8] each, the mean and the flag, and the result outside.
    peak = activation_peak_bytes(graphs.branching_net())
    assert 2 * 32 <= peak <= 3 * 32 + 8


def test_a_recurrent_net() -> None:
    assert activation_peak_bytes(graphs.lstm_net()) >= 6 * 5 * 4
