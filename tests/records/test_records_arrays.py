"""Arrays as bytes and back, whatever their names and types."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.records.arrays import StoredArray, pack, unpack
from edgewise.records.codec import decode, encode
from edgewise.records.tensors import Array

DTYPES = [np.bool_, np.uint8, np.int8, np.int32, np.int64, np.float16, np.float32, np.float64]
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))


@settings(max_examples=40)
@given(st.dictionaries(st.text(), ARRAYS, max_size=4))
def test_arrays_come_back_by_name_in_order(arrays: dict[str, Array]) -> None:
    back = unpack(pack(arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert pack(back) == pack(arrays)


@pytest.mark.parametrize("name", ["file", "index", "a0", "allow_pickle", "../x", "/", ""])
def test_names_that_mean_something_elsewhere_are_only_names(name: str) -> None:
    assert list(unpack(pack({name: np.ones(1)}))) == [name]


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn"])
def test_types_that_numpy_lacks_survive(kind: str) -> None:
    array = np.array([[1.5, -2.0]]).astype(getattr(ml_dtypes, kind))
    back = unpack(pack({"x": array}))["x"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype(np.float32), [[1.5, -2.0]])


def test_a_transposed_array_comes_back() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(unpack(pack({"x": array}))["x"], array)


def test_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        pack({"x": np.array([object()])})


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -40])
def test_what_is_cut_off_is_refused(cut: int) -> None:
    data = pack({"x": np.arange(100.0)})
    with pytest.raises(ValueError, match="not packed arrays"):
        unpack(data[:cut])


def test_an_archive_of_somebody_else_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("other") / "other.npz"
    np.savez(path, x=np.ones(2))
    with pytest.raises(ValueError, match="not packed arrays"):
        unpack(path.read_bytes())


def test_a_bfloat16_without_dimensions_keeps_none() -> None:
    array = np.asarray(1.5, ml_dtypes.bfloat16)
    assert unpack(pack({"x": array}))["x"].shape == ()


@given(ARRAYS)
def test_an_array_survives_as_a_field_of_a_record(array: Array) -> None:
    again = decode(encode(StoredArray.of(array)), StoredArray).numpy()
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        again[...] = 0


def test_a_field_holds_the_order_and_the_bytes_that_it_says() -> None:
    columns = np.arange(6, dtype=np.dtype(">i2")).reshape(2, 3).T
    assert StoredArray.of(columns) == StoredArray.of(np.ascontiguousarray(columns).astype("<i2"))
