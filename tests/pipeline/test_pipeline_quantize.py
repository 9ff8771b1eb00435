"""Each step of quantization is measured, and taken only where it helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
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
    noise_of,
    uneven,
)

from edgewise.compress.quantize.equalize import equalize
from edgewise.compress.quantize.output_error import choose_ranges
from edgewise.compress.quantize.plan import Plan
from edgewise.compress.quantize.sensitivity import Sensitivity, sensitivities
from edgewise.compress.quantize.sequence import round_weights
from edgewise.errors import RecipeError
from edgewise.formats.onnx import to_bytes
from edgewise.passes.protocol import Findings
from edgewise.pipeline import quantize as module
from edgewise.pipeline.quantize import (
    GAIN,
    SHARE,
    Decision,
    Quantizer,
)
from edgewise.records.candidate import Quantize
from edgewise.records.codec import decode, encode
from edgewise.records.findings import Change
from edgewise.records.tensors import Feeds
from edgewise.testing.graphs import GraphBuilder, conv_net, depthwise_net

MODELS: dict[str, Callable[[], ir.Model]] = {
    "conv": conv_net,
    "depthwise": depthwise_net,
    "uneven": uneven,
    "cepstra": cepstra,
    "chain": chain,
}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *[(name, scheme) for name in ("conv", "uneven", "cepstra") for scheme in ("w8a8", "w4a8")],
        ("depthwise", "w2a8"),
        ("depthwise", "w4a16"),
        ("conv", "w4"),
    ],
)
def test_no_step_makes_more_noise_than_what_it_replaces(name: str, scheme: str, times: Callable[..., Times]) -> None:
    times()
    feeds = cepstral_feeds() if name == "cepstra" else None
    quantizer = Quantizer(material_of(MODELS[name](), feeds), ORT)
    nearest = quantizer.decide(replace(NEAREST, scheme=scheme))
    rounded = quantizer.decide(replace(BEST, scheme=scheme))
    relieved = quantizer.decide(replace(BEST, scheme=scheme, extra_time=0.03))
    assert nearest.noise <= nearest.trials[0].nsr
    assert GAIN * nearest.noise <= min(trial.nsr for trial in nearest.trials)
    assert rounded.noise <= nearest.noise
    assert relieved.noise <= nearest.noise
    for decision in (nearest, rounded, relieved):
        assert noise_of(quantizer, decision) == pytest.approx(decision.noise, rel=1e-6)


def test_the_trials_are_every_way_that_was_measured_and_at_the_end_the_result(times: Callable[..., Times]) -> None:
    times()
    quantizer = Quantizer(material_of(uneven()), ORT)
    plain = ["w8a8, mse ranges", "w8a8, output ranges"]
    ways = [*plain, *(f"equalized, {words}" for words in plain)]
    nearest = quantizer.decide(NEAREST)
    tried = [trial.node for trial in nearest.trials]
    assert tried[:4] == ways
    assert tried[-1] in ways[2:]
    assert len(tried) == (4 if tried[-1] == ways[-1] else 5)
    rounded = [trial.node for trial in quantizer.decide(BEST).trials]
    assert rounded[: len(tried)] == tried
    assert rounded[len(tried)] == f"{tried[-1]}, second-order rounding"


@pytest.mark.parametrize("ranges", ["min-max", "percentile", "entropy", "mse"])
def test_a_single_way_is_a_single_trial(ranges: Any) -> None:
    decision = Quantizer(material_of(conv_net()), ORT).decide(Quantize(ranges=ranges))
    assert [trial.node for trial in decision.trials] == [f"w8a8, {ranges} ranges"]
    assert decision.plan.ranges == ranges


def test_the_equalized_model_is_used_where_it_is_better() -> None:
    quantizer = Quantizer(material_of(uneven()), ORT)
    decision = quantizer.decide(NEAREST)
    assert decision.prepared == "equalized"
    assert 10 * decision.noise < min(trial.nsr for trial in decision.trials[:2])
    assert noise_of(quantizer, decision) == pytest.approx(decision.noise, rel=1e-6)


def test_smoothed_activations_are_used_where_they_are_better() -> None:
    """A transformer's outlier: one channel of the normalized activation is a hundred times as large as the others."""
    draw = np.random.default_rng(4)
    b = GraphBuilder("outlier")
    b.input("x", [1, 6, 16])
    scale = np.where(np.arange(16) == 3, 100.0, 1.0).astype(np.float32)
    normal = b.node("LayerNormalization", "x", b.constant(scale), b.constant(np.zeros(16, np.float32)), axis=-1)
    weight = (draw.standard_normal((16, 8)) / scale[:, None]).astype(np.float32)
    b.output(b.node("MatMul", normal, b.constant(weight)), "y")
    feeds: list[Feeds] = [{"x": draw.standard_normal((1, 6, 16)).astype(np.float32)} for _ in range(24)]
    quantizer = Quantizer(material_of(b.build(), feeds), ORT)
    decision = quantizer.decide(NEAREST)
    assert decision.prepared == "smoothed"
    assert 10 * decision.noise < decision.trials[0].nsr
    assert noise_of(quantizer, decision) == pytest.approx(decision.noise, rel=1e-6)


