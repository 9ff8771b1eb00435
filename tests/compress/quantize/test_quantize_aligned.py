"""The factors that a quantized model was made with are read off its weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from tests.compress.quantize.test_quantize_equalize import uneven
from tests.compress.quantize.test_quantize_smooth import normed

from edgewise.analysis.values import with_inferred_shapes
from edgewise.backends import registry
from edgewise.compress.quantize.aligned import aligned
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.channel_groups import observed_tensors as equalized_tensors
from edgewise.compress.quantize.equalize import equalize
from edgewise.compress.quantize.plan import observed_tensors, plan
from edgewise.compress.quantize.restore import matched
from edgewise.compress.quantize.smooth import observed_tensors as smoothed_tensors
from edgewise.compress.quantize.smooth import smooth
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.records.candidate import Quantize
from edgewise.records.tensors import Run
from edgewise.testing.graphs import conv_net, random_feeds, transformer_block

MakeRun = Callable[[ir.Model], Run]
ORT = registry.get("ort").target()


def seen(model: ir.Model, make_run: MakeRun) -> Statistics:
    names: dict[str, int | None] = {**smoothed_tensors(model), **equalized_tensors(model)}
    for name, axis in observed_tensors(model, ORT).items():
        names[name] = names.get(name) if axis is None else axis
    feeds = [random_feeds(model, seed=seed) for seed in range(4)]
    return collect(make_run(observe(model, names)), feeds, names)


def quantized(model: ir.Model, make_run: MakeRun, scheme: str = "w8a8") -> ir.Model:
    made = plan(model, seen(model, make_run), ORT, Quantize(scheme=scheme))
    return with_inferred_shapes(apply(model, made))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("prepare", [equalize, smooth], ids=lambda one: one.__name__)
def test_the_reference_gets_the_scales_of_the_quantized_model(
    prepare: Callable[..., tuple[ir.Model, object]], scheme: str, ort_run: MakeRun
) -> None:
    model = uneven() if prepare is equalize else transformer_block()
    prepared, _ = prepare(model, seen(model, ort_run))
    given = quantized(prepared, ort_run, scheme)
    found, names = aligned(model, given)
    assert names
    assert matched(given, found) == matched(given, prepared)
    if scheme == "w8a8":  # 4 bits are so coarse that other weights may have the same integers
        assert len(matched(given, found)) > len(matched(given, model))
    # The same function, and each scaled tensor is the prepared model's but for what rounding hides of the factors: half
    # a step of the largest weight for each of the sets of channels that follow one another, of which there are two.
    hidden = 2 * 0.5 / (2 ** (int(scheme[1]) - 1) - 1)
    feeds = random_feeds(model, seed=9)
    for name in (*names, *(value.name or "" for value in model.graph.outputs)):
        ours, theirs = (ort_run(observe(one, [name]))(feeds)[name] for one in (found, prepared))
        assert np.abs(ours - theirs).max() <= hidden * np.abs(theirs).max()
    outputs = [ort_run(one)(feeds) for one in (model, found)]
    for name, expected in outputs[0].items():
        np.testing.assert_allclose(outputs[1][name], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("make", [conv_net, uneven, normed, transformer_block])
def test_nothing_is_scaled_where_nothing_was(make: Callable[[], ir.Model], ort_run: MakeRun) -> None:
    model = make()
    found, names = aligned(model, quantized(model, ort_run))
    assert names == ()
    assert matched(quantized(model, ort_run), found) == matched(quantized(model, ort_run), model)


def test_a_model_of_other_nodes_tells_nothing(ort_run: MakeRun) -> None:
    assert aligned(uneven(), quantized(conv_net(), ort_run))[1] == ()
