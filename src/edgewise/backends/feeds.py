"""Checks what a session is given before a runtime sees it: a runtime's own words name neither side well.

The checks run before every inference, on the device too: they cost about a microsecond for two inputs (Zen 4,
one thread), and this file imports numpy alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgewise.errors import DataError
from edgewise.records.tensors import Array, Feeds, Port


def numpy_type(name: str) -> np.dtype[np.generic]:
    """Return the numpy type that `Port.dtype` names.

    numpy itself has no `bfloat16`; `ml_dtypes`, which onnx brings, adds it. It is imported only where it is met.
    """
    if name in np.sctypeDict or name == "bool":
        return np.dtype(name)
    import ml_dtypes  # noqa: PLC0415 - most models have no such type, and a device pays for each import

    dtype: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name))
    return dtype


class FeedCheck:
    """The inputs of one model, in a form that is fast to compare with.

    Args:
        ports: Inputs in order.
    """

    def __init__(self, ports: tuple[Port, ...]) -> None:
        self.names = tuple(port.name for port in ports)
        self._expected = tuple(
            (port.name, numpy_type(port.dtype), port.shape, any(isinstance(size, str) for size in port.shape))
            for port in ports
        )

    def ordered(self, feeds: Feeds) -> list[Array]:
        """Return the arrays in the order of the ports.

        Raises:
            DataError: If a name, type, shape or memory layout does not fit; it names input, expected and received.
        """
        if len(feeds) != len(self._expected):
            raise self._wrong_names(feeds)
        arrays = []
        for name, dtype, shape, dynamic in self._expected:
            array = feeds.get(name)
            if array is None:
                raise self._wrong_names(feeds)
            if type(array) is not np.ndarray or array.dtype != dtype:
                raise _wrong_type(name, dtype, array)
            if array.shape != shape and not (dynamic and _matches(array.shape, shape)):
                raise _wrong_shape(name, shape, array.shape)
            if not array.flags.c_contiguous:
                raise DataError(
                    f"Input `{name}` has to be C-contiguous. Received strides {array.strides} "
                    f"for the shape {array.shape}.",
                    hint="`numpy.ascontiguousarray(array)` makes such a copy.",
                )
            arrays.append(array)
        return arrays

    def _wrong_names(self, feeds: Feeds) -> DataError:
        received = ", ".join(f"`{name}`" for name in feeds) or "none"
        expected = ", ".join(f"`{name}`" for name in self.names) or "none"
        return DataError(f"The inputs have to be {expected}. Received {received}.")


def _matches(received: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    """Return whether every fixed dimension is equal. Dynamic ones take any size.

    That one name means one size is left to the runtime: exporters use names that promise nothing.
    """
    if len(received) != len(expected):
        return False
    for got, size in zip(received, expected, strict=True):  # noqa: SIM110 - `all` of a generator takes twice as long
        if got != size and not isinstance(size, str):
            return False
    return True


def _wrong_type(name: str, expected: npt.DTypeLike, received: object) -> DataError:
    if isinstance(received, np.ndarray):
        what, hint = f"`{received.dtype}`", f"`array.astype('{expected}')` converts it, if no value is lost by that."
    else:
        what, hint = f"`{type(received).__name__}`", "`numpy.asarray(value)` makes an array."
    return DataError(f"Input `{name}` has to be a numpy array of type `{expected}`. Received {what}.", hint=hint)


def _wrong_shape(name: str, expected: tuple[int | str, ...], received: tuple[int, ...]) -> DataError:
    sizes = ", ".join(str(size) for size in expected)
    return DataError(
        f"Input `{name}` has to have the shape [{sizes}]. Received [{', '.join(map(str, received))}].",
        hint="A dimension given as a name or `?` may have any size."
        if any(isinstance(s, str) for s in expected)
        else None,
    )
