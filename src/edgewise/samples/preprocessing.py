"""Pre-processing as data: it is written in a settings file, travels in the bundle, and is done alike everywhere."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec
import numpy as np

from edgewise.errors import DataError, RecipeError
from edgewise.records.codec import Record
from edgewise.records.tensors import Array

Color: TypeAlias = Literal["rgb", "bgr", "gray"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "box", "lanczos"]
Crop: TypeAlias = Literal["none", "center"]
Layout: TypeAlias = Literal["NCHW", "NHWC"]

_CHANNELS: Final = {"rgb": 3, "bgr": 3, "gray": 1}
_IMAGE_FIELDS: Final = ("color", "resize", "height", "min_width", "crop", "scale", "mean", "mean_image", "std")


class MeanImage(Record, frozen=True, kw_only=True):
    """A mean for every pixel.

    Attributes:
        shape: `[H, W, C]` or `[C, H, W]` of the prepared image, channels in the order of `color`.
        data: The values as little-endian float32, in C order.
    """

    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, values: Array) -> MeanImage:
        """Return the record that holds `values`."""
        return cls(shape=values.shape, data=np.ascontiguousarray(values, "<f4").tobytes())

    def array(self) -> Array:
        """Return the values, float32."""
        return np.frombuffer(self.data, "<f4").astype(np.float32, copy=False).reshape(self.shape)


class Preprocessing(Record, frozen=True, kw_only=True):
    """What is done to each sample before the model sees it.

    An image, which is a file or an array of uint8 `[H, W, C]`, is brought to `color`, cropped, resized, and mapped to
    `(pixel * scale - mean) / std` in float32; then its axes are put in the order of `layout`. Pixels are 0 to 255. With
    neither `scale`, `mean` nor `std` they stay uint8. Arrays of other types are taken as they are, apart from
    `sample_shape`.

    Attributes:
        color: Order of the channels that the model takes. Arrays of three channels are taken for RGB.
        resize: (height, width) in pixels.
        height: Instead of `resize`: the height; the width follows the aspect ratio, rounded up.
        min_width: With `height`: narrower images are filled up with zeros on the right, after normalisation.
        interpolation: Pillow's filter of that name; all but `nearest` average when they shrink.
        crop: `center` first cuts out the largest region in the middle that has the aspect ratio of `resize`.
        crop_fraction: Share of that region's sides which `center` keeps: 0.875 is 224 out of 256.
        scale: Factor of each pixel.
        mean: One value for all channels, or one for each, in the order of `color`.
        mean_image: Instead of `mean`: one value for each pixel.
        std: Divisor, like `mean`.
        layout: Order of the axes that the model takes.
        sample_shape: Shape of one sample without the batch, to which an array of another type is reshaped.
    """

    color: Color = "rgb"
    resize: tuple[int, int] | None = None
    height: int | None = None
    min_width: int | None = None
    interpolation: Interpolation = "bilinear"
    crop: Crop = "none"
    crop_fraction: float = 1.0
    scale: float = 1.0
    mean: tuple[float, ...] | None = None
    mean_image: MeanImage | None = None
    std: tuple[float, ...] | None = None
    layout: Layout = "NCHW"
    sample_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for field, problem in _problems(self):
            raise RecipeError(f"`{field}` of the pre-processing has to {problem}. Received {getattr(self, field)!r}.")


def apply(image: Array, p: Preprocessing) -> Array:
    """Return one image as the model takes it, without a batch axis.

    Args:
        image: Pixels `[H, W]` or `[H, W, C]`, uint8, C being 1 or 3; three channels are RGB.
        p: What to do.

    Returns:
        `[C, H, W]` or `[H, W, C]`, C-contiguous: float32, or uint8 if no number is to be changed.

    Raises:
        DataError: If the channels do not fit `color`, or the mean's shape the image's.
    """
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in {1, 3} or 0 in pixels.shape:
        raise DataError(
            f"An image has to be uint8 [height, width, channels] with 1 or 3 channels. Received {_described(image)}."
        )
    pixels = _colored(pixels, p.color)
    pixels = _resized(pixels, p)
    values = _normalised(pixels, p)
    if p.min_width is not None and (lack := p.min_width - values.shape[1]) > 0:
        values = np.pad(values, ((0, 0), (0, lack), (0, 0)))
    if p.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values)


def prepare(array: Array, p: Preprocessing) -> Array:
    """Return one array of a sample as the model takes it: an image by `apply`, anything else by `sample_shape`.

    uint8 `[H, W, C]` with one or three channels is an image; `[H, W]` is one where `color` is `gray`.

    Raises:
        DataError: If an array that has to be an image is none, or cannot be reshaped.
    """
    if array.dtype == np.uint8 and p.sample_shape is None:
        if (array.ndim == 3 and array.shape[2] in {1, 3}) or (array.ndim == 2 and p.color == "gray"):
            return apply(array, p)
        if array.ndim >= 2 and any(getattr(p, field) != getattr(Preprocessing(), field) for field in _IMAGE_FIELDS):
            raise DataError(
                f"Pre-processing of images was asked for, and an image has to be [height, width, 1 or 3]. "
                f"Received {_described(array)}.",
                hint="Store images with the channels last, or take the image settings out.",
            )
    if p.sample_shape is None or array.ndim == 0:
        return array
    if math.prod(p.sample_shape) != array.size:
        raise DataError(
            f"`sample_shape` {list(p.sample_shape)} has to have as many values as a sample. Received "
            f"{_described(array)}."
        )
    return array.reshape(p.sample_shape)


def read_settings(path: Path) -> Preprocessing:
    """Return the `[preprocessing]` table of a settings file (TOML).

    Its keys are the attributes of `Preprocessing`, with `mean_file` (an `.npy`, relative to the settings) in place of
    `mean_image`. The file that it names is read now, so that the record holds everything.

    Raises:
        RecipeError: If the file cannot be read, or a key is unknown or has a wrong value; the message names it.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise RecipeError(
            f"The settings have to be readable. `{path}`: {error.strerror}.", hint="Check the name given to --settings."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"The settings have to be TOML. `{path}`: {error}.", hint="The file begins with a line [preprocessing]."
        ) from error
    _check_keys(tables, ("preprocessing",), f"`{path}`")
    table = tables.get("preprocessing", {})
    if not isinstance(table, dict):
        raise RecipeError(f"`preprocessing` has to be a table, `[preprocessing]`, in `{path}`.")
    return from_table(table, where=f"[preprocessing] of `{path}`", folder=path.parent)


