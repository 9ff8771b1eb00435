"""What is kept of the samples, and what models are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.pipeline.quantize_nets import (
    BEST,
    NEAREST,
    ORT,
    Times,
    decides,
    material_of,
    uneven,
)

from edgewise.analysis.target import Target
from edgewise.backends import registry
from edgewise.compress.quantize import channel_groups
from edgewise.compress.quantize.plan import observed_tensors
from edgewise.errors import DataError
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline import quantize as module
from edgewise.pipeline.quantize import (
    Held,
    Material,
    Quantizer,
    evenly,
    gather,
    judged_tensors,
    without,
)
from edgewise.records.tensors import Array, Feeds
from edgewise.testing.graphs import conv_net, random_feeds


@pytest.mark.parametrize("ending", ["argmax", "shifted", "greater"])
def test_a_model_that_gives_whole_numbers_is_judged_by_what_they_are_made_of(
    ending: str, times: Callable[..., Times]
) -> None:
    times()
    model = decides(ending)
    assert judged_tensors(model) == ("last_out",)
    quantizer = Quantizer(material_of(model), ORT)
    decision = quantizer.decide(replace(BEST, scheme="w4a8", extra_time=0.1))
    assert 0 < decision.noise < 0.1
    assert [value.name for value in quantizer.model(decision).graph.outputs] == ["y"]
    assert len(quantizer.damages(decision)) == len(decision.plan.nodes)


def test_a_model_with_real_outputs_is_judged_by_them() -> None:
    assert judged_tensors(conv_net()) == ()


def test_means_of_channels_are_kept_where_anyone_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that asks for a tensor without saying where its channels are takes nothing from an equalization."""
    monkeypatch.setattr(
        module, "observed_tensors", lambda model, target: dict.fromkeys(observed_tensors(model, target))
    )
    model = fuse(uneven())[0]
    wanted = channel_groups.observed_tensors(model)
    assert set(wanted) & set(observed_tensors(model, ORT))
    seen = gather(model, [ORT], lambda _run: [random_feeds(model)]).statistics
    assert all(seen.tensors[name].channel_means is not None for name in wanted)


def test_statistics_are_gathered_for_every_target_and_for_equalization(gives_float: Target) -> None:
    model = fuse(uneven())[0]
    feeds = [random_feeds(model, seed=seed) for seed in range(3)]
    seen = gather(model, [ORT, gives_float], lambda _run: feeds).statistics
    for target in (ORT, gives_float):
        quantizer = Quantizer(Material(model, seen, feeds), target)
        assert quantizer.decide(NEAREST).plan.nodes
    assert seen.samples == 3
    means = seen.tensors["image"].channel_means
    assert means is not None
    assert means.shape == (3,)


@pytest.fixture
def gives_float() -> Target:
    return registry.get("openvino").target() if "openvino" in registry.ready() else ORT


def test_no_sample_is_no_material() -> None:
    with pytest.raises(DataError, match="sample"):
        gather(conv_net(), [ORT], lambda _run: [])


def feeds_of_sizes(sizes: Sequence[int]) -> list[Feeds]:
    return [{"x": np.full(size, index, np.uint8)} for index, size in enumerate(sizes)]


def indices(feeds: Sequence[Feeds], sizes: Sequence[int]) -> list[int]:
    """Return which of `feeds_of_sizes` they are; empty arrays know it not, so there are none."""
    found = [int(feed["x"][0]) for feed in feeds]
    assert [feed["x"].size for feed in feeds] == [sizes[index] for index in found]
    return found


@given(st.lists(st.integers(1, 20), min_size=1, max_size=100), st.integers(0, 100))
def test_what_is_held_is_bounded_and_even(sizes: list[int], most: int) -> None:
    held = Held(most)
    given_out = []
    for feed in held.through(feeds_of_sizes(sizes)):
        given_out.append(feed)
        assert len(held.feeds) == 1 or sum(one["x"].nbytes for one in held.feeds) <= most
    assert indices(given_out, sizes) == list(range(len(sizes)))
    kept = indices(held.feeds, sizes)
    step = kept[1] if len(kept) > 1 else 1 << 10
    assert step & (step - 1) == 0
    assert kept == list(range(0, len(sizes), step))


@given(st.integers(1, 100), st.integers(1, 10), st.integers(0, 100))
def test_no_more_is_let_go_than_has_to_be(count: int, size: int, most: int) -> None:
    held = Held(most)
    list(held.through(feeds_of_sizes([size] * count)))
    assert len(held.feeds) == count or 2 * (len(held.feeds) + 1) * size > most


def test_what_is_held_is_a_copy() -> None:
    buffer = np.zeros(3, np.float32)
    held = Held()

    def reused() -> Any:
        for value in (1.0, 2.0):
            buffer[:] = value
            yield {"x": buffer}

    list(held.through(reused()))
    assert [float(feed["x"][0]) for feed in held.feeds] == [1.0, 2.0]


@given(st.integers(1, 300), st.integers(1, 150))
def test_an_even_part_of_the_samples(count: int, most: int) -> None:
    feeds: list[dict[str, Array]] = [{"x": np.array(index)} for index in range(count)]
    kept = [int(feed["x"]) for feed in evenly(feeds, most)]
    assert min(count, (most + 1) // 2) <= len(kept) <= most
    assert kept[0] == 0
    assert len(set(np.diff(kept))) <= 1
    others = [int(feed["x"]) for feed in without(feeds, most)]
    assert sorted(kept + others) == list(range(count))
    assert count - kept[-1] <= -(-count // most)
