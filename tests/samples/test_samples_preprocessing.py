from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from edgewise.errors import DataError, RecipeError
from edgewise.records.codec import decode, encode
from edgewise.records.tensors import Array
from edgewise.samples.preprocessing import MeanImage, Preprocessing, apply, from_table, prepare, read_settings

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _reference(image: Array, p: Preprocessing) -> Array:
    """The formula, pixel by pixel, in float32 as it is specified."""
    height, width, channels = image.shape
    order = range(channels)[::-1] if p.color == "bgr" else range(channels)
    result = np.zeros((height, width, channels), np.float32)
    for row in range(height):
        for column in range(width):
            for target, origin in enumerate(order):
                value = np.float32(image[row, column, origin]) * np.float32(p.scale)
                mean = p.mean[min(target, len(p.mean) - 1)] if p.mean else 0.0
                std = p.std[min(target, len(p.std) - 1)] if p.std else 1.0
                result[row, column, target] = (value - np.float32(mean)) / np.float32(std)
    return result.transpose(2, 0, 1) if p.layout == "NCHW" else result


number = st.floats(-300, 300, width=32)
divisor = st.floats(0.125, 300, width=32)


@settings(max_examples=60, deadline=None)
@given(
    image=npst.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3))),
    color=st.sampled_from(["rgb", "bgr"]),
    scale=divisor,
    numbers=st.tuples(
        st.none() | st.tuples(number) | st.tuples(number, number, number),
        st.none() | st.tuples(divisor) | st.tuples(divisor, divisor, divisor),
    ),
    layout=st.sampled_from(["NCHW", "NHWC"]),
)
def test_pixels_follow_the_formula(image: Array, color: Any, scale: float, numbers: Any, layout: Any) -> None:
    p = Preprocessing(color=color, scale=scale, mean=numbers[0], std=numbers[1], layout=layout)
    result = apply(image, p)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, _reference(image, p))  # the same float32 operations: not a bit may differ


