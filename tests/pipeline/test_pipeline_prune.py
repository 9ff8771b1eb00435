"""Pruning for a goal in time, on a small network whose time is its arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.analysis.cost import layer_costs, total_macs
from edgewise.backends import registry
from edgewise.errors import DataError, RecipeError
from edgewise.pipeline import pruning_costs
from edgewise.pipeline.prune import Pruner
from edgewise.pipeline.pruning import Layers, Neurons, Time, Way, Weights, check, prune_model
from edgewise.pipeline.pruning_choices import Choice, is_stream, widths_of
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Feeds
from edgewise.testing.graphs import GraphBuilder, mlp

CHANNELS = 32


def macs(model: ir.Model) -> int:
    return total_macs(layer_costs(model))


@pytest.fixture(autouse=True)
def _arithmetic_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def extra_times(_backend: str, base: ir.Model, variants: Sequence[ir.Model], *_: Any) -> list[float]:
        return [macs(variant) / macs(base) - 1 for variant in variants]

    monkeypatch.setattr(pruning_costs, "extra_times", extra_times)


def blocks(count: int = 3, *, redundant: int = 8) -> ir.Model:
    """Return residual blocks, in each of which some inner channels repeat others; the second block adds nothing."""
    b = GraphBuilder("blocks", seed=3)
    random = np.random.default_rng(5)

    def weight(outs: int, ins: int, kernel: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = random.standard_normal((outs, ins, kernel, kernel))
        return np.asarray(values * scale / np.sqrt(ins * kernel * kernel), np.float32)

    x = b.node("Conv", b.input("x", (1, 3, 6, 6)), b.constant(weight(8, 3, 3)), pads=[1] * 4, name="stem")
    x = b.node("Relu", x)
    for index in range(count):
        inner = weight(CHANNELS, 8, 3)
        inner[CHANNELS - redundant :] = inner[:redundant]
        outer = weight(8, CHANNELS, 3, 1e-3 if index == 1 else 0.5)
        hidden = b.node("Relu", b.node("Conv", x, b.constant(inner), pads=[1] * 4, name=f"inner{index}"))
        branch = b.node("Conv", hidden, b.constant(outer), pads=[1] * 4, name=f"outer{index}")
        x = b.node("Relu", b.node("Add", x, branch, name=f"sum{index}"), name=f"out{index}")
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    b.output(b.node("Gemm", pooled, b.weight(8, 5), name="head"), "y", (1, 5))
    return b.build()


def feeds(count: int = 48) -> list[Feeds]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(count)]


def pruner(model: ir.Model | None = None, samples: Sequence[Feeds] | None = None) -> Pruner:
    target = registry.get("ort").target()
    return Pruner(model or blocks(), samples or feeds(), target, quantized=False, options=RunOptions())


def test_the_time_that_was_asked_for_is_met_with_what_does_the_least_damage() -> None:
    work = pruner()
    found = work.at(0.6)
    assert macs(found.model) <= 0.62 * macs(work.model)
    # The block that adds next to nothing goes first, or what is left of it is as narrow as can be.
    second = {group.name: group.after for group in found.account.groups}
    gone = {layer.name for layer in found.account.layers}
    assert "out1_out" in gone or min(second.values()) <= CHANNELS // 4
    assert found.account.trials[-1].nsr < 0.05
    assert found.account.macs_after == macs(found.model)
    assert found.account.trials[-1].time == pytest.approx(macs(found.model) / macs(work.model))


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_goal_is_met_closely_where_savings_do_not_add_up(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    def extra_times(_backend: str, base: ir.Model, variants: Sequence[ir.Model], *_: Any) -> list[float]:
        shares = [1 - macs(variant) / macs(base) for variant in variants]
        # Together, changes save another part of what they save alone.
        return [-share * (factor if len(variants) == 1 else 1.0) for share in shares]

    monkeypatch.setattr(pruning_costs, "extra_times", extra_times)
    found = pruner(blocks(4)).at(0.75).account.trials[-1].time
    assert found is not None
    assert 0.6 <= found <= 0.77


def test_removing_the_channels_that_repeat_others_is_free() -> None:
    found = prune_model(blocks(), feeds(), Neurons(share=0.25), Way(quantized=False))
    assert [(group.before, group.after) for group in found.account.narrowed] == [(CHANNELS, 24)] * 3
    assert found.account.trials[-1].nsr < 1e-5


def test_layers_go_in_the_order_of_their_damage() -> None:
    found = prune_model(blocks(), feeds(), Layers(count=1), Way(quantized=False))
    assert [layer.name for layer in found.account.layers] == ["out1_out"]
    assert found.account.layers[0].operators.startswith("2 Conv")
    assert found.account.trials[-1].nsr < 1e-4
    assert found.account.macs_after < 0.75 * found.account.macs_before


def test_weights_become_zero_and_keep_their_shapes() -> None:
    model = blocks()
    found = prune_model(model, feeds(), Weights(share=0.5), Way(quantized=False))
    zeros = [float((value.const_value.numpy() == 0).mean()) for value in found.model.graph.initializers.values()
             if value.const_value is not None and value.const_value.size > 1000]  # fmt: skip
    assert np.mean(zeros) > 0.4
    assert found.account.macs_after == found.account.macs_before
    assert found.account.narrowed == ()


def test_a_smaller_goal_takes_more() -> None:
    work = pruner()
    taken = [work.at(time).account.macs_after for time in (0.85, 0.6, 0.4)]
    assert taken[0] > taken[1] > taken[2]


def test_more_than_there_is_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="Of this model 3 layers can go, but 4 were asked for"):
        prune_model(blocks(), feeds(), Layers(count=4), Way(quantized=False))
    # Whatever goes, most of the time is spent on something else.
    monkeypatch.setattr(pruning_costs, "extra_times", lambda *given: [-0.1] * len(given[2]))
    with pytest.raises(
        RecipeError, match=r"Pruning brought this model to [678]\d% of its time at most, but 40% was asked"
    ):
        pruner().at(0.4)


def test_a_model_in_which_nothing_can_go_says_why() -> None:
    b = GraphBuilder("one")
    b.output(b.node("MatMul", b.input("x", (1, 3)), b.weight(3, 4), name="only"), "y")
    samples = [{"x": np.ones((1, 3), np.float32)}] * 5
    for ask in (Neurons(share=0.5), Time(share=0.5)):
        with pytest.raises(RecipeError, match=r"Nothing of this model can be pruned. `only`: the model's output `y`"):
            prune_model(b.build(), samples, ask, Way(quantized=False))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Neurons(share=0.0), "between 0 and 1, both excluded. Received 0"),
        (Weights(share=1.0), "between 0 and 1, both excluded. Received 1"),
        (Time(share=1.5), "between 0 and 1, both excluded. Received 1.5"),
        (Layers(count=0), "1 or more. Received 0"),
        (Layers(count=1.5), "a whole number of 1 or more. Received 1.5"),  # type: ignore[arg-type]
        (Neurons(share="30%"), "a number between 0 and 1, both excluded. Received 30%"),  # type: ignore[arg-type]
        (Weights(share=0.5, pattern="9:8"), "has to be one of unstructured, 1x4, 2:4. Received `9:8`"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant_is_refused(ask: Neurons | Weights | Time | Layers, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(ask)


def test_a_budget_that_is_too_short_is_said() -> None:
    work = pruner()
    work.left_s = lambda: 1e-6
    with pytest.raises(RecipeError, match="The time budget is too short for pruning"):
        work.at(0.7)


def test_no_sample_is_refused() -> None:
    with pytest.raises(DataError, match="there is none"):
        prune_model(blocks(), [], Neurons(share=0.5), Way())


def test_what_looks_alike_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def counted(_backend: str, base: ir.Model, variants: Sequence[ir.Model], *_: Any) -> list[float]:
        timed.append(len(variants))
        return [macs(variant) / macs(base) - 1 for variant in variants]

    monkeypatch.setattr(pruning_costs, "extra_times", counted)
    work = pruner(blocks(4))
    options = sum(len(item) - 1 for item in work.parts.items)
    assert work._table
    assert 0 < sum(timed) < options / 2


def test_a_choice_for_nothing_changes_nothing() -> None:
    work = pruner()
    same = work.made([Choice()])
    assert macs(same.model) == macs(work.model)
    assert same.account.trials[-1].nsr < 1e-10


def test_a_layer_between_two_kinds_of_units_is_not_dropped_beside_narrower_ones() -> None:
    b = GraphBuilder("plain", seed=2)
    x = b.node("Conv", b.input("x", (1, 3, 6, 6)), b.weight(8, 3, 3, 3), pads=[1] * 4, name="first")
    x = b.node("Conv", b.node("Relu", x), b.weight(8, 8, 3, 3), pads=[1] * 4, name="second")
    x = b.node("Conv", b.node("Relu", x), b.weight(8, 8, 3, 3), pads=[1] * 4, name="third")
    b.output(
        b.node("Gemm", b.node("Flatten", b.node("GlobalAveragePool", x)), b.weight(8, 5), name="head"), "y", (1, 5)
    )
    work = pruner(b.build())
    assert work.parts.regions
    assert not any(choice.dropped for item in work.parts.items for choice in item)
    assert prune_model(b.build(), feeds(), Layers(count=1), Way(quantized=False)).account.layers


def test_an_output_of_the_model_is_not_replaced_by_what_it_was_made_of() -> None:
    b = GraphBuilder("outputs", seed=2)
    x = b.node("Conv", b.input("x", (1, 3, 6, 6)), b.weight(8, 3, 3, 3), pads=[1] * 4, name="first")
    x = b.node("Relu", x)
    b.output(b.node("Conv", x, b.weight(8, 8, 3, 3), pads=[1] * 4, name="second"), "map", (1, 8, 6, 6))
    assert "map" not in pruner(b.build()).parts.regions


def test_groups_that_a_share_does_not_touch_are_listed() -> None:
    found = prune_model(blocks(), feeds(), Neurons(share=0.25), Way(quantized=False))
    (kept,) = [decline for decline in found.declines if decline.stage == "prune"]
    assert kept.reason.startswith(f"all 8 units of `{kept.node}` stay")


def test_streams_are_told_from_inner_units() -> None:
    work = pruner()
    kinds = {group.name: is_stream(group, work.model) for group in work.parts.coupling.groups}
    assert sorted(kinds.values()) == [False, False, False, True]
    plain = mlp()
    assert not any(is_stream(group, plain) for group in pruner(plain, [{}]).parts.coupling.groups)


@pytest.mark.parametrize(
    ("size", "step", "widths"),
    [
        (64, 16, (48, 32, 16)),
        (32, 16, (24, 16, 8)),
        (16, 16, (12, 8, 4)),
        (10, 16, (8, 4, 2)),
        (2, 16, (1,)),
        (1, 8, ()),
    ],
)
def test_widths_are_multiples_of_a_step_that_fits(size: int, step: int, widths: tuple[int, ...]) -> None:
    assert widths_of(size, step) == widths