def from_table(table: Mapping[str, Any], *, where: str, folder: Path) -> Preprocessing:
    """Return the pre-processing that a table of plain values says.

    Args:
        table: Keys and values as in a settings file; a single number for `mean` or `std` is for all channels.
        where: Where it stands, for messages.
        folder: What `mean_file` is relative to.

    Raises:
        RecipeError: As `read_settings`.
    """
    known = tuple("mean_file" if name == "mean_image" else name for name in Preprocessing.__struct_fields__)
    _check_keys(table, known, where)
    values = dict(table)
    for key in ("mean", "std"):
        if isinstance(values.get(key), int | float):
            values[key] = (values[key],)
    if "mean_file" in values:
        values["mean_image"] = _read_mean(folder / str(values.pop("mean_file")), where)
    try:
        return msgspec.convert(values, Preprocessing)
    except msgspec.ValidationError as error:
        # msgspec wraps errors of `__post_init__` that are ValueErrors only, so ours pass through with their own words.
        raise RecipeError(f"{where}: {error}.") from error
    except RecipeError as error:
        raise RecipeError(f"{where}: {error.message}", hint=error.hint) from error


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        raise RecipeError(
            f"{where} has the unknown key `{key}`. The keys are {', '.join(f'`{name}`' for name in known)}.",
            hint=f"Did you mean `{near[0]}`?" if near else None,
        )


def _read_mean(path: Path, where: str) -> MeanImage:
    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise RecipeError(f"{where}: `mean_file` has to be readable. `{path}`: {error.strerror}.") from error
    except (ValueError, EOFError) as error:
        raise RecipeError(
            f"{where}: `mean_file` has to be a NumPy array (`.npy`). `{path}`: {error}.",
            hint="Save it with numpy.save(path, mean).",
        ) from error
    if not isinstance(values, np.ndarray) or values.ndim != 3 or values.dtype.kind not in "fiu":
        raise RecipeError(f"{where}: `mean_file` has to hold numbers [H, W, C] or [C, H, W]. `{path}` does not.")
    return MeanImage.of(values)


