from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgewise.compress.quantize.affine import (
    SMALLEST_SCALE,
    block_scales,
    dequantize_array,
    least_squares_scales,
    parameters,
    quantize_array,
    symmetric_scales,
)
from edgewise.errors import RecipeError

TYPES: dict[type, int] = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
numbers = st.floats(-1e4, 1e4, width=32)


def reference(operator: str, *arrays: npt.NDArray[np.generic], result: int, axis: int) -> npt.NDArray[np.generic]:
    kinds = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    infos = [helper.make_tensor_value_info(f"i{k}", kind, None) for k, kind in enumerate(kinds)]
    node = helper.make_node(operator, [info.name for info in infos], ["y"], axis=axis)
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", result, None)])
    # Opset 19, because the evaluator lacks older versions of DequantizeLinear; for 8 bits they say the same.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    feeds = {info.name: array for info, array in zip(infos, arrays, strict=True)}
    outputs: list[npt.NDArray[np.generic]] = ReferenceEvaluator(model).run(None, feeds)
    return outputs[0]


@given(
    hnp.arrays(np.float32, (2, 3, 4), elements=numbers),
    st.sampled_from([np.uint8, np.int8]),
    hnp.arrays(np.float32, 3, elements=st.floats(2.0**-10, 1e3, width=32)),
    st.data(),
)
def test_both_directions_are_bit_exact_with_onnx(
    values: npt.NDArray[np.float32], dtype: type, scales: npt.NDArray[np.float32], data: st.DataObject
) -> None:
    limits = np.iinfo(dtype)
    zeros = data.draw(hnp.arrays(dtype, 3, elements=st.integers(int(limits.min), int(limits.max))))
    for scale, zero, axis in [(scales, zeros, 1), (scales[0], zeros[0], None)]:
        s, z = np.asarray(scale), np.asarray(zero)
        ours = quantize_array(values, scale, zero, dtype, axis=axis)
        assert ours.dtype == dtype
        assert np.array_equal(ours, reference("QuantizeLinear", values, s, z, result=TYPES[dtype], axis=1))
        back = dequantize_array(ours, scale, zero, axis=axis)
        assert back.dtype == np.float32
        assert np.array_equal(back, reference("DequantizeLinear", ours, s, z, result=TensorProto.FLOAT, axis=1))


def test_halves_round_to_even_and_everything_saturates() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, np.inf, -np.inf], np.float32)
    assert quantize_array(values, 1.0, 0, np.int8).tolist() == [0, 2, 2, 0, -2, 127, -128, 127, -128]
    assert quantize_array(values, 1e-38, 3, np.uint8).tolist() == [255, 255, 255, 0, 0, 255, 0, 255, 0]


@given(numbers, numbers, st.sampled_from([np.uint8, np.int8]))
def test_zero_is_exact_and_the_range_is_covered(a: float, b: float, dtype: type) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = parameters(low, high, dtype)
    limits = np.iinfo(dtype)
    assert limits.min <= zero_point <= limits.max
    assert scale >= SMALLEST_SCALE
    assert dequantize_array(quantize_array(np.zeros(1, np.float32), scale, zero_point, dtype), scale, zero_point) == 0
    # The zero point is rounded, so either end may move by half a step; float32 adds a relative 2**-23.
    room = scale / 2 + 2**-22 * max(abs(low), abs(high))
    if min(low, 0) < max(high, 0):
        assert (limits.min - zero_point) * scale <= min(low, 0) + room
        assert (limits.max - zero_point) * scale >= max(high, 0) - room


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_a_range_that_is_none_is_an_error(low: float, high: float) -> None:
    with pytest.raises(RecipeError, match="finite"):
        parameters(low, high, np.uint8)


def test_the_usual_ranges() -> None:
    assert parameters(0, 255, np.uint8) == (1.0, 0)
    assert parameters(0, 255, np.int8) == (1.0, -128)
    assert parameters(-128, 127, np.uint8) == (1.0, 128)
    assert parameters(0, 0, np.uint8) == (1.0, 0)
    assert parameters(3, 255, np.uint8) == (1.0, 0)


weights = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=numbers)


@given(weights, st.integers(2, 8), st.data())
def test_symmetric_scales_use_the_whole_width_and_clip_nothing(
    weight: npt.NDArray[np.float32], bits: int, data: st.DataObject
) -> None:
    axis = data.draw(st.one_of(st.none(), st.integers(0, weight.ndim - 1)))
    scales = symmetric_scales(weight, axis=axis, bits=bits)
    largest = 2 ** (bits - 1) - 1
    integers = quantize_array(weight, scales, 0, np.int8, axis=axis).astype(int)
    assert np.abs(integers).max() <= largest
    error = np.abs(dequantize_array(integers, scales, 0, axis=axis) - weight)
    widest = scales if axis is None else np.expand_dims(scales, [k for k in range(weight.ndim) if k != axis])
    # Half a step, and the rounding of the division and of the product: 2**-22 of the value in all. Channels whose
    # step would be subnormal are zero as a whole.
    tiny = largest * SMALLEST_SCALE
    assert (error <= widest / 2 * (1 + 2**-20) + 2**-22 * np.abs(weight)).all() or np.abs(weight).max() <= tiny
    channels = np.abs(integers).max(axis=None if axis is None else tuple(k for k in range(weight.ndim) if k != axis))
    assert ((channels == largest) | (channels == 0)).all()


