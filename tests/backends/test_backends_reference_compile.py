"""Where the evaluator of onnx is wrong or incomplete, and what is done about it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.backends import registry
from edgewise.errors import BackendError, RecipeError
from edgewise.records.candidate import RunOptions
from edgewise.testing import graphs

REFERENCE = registry.get("reference")


def test_batch_norm_of_early_operator_sets_normalizes_with_the_stored_statistics() -> None:
    b = graphs.GraphBuilder("early", opset=9)
    values = {"scale": 2.0, "bias": 1.0, "mean": 3.0, "variance": 4.0}
    names = [b.constant(np.array([value], np.float32), name) for name, value in values.items()]
    b.output(b.node("BatchNormalization", b.input("x", (1, 1, 2)), *names, epsilon=0.0, momentum=0.9), "y")
    session = REFERENCE.open(REFERENCE.compile(b.build(), RunOptions()))
    received = session.run({"x": np.array([[[3, 5]]], np.float32)})["y"]
    np.testing.assert_array_equal(received, [[[1, 3]]])


@pytest.mark.parametrize("activations", [["HardSigmoid", "Tanh", "Tanh"], ["Sigmoid", "Tanh", "Tanh"]])
def test_what_the_evaluator_would_ignore_is_refused(activations: list[str]) -> None:
    model = graphs.lstm_net()
    lstm = next(node for node in model.graph if node.op_type == "LSTM")
    lstm.attributes["activations"] = ir.AttrStrings("activations", activations)
    (decline,) = REFERENCE.why_not(model)
    assert (decline.node, decline.operator) == ("lstm", "LSTM")
    assert decline.reason == "the evaluator ignores its attribute `activations`"
    with pytest.raises(BackendError, match=r"`lstm` \(LSTM\): the evaluator ignores"):
        REFERENCE.compile(model, RunOptions())


def test_sequence_lengths_are_refused_as_well() -> None:
    b = graphs.GraphBuilder("lengths")
    lengths = b.constant(np.array([2], np.int32))
    y = b.node(
        "LSTM", b.input("x", (3, 1, 4)), b.weight(1, 8, 4), b.weight(1, 8, 2), "", lengths, hidden_size=2, name="l"
    )
    b.output(y, "y")
    assert [decline.reason for decline in REFERENCE.why_not(b.build())] == [
        "the evaluator ignores its input `sequence_lens`"
    ]


def test_options_are_honoured_or_refused() -> None:
    with pytest.raises(RecipeError, match="bf16"):
        REFERENCE.compile(graphs.mlp(), RunOptions(precision="bf16"))
    with pytest.raises(RecipeError, match="one thread"):
        REFERENCE.compile(graphs.mlp(), RunOptions(threads=2))


def test_it_gives_no_times() -> None:
    model = graphs.mlp()
    assert REFERENCE.profile(REFERENCE.compile(model, RunOptions()), graphs.random_feeds(model), 3) == ()
