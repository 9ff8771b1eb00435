"""Why nodes of a quantized model stayed float, kept in the model itself: whoever opens the file can read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import onnx_ir as ir

from edgewise.records.codec import decode
from edgewise.records.findings import Decline

KEY: Final = "edgewise.declines"
"""Of the model's metadata, which ONNX calls `metadata_props`."""


def write_reasons(model: ir.Model, declines: Sequence[Decline]) -> None:
    """Write what was declined into the metadata of `model`, in place; nothing where nothing was."""
    if declines:
        model.metadata_props[KEY] = msgspec.json.encode(tuple(declines)).decode()


def read_reasons(model: ir.Model) -> tuple[Decline, ...]:
    """Return what was declined when `model` was quantized; nothing where that is not known, or not as we write it."""
    try:
        return decode(model.metadata_props.get(KEY, "[]"), tuple[Decline, ...])
    except msgspec.DecodeError:  # of which a wrong type is one as well
        return ()
