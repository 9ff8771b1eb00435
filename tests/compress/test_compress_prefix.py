from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.compress.prefix import prefix
from edgewise.errors import ContractError
from edgewise.records.tensors import Run
from edgewise.testing.graphs import GraphBuilder, conv_net, random_feeds

MakeRun = Callable[[ir.Model], Run]


def chain() -> ir.Model:
    b = GraphBuilder("chain")
    b.input("x", [1, 4])
    first = b.node("Relu", b.node("MatMul", "x", b.weight(4, 3)), name="first")
    second = b.node("Relu", b.node("MatMul", first, b.weight(3, 2)), name="second")
    b.output(b.node("MatMul", second, b.weight(2, 2)), "y")
    return b.build()


def test_what_the_tensors_do_not_need_is_gone(ort_run: MakeRun) -> None:
    model = chain()
    part = prefix(model, ["first_out"])
    assert [node.op_type for node in part.graph] == ["MatMul", "Relu"]
    assert len(part.graph.initializers) == 1
    assert [value.name for value in part.graph.outputs] == ["first_out"]
    assert len(list(model.graph)) == 5
    feeds = random_feeds(model)
    whole = ort_run(prefix(model, ["first_out", "y"]))(feeds)
    assert set(whole) == {"first_out", "y"}
    np.testing.assert_array_equal(ort_run(part)(feeds)["first_out"], whole["first_out"])


def test_a_part_takes_the_same_inputs(ort_run: MakeRun) -> None:
    b = GraphBuilder("two")
    b.input("a", [1, 4])
    b.input("b", [1, 4])
    b.output(b.node("Add", b.node("Relu", "a", name="left"), "b"), "y")
    model = b.build()
    part = prefix(model, ["left_out"])
    assert [value.name for value in part.graph.inputs] == ["a", "b"]
    assert set(ort_run(part)(random_feeds(model))) == {"left_out"}


def test_a_tensor_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ContractError, match="`nowhere`"):
        prefix(conv_net(), ["nowhere"])
