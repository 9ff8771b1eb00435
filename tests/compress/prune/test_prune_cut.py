"""Deleting units, group by group, with couplings written by hand: the structure that is left, and every refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.coupling import Axis, Coupling, Group
from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut import Width, cut, widths
from edgewise.errors import ContractError, RecipeError
from edgewise.passes.contract import interface, signature
from edgewise.testing.graphs import GraphBuilder
from edgewise.testing.pass_kit import run_reference


def axis(value: str, number: int, units: Sequence[int]) -> Axis:
    return Axis(value, number, np.asarray(units, np.int64))


def coupling(size: int, *axes: Axis, name: str = "g") -> Coupling:
    return Coupling((Group(name, size, axes, (), ("maker",)),), ())


def shape(model: ir.Model, name: str) -> tuple[int, ...]:
    value = ir.convenience.create_value_mapping(model.graph)[name]
    assert value.shape is not None
    return tuple(size for size in value.shape if isinstance(size, int))


def node(model: ir.Model, name: str) -> ir.Node:
    return next(found for found in model.graph if found.name == name)


def held(model: ir.Model, name: str, slot: int) -> list[int]:
    array = constant(node(model, name).inputs[slot])
    assert array is not None
    return [int(item) for item in array.reshape(-1)]


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
    np.testing.assert_allclose(run_reference(after)["y"], run_reference(zeroed)["y"], rtol=1e-6, atol=1e-6)


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


def test_depthwise_convolutions_have_as_many_groups_as_channels() -> None:
    b = GraphBuilder("deep")
    value = b.node("Conv", b.input("x", (1, 2, 5, 5)), b.weight(4, 2, 1, 1, name="a"), name="make")
    value = b.node("Conv", value, b.weight(8, 1, 3, 3, name="d"), name="deep", group=4)
    b.output(b.node("Conv", value, b.weight(3, 8, 1, 1, name="c"), name="read"), "y", (1, 3, 3, 3))
    wide = [0, 0, 1, 1, 2, 2, 3, 3]
    axes = [axis("a", 0, range(4)), axis("make_out", 1, range(4)), axis("d", 0, wide)]
    groups = coupling(4, *axes, axis("deep_out", 1, wide), axis("c", 1, wide))
    after = cut(b.build(), {"g": [1]}, groups)
    assert node(after, "deep").attributes.get_int("group") == 3
    assert shape(after, "deep_out") == (1, 6, 3, 3)


def parts(operator: str, *constants: str, outputs: int = 1, **attributes: Any) -> GraphBuilder:
    """Return x [2, 3] @ a [3, 6] through `operator`, whose outputs are not yet read."""
    b = GraphBuilder("parts")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    b.nodes(operator, "make_out", *constants, outputs=outputs, name="op", **attributes)
    return b


def read(b: GraphBuilder, value: str, *size: int, name: str = "y") -> None:
    b.output(b.node("MatMul", value, b.weight(*size, name=f"c_{name}"), name=f"read_{name}"), name)


MADE = (("a", 1), ("make_out", 1))


def made(units: Sequence[int] = range(6)) -> list[Axis]:
    return [axis(name, k, units) for name, k in MADE]


def test_parts_of_a_split_become_uneven() -> None:
    b = parts("Split", outputs=2, axis=1)
    read(b, "op_out", 3, 2, name="y")
    read(b, "op_out1", 3, 2, name="z")
    ends = [axis("op_out", 1, [0, 1, 2]), axis("op_out1", 1, [3, 4, 5])]
    groups = coupling(6, *made(), *ends, axis("c_y", 0, [0, 1, 2]), axis("c_z", 0, [3, 4, 5]))
    after = cut(b.build(), {"g": [0, 1, 3]}, groups)
    assert held(after, "op", 1) == [1, 2]
    even = cut(b.build(), {"g": [0, 5]}, groups)
    assert len(node(even, "op").inputs) == 1
    with pytest.raises(RecipeError, match="Nothing would be left of axis 1 of `op_out1`"):
        cut(b.build(), {"g": [3, 4, 5]}, groups)


@pytest.mark.parametrize(
    ("start", "end", "step", "removed", "expected"),
    [
        (1, 5, 1, [0, 2], (0, 3, 1)),
        (-4, 2**40, 1, [5], (2, 5, 1)),
        (0, 6, 2, [1, 3], (0, 4, None)),  # 0 2 4 become 0 1 2 of 0 2 4 5, with another step
        (5, -(2**40), -1, [0], (4, -(2**63), -1)),
        (3, 6, 1, [3, 4], (3, 4, 1)),
    ],
)
def test_slices_count_what_stays(
    start: int, end: int, step: int, removed: list[int], expected: tuple[int, int, int | None]
) -> None:
    b = GraphBuilder("slice")
    b.node("MatMul", b.input("x", (2, 3)), b.weight(3, 6, name="a"), name="make")
    numbers = [b.constant(np.array([number], np.int64)) for number in (start, end, 1, step)]
    b.node("Slice", "make_out", *numbers, name="op")
    taken = list(range(6))[start:end:step]
    read(b, "op_out", len(taken), 2)
    groups = coupling(6, *made(), axis("op_out", 1, taken), axis("c_y", 0, taken))
    model = b.build()
    after = cut(model, {"g": removed}, groups)
    left = [unit for unit in range(6) if unit not in removed]
    got = [
        left[k] for k in range(len(left))[held(after, "op", 1)[0] : held(after, "op", 2)[0] : held(after, "op", 4)[0]]
    ]
    if node(after, "op").inputs[0].producer().op_type != "Gather":  # type: ignore[union-attr]
        assert got == [unit for unit in taken if unit in left]
    assert held(after, "op", 1)[0] in {expected[0], 0}