def test_the_equalized_model_is_not_used_where_it_is_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(_model: ir.Model, _statistics: object) -> tuple[ir.Model, Findings]:
        return uneven(), Findings(changes=[Change(stage="equalize", node="first", what="scaled")])

    monkeypatch.setitem(module.PREPARATIONS, "equalized", spoiled)
    quantizer = Quantizer(material_of(uneven(most=1)), ORT)
    decision = quantizer.decide(NEAREST)
    assert len([trial for trial in decision.trials if trial.node.startswith("equalized")]) == 2
    assert decision.prepared == "as it is"
    assert not decision.trials[-1].node.startswith("equalized")
    assert noise_of(quantizer, decision) == pytest.approx(decision.noise, rel=1e-6)


def test_a_way_has_to_be_better_by_more_than_two_halves_of_the_samples_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = iter([1.0, 0.98, 0.9, 0.88])
    monkeypatch.setattr(Quantizer, "_tried", lambda _self, decision: with_noise(decision, next(noise)))
    decision = Quantizer(material_of(uneven()), ORT).decide(NEAREST)
    assert [trial.nsr for trial in decision.trials] == [1.0, 0.98, 0.9, 0.88, 0.9]
    assert (decision.prepared, decision.plan.ranges) == ("equalized", "mse")


def with_noise(decision: Decision, noise: float) -> Decision:
    trial = Sensitivity(node=f"{noise}", kl=None, nsr=noise, cosine=0.0, flips=None, sqnr_db=None, n=1)
    return replace(decision, trials=(*decision.trials, trial))


def test_rounding_is_undone_where_it_makes_more_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(_model: ir.Model, whole: Plan, *_others: object) -> Plan:
        weights = tuple(replace(weight, scales=tuple(2 * scale for scale in weight.scales)) for weight in whole.weights)
        return replace(whole, weights=weights)

    quantizer = Quantizer(material_of(conv_net()), ORT)
    nearest = quantizer.decide(replace(NEAREST, scheme="w4a8"))
    monkeypatch.setattr(module, "round_weights", spoiled)
    decision = quantizer.decide(replace(BEST, scheme="w4a8"))
    assert decision.plan == nearest.plan
    assert decision.noise == nearest.noise
    assert decision.trials[-2].nsr > decision.noise
    assert len(decision.trials) == len(nearest.trials) + 2


def test_rounding_takes_noise_away_where_weights_make_it() -> None:
    quantizer = Quantizer(material_of(conv_net()), ORT)
    nearest, rounded = (quantizer.decide(replace(step, scheme="w4a8")) for step in (NEAREST, BEST))
    assert rounded.noise < 0.7 * nearest.noise
    assert any(weight.integers is not None for weight in rounded.plan.weights)
    assert all(weight.integers is None for weight in nearest.plan.weights)


