"""`optimize`: the contract of every pass, the comparison on real inputs, and random networks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import ContractError, ModelError
from edgewise.passes.agreement import difference, tolerance
from edgewise.passes.apply import optimize
from edgewise.passes.contract import interface, signature
from edgewise.passes.defaults import DEFAULT_PASSES
from edgewise.passes.protocol import Findings, Pass
from edgewise.records.findings import Change
from edgewise.records.tensors import Outputs
from edgewise.testing import graphs
from edgewise.testing.pass_kit import assert_same_function, run_reference
from edgewise.testing.random_graphs import random_network


class Negate(Pass):
    """Says that it changed a node, and makes another function of the model."""

    name = "negate"

    def rewrite(self, model: ir.Model) -> Findings:
        node = next((node for node in model.graph if node.op_type == "Relu"), None)
        if node is None:
            return Findings()
        node.op_type = "Neg"
        return Findings([Change(stage=self.name, node=node.name or "", what="replaced Relu")])


class Silent(Negate):
    def rewrite(self, model: ir.Model) -> Findings:
        super().rewrite(model)
        return Findings()


class Renaming(Negate):
    def rewrite(self, model: ir.Model) -> Findings:
        model.graph.outputs[0].name = "other"
        return Findings([Change(stage=self.name, node="", what="renamed an output")])


class Vendor(Negate):
    def rewrite(self, model: ir.Model) -> Findings:
        findings = super().rewrite(model)
        next(node for node in model.graph if node.op_type == "Neg").domain = "com.microsoft"
        return findings


class Illegal(Negate):
    def rewrite(self, model: ir.Model) -> Findings:
        findings = super().rewrite(model)
        next(node for node in model.graph if node.op_type == "Neg").op_type = "NoSuchOperator"
        return findings


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Silent(), "has to report what it changes"),
        (Renaming(), "has to keep inputs and outputs"),
        (Vendor(), "has to emit standard operators only"),
        (Illegal(), "has to leave a legal model"),
    ],
)
def test_a_broken_pass_is_an_error(broken: Pass, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        optimize(graphs.conv_net(), [broken])


def test_an_illegal_model_is_the_users_error() -> None:
    model = graphs.conv_net()
    next(iter(model.graph)).op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="has to be legal ONNX"):
        optimize(model)


def test_a_pass_that_changes_the_outputs_is_undone_and_listed() -> None:
    model = graphs.conv_net()
    after, findings = optimize(model, [Negate(), *DEFAULT_PASSES], probe=run_reference)
    undone = [decline for decline in findings.declines if decline.stage == "negate"]
    assert len(undone) == 1
    assert "it was undone: output" in undone[0].reason
    assert "rounding explains" in undone[0].reason
    assert_same_function(model, after)
    assert not [change for change in findings.changes if change.stage == "negate"]


def test_without_a_probe_only_the_contract_is_checked() -> None:
    after, findings = optimize(graphs.conv_net(), [Negate()])
    assert Counter(node.op_type for node in after.graph)["Neg"] >= 1
    assert findings.changes


def test_the_model_that_came_in_stays_and_shares_its_weights() -> None:
    model = graphs.mlp()
    before = signature(model)
    after, _ = optimize(model)
    assert signature(model) == before
    kept = {id(value.const_value) for value in model.graph.initializers.values()}
    assert kept & {id(value.const_value) for value in after.graph.initializers.values()}


def test_conv_net_has_no_normalization_left() -> None:
    operators = Counter(node.op_type for node in optimize(graphs.conv_net())[0].graph)
    assert "BatchNormalization" not in operators
    assert operators["Conv"] == Counter(node.op_type for node in graphs.conv_net().graph)["Conv"]


@pytest.mark.parametrize("make", [graphs.branching_net, graphs.recurrent_cell, graphs.lstm_net, graphs.two_input_net])
def test_bodies_and_recurrence_keep_their_function(make: object) -> None:
    assert callable(make)
    model = make()
    after, _ = optimize(model, probe=run_reference)
    assert_same_function(model, after)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), opset=st.sampled_from([14, 17, 20]))
def test_random_networks_keep_their_function(seed: int, opset: int) -> None:
    # From opset 14 on: ONNX's reference evaluator (1.23) takes every BatchNormalization before it for training.
    model = random_network(seed, opset=opset)
    after, findings = optimize(model)
    assert interface(after) == interface(model)
    assert_same_function(model, after)
    assert not optimize(after)[1].changes
    assert all(decline.reason and decline.node for decline in findings.declines)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 25))
def test_long_random_networks_keep_their_function(seed: int, steps: int) -> None:
    model = random_network(seed, steps=steps)
    assert_same_function(model, optimize(model)[0])


def _outputs(**arrays: object) -> Outputs:
    return {name: np.asarray(array) for name, array in arrays.items()}


def test_difference_names_what_differs() -> None:
    one = np.array([1, -2], np.float32)
    assert difference(_outputs(y=one), _outputs(y=one), 1) is None
    assert difference(_outputs(y=one), _outputs(), 1) == "output `y` is missing afterwards"
    assert "shape [2]" in str(difference(_outputs(y=one), _outputs(y=one[:1]), 1))
    assert "1 of 2 values" in str(difference(_outputs(y=[1, 2]), _outputs(y=[1, 3]), 1))
    assert "not finite at other places" in str(
        difference(_outputs(y=np.array([1, np.inf], np.float32)), _outputs(y=one), 1)
    )
    assert "moved by" in str(difference(_outputs(y=one), _outputs(y=np.array([1, np.nan], np.float32)), 1))


def test_difference_is_bounded_in_units_of_the_largest_value() -> None:
    expected = np.array([1, 1000], np.float32)
    # One unit roundoff of 1000 is 2**-24 * 1000; a bound of 1 allows that anywhere, and not twice that.
    step = 1000 * 2.0**-24
    assert difference(_outputs(y=expected), _outputs(y=np.array([1 + step, 1000], np.float32)), 1) is None
    assert difference(_outputs(y=expected), _outputs(y=np.array([1 + 2.5 * step, 1000], np.float32)), 1) is not None


def test_tolerance_grows_with_terms_and_depth() -> None:
    assert tolerance(graphs.mlp(hidden=256)) > tolerance(graphs.mlp(hidden=16))


def test_default_passes_are_named_after_their_modules() -> None:
    assert all(type(one).__module__ == f"edgewise.passes.{one.name}" for one in DEFAULT_PASSES)


def test_a_weight_that_is_a_view_of_another_array_is_shared() -> None:
    """A folded Transpose leaves one; onnx-ir's hash refused it with a ValueError."""
    b = graphs.GraphBuilder("views")
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    x = b.input("x", (1, 8))
    first = b.node("MatMul", x, b.constant(weight, "w1"))
    b.output(b.node("MatMul", b.node("Relu", first), b.constant(weight, "w2")), "y", (1, 8))
    model = b.build()
    for name in ("w1", "w2"):
        model.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(weight.T).T, name=name)
    optimized, findings = optimize(model, [one for one in DEFAULT_PASSES if one.name == "share_subexpressions"])
    assert len(optimized.graph.initializers) == 1
    assert any(change.node == "w2" for change in findings.changes)
    assert_same_function(model, optimized)
