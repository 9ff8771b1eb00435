from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.compress.gram import Moments, Summary, moments_for
from edgewise.compress.nodes import Weighted
from edgewise.compress.quantize import affine
from edgewise.compress.quantize.rounding import Rounded, _Codes, _Layer, round_weight
from edgewise.errors import ContractError, RecipeError

Floats = npt.NDArray[np.float32]

CONV = Weighted(activation=0, weight=1, axis=0, bias=2, input_axis=1)
GEMM = Weighted(activation=0, weight=1, axis=1, bias=2, input_axis=1)
MATMUL = Weighted(activation=0, weight=1, axis=1, bias=None, input_axis=-1)
WHOLE = Weighted(activation=0, weight=1, axis=None, bias=2, input_axis=1)

Case = tuple[str, Weighted, tuple[int, ...], tuple[int, ...], dict[str, Any]]

CASES: dict[str, Case] = {
    "conv": ("Conv", CONV, (6, 4, 3, 3), (1, 4, 6, 6), {"pads": [1, 1, 1, 1]}),
    "grouped": ("Conv", CONV, (8, 2, 3), (1, 8, 9), {"group": 4, "strides": [2]}),
    "depthwise": ("Conv", CONV, (5, 1, 3, 3), (1, 5, 6, 6), {"group": 5}),
    "transposed": (
        "ConvTranspose",
        Weighted(activation=0, weight=1, axis=1, bias=2, input_axis=1),
        (4, 6, 2, 2),
        (1, 4, 5, 5),
        {"strides": [2, 2]},
    ),
    "transposed groups": ("ConvTranspose", WHOLE, (4, 3, 2), (1, 4, 7), {"group": 2}),
    "gemm": ("Gemm", GEMM, (12, 5), (3, 12), {}),
    "gemm transposed": ("Gemm", CONV, (5, 12), (3, 12), {"transB": 1}),
    "matmul": ("MatMul", MATMUL, (12, 5), (2, 7, 12), {}),
}


def node_of(case: Case) -> ir.Node:
    return ir.node(case[0], [ir.Value(name="x"), ir.Value(name="w")], case[4])


