"""Linear layers: what they should give, shortcuts behind views, recurrent inputs, and what cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.analysis.coupling import Coupling
from edgewise.compress.prune import linear_layers
from edgewise.compress.prune.biases import with_biases, without_idle_biases
from edgewise.compress.prune.fit import Fit
from edgewise.compress.prune.linear_layers import Layer, layers
from edgewise.testing.graphs import GraphBuilder, lstm_net


def fitted(builder: GraphBuilder) -> dict[str, Layer | str]:
    found = layers(builder.build())
    return {
        one.name if isinstance(one, Layer) else str(one[0].name): one if isinstance(one, Layer) else one[1]
        for one in found
    }


def test_a_shortcut_known_before_joins_what_a_layer_should_give() -> None:
    b = GraphBuilder("shortcuts", seed=1)
    x = b.input("x", [1, 4, 6])
    first = b.node("Gemm", b.node("Reshape", x, b.constant(np.array([4, 6]))), b.weight(6, 6), b.weight(6), name="a")
    behind = b.node("Reshape", first, b.constant(np.array([1, 4, 6])))
    joined = b.node("Add", x, behind, name="join")
    left = b.node("MatMul", joined, b.weight(6, 6), name="left")
    right = b.node("MatMul", joined, b.weight(6, 6), name="right")
    b.output(b.node("Add", left, right, name="both"), "y")
    found = fitted(b)
    one, two, three = found["a"], found["left"], found["right"]
    assert isinstance(one, Layer)
    assert isinstance(two, Layer)
    assert isinstance(three, Layer)
    assert (one.target, one.shortcut) == ("join_out", "x")
    # The other branch comes later and will be fitted itself.
    assert (two.target, two.shortcut) == ("left_out", None)
    assert (three.target, three.shortcut) == ("y", "left_out")


def test_a_bias_behind_a_product_is_its_bias() -> None:
    b = GraphBuilder("bias", seed=1)
    x = b.node("MatMul", b.input("x", [2, 6]), b.weight(6, 5), name="one")
    b.output(b.node("Add", x, b.constant(np.ones(5, np.float32), "bias")), "y")
    one = fitted(b)["one"]
    assert isinstance(one, Layer)
    assert (one.bias, one.target) == ("bias", "y")
    np.testing.assert_array_equal(one.old_bias, np.ones((1, 5)))


def test_what_cannot_be_fitted_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    b = GraphBuilder("refused", seed=1)
    x = b.input("x", [6, 6])
    shared = b.weight(6, 6, name="twice")
    x = b.node("MatMul", b.node("MatMul", x, shared, name="one"), shared, name="two")
    x = b.node("Gemm", x, b.weight(6, 6), name="scaled", alpha=2.0)
    x = b.node("MatMul", x, b.weight(6, 7), name="wide")
    x = b.node("MatMul", b.node("Reshape", x, b.constant(np.array([1, 6, 7]))), b.weight(1, 7, 5), name="stack")
    b.output(x, "y")
    monkeypatch.setattr(linear_layers, "LARGEST_GRAM", 35)
    assert fitted(b) == {
        "one": "another node reads its weights `twice` as well",
        "two": "another node reads its weights `twice` as well",
        "scaled": "it scales its product",
        "wide": "the Gram matrix of its inputs would hold 36 numbers, and 35 are the limit",
        "stack": "its weights are a stack of matrices",
    }


def test_the_input_weights_of_a_recurrent_layer_are_fitted() -> None:
    model = lstm_net()
    layer = next(one for one in layers(model) if isinstance(one, Layer) and one.is_recurrent)
    assert layer.target == layer.source
    rows, chosen = layer.rows(np.ones((6, 1, layer.unfolding.columns), np.float32), 1, 0)
    np.testing.assert_allclose(
        layer.targets(np.ones((6, 1, layer.unfolding.columns), np.float32), chosen),
        rows @ layer.weight[0].T + layer.old_bias,
    )
    made = layer.constants(model, Fit(layer.weight + 1.0, layer.old_bias + 2.0, 1.0, 0.0, 0.0, is_held_out=True))
    for name, values in made.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        change = values - tensor.numpy()
        if name == layer.bias:
            # The first half is added to the input, the second to the state.
            half = change.shape[1] // 2
            np.testing.assert_allclose(change[:, :half], 2.0, rtol=1e-6)
            assert not change[:, half:].any()
        else:
            np.testing.assert_allclose(change, 1.0, rtol=1e-5)


def test_biases_that_stay_zero_leave_no_node() -> None:
    b = GraphBuilder("idle", seed=1)
    b.output(b.node("Relu", b.node("MatMul", b.input("x", [2, 6]), b.weight(6, 5), name="one")), "y")
    model = b.build()
    copy, _ = with_biases(model, Coupling((), ()), ())
    assert [node.op_type for node in copy.graph] == ["MatMul", "Relu"]  # it reads no group
    copy = model.clone()
    without_idle_biases(copy, model)
    assert [node.op_type for node in copy.graph] == ["MatMul", "Relu"]