def test_weights_are_not_rounded_where_activations_make_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole input of `cepstra` is rounded to steps of its largest coefficient."""
    monkeypatch.setattr(module, "round_weights", None)
    quantizer = Quantizer(material_of(cepstra(first=0.0), cepstral_feeds()), ORT)
    assert quantizer.decide(BEST) == quantizer.decide(NEAREST)


def test_weights_are_rounded_on_other_samples_than_they_are_judged_by(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded_on: list[float] = []
    judged_by: list[float] = []

    def noting(model: ir.Model, whole: Plan, open_model: Any, feeds: Sequence[Feeds]) -> Plan:
        rounded_on.extend(float(feed["x"].flat[0]) for feed in feeds)
        return round_weights(model, whole, open_model, feeds)

    def judging(*arguments: Any) -> Any:
        judged_by.extend(float(feed["x"].flat[0]) for feed in arguments[3])
        return sensitivities(*arguments)

    monkeypatch.setattr(module, "round_weights", noting)
    monkeypatch.setattr(module, "sensitivities", judging)
    draw = np.random.default_rng(0)
    feeds: list[Feeds] = [{"x": draw.standard_normal((1, 16)).astype(np.float32)} for _ in range(80)]
    Quantizer(material_of(chain(2), feeds), ORT).decide(replace(BEST, scheme="w4a8"))
    assert len(rounded_on) == 40
    assert len(set(judged_by)) == 40
    assert not set(rounded_on) & set(judged_by)


@pytest.mark.parametrize(
    ("scheme", "order"),
    [("w8a8", ["_relieved", "_rounded"]), ("w4a8", ["_rounded", "_relieved"]), ("w2a16", ["_rounded", "_relieved"])],
)
def test_few_bits_are_rounded_before_damage_is_measured_and_8_bits_behind_it(
    scheme: str, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def note(name: str) -> Callable[..., Decision]:
        def noted(_self: Quantizer, decision: Decision, **_options: object) -> Decision:
            called.append(name)
            return decision

        return noted

    for name in order:
        monkeypatch.setattr(Quantizer, name, note(name))
    Quantizer(material_of(cepstra(), cepstral_feeds()), ORT).decide(replace(BEST, scheme=scheme, extra_time=0.1))
    assert called == order


def test_weights_rounded_for_few_bits_stay_as_they_are_where_others_stay_float(times: Callable[..., Times]) -> None:
    times()
    quantizer = Quantizer(material_of(chain()), ORT)
    rounded = quantizer.decide(replace(BEST, scheme="w4a8"))
    relieved = quantizer.decide(replace(BEST, scheme="w4a8", extra_time=0.015))
    assert len(relieved.kept) == 1
    assert set(relieved.plan.weights) < set(rounded.plan.weights)


def test_weights_alone_have_no_node_that_slows_down_and_no_noise_but_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def noting(*arguments: Any) -> Any:
        measured.extend(arguments[1])
        return sensitivities(*arguments)

    monkeypatch.setattr(module, "extra_times", None)
    monkeypatch.setattr(module, "sensitivities", noting)
    decision = Quantizer(material_of(conv_net()), ORT).decide(replace(BEST, scheme="w4", extra_time=0.1))
    assert decision.plan.tensors == ()
    assert decision.kept == ()
    assert decision.prepared == "as it is"
    assert measured == ["w4, min-max ranges", "w4, min-max ranges, second-order rounding"]


def test_ranges_of_16_bits_are_whole() -> None:
    decision = Quantizer(material_of(conv_net()), ORT).decide(replace(NEAREST, scheme="w8a16"))
    assert [trial.node for trial in decision.trials] == ["w8a16, min-max ranges"]


def test_where_time_is_short_steps_are_left_out_and_the_user_is_told(times: Callable[..., Times]) -> None:
    times()
    notes: list[str] = []
    step = replace(BEST, scheme="w4a8", extra_time=0.1)
    quantizer = Quantizer(material_of(cepstra(), cepstral_feeds()), ORT, left_s=lambda: 0.0, note=notes.append)
    short = quantizer.decide(step)
    assert short.kept == ()
    assert all(weight.integers is None for weight in short.plan.weights)
    assert short == quantizer.decide(replace(NEAREST, scheme="w4a8"))
    assert len(notes) == 2
    assert "second-order rounding" in notes[0]
    assert "the damage of each layer" in notes[1]
    assert all("--budget" in note for note in notes)


def test_a_step_may_take_a_share_of_the_time_that_is_left() -> None:
    """Twice 16 x 24 runs of a hundredth of a second each."""
    material, needed = material_of(conv_net()), 7.68
    for left, affords in ((1.01 * needed / SHARE, True), (0.99 * needed / SHARE, False)):
        notes: list[str] = []
        quantizer = Quantizer(material, ORT, left_s=iter([left]).__next__, note=notes.append)
        quantizer._pace_s = 0.01
        assert quantizer._affords(16 * 24, "this") is affords
        assert bool(notes) is not affords


def test_the_pace_is_that_of_the_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 26.0])
    quantizer = Quantizer(material_of(conv_net()), ORT)
    monkeypatch.setattr("edgewise.pipeline.quantize.time.monotonic", lambda: next(now))
    quantizer.decide(Quantize())
    assert quantizer._pace_s == 1.0  # 16 samples in 16 seconds


@pytest.mark.parametrize("step", [NEAREST, BEST, replace(BEST, scheme="w4a8"), replace(BEST, scheme="w4")])
def test_without_timing_the_result_is_the_same_each_time(step: Quantize) -> None:
    first, second = (Quantizer(material_of(uneven()), ORT) for _ in range(2))
    one, other = first.decide(step), second.decide(step)
    assert encode(one) == encode(other)
    assert to_bytes(first.model(one)) == to_bytes(second.model(other))


def test_a_decision_is_stored_and_replayed(times: Callable[..., Times]) -> None:
    times()
    for model, feeds in ((cepstra(), cepstral_feeds()), (uneven(), None)):
        material = material_of(model, feeds)
        quantizer = Quantizer(material, ORT)
        decision = quantizer.decide(replace(BEST, scheme="w4a8", extra_time=0.015))
        again = decode(encode(decision), Decision)
        assert again == decision
        assert to_bytes(Quantizer(material, ORT).model(again)) == to_bytes(quantizer.model(decision))


def test_what_recipes_share_is_measured_once(monkeypatch: pytest.MonkeyPatch, times: Callable[..., Times]) -> None:
    times()
    calls: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            calls.append(name)
            return original(*arguments)

        return counting

    monkeypatch.setattr(module, "choose_ranges", counted("ranges", choose_ranges))
    monkeypatch.setitem(module.PREPARATIONS, "equalized", counted("equalize", equalize))
    monkeypatch.setattr(Quantizer, "damages", counted("damages", Quantizer.damages))
    quantizer = Quantizer(material_of(uneven()), ORT)
    for extra_time in (0.0, 0.02, 0.15):
        quantizer.decide(replace(BEST, extra_time=extra_time))
    assert sorted(calls) == ["damages", "equalize", "ranges", "ranges"]


def test_ranges_are_chosen_on_samples_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples often come sorted by class, and the steps of a sequence always do."""
    seen: list[list[float]] = []

    def noting(*arguments: Any) -> Any:
        seen.append([float(feed["x"].flat[0]) for feed in arguments[4]])
        return choose_ranges(*arguments)

    monkeypatch.setattr(module, "choose_ranges", noting)
    feeds: list[Feeds] = [{"x": np.full((1, 16), index, np.float32)} for index in range(64)]
    Quantizer(material_of(cepstra(), feeds), ORT).decide(NEAREST)
    assert seen[0] == list(range(0, 64, 4))


def test_samples_are_not_kept_twice_for_the_equalized_model() -> None:
    quantizer = Quantizer(material_of(uneven()), ORT)
    assert list(quantizer._forms) == ["as it is", "equalized"]
    assert all(form.feeds is quantizer.material.feeds for form in quantizer._forms.values())


def test_a_scheme_has_to_exist() -> None:
    with pytest.raises(RecipeError, match="w5a8"):
        Quantizer(material_of(conv_net()), ORT).decide(Quantize(scheme="w5a8"))
