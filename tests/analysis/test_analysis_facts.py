"""The facts that a run records."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgewise.analysis.facts import model_facts, port
from edgewise.records.tensors import Port
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder


def test_facts_of_a_small_model() -> None:
    b = GraphBuilder("small")
    value = b.node("Gemm", b.input("x", (2, 5)), b.weight(5, 3), b.weight(3, fan_in=1))
    b.output(b.node("Reshape", value, b.constant(np.array([3, 2], np.int64))), "y", (3, 2))
    facts = model_facts(b.build(), "small.onnx", "abc")
    assert (facts.name, facts.sha256, facts.opset) == ("small.onnx", "abc", graphs.OPSET)
    assert facts.inputs == (Port(name="x", dtype="float32", shape=(2, 5)),)
    assert facts.outputs == (Port(name="y", dtype="float32", shape=(3, 2)),)
    assert facts.operators == {"Gemm": 1, "Reshape": 1}
    assert facts.macs == 2 * 5 * 3
    # The shape of the view is not a weight, but it is in the file.
    assert facts.parameters == 5 * 3 + 3
    assert facts.weight_bytes == 18 * 4 + 2 * 8
    assert facts.activation_peak_bytes == (10 + 6) * 4


def test_inputs_with_a_default_are_not_asked_for() -> None:
    model = graphs.mlp()
    model.graph.inputs.append(next(iter(model.graph.initializers.values())))
    assert len(model_facts(model, "", "").inputs) == 1


def test_a_dimension_without_a_size_has_its_name_or_a_question_mark() -> None:
    value = ir.Value(name="v", type=ir.TensorType(ir.DataType.BFLOAT16), shape=ir.Shape(["batch", None, 3]))
    assert port(value) == Port(name="v", dtype="bfloat16", shape=("batch", "?", 3))


def test_a_value_without_a_type() -> None:
    assert port(ir.Value(name="v")) == Port(name="v", dtype="unknown", shape=())


def test_nodes_in_bodies_count() -> None:
    facts = model_facts(graphs.branching_net(), "", "")
    assert facts.operators["If"] == 1
    assert facts.operators["Mul"] == facts.operators["Sub"] == 1


def test_operators_of_other_domains_bear_their_domain() -> None:
    facts = model_facts(graphs.custom_operator_net(), "", "")
    assert any("." in operator for operator in facts.operators)