def _problems(p: Preprocessing) -> list[tuple[str, str]]:  # one entry for each field: a table would be no shorter
    """Return the fields whose values cannot be, each with what has to hold."""
    channels = {1, _CHANNELS[p.color]}
    rules = (
        ("resize", p.resize is None or min(p.resize) >= 1, "be at least 1 pixel in height and width"),
        ("height", p.height is None or p.height >= 1, "be at least 1 pixel"),
        ("height", p.height is None or p.resize is None, "be left out where `resize` is given"),
        ("min_width", p.min_width is None or (p.min_width >= 1 and p.height is not None), "come with `height`"),
        ("crop", p.crop == "none" or p.resize is not None, "come with `resize`"),
        ("crop_fraction", 0 < p.crop_fraction <= 1, "be above 0 and at most 1"),
        ("crop_fraction", p.crop_fraction == 1 or p.crop == "center", 'come with `crop` = "center"'),
        ("scale", math.isfinite(p.scale) and p.scale != 0, "be a number other than 0"),
        ("mean", p.mean is None or len(p.mean) in channels, f"have one value for each channel of `{p.color}`"),
        ("mean", p.mean is None or all(map(math.isfinite, p.mean)), "be finite"),
        ("mean", p.mean is None or p.mean_image is None, "be left out where `mean_file` is given"),
        ("std", p.std is None or len(p.std) in channels, f"have one value for each channel of `{p.color}`"),
        ("std", p.std is None or all(math.isfinite(s) and s != 0 for s in p.std), "be finite and not 0"),
        ("sample_shape", p.sample_shape is None or min(p.sample_shape, default=1) >= 1, "have sizes of at least 1"),
    )
    return [(field, problem) for field, holds, problem in rules if not holds]


def _colored(pixels: Array, color: Color) -> Array:
    """Return RGB or gray pixels in the order asked for."""
    if color == "gray":
        if pixels.shape[2] == 1:
            return pixels
        from PIL import Image  # noqa: PLC0415  images alone need Pillow

        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    if pixels.shape[2] == 1:
        raise DataError(
            f"An image has to have 3 channels for the color `{color}`. Received 1 channel.",
            hint='Set color = "gray" in [preprocessing] if the model takes one channel.',
        )
    return pixels[..., ::-1] if color == "bgr" else pixels


def _resized(pixels: Array, p: Preprocessing) -> Array:
    """Return the pixels in the size asked for."""
    rows, columns = pixels.shape[:2]
    if p.resize is not None:
        height, width = p.resize
    elif p.height is not None:
        height, width = p.height, math.ceil(p.height * columns / rows)
    else:
        return pixels
    box = _region(rows, columns, height / width, p.crop_fraction) if p.crop == "center" else (0, 0, columns, rows)
    if (height, width) == (rows, columns) and box == (0, 0, columns, rows):
        return pixels
    from PIL import Image  # noqa: PLC0415  images alone need Pillow

    mode = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    filter_ = Image.Resampling[p.interpolation.upper()]
    resized = Image.fromarray(np.ascontiguousarray(mode)).resize((width, height), filter_, box=box)
    return np.asarray(resized).reshape(height, width, pixels.shape[2])


def _region(rows: int, columns: int, aspect: float, fraction: float) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the region in the middle whose height is `aspect` times its width."""
    width = min(float(columns), rows / aspect)
    height = min(float(rows), width * aspect) * fraction
    width *= fraction
    left, top = (columns - width) / 2, (rows - height) / 2
    return left, top, min(left + width, float(columns)), min(top + height, float(rows))


def _normalised(pixels: Array, p: Preprocessing) -> Array:
    """Return `(pixel * scale - mean) / std` in float32; the pixels themselves where nothing is to be done."""
    if p.scale == 1 and p.mean is None and p.mean_image is None and p.std is None:
        return pixels
    values = pixels.astype(np.float32) * np.float32(p.scale)
    if p.mean_image is not None:
        values -= _fitting(p.mean_image.array(), pixels)
    elif p.mean is not None:
        values -= np.array(p.mean, np.float32)
    if p.std is not None:
        values /= np.array(p.std, np.float32)
    return values


def _fitting(mean: Array, pixels: Array) -> Array:
    """Return the mean image with its axes as those of the pixels."""
    if mean.shape == pixels.shape:
        return mean
    if mean.transpose(1, 2, 0).shape == pixels.shape:
        return mean.transpose(1, 2, 0)
    raise DataError(
        f"The mean image has to have the shape of the prepared image, {list(pixels.shape)}. Received "
        f"{list(mean.shape)}.",
        hint="Set `resize` to the mean's height and width.",
    )


def _described(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
