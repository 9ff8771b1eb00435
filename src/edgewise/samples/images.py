"""Image files as arrays, one at a time. The only file here that needs Pillow to read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np

from edgewise.errors import DataError
from edgewise.records.tensors import Array

SUFFIXES: Final = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Names of files that are taken for images."""

_EIGHT_BIT_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})


def read_image(file: Path | bytes, *, name: str | None = None) -> Array:
    """Return the pixels of an image file, uint8 `[H, W, 3]` in the order RGB.

    Gray images get three equal channels; transparency is dropped. The orientation that a camera notes beside the
    pixels is not applied.

    Args:
        file: Path, or the contents of a file.
        name: What to call it in messages; by default its path.

    Raises:
        DataError: If it cannot be read, is damaged, or has more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  images alone need Pillow

    called = name or (str(file) if isinstance(file, Path) else "the image")
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(
                    f"An image has to have 8 bits a channel. `{called}` has the mode {image.mode}.",
                    hint="Convert it to 8 bits, or give the samples as an .npz of floating-point arrays.",
                )
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DataError(
            f"`{called}` has to be an image, but no known format fits.", hint="Remove or replace it."
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for damaged PNG files and ValueError for damaged headers.
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"The image `{called}` has to be readable, but: {reason}.", hint="Remove or replace it."
        ) from error
