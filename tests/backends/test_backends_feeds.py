"""The check of feeds beyond what the kit asks of every backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.backends.feeds import FeedCheck, numpy_type
from edgewise.errors import DataError
from edgewise.records.tensors import Port

IMAGE = Port(name="image", dtype="float32", shape=("batch", 3, 2))
FLAG = Port(name="flag", dtype="bool", shape=())


def test_arrays_come_in_the_order_of_the_ports() -> None:
    image, flag = np.zeros((1, 3, 2), np.float32), np.array(True)
    first, second = FeedCheck((IMAGE, FLAG)).ordered({"flag": flag, "image": image})
    assert first is image
    assert second is flag


@given(st.lists(st.integers(0, 4), max_size=4))
def test_exactly_the_shapes_that_fit_pass(shape: list[int]) -> None:
    check = FeedCheck((IMAGE,))
    feeds = {"image": np.zeros(shape, np.float32)}
    if len(shape) == 3 and shape[1:] == [3, 2]:
        assert check.ordered(feeds)
    else:
        with pytest.raises(DataError, match=r"\[batch, 3, 2\]"):
            check.ordered(feeds)


def test_other_byte_order_is_another_type() -> None:
    with pytest.raises(DataError, match=">f4"):
        FeedCheck((IMAGE,)).ordered({"image": np.zeros((1, 3, 2), ">f4")})


def test_hints_say_how_to_convert() -> None:
    with pytest.raises(DataError) as raised:
        FeedCheck((IMAGE,)).ordered({"image": np.zeros((1, 3, 2))})
    assert raised.value.hint is not None
    assert "astype('float32')" in raised.value.hint


def test_a_model_without_inputs_takes_an_empty_mapping() -> None:
    assert FeedCheck(()).ordered({}) == []


@pytest.mark.parametrize("name", ["float32", "bool", "int64", "uint8", "float16"])
def test_numpy_names(name: str) -> None:
    assert numpy_type(name) == np.dtype(name)


def test_bfloat16_is_two_bytes() -> None:
    assert numpy_type("bfloat16").itemsize == 2
    assert numpy_type("bfloat16").name == "bfloat16"
