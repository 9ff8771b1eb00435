"""Options of single groups: what they hold, how they are put together, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.coupling import couple
from edgewise.compress.prune.cut import cut
from edgewise.compress.prune.options import options, stitch
from edgewise.compress.runner import Opener
from edgewise.errors import ContractError, DataError, RecipeError
from edgewise.records.tensors import Feeds, Run
from edgewise.testing.graphs import GraphBuilder

MakeRun = Callable[[ir.Model], Run]


def chain() -> ir.Model:
    """Return three layers with two groups between them; the middle one reads the first and makes the second."""
    b = GraphBuilder("chain", seed=5)
    x = b.input("x", [1, 8])
    x = b.node("Relu", b.node("Gemm", x, b.weight(12, 8), b.weight(12), name="one", transB=1))
    x = b.node("Relu", b.node("MatMul", x, b.weight(12, 10), name="two"))
    b.output(b.node("MatMul", x, b.weight(10, 3), name="three"), "y")
    return b.build()


def samples(count: int, seed: int = 0) -> list[Feeds]:
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((4, 8))
    return [{"x": (draw.standard_normal((1, 4)) @ mixing).astype(np.float32)} for _ in range(count)]


def opener(make_run: MakeRun) -> Opener:
    @contextmanager
    def open_model(model: ir.Model) -> Iterator[Run]:
        yield make_run(model)

    return open_model


def differ(model: ir.Model, other: ir.Model, make_run: MakeRun) -> float:
    one, two = make_run(model), make_run(other)
    wanted = np.stack([one(feed)["y"] for feed in samples(50, 1)])
    found = np.stack([two(feed)["y"] for feed in samples(50, 1)])
    return float(np.square(wanted - found).mean() / wanted.var())


def test_an_option_names_what_it_loses_and_narrower_ones_lose_more(ort_run: MakeRun) -> None:
    model = chain()
    made = options(model, couple(model), {"one_out": [12, 9, 6]}, opener(ort_run), samples(200))
    whole, wide, narrow = made["one_out"]
    assert [option.width for option in made["one_out"]] == [12, 9, 6]
    assert (whole.removed, whole.error, whole.constants) == ((), 0.0, {})
    assert set(wide.removed) < set(narrow.removed)
    assert 0.0 < wide.error < narrow.error < 1.0


def test_any_combination_is_put_together_and_made_up_for(ort_run: MakeRun) -> None:
    model = chain()
    coupling = couple(model)
    made = options(model, coupling, {"one_out": [6], "two_out": [5]}, opener(ort_run), samples(200))
    for chosen in ([made["one_out"][0]], [made["two_out"][0]], [made["one_out"][0], made["two_out"][0]]):
        removed = {option.group: option.removed for option in chosen}
        plain = cut(model, removed, coupling)
        joined = stitch(model, coupling, chosen)
        assert differ(model, joined, ort_run) < 0.5 * differ(model, plain, ort_run)
    assert "Add" in [node.op_type for node in joined.graph]  # the mean of what is gone


def test_of_nothing_the_model_stays(ort_run: MakeRun) -> None:
    model = chain()
    joined = stitch(model, couple(model), [])
    assert [node.op_type for node in joined.graph] == [node.op_type for node in model.graph]
    assert differ(model, joined, ort_run) == 0.0


def test_two_options_of_a_group_are_refused(ort_run: MakeRun) -> None:
    model = chain()
    made = options(model, couple(model), {"one_out": [9, 6]}, opener(ort_run), samples(20))
    with pytest.raises(ContractError, match="at most one option"):
        stitch(model, couple(model), made["one_out"])


def test_widths_and_samples_that_are_none_are_refused(ort_run: MakeRun) -> None:
    model = chain()
    with pytest.raises(RecipeError, match="Received 13"):
        options(model, couple(model), {"one_out": [9, 13]}, opener(ort_run), samples(2))
    with pytest.raises(DataError, match="at least one sample"):
        options(model, couple(model), {"one_out": [9]}, opener(ort_run), [])
