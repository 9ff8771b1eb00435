from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edgewise.errors import DataError, RecipeError
from edgewise.records.tensors import Array, Feeds, Outputs, Port
from edgewise.samples.bind import Dataset, bind, feeds_of
from edgewise.samples.source import Sample
from edgewise.samples.state import run_sequence, steps


class _Samples:
    """Samples in memory."""

    name = "memory"
    fingerprint = "0"

    def __init__(self, *samples: Mapping[str, Any], labels: list[Any] | None = None) -> None:
        self._samples = [{key: np.asarray(value) for key, value in sample.items()} for sample in samples]
        self._labels = labels

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._samples[index], None if self._labels is None else self._labels[index])

    def labels(self) -> list[Any] | None:
        return self._labels


def _port(name: str, *shape: int | str, dtype: str = "float32") -> Port:
    return Port(name=name, dtype=dtype, shape=shape)


def _one(array: Any, *ports: Port) -> dict[str, Array]:
    return feeds_of(Sample({"": np.asarray(array)}), ports)


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_the_batch_is_put_in_front() -> None:
    feeds = _one(X, _port("x", 1, 2, 3))
    assert feeds["x"].shape == (1, 2, 3)
    assert feeds["x"].flags.c_contiguous
    np.testing.assert_array_equal(feeds["x"][0], X)


def test_a_sample_of_the_inputs_own_rank_is_taken_as_it_is() -> None:
    assert _one(X, _port("x", 2, 3))["x"].shape == (2, 3)


def test_open_dimensions_take_any_size() -> None:
    assert _one(X, _port("x", 1, 2, "w"))["x"].shape == (1, 2, 3)
    assert _one(X, _port("x", "n", "?", 3))["x"].shape == (1, 2, 3)


def test_named_arrays_go_to_their_inputs_and_the_nameless_one_to_what_is_left() -> None:
    sample = Sample({"": X, "mask": np.ones(3, bool), "other": np.zeros(9)})
    feeds = feeds_of(sample, (_port("mask", 1, 3, dtype="bool"), _port("x", 1, 2, 3)))
    assert list(feeds) == ["mask", "x"]
    np.testing.assert_array_equal(feeds["x"][0], X)


def test_a_constant_without_dimensions_fits_an_input_of_ones() -> None:
    sample = Sample({"": X, "rate": np.array(16000), "gain": np.array(2.0)})
    feeds = feeds_of(sample, (_port("x", 1, 2, 3), _port("rate", dtype="int64"), _port("gain", 1, 1)))
    assert feeds["rate"].shape == ()
    assert feeds["gain"].shape == (1, 1)


def test_inputs_without_array_are_named_with_what_there_is() -> None:
    with pytest.raises(DataError, match=r"`a`, but nothing for `x`, `mask`"):
        feeds_of(Sample({"a": X}), (_port("x", 1), _port("mask", 1)))
    with pytest.raises(DataError, match="one array without a name, but nothing for `a`, `b`"):
        feeds_of(Sample({"": X}), (_port("a", 1), _port("b", 1)))


@pytest.mark.parametrize(
    ("array", "port", "hint"),
    [
        (np.zeros((4, 3)), _port("x", 1, 2, 3), "--shape"),
        (np.zeros((1, 1, 2, 3)), _port("x", 1, 2, 3), "sample_shape = [2, 3]"),
        (np.zeros(300), _port("x", 1, 1, 300), "sample_shape = [1, 300]"),
        (np.zeros((32, 32, 3)), _port("x", 1, 3, 32, 32), 'layout = "NCHW"'),
        (np.zeros((3, 32, 32)), _port("x", 1, 32, 32, 3), 'layout = "NHWC"'),
        (np.zeros((3, 40, 40)), _port("x", 1, 3, 32, 32), "resize"),
        (np.zeros(()), _port("x", 1, 2), "sample"),
    ],
)
def test_shapes_that_differ_are_both_shown(array: Array, port: Port, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        _one(array, port)
    assert "`x`" in caught.value.message
    assert str(list(port.shape)) in caught.value.message
    assert str(list(array.shape)) in caught.value.message
    assert hint in (caught.value.hint or "")


TYPES = [
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), origin=st.sampled_from(TYPES), target=st.sampled_from(TYPES))
def test_a_cast_loses_nothing_or_is_refused(data: st.DataObject, origin: str, target: str) -> None:
    finite = {"allow_nan": False, "allow_infinity": False} if origin.startswith("float") else {}
    array = data.draw(npst.arrays(origin, 3, elements=npst.from_dtype(np.dtype(origin), **finite)))  # type: ignore[arg-type]  # the keywords depend on the type
    # Python's own numbers are exact: whole numbers of any size, and floats that hold every smaller float.
    exact = list(array.tolist())
    try:
        cast = _one(array, _port("x", 1, 3, dtype=target))["x"][0]
    except DataError:
        with np.errstate(all="ignore"):
            lost = [a for a, b in zip(exact, array.astype(target).tolist(), strict=True) if a != b]
        assert lost
        return
    assert cast.dtype == target
    if (origin, target) in {("float64", "float32"), ("float64", "float16"), ("float32", "float16")}:
        np.testing.assert_array_equal(cast, array.astype(target))
    else:
        assert cast.tolist() == exact