def weight_of(case: Case, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(case[2]).astype(np.float32)


def pairs(case: Case, count: int, seed: int = 0, *, noise: float = 0.05) -> list[tuple[Floats, Floats]]:
    """Correlated positive inputs, and what quantization upstream made of them: shrunk, shifted, and with noise."""
    random = np.random.default_rng(99)
    shape = case[3]
    axis = case[1].input_axis % len(shape)
    mix = random.standard_normal((shape[axis], shape[axis])) / 2
    random = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        x = np.moveaxis(np.moveaxis(random.standard_normal(shape), axis, -1) @ mix, -1, axis)
        x = np.maximum(x + 0.3, 0)
        x_hat = x * (1 - noise) + noise / 2 + noise * random.standard_normal(shape)
        result.append((x.astype(np.float32), x_hat.astype(np.float32)))
    return result


def moments_of(case: Case, samples: list[tuple[Floats, Floats]], weight: Floats) -> Moments:
    moments = moments_for(node_of(case), weight)
    assert isinstance(moments, Moments)
    for number, (x, x_hat) in enumerate(samples):
        moments.add(x, x_hat, sample=number)
    return moments


def real_of(case: Case, found: Rounded, block: int = 0) -> Floats:
    """What a DequantizeLinear makes of the result."""
    if not block:
        return affine.dequantize_array(found.integers, found.scales, 0, axis=case[1].axis)
    # The axis of the input channels, as the operators define it.
    axis = {"Conv": 1, "ConvTranspose": 0, "MatMul": 0}.get(case[0], 1 - (case[1].axis or 0))
    scales = np.repeat(found.scales, block, axis=axis).take(range(found.integers.shape[axis]), axis=axis)
    return (found.integers * scales).astype(np.float32)


def output_error(
    case: Case,
    weight: Floats,
    real: Floats,
    shift: npt.NDArray[np.float64] | None,
    samples: list[tuple[Floats, Floats]],
) -> float:
    """Mean squared error of the node's output, by the node's own rows (which have tests of their own)."""
    shape = moments_of(case, [], weight).unfolding
    errors = []
    for x, x_hat in samples:
        chosen = np.arange(shape.positions(x.shape))
        before = np.einsum("pgk,grk->pgr", shape.rows(x, chosen).astype(float), shape.matrix(weight))
        after = np.einsum("pgk,grk->pgr", shape.rows(x_hat, chosen).astype(float), shape.matrix(real))
        lost = (before - after).reshape(len(chosen), -1)
        errors.append(np.square(lost - (0 if shift is None else shift)))
    return float(np.concatenate(errors).mean())


def nearest_of(case: Case, weight: Floats, bits: int) -> Floats:
    scales = affine.least_squares_scales(weight, axis=case[1].axis, bits=bits)
    largest = 2 ** (bits - 1) - 1
    integers = np.clip(affine.quantize_array(weight, scales, 0, np.int8, axis=case[1].axis), -largest, largest)
    return affine.dequantize_array(integers, scales, 0, axis=case[1].axis)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_the_output_of_unseen_samples_is_nearer_to_float(name: str, bits: int) -> None:
    case = CASES[name]
    weight = weight_of(case)
    found = round_weight(node_of(case), case[1], weight, moments_of(case, pairs(case, 40), weight), bits=bits)
    assert found.integers.dtype == np.int8
    assert found.integers.shape == weight.shape
    assert np.abs(found.integers).max() <= 2 ** (bits - 1) - 1
    assert found.scales.dtype == np.float32
    assert found.scales.shape == (() if case[1].axis is None else (weight.shape[case[1].axis],))
    channels = weight.shape[1] * int(case[4].get("group", 1)) if case[0] == "ConvTranspose" else found.scales.size
    if case[1].bias is None:
        assert found.bias_shift is None
    else:
        assert found.bias_shift is not None
        assert found.bias_shift.shape == (channels,)
    # With three integers and so few rows, what is gained may be within chance: nearest is kept then.
    assert found.second_order or bits == 2
    assert found.error is not None
    assert found.nearest_error is not None
    assert found.error < found.nearest_error or not found.second_order
    unseen = pairs(case, 30, seed=1)
    ours = output_error(case, weight, real_of(case, found), found.bias_shift, unseen)
    nearest = output_error(case, weight, nearest_of(case, weight, bits), None, unseen)
    assert ours < (0.9 if found.second_order else 1.0) * nearest
    # The judge's figures are those of unseen samples: few rows, so within a factor of 1.5.
    assert 1 / 1.5 < ours / found.error < 1.5


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_pruned_weights_stay_zero_and_the_others_make_up_for_rounding(name: str, bits: int) -> None:
    case = CASES[name]
    weight = weight_of(case) * (np.random.default_rng(1).random(case[2]) < 0.6)
    assert np.mean(weight == 0) >= 0.2
    moments = moments_of(case, pairs(case, 60), weight)
    found = round_weight(node_of(case), case[1], weight, moments, bits=bits)
    assert not found.integers[weight == 0].any()
    assert found.integers[weight != 0].any()
    unseen = pairs(case, 40, seed=1)
    ours = output_error(case, weight, real_of(case, found), found.bias_shift, unseen)
    assert ours < output_error(case, weight, nearest_of(case, weight, bits), None, unseen)


def test_a_few_zeros_are_weights_like_any_other() -> None:
    case = CASES["gemm"]
    weight = weight_of(case) + np.float32(0)
    weight[0, :] = 0
    assert np.mean(weight == 0) < 0.2
    found = round_weight(node_of(case), case[1], weight, moments_of(case, pairs(case, 60), weight), bits=8)
    assert found.integers[0].any()


@pytest.mark.parametrize("block", [1, 5, 100])
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1].axis is not None])
def test_blocks_of_input_channels_have_their_own_scales(name: str, block: int) -> None:
    case = CASES[name]
    weight = weight_of(case)
    moments = moments_of(case, pairs(case, 20), weight)
    found = round_weight(node_of(case), case[1], weight, moments, bits=4, block=block)
    axis = {"Conv": 1, "ConvTranspose": 0, "MatMul": 0}.get(case[0], 1 - (case[1].axis or 0))
    expected = [1 if axis_ > 1 else size for axis_, size in enumerate(weight.shape)]
    expected[axis] = -(-weight.shape[axis] // block)
    assert list(found.scales.shape) == expected
    assert (found.scales > 0).all()
    unseen = pairs(case, 20, seed=1)
    ours = output_error(case, weight, real_of(case, found, block), found.bias_shift, unseen)
    assert ours < output_error(case, weight, nearest_of(case, weight, 4), None, unseen)
    # Given back, the same scales are kept.
    again = round_weight(node_of(case), case[1], weight, moments, bits=4, block=block, scales=found.scales)
    assert np.array_equal(again.scales, found.scales)


def objective(case: Case, weight: Floats, real: Floats, moments: Moments) -> npt.NDArray[np.float64]:
    """tr[(W - Q) S (W - Q)^T] of each row; inputs without a drift, moments about the means where a bias is free."""
    summary = moments.all()
    assert isinstance(summary, Summary)
    gram = summary.gram if case[1].bias is None else summary.centred_gram
    lost = moments.unfolding.matrix(weight) - moments.unfolding.matrix(real)
    result: npt.NDArray[np.float64] = np.einsum("grk,gkl,grl->gr", lost, gram, lost)
    return result


@given(st.sampled_from(sorted(CASES)), st.sampled_from([2, 4, 8]), st.integers(0, 99), st.sampled_from([1, 2, 7, 40]))
@settings(max_examples=25, deadline=None)
def test_the_objective_is_never_worse_than_nearest(name: str, bits: int, seed: int, count: int) -> None:
    case = CASES[name]
    weight = weight_of(case, seed)
    moments = moments_of(case, [(x, x) for x, _ in pairs(case, count, seed)], weight)
    found = round_weight(node_of(case), case[1], weight, moments, bits=bits)
    real, nearest = real_of(case, found), nearest_of(case, weight, bits)
    ours, theirs = (objective(case, weight, one, moments) for one in (real, nearest))
    # What is minimised is damped by at most its mean diagonal times the squared change of the weights.
    summary = moments.all()
    assert summary is not None
    gram = summary.gram if case[1].bias is None else summary.centred_gram
    ridge = np.einsum("gkk->g", gram)[:, None] / gram.shape[1]
    lost = moments.unfolding.matrix(weight) - moments.unfolding.matrix(nearest)
    room = ridge * np.square(lost).sum(axis=2)
    if case[1].axis is None:
        ours, theirs, room = ours.sum(), theirs.sum(), room.sum()
    assert np.all(ours <= theirs + room + 1e-6 * (theirs + room))


def test_each_row_takes_the_better_codes() -> None:
    case = CASES["matmul"]
    weight = weight_of(case)
    shape = moments_of(case, [], weight).unfolding
    layer = _Layer(shape, case[1], weight, bits=4, scales=None, block=0, floor=None)
    nearest = layer.nearest()
    first, second = nearest.integers.copy(), nearest.integers.copy()
    first[:, ::2] = 0
    second[:, 1::2] = 0
    codes = (_Codes(first, nearest.grid), _Codes(second, nearest.grid))
    found = layer._better(*codes, layer.weight, np.eye(12)[None])
    assert np.array_equal(found.integers, nearest.integers)


def test_the_shift_takes_back_the_mean_error() -> None:
    case = CASES["conv"]
    weight = weight_of(case)
    samples = pairs(case, 200)
    moments = moments_of(case, samples, weight)
    found = round_weight(node_of(case), case[1], weight, moments, bits=3)
    summary = moments.all()
    assert summary is not None
    assert found.bias_shift is not None
    lost = weight.reshape(6, -1) @ summary.mean[0] - real_of(case, found).reshape(6, -1) @ summary.mean_hat[0]
    assert np.allclose(found.bias_shift, lost * 200 / 201, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_few_samples_do_no_harm(name: str, count: int) -> None:
    case = CASES[name]
    weight = weight_of(case)
    ratios = []
    for seed in range(6):
        moments = moments_of(case, pairs(case, count, seed), weight)
        found = round_weight(node_of(case), case[1], weight, moments, bits=4)
        unseen = pairs(case, 30, seed=100)
        ours = output_error(case, weight, real_of(case, found), found.bias_shift, unseen)
        ratios.append(ours / output_error(case, weight, nearest_of(case, weight, 4), None, unseen))
    # 0.6 dB for one draw of so few samples (three rows here), no worse than nearest in the mean.
    assert max(ratios) < 1.15
    assert np.mean(ratios) < 1.02


def test_held_out_rows_make_nearest_win_where_the_moments_mislead() -> None:
    case = CASES["gemm"]
    weight = weight_of(case)
    random = np.random.default_rng(0)
    moments = moments_of(case, [], weight)
    for sample in range(20):
        # What is seen in the fit lies in one direction; what is held out, in all others.
        x = random.standard_normal((30, 1)) * np.ones(12)
        if sample % 5 == 1:
            x = random.standard_normal((30, 12))
            x -= x.mean(axis=1, keepdims=True)
        moments.add(x.astype(np.float32), x.astype(np.float32), sample=sample)
    found = round_weight(node_of(case), case[1], weight, moments, bits=4)
    assert not found.second_order
    assert found.error == found.nearest_error
    assert np.array_equal(real_of(case, found), nearest_of(case, weight, 4))


def test_without_rows_the_nearest_integers_are_given() -> None:
    case = CASES["conv"]
    weight = weight_of(case)
    found = round_weight(node_of(case), case[1], weight, moments_of(case, [], weight), bits=8)
    assert not found.second_order
    assert found.bias_shift is None
    assert (found.error, found.nearest_error) == (None, None)
    assert np.array_equal(real_of(case, found), nearest_of(case, weight, 8))


@pytest.mark.parametrize("inputs", ["zero", "constant", "one dead", "huge", "tiny"])
@pytest.mark.parametrize("name", CASES)
def test_degenerate_inputs_and_weights_make_finite_numbers(name: str, inputs: str) -> None:
    case = CASES[name]
    weight = weight_of(case)
    np.moveaxis(weight, case[1].axis or 0, 0)[1] = 0
    samples = pairs(case, 7)
    for pair in samples:
        for x in pair:
            match inputs:
                case "zero":
                    x[:] = 0
                case "constant":
                    x[:] = 3
                case "one dead":
                    np.moveaxis(x, case[1].input_axis, 0)[1] = 0
                case _:
                    np.multiply(x, np.float32(1e15 if inputs == "huge" else 1e-20), out=x)
    for data in (weight, np.zeros_like(weight)):
        found = round_weight(node_of(case), case[1], data, moments_of(case, samples, data), bits=4)
        assert np.isfinite(found.scales).all()
        assert (found.scales > 0).all()
        assert found.bias_shift is None or np.isfinite(found.bias_shift).all()
        if not data.any():
            assert not found.integers.any()
        elif inputs == "zero":
            assert np.array_equal(found.integers, np.rint(found.integers))
            assert np.abs(real_of(case, found) - data).max() < np.abs(data).max()


def test_scales_keep_to_the_floor_or_to_what_is_given() -> None:
    for name in ("conv", "depthwise", "gemm", "transposed groups"):
        case = CASES[name]
        weight = weight_of(case)
        moments = moments_of(case, pairs(case, 10), weight)
        free = round_weight(node_of(case), case[1], weight, moments, bits=8)
        floor = (3 * free.scales).astype(np.float32)
        found = round_weight(node_of(case), case[1], weight, moments, bits=8, floor=floor)
        assert (found.scales >= floor).all()
        kept = round_weight(node_of(case), case[1], weight, moments, bits=8, scales=floor)
        assert np.array_equal(kept.scales, floor)


def test_what_has_no_second_order_says_why() -> None:
    wide = np.zeros((100_000, 2), np.float32)
    reason = moments_for(ir.node("MatMul", []), wide)
    assert reason == ("the Gram matrix of its 100000 inputs would hold 10000000000 numbers, and 21233664 are the limit")
    assert moments_for(ir.node("MatMul", []), np.zeros((2, 3, 4), np.float32)) == (
        "its weights are a stack of matrices"
    )


def test_wrong_requests_are_refused() -> None:
    case = CASES["conv"]
    weight = weight_of(case)
    moments = moments_of(case, [], weight)
    for bits in (1, 9):
        with pytest.raises(RecipeError, match="2 to 8"):
            round_weight(node_of(case), case[1], weight, moments, bits=bits)
    with pytest.raises(RecipeError, match="Blocks"):
        round_weight(node_of(case), case[1], weight, moments, bits=4, block=-1)
    with pytest.raises(RecipeError, match="Blocks"):
        round_weight(node_of(case), WHOLE, weight, moments, bits=4, block=2)
    with pytest.raises(ContractError, match="moments_for"):
        round_weight(node_of(case), case[1], weight[:, :2], moments, bits=4)