@given(weights, st.sampled_from([None, 0, 1]), st.sampled_from([2, 3, 4, 6, 7, 8]))
def test_least_squares_scales_are_never_worse_and_never_wider(
    weight: npt.NDArray[np.float32], axis: int | None, bits: int
) -> None:
    largest = 2 ** (bits - 1) - 1

    def error(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        integers = np.clip(quantize_array(weight, scales, 0, np.int8, axis=axis), -largest, largest)
        squares = np.square((weight - dequantize_array(integers, scales, 0, axis=axis)).astype(np.float64))
        others = None if axis is None else tuple(k for k in range(weight.ndim) if k != axis)
        return np.asarray(squares.sum(axis=others))

    full, best = symmetric_scales(weight, axis=axis, bits=bits), least_squares_scales(weight, axis=axis, bits=bits)
    assert best.shape == full.shape
    assert (best <= full).all()
    # The search squares in float32: its choice can be worse by that rounding, 2**-23 of at most the whole energy.
    assert (error(best) <= error(full) * (1 + 2**-18) + 1e-30).all()


def test_clipping_an_outlier_pays_at_four_bits() -> None:
    weight = np.concatenate([np.linspace(-1, 1, 999), [1.4]]).astype(np.float32)[None]
    full, best = symmetric_scales(weight, axis=0, bits=4), least_squares_scales(weight, axis=0, bits=4)
    assert best[0] < 0.85 * full[0]


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("count", [9, 27, 300, 3000])
def test_few_bits_are_nearly_as_good_as_an_exhaustive_search(bits: int, count: int) -> None:
    random = np.random.default_rng(count)
    weight = np.concatenate([random.standard_normal((16, count)), random.laplace(size=(16, count))]).astype(np.float32)
    largest = 2 ** (bits - 1) - 1

    def error(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        integers = np.clip(np.rint(weight / scales[:, None]), -largest, largest)
        return np.asarray(np.square(weight - integers * scales[:, None]).sum(axis=1))

    full = symmetric_scales(weight, axis=0, bits=bits)
    exhaustive = np.min([error(full * np.float32(share)) for share in np.linspace(1, 0.05, 300)], axis=0)
    assert np.mean(error(least_squares_scales(weight, axis=0, bits=bits)) / exhaustive) < 1.03
    if bits < 4:
        # What it is about: without clipping, most of a long row rounds to zero.
        assert np.mean(error(full) / exhaustive) > 1.2


@given(weights, st.integers(1, 6), st.sampled_from([2, 4, 8]), st.data())
def test_blocks_are_channels_of_their_own(
    weight: npt.NDArray[np.float32], block: int, bits: int, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    shared = data.draw(st.sets(st.sampled_from([k for k in range(weight.ndim) if k != axis])))
    scales = block_scales(weight, axis=axis, block=block, shared=tuple(sorted(shared)), bits=bits)
    count = -(-weight.shape[axis] // block)
    expected = [count if k == axis else 1 if k in shared else size for k, size in enumerate(weight.shape)]
    assert scales.shape == tuple(expected)
    for index in np.ndindex(scales.shape):
        part = weight[
            tuple(
                slice(where * block, (where + 1) * block) if k == axis else slice(None) if k in shared else where
                for k, where in enumerate(index)
            )
        ]
        alone = least_squares_scales(part, axis=None, bits=bits)
        # A sum's terms come in another order, so that of two thresholds that are as good the other one may be chosen.
        steps = np.array([alone, scales[index]], np.float32)[:, None]
        largest = 2 ** (bits - 1) - 1
        rounded = np.clip(np.rint(part.reshape(1, -1) / steps), -largest, largest) * steps
        errors = np.square((part.reshape(1, -1) - rounded).astype(np.float64)).sum(axis=1)
        assert errors[1] == pytest.approx(errors[0], rel=2**-16, abs=2**-18 * float(np.square(part).sum()) + 1e-30)


def test_blocks_agree_with_onnx() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 10, 2, 2)).astype(np.float32)
    scales = block_scales(weight, axis=1, block=4, shared=(2, 3), bits=4)
    integers = quantize_array(weight, scales, 0, np.int8, axis=1, block=4)
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=1, block_size=4)
    infos = [
        helper.make_tensor_value_info("q", TensorProto.INT8, weight.shape),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, (3, 3, 2, 2)),
    ]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    spread = np.broadcast_to(scales, (3, 3, 2, 2)).copy()
    expected = ReferenceEvaluator(model).run(None, {"q": integers, "s": spread})
    assert np.array_equal(dequantize_array(integers, scales, 0, axis=1, block=4), expected[0])


def test_a_channel_of_zeros_and_a_tiny_one_divide_by_nothing() -> None:
    weight = np.array([[0, 0], [1e-42, 0], [1, 2]], np.float32)
    scales = symmetric_scales(weight, axis=0)
    assert scales[:2].tolist() == [1.0, 1.0]
    assert quantize_array(weight, scales, 0, np.int8, axis=0).tolist() == [[0, 0], [0, 0], [64, 127]]


@pytest.mark.parametrize("bits", [1, 9])
def test_a_width_that_is_none_is_an_error(bits: int) -> None:
    with pytest.raises(RecipeError, match=f"bits={bits}"):
        symmetric_scales(np.ones((1, 1), np.float32), axis=0, bits=bits)