def test_float64_that_overflows_float32_is_refused() -> None:
    with pytest.raises(DataError, match="float64"):
        _one([1e300], _port("x", 1, 1))


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_pixels_are_rounded_to_what_a_half_precision_model_computes_in(target: str) -> None:
    """Pre-processing gives float32; refused, no model with 16-bit inputs could be given an image."""
    cast = _one([np.float32(0.1)], _port("x", 1, 1, dtype=target))["x"]
    assert cast.dtype.name == target
    assert abs(float(cast[0, 0]) - 0.1) <= 0.1 * 2**-8
    assert cast.flags.c_contiguous


def test_float32_that_overflows_float16_is_refused() -> None:
    with pytest.raises(DataError, match="has to be float16"):
        _one([np.float32(1e5)], _port("x", 1, 1, dtype="float16"))


def test_inputs_of_text_are_refused_by_their_type() -> None:
    with pytest.raises(DataError, match=r"Inputs have to be numbers.*`x` is str"):
        _one(np.array(["a"]), _port("x", 1, 1, dtype="str"))


def test_texts_are_refused() -> None:
    with pytest.raises(DataError, match="<U1"):
        _one(["a"], _port("x", 1, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_index_and_input(value: float) -> None:
    dataset = bind(_Samples({"": X}, {"": np.full((2, 3), value)}), (_port("x", 1, 2, 3),))
    with pytest.raises(DataError, match="Sample 1 of `memory`, input `x`"):
        dataset.feeds(1)


def test_a_type_that_numpy_lacks_is_refused() -> None:
    with pytest.raises(DataError, match="`x` is complicated16"):
        _one(X, _port("x", 1, 2, 3, dtype="complicated16"))


def test_labels_and_length() -> None:
    dataset = bind(_Samples({"": X}, {"": X}, labels=[3, 4]), (_port("x", 1, 2, 3),))
    assert (len(dataset), dataset.labels(), dataset.label(1)) == (2, [3, 4], 4)
    assert bind(_Samples({"": X}), (_port("x", 1, 2, 3),)).label(0) is None


def test_another_number_of_labels_is_an_error() -> None:
    dataset = Dataset(_Samples({"": X}, labels=[1, 2]), (_port("x", 1, 2, 3),), {})
    with pytest.raises(DataError, match=r"each of the 1 samples.*There are 2"):
        dataset.labels()


def test_no_samples_and_a_first_sample_that_does_not_fit_are_errors_at_once() -> None:
    with pytest.raises(DataError, match="at least one sample"):
        bind(_Samples(), (_port("x", 1),))
    with pytest.raises(DataError, match="Sample 0"):
        bind(_Samples({"": X}), (_port("x", 1, 9),))


# ---------------------------------------------------------------------------- state

STATEFUL = (_port("x", 1, 2), _port("h", 1, 2), _port("rate", dtype="int64"))
STATE = {"hn": "h"}


def _accumulate(feeds: Feeds) -> Outputs:
    """A recurrent model: the state adds up what comes in, the output is the state times the rate."""
    assert feeds["x"].shape == (1, 2)
    assert feeds["x"].flags.c_contiguous
    total = feeds["h"] + feeds["x"]
    return {"y": total * np.float32(feeds["rate"]), "hn": total}


def test_a_sequence_is_run_step_by_step_with_its_state_fed_back() -> None:
    x = np.random.default_rng(0).integers(0, 9, (5, 2)).astype(np.float32)
    dataset = bind(_Samples({"x": x, "rate": 2}), STATEFUL, state=STATE)
    feeds = dataset.feeds(0)
    assert feeds["x"].shape == (5, 1, 2)
    assert feeds["rate"].shape == (5,)
    assert not feeds["h"].any()
    outputs = run_sequence(_accumulate, feeds, dataset.state)
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], 2 * np.cumsum(x, axis=0)[:, None])


