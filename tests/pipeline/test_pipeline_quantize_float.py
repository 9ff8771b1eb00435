"""Nodes stay float that do the most damage for what they take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace
from tests.pipeline.quantize_nets import (
    BEST,
    NEAREST,
    ORT,
    Times,
    cepstra,
    cepstral_feeds,
    chain,
    material_of,
)

from edgewise.analysis.cost import layer_costs
from edgewise.compress.quantize.restore import quantized_nodes
from edgewise.pipeline import quantize as module
from edgewise.pipeline.quantize import (
    MOST_MACS,
    Decision,
    Quantizer,
)
from edgewise.records.candidate import RunOptions


def test_the_node_that_does_the_damage_is_kept_in_float(times: Callable[..., Times]) -> None:
    asked = times()
    quantizer = Quantizer(material_of(cepstra(), cepstral_feeds()), ORT)
    whole = quantizer.decide(BEST)
    relieved = quantizer.decide(replace(BEST, extra_time=0.015), RunOptions(threads=2))
    assert relieved.kept == ("first",)
    assert "first" not in relieved.plan.nodes
    assert set(quantized_nodes(quantizer.model(relieved))) == {"wide", "last"}
    assert relieved.noise < whole.noise / 10
    assert "in float: first" in relieved.trials[-1].node
    assert set(asked.options) == {RunOptions(threads=2)}


def test_the_damage_of_a_node_is_that_of_the_node_alone() -> None:
    quantizer = Quantizer(material_of(cepstra(), cepstral_feeds()), ORT)
    decision = quantizer.decide(NEAREST)
    damages = quantizer.damages(decision)
    assert set(damages) == set(decision.plan.nodes) == {"first", "wide", "last"}
    # Errors of different nodes hardly know of each other, so what they do adds up.
    assert sum(damages.values()) == pytest.approx(decision.noise, rel=0.2)
    assert damages["wide"] + damages["last"] < 0.2 * damages["first"]


@pytest.mark.parametrize(("extra_time", "most"), [(0.005, 0), (0.015, 1), (0.025, 2), (0.035, 3)])
def test_what_stays_float_takes_no_more_than_was_asked_for(
    extra_time: float, most: int, times: Callable[..., Times]
) -> None:
    asked = times()
    quantizer = Quantizer(material_of(chain()), ORT)
    decision = quantizer.decide(replace(NEAREST, extra_time=extra_time))
    damages = quantizer.damages(quantizer.decide(NEAREST))
    assert list(decision.kept) == sorted(damages, key=lambda name: -damages[name])[:most]
    # Timed together as well, and not only one by one.
    assert not most or set(decision.kept) in [names for call in asked.asked[1:] for names in call]


def test_costs_that_do_not_add_up_are_given_back(times: Callable[..., Times]) -> None:
    """Each of three layers takes 1 %, but two of them 2.5 %."""
    asked = times(crowded=0.005)
    quantizer = Quantizer(material_of(chain()), ORT)
    decision = quantizer.decide(replace(NEAREST, extra_time=0.03))
    damages = quantizer.damages(quantizer.decide(NEAREST))
    assert list(decision.kept) == sorted(damages, key=lambda name: -damages[name])[:2]
    assert {len(names) for call in asked.asked[1:] for names in call} >= {2, 3}


def test_few_variants_are_open_at_a_time_and_each_keeps_its_own_time(
    times: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = times()
    whole = Quantizer(material_of(chain()), ORT).decide(replace(NEAREST, extra_time=0.025))
    monkeypatch.setattr(module, "TIMED_TOGETHER", 1)
    one_by_one = times()
    assert Quantizer(material_of(chain()), ORT).decide(replace(NEAREST, extra_time=0.025)) == whole
    assert max(len(call) for call in together.asked) > 1
    assert max(len(call) for call in one_by_one.asked) == 1


def test_nothing_stays_float_where_all_costs_too_much(times: Callable[..., Times]) -> None:
    times(lambda _name: 0.5)
    quantizer = Quantizer(material_of(cepstra(), cepstral_feeds()), ORT)
    assert quantizer.decide(replace(NEAREST, extra_time=0.1)) == quantizer.decide(NEAREST)


def test_nothing_is_timed_where_no_time_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "extra_times", None)
    monkeypatch.setattr(Quantizer, "damages", None)
    assert Quantizer(material_of(cepstra(), cepstral_feeds()), ORT).decide(BEST).kept == ()


@pytest.mark.parametrize("name", ["chain", "cepstra"])
def test_most_multiply_accumulates_stay_8_bit_even_where_float_is_faster(
    name: str, times: Callable[..., Times]
) -> None:
    times(lambda _name: -0.1)
    quantizer = Quantizer(material_of(*((chain(),) if name == "chain" else (cepstra(), cepstral_feeds()))), ORT)
    decision = quantizer.decide(replace(NEAREST, extra_time=0.5))
    macs = {cost.node: cost.macs for cost in layer_costs(quantizer.material.model)}
    whole = quantizer.decide(NEAREST).plan.nodes
    assert decision.kept
    assert sum(macs[node] for node in decision.kept) <= MOST_MACS * sum(macs[node] for node in whole)


def test_a_node_that_is_too_large_to_stay_float_does_not_keep_smaller_ones_from_it(
    monkeypatch: pytest.MonkeyPatch, times: Callable[..., Times]
) -> None:
    asked = times()
    quantizer = Quantizer(material_of(cepstra(), cepstral_feeds()), ORT)
    monkeypatch.setattr(Quantizer, "damages", lambda *_: {"wide": 3.0, "last": 2.0, "first": 1.0})
    assert quantizer.decide(replace(NEAREST, extra_time=0.5)).kept == ("first",)
    assert asked.asked[0] == [{"first"}]  # the others have more than a quarter of the work, and are not even timed


def test_nodes_that_stay_float_and_help_nothing_become_8_bit_again(
    monkeypatch: pytest.MonkeyPatch, times: Callable[..., Times]
) -> None:
    times()
    quantizer = Quantizer(material_of(cepstra(), cepstral_feeds()), ORT)
    whole = quantizer.decide(NEAREST)
    tried = Quantizer._tried

    def worse(self: Quantizer, decision: Decision) -> Decision:
        found = tried(self, decision)
        return replace(found, trials=(*found.trials[:-1], replace(found.trials[-1], nsr=2 * whole.noise)))

    monkeypatch.setattr(Quantizer, "_tried", worse)
    decision = quantizer.decide(replace(NEAREST, extra_time=0.05))
    assert (decision.plan, decision.kept, decision.noise) == (whole.plan, (), whole.noise)
    assert decision.trials[-2].nsr == 2 * whole.noise
