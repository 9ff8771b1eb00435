"""Deleting units, group by group, with couplings written by hand: the structure that is left, and every refusal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.compress.prune.cut_models import axis, coupling, run, shape

from edgewise.analysis.coupling import Axis, Coupling, Group
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut import Width, cut, widths
from edgewise.errors import ContractError, RecipeError
from edgewise.passes.contract import interface, signature
from edgewise.testing.graphs import GraphBuilder


def two_layers() -> tuple[ir.Model, Coupling]:
    b = GraphBuilder("two")
    value = b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 4, name="a"), name="make")
    value = b.node("Relu", b.node("Add", value, b.weight(4, fan_in=1, name="bias"), name="add"), name="relu")
    b.output(b.node("MatMul", value, b.weight(4, 5, name="c"), name="read"), "y", (2, 5))
    units = range(4)
    names = ("make_out", "add_out", "relu_out")
    axes = [axis(name, 1, units) for name in names]
    return b.build(), coupling(4, *axes, axis("a", 1, units), axis("bias", 0, units), axis("c", 0, units))


def test_what_is_left_computes_what_the_model_computes_with_zeros() -> None:
    model, groups = two_layers()
    before = signature(model)
    after = cut(model, {"g": [2, 0]}, groups)
    assert signature(model) == before
    assert interface(after) == interface(model)
    assert shape(after, "relu_out") == (2, 2)
    assert shape(after, "a") == (3, 2)
    array = constant(model.graph.initializers["c"])
    left = constant(after.graph.initializers["c"])
    assert array is not None
    assert left is not None
    np.testing.assert_array_equal(left, array[[1, 3]])
    zeroed = model.clone()
    zeroed.graph.initializers["c"].const_value = ir.tensor(array * np.array([[0], [1], [0], [1]], np.float32))
    np.testing.assert_allclose(run(after)["y"], run(zeroed)["y"], rtol=1e-6, atol=1e-6)


def test_what_nothing_goes_of_is_shared() -> None:
    model, groups = two_layers()
    after = cut(model, {"g": []}, groups)
    assert signature(after) == signature(model)
    assert widths(model, groups, {"g": []}) == ()


def test_widths_say_what_goes() -> None:
    model, groups = two_layers()
    assert widths(model, groups, {"g": {1}}) == (Width("g", 4, 1, 3 + 1 + 5),)


@pytest.mark.parametrize(
    ("removed", "error", "words"),
    [
        ({"h": [0]}, ContractError, "`h`"),
        ({"g": [4]}, ContractError, "from 0 to 3"),
        ({"g": [-1]}, ContractError, "from 0 to 3"),
        ({"g": [0, 1, 2, 3]}, RecipeError, "All 4 of `g`"),
    ],
)
def test_removals_that_cannot_be(
    removed: dict[str, list[int]], error: type[ContractError] | type[RecipeError], words: str
) -> None:
    model, groups = two_layers()
    with pytest.raises(error, match=words):
        cut(model, removed, groups)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (axis("nothing", 0, range(4)), "no value `nothing`"),
        (axis("x", 1, [0, 1, 2]), "`x` would become shorter"),
        (axis("y", 1, [0, 1, 2, 3, -1]), "`y` would become shorter"),
        (axis("c", 0, [0, 1, 2]), "Axis 0 of `c` has 3 positions"),
        (axis("c", 2, range(4)), "Axis 2 of `c` has 4 positions"),
    ],
)
def test_couplings_of_another_model(wrong: Axis, words: str) -> None:
    model, groups = two_layers()
    with pytest.raises(ContractError, match=words):
        cut(model, {"g": [0]}, coupling(4, wrong, *groups.groups[0].axes[:4]))


def test_a_coupling_that_leaves_something_out() -> None:
    model, groups = two_layers()
    without = [one for one in groups.groups[0].axes if one.value != "c"]
    with pytest.raises(ContractError, match="has to be consistent"):
        cut(model, {"g": [0]}, coupling(4, *without))


def test_groups_that_share_an_axis() -> None:
    """Heads and the positions within a head: what stays is where both stay."""
    b = GraphBuilder("heads")
    value = b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.output(b.node("MatMul", value, b.weight(6, 5, name="c"), name="read"), "y", (2, 5))
    names = (("a", 1), ("make_out", 1), ("c", 0))
    rows = Group("rows", 3, tuple(axis(name, k, [0, 0, 1, 1, 2, 2]) for name, k in names), (), ("make",))
    columns = Group("columns", 2, tuple(axis(name, k, [0, 1] * 3) for name, k in names), (), ("make",))
    after = cut(b.build(), {"rows": [1], "columns": [0]}, Coupling((rows, columns), ()))
    assert shape(after, "make_out") == (2, 2)
    contradicting = Group("columns", 2, (axis("make_out", 1, [0, 1]),), (), ("make",))
    with pytest.raises(ContractError, match="agree on the size"):
        cut(b.build(), {"rows": [1], "columns": [0]}, Coupling((rows, contradicting), ()))