def test_without_numbers_pixels_stay_uint8() -> None:
    result = apply(RGB, Preprocessing())
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "box", "lanczos"])
def test_resizing_is_pillows(interpolation: Any) -> None:
    p = Preprocessing(resize=(4, 9), interpolation=interpolation, layout="NHWC")
    expected = Image.fromarray(RGB).resize((9, 4), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(apply(RGB, p), np.asarray(expected))


def test_a_center_crop_keeps_the_aspect_ratio() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 200  # the square in the middle
    result = apply(image, Preprocessing(resize=(4, 4), crop="center", layout="NHWC"))
    assert (result == 200).all()
    tall = np.ascontiguousarray(image.transpose(1, 0, 2))
    assert (apply(tall, Preprocessing(resize=(4, 4), crop="center", layout="NHWC")) == 200).all()


def test_a_crop_fraction_cuts_all_sides() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[1:15, 1:15] = 9  # 14 of 16 is 0.875
    p = Preprocessing(resize=(14, 14), crop="center", crop_fraction=0.875, layout="NHWC")
    assert (apply(image, p) == 9).all()


@given(rows=st.integers(1, 40), columns=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_a_fixed_height_with_the_width_of_the_aspect_ratio(rows: int, columns: int) -> None:
    p = Preprocessing(height=6, min_width=20, mean=(255.0,), layout="NHWC")
    result = apply(np.full((rows, columns, 3), 255, np.uint8), p)
    width = math.ceil(6 * columns / rows)
    assert result.shape == (6, max(20, width), 3)
    assert not result[:, :width].any()  # white minus 255


def test_padding_is_zero_after_normalisation_and_on_the_right() -> None:
    p = Preprocessing(height=5, min_width=10, mean=(1000.0,))
    result = apply(RGB, p)
    assert result.shape == (3, 5, 10)
    assert (result[..., :7] < 0).all()
    assert not result[..., 7:].any()


def test_gray_is_pillows_and_one_channel_stays() -> None:
    p = Preprocessing(color="gray", layout="NHWC")
    np.testing.assert_array_equal(apply(RGB, p)[..., 0], np.asarray(Image.fromarray(RGB).convert("L")))
    np.testing.assert_array_equal(apply(RGB[..., :1], p), RGB[..., :1])
    np.testing.assert_array_equal(apply(RGB[..., 0], p), RGB[..., :1])


def test_one_channel_for_three_is_refused_with_the_cure() -> None:
    with pytest.raises(DataError, match="has to have 3 channels") as caught:
        apply(RGB[..., :1], Preprocessing())
    assert "gray" in (caught.value.hint or "")


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_a_mean_image_is_subtracted_in_either_order_of_axes(axes: tuple[int, int, int]) -> None:
    mean = np.random.default_rng(1).random((5, 7, 3)).astype(np.float32)
    p = Preprocessing(mean_image=MeanImage.of(mean.transpose(axes)), layout="NHWC")
    np.testing.assert_array_equal(apply(RGB, p), RGB.astype(np.float32) - mean)


def test_a_mean_image_of_another_size_is_refused_with_both_shapes() -> None:
    p = Preprocessing(mean_image=MeanImage.of(np.zeros((2, 2, 3), np.float32)))
    with pytest.raises(DataError, match=r"\[5, 7, 3\].*\[2, 2, 3\]"):
        apply(RGB, p)


@pytest.mark.parametrize(
    "image", [RGB.astype(np.float32), RGB.transpose(2, 0, 1), RGB[None], np.zeros((0, 3, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(image: Array) -> None:
    with pytest.raises(DataError, match="An image has to be uint8"):
        apply(image, Preprocessing())


def test_floats_are_taken_as_they_are_or_reshaped() -> None:
    array = np.arange(6, dtype=np.float16)
    assert prepare(array, Preprocessing()) is array
    assert prepare(array, Preprocessing(sample_shape=(1, 6))).shape == (1, 6)
    with pytest.raises(DataError, match=r"\[1, 7\].*float16 \[6\]"):
        prepare(array, Preprocessing(sample_shape=(1, 7)))


def test_constants_are_not_reshaped() -> None:
    assert prepare(np.array(3.0), Preprocessing(sample_shape=(2, 2))).shape == ()


def test_bytes_that_are_no_image_are_taken_as_they_are_unless_images_were_asked_for() -> None:
    array = np.zeros((4, 4), np.uint8)
    assert prepare(array, Preprocessing()) is array
    with pytest.raises(DataError, match="Pre-processing of images"):
        prepare(array, Preprocessing(scale=0.5))
    assert prepare(array, Preprocessing(color="gray")).shape == (1, 4, 4)


def test_the_record_survives_json() -> None:
    mean = np.random.default_rng(2).random((3, 4, 5)).astype(np.float32)
    p = Preprocessing(
        color="bgr", resize=(4, 5), interpolation="box", crop="center", crop_fraction=0.875, scale=1 / 255,
        mean_image=MeanImage.of(mean), std=(0.1, 0.2, 0.3), layout="NHWC",
    )  # fmt: skip
    again = decode(encode(p), Preprocessing)
    assert again == p
    assert again.mean_image is not None
    np.testing.assert_array_equal(again.mean_image.array(), mean)
    text = Preprocessing(height=48, min_width=320, mean=(127.5,), sample_shape=(1, 2))
    assert decode(encode(text), Preprocessing) == text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"resize": (0, 4)}, "`resize`"),
        ({"height": 0}, "`height`"),
        ({"height": 4, "resize": (4, 4)}, "left out where `resize`"),
        ({"min_width": 4}, "come with `height`"),
        ({"crop": "center"}, "come with `resize`"),
        ({"crop": "center", "resize": (4, 4), "crop_fraction": 0.0}, "above 0"),
        ({"crop_fraction": 0.5}, "come with `crop`"),
        ({"scale": 0.0}, "`scale`"),
        ({"mean": (1.0, 2.0)}, "one value for each channel"),
        ({"mean": (math.nan,)}, "`mean`"),
        ({"mean": (1.0,), "mean_image": MeanImage.of(np.zeros((1, 1, 3)))}, "left out where `mean_file`"),
        ({"std": (0.0,)}, "`std`"),
        ({"std": (1.0, 1.0, 1.0), "color": "gray"}, "channel of `gray`"),
        ({"sample_shape": (0,)}, "`sample_shape`"),
    ],
)
def test_values_that_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Preprocessing(**values)


def _settings(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edgewise.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_settings_are_read(tmp_path: Path) -> None:
    text = '[preprocessing]\ncolor = "bgr"\nresize = [224, 192]\nscale = 1\nmean = 127.5\nstd = [1.0, 2.0, 3.0]\n'
    expected = Preprocessing(color="bgr", resize=(224, 192), mean=(127.5,), std=(1.0, 2.0, 3.0))
    assert read_settings(_settings(tmp_path, text)) == expected


def test_settings_without_a_table_say_nothing(tmp_path: Path) -> None:
    assert read_settings(_settings(tmp_path, "")) == Preprocessing()


def test_a_mean_file_is_read_with_the_settings(tmp_path: Path) -> None:
    mean = np.arange(24, dtype=np.float64).reshape(2, 4, 3)
    np.save(tmp_path / "mean.npy", mean)
    p = read_settings(_settings(tmp_path, '[preprocessing]\nmean_file = "mean.npy"\n'))
    (tmp_path / "mean.npy").unlink()
    assert p.mean_image is not None
    np.testing.assert_array_equal(p.mean_image.array(), mean.astype(np.float32))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[preprocessing]\ncolour = 'rgb'\n", r"edgewise\.toml.*`colour`.*`color`, `resize`"),
        ("[preprocesing]\n", "unknown key `preprocesing`"),
        ("[preprocessing]\ncolor = 'cmyk'\n", r"edgewise\.toml.*cmyk"),
        ("[preprocessing]\nresize = [224]\n", "resize"),
        ("[preprocessing]\nresize = [0, 4]\n", r"edgewise\.toml.*`resize`"),
        ("[preprocessing]\nscale = 'big'\n", "scale"),
        ("[preprocessing]\nmean_file = 'none.npy'\n", r"none\.npy"),
        ("preprocessing = 3\n", "has to be a table"),
        ("[preprocessing\n", "have to be TOML"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_settings(_settings(tmp_path, text))


def test_an_unknown_key_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_settings(_settings(tmp_path, "[preprocessing]\nresise = [4, 4]\n"))
    assert caught.value.hint == "Did you mean `resize`?"


def test_missing_settings(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="have to be readable"):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"no array", b""])
def test_a_mean_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mean.npy").write_bytes(content)
    with pytest.raises(RecipeError, match="NumPy array"):
        read_settings(_settings(tmp_path, '[preprocessing]\nmean_file = "mean.npy"\n'))


def test_a_mean_file_of_another_rank(tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", np.zeros(3))
    with pytest.raises(RecipeError, match=r"\[H, W, C\]"):
        from_table({"mean_file": "mean.npy"}, where="here", folder=tmp_path)


def test_an_unknown_field_in_a_bundle_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError, match="colour"):
        decode(b'{"colour": "rgb"}', Preprocessing)