def test_a_first_state_can_be_given() -> None:
    feeds = bind(_Samples({"x": np.zeros((1, 2)), "rate": 1}), STATEFUL, state=STATE).feeds(0)
    outputs = run_sequence(_accumulate, feeds, STATE, {"h": np.full((1, 2), 5, np.float32)})
    np.testing.assert_array_equal(outputs["y"], np.full((1, 1, 2), 5))


def test_the_steps_can_be_seen_one_by_one() -> None:
    x = np.ones((3, 2), np.float32)
    feeds = bind(_Samples({"x": x, "rate": 1}), STATEFUL, state=STATE).feeds(0)
    seen = [step["h"][0, 0] for step in steps(_accumulate, feeds, STATE)]
    assert seen == [0, 1, 2]


def test_without_state_a_sample_is_one_run() -> None:
    feeds = {"x": X}
    assert list(steps(_accumulate, feeds, {})) == [feeds]
    assert run_sequence(lambda given: {"y": given["x"] + 1}, feeds, {})["y"] is not None


def test_the_nameless_array_goes_to_the_input_that_is_not_fed_back() -> None:
    ports = (_port("x", 1, 2), _port("h", 1, 2))
    assert bind(_Samples({"": np.zeros((4, 2))}), ports, state=STATE).feeds(0)["x"].shape == (4, 1, 2)


@pytest.mark.parametrize(
    ("state", "words"),
    [({"hn": "nope"}, "`--state hn=nope`.*`h`"), ({"a": "h", "b": "h"}, "feed each input once")],
)
def test_a_state_that_names_no_input_or_one_twice(state: dict[str, str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        bind(_Samples({"x": np.zeros((1, 2)), "rate": 1}), STATEFUL, state=state)


def test_a_state_that_names_no_output() -> None:
    feeds = bind(_Samples({"x": np.zeros((1, 2)), "rate": 1}), STATEFUL, state={"zz": "h"}).feeds(0)
    with pytest.raises(RecipeError, match=r"`--state zz=h`.*`y`, `hn`"):
        run_sequence(_accumulate, feeds, {"zz": "h"})


def test_a_state_of_another_shape() -> None:
    feeds = bind(_Samples({"x": np.zeros((2, 2)), "rate": 1}), STATEFUL, state=STATE).feeds(0)
    with pytest.raises(RecipeError, match=r"`hn` is float64 \[3\], `h` is float32 \[1, 2\]"):
        run_sequence(lambda _: {"hn": np.zeros(3)}, feeds, STATE)


def test_a_state_of_open_shape() -> None:
    with pytest.raises(DataError, match=r"`h` has \[1, n\]"):
        bind(_Samples({"x": np.zeros((1, 2))}), (_port("x", 1, 2), _port("h", 1, "n")), state=STATE)


def test_times_that_differ() -> None:
    ports = (_port("a", 1, 2), _port("b", 1, 2), _port("h", 1, 2))
    with pytest.raises(DataError, match="`a` has 3, `b` has 4"):
        bind(_Samples({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}), ports, state=STATE)


def test_a_sequence_without_steps() -> None:
    with pytest.raises(DataError, match="at least 1"):
        bind(_Samples({"x": np.zeros((0, 2)), "rate": 1}), STATEFUL, state=STATE)
    with pytest.raises(DataError, match="at least one step"):
        run_sequence(_accumulate, {"x": np.zeros((0, 1, 2)), "h": np.zeros((1, 2))}, STATE)
