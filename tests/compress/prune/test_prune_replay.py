"""Runs from place to place: the same values as a whole run, other weights behind a place, little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.compress.nodes import constant
from edgewise.compress.prune.replay import Replay
from edgewise.compress.runner import Opener
from edgewise.compress.statistics import observe
from edgewise.errors import ContractError
from edgewise.records.tensors import Array, Feeds, Run
from edgewise.testing.graphs import GraphBuilder

MakeRun = Callable[[ir.Model], Run]


def residual() -> ir.Model:
    """Return five nodes with a shortcut over two of them, and a shape that is computed."""
    b = GraphBuilder("residual", seed=1)
    x = b.input("x", [1, 4, 6])
    first = b.node("MatMul", x, b.weight(6, 6), name="first")
    second = b.node("MatMul", b.node("Relu", first, name="relu"), b.weight(6, 6), name="second")
    total = b.node("Add", second, first, name="total")
    shape = b.node("Shape", first, name="shape")
    b.output(b.node("Reshape", b.node("Transpose", total, perm=[0, 2, 1]), shape, name="last"), "y")
    return b.build()


def samples(count: int) -> list[Feeds]:
    draw = np.random.default_rng(0)
    return [{"x": draw.standard_normal((1, 4, 6)).astype(np.float32)} for _ in range(count)]


def counting(make_run: MakeRun, opened: list[ir.Model]) -> Opener:
    @contextmanager
    def open_model(model: ir.Model) -> Iterator[Run]:
        opened.append(model)
        yield make_run(model)

    return open_model


def whole(model: ir.Model, names: list[str], make_run: MakeRun) -> list[dict[str, Array]]:
    run = make_run(observe(model, names))
    return [{name: {**feed, **run(feed)}[name] for name in names} for feed in samples(3)]


@pytest.mark.parametrize("memory", [1 << 20, 0])
def test_parts_give_what_a_whole_run_gives(memory: int, ort_run: MakeRun) -> None:
    model, opened = residual(), list[ir.Model]()
    replay = Replay(model, counting(ort_run, opened), samples(3), memory)
    for names, place in ((["x"], 0), (["first_out"], 1), (["second_out", "first_out"], 3), (["total_out", "y"], 4)):
        found = list(replay.run(names, place))
        for made, expected in zip(found, whole(model, names, ort_run), strict=True):
            assert list(made) == names
            for name in names:
                np.testing.assert_allclose(made[name], expected[name], rtol=1e-6, atol=1e-6)
    sizes = [len(list(part.graph)) for part in opened]
    # A part begins behind what is known; without memory every one begins at the inputs.
    assert sizes == ([1, 2, 4] if memory else [1, 3, 7])


def test_weights_behind_a_place_may_change(ort_run: MakeRun) -> None:
    model = residual()
    replay = Replay(model, counting(ort_run, []), samples(3))
    list(replay.run(["first_out"], 1))
    weight = next(node for node in model.graph if node.name == "second").inputs[1]
    assert weight is not None
    old = constant(weight)
    assert old is not None
    weight.const_value = ir.tensor(2.0 * old, name=weight.name)
    for made, expected in zip(replay.run(["y"], 2), whole(model, ["y"], ort_run), strict=True):
        np.testing.assert_allclose(made["y"], expected["y"], rtol=1e-6, atol=1e-6)


def test_a_value_that_does_not_exist_is_refused(ort_run: MakeRun) -> None:
    with pytest.raises(ContractError, match="Received `nothing`"):
        list(Replay(residual(), counting(ort_run, []), samples(1)).run(["nothing"], 1))
