"""Samples fitted to a model's inputs: names, shapes and types are settled here, so that running is only running."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from edgewise.errors import DataError, RecipeError
from edgewise.records.tensors import Array, Port
from edgewise.samples.finite import non_finite
from edgewise.samples.source import Sample, Source

_NO_STATE: Mapping[str, str] = MappingProxyType({})


class Dataset:
    """Samples as feeds of one model. Made by `bind`.

    Args:
        source: The samples.
        inputs: The model's inputs.
        state: Input that each output feeds back, by output name.
    """

    def __init__(self, source: Source, inputs: tuple[Port, ...], state: Mapping[str, str]) -> None:
        self._source = source
        self._inputs = inputs
        self._state = dict(state)

    @property
    def name(self) -> str:
        """What the user named."""
        return self._source.name

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the samples and labels."""
        return self._source.fingerprint

    @property
    def state(self) -> Mapping[str, str]:
        """Input that each output feeds back, by output name; empty for a model without state."""
        return self._state

    def __len__(self) -> int:
        return len(self._source)

    def feeds(self, index: int) -> dict[str, Array]:
        """Return one sample, ready for `run_sequence`, and for `Session.run` where there is no state.

        Raises:
            DataError: If it cannot be read or does not fit the inputs.
        """
        sample = self._source[index]
        return feeds_of(sample, self._inputs, state=self._state, where=f"Sample {index} of `{self.name}`")

    def label(self, index: int) -> Any:
        """Return one label, or None. Where labels are stored apart from the samples, the sample is not read."""
        labels = self.labels()
        return None if labels is None else labels[index]

    def labels(self) -> list[Any] | None:
        """Return all labels in order, or None where there are none."""
        return self._labels

    @cached_property
    def _labels(self) -> list[Any] | None:
        labels = self._source.labels()
        if labels is not None and len(labels) != len(self):
            raise DataError(
                f"There has to be one label for each of the {len(self):,} samples of `{self.name}`. There are "
                f"{len(labels):,}."
            )
        return labels


def bind(source: Source, inputs: tuple[Port, ...], *, state: Mapping[str, str] = _NO_STATE) -> Dataset:
    """Return the samples as feeds of a model, after checking the first one.

    Args:
        source: The samples.
        inputs: The model's inputs.
        state: Input that each output feeds back, by output name.

    Raises:
        DataError: If there are no samples, or the first one does not fit; the message has both shapes.
        RecipeError: If `state` names an input that does not exist, or one input twice.
    """
    names = {port.name for port in inputs}
    for output, fed in state.items():
        if fed not in names:
            raise RecipeError(
                f"`--state {output}={fed}` has to name an input of the model behind the equals sign. The inputs are "
                f"{', '.join(f'`{name}`' for name in sorted(names))}.",
                hint="It is written OUTPUT=INPUT.",
            )
    if len(set(state.values())) != len(state):
        raise RecipeError(f"`--state` has to feed each input once. Received {dict(state)}.")
    if not len(source):
        raise DataError(f"There has to be at least one sample. `{source.name}` has none.")
    dataset = Dataset(source, inputs, state)
    dataset.feeds(0)
    return dataset


def feeds_of(
    sample: Sample, inputs: tuple[Port, ...], *, state: Mapping[str, str] = _NO_STATE, where: str = "The sample"
) -> dict[str, Array]:
    """Return one sample as feeds.

    An array without a name goes to the only input that no named array fills and no output feeds back. Where an array
    has one dimension less than its input, the batch is put in front.

    With `state`, every array with dimensions has the time in front: `[T, ...]` comes back as `[T, *input's shape]`.
    What has no dimensions is repeated for each of the T steps. The inputs that are fed back begin with zeros, without
    time.

    Types are cast where every value survives. float64 and float32 are rounded to the narrower floating-point type of
    the input, because that is what the model computes in.

    Raises:
        DataError: If an input has no array, or shape or type do not fit; the message has both and names the input.
    """
    fed_back = set(state.values())
    chosen = _chosen(sample, inputs, fed_back, where)
    feeds = {}
    steps = _steps(chosen, where) if state else None
    for port in inputs:
        if port.name in fed_back:
            feeds[port.name] = _zeros(port)
            continue
        array = chosen[port.name]
        what = f"{where}, input `{port.name}`"
        if steps is None:
            feeds[port.name] = _cast(_shaped(array, port, what), port, what)
        elif array.ndim == 0:
            value = _cast(_shaped(array, port, what), port, what)
            feeds[port.name] = np.broadcast_to(value, (steps, *value.shape))
        else:
            first = _shaped(array[0], port, f"{what}, first of {steps} steps")
            feeds[port.name] = _cast(array.reshape(steps, *first.shape), port, what)
    return feeds


def _chosen(sample: Sample, inputs: tuple[Port, ...], fed_back: set[str], where: str) -> dict[str, Array]:
    """Return the array of each input that is not fed back."""
    given = sample.arrays
    wanted = [port.name for port in inputs if port.name not in fed_back]
    chosen = {name: given[name] for name in wanted if name and name in given}
    missing = [name for name in wanted if name not in chosen]
    if len(missing) == 1 and "" in given:
        chosen[missing[0]] = given[""]
        missing = []
    if missing:
        has = ", ".join(f"`{name}`" for name in sorted(given) if name)
        unnamed = "one array without a name" if "" in given else ""
        raise DataError(
            f"Every input of the model has to have an array. {where} has {' and '.join(filter(None, (unnamed, has)))}, "
            f"but nothing for {', '.join(f'`{name}`' for name in missing)}.",
            hint="Name the arrays like the inputs: numpy.savez(path, NAME=array, ...).",
        )
    return chosen


def _steps(chosen: Mapping[str, Array], where: str) -> int:
    """Return the number of time steps, on which all arrays have to agree."""
    lengths = {name: len(array) for name, array in chosen.items() if array.ndim}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = ", ".join(f"`{name}` has {length}" for name, length in lengths.items()) or "no array has any"
        raise DataError(
            f"With --state the first axis of a sample is time, of the same length of at least 1 in every array. "
            f"{where}: {found}."
        )
    return next(iter(lengths.values()))


def _zeros(port: Port) -> Array:
    if not all(isinstance(size, int) for size in port.shape):
        raise DataError(
            f"An input that is fed back has to have a fixed shape. `{port.name}` has {_written(port.shape)}.",
            hint=f"Fix it with --shape {port.name}=...",
        )
    return np.zeros([int(size) for size in port.shape], _dtype(port))


def _shaped(array: Array, port: Port, what: str) -> Array:
    """Return the array in the rank of its input."""
    shaped = array
    if array.ndim == len(port.shape) - 1:
        shaped = array[None]
    elif array.ndim == 0 and all(size == 1 or isinstance(size, str) for size in port.shape):
        shaped = array.reshape([1] * len(port.shape))
    fits = shaped.ndim == len(port.shape) and all(
        isinstance(expected, str) or expected == size for expected, size in zip(port.shape, shaped.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{what} has to have the shape {_written(port.shape)}, or the same without the batch in front. Received "
            f"{list(array.shape)}.",
            hint=_shape_hint(array, port),
        )
    return shaped


def _shape_hint(array: Array, port: Port) -> str:
    sizes = port.shape[1:]
    if array.ndim == 3 == len(sizes) and array.shape != sizes and sorted(array.shape) == sorted(map(_size, sizes)):
        wanted = "NHWC" if array.shape[1:] == sizes[:2] and array.shape[0] == sizes[2] else "NCHW"
        return f'Set layout = "{wanted}" in [preprocessing] for images, or transpose the samples.'
    if all(isinstance(size, int) for size in sizes) and array.size == np.prod([_size(size) for size in sizes]):
        return f"Set sample_shape = {[_size(size) for size in sizes]} in [preprocessing] to reshape each sample."
    if array.ndim == 3 and {array.shape[0], array.shape[-1]} & {1, 3}:
        return "For images set color, resize and layout in [preprocessing]."
    return "Give samples of that shape, or set the model's with --shape."


def _size(size: int | str) -> int:
    return size if isinstance(size, int) else -1


def _dtype(port: Port) -> np.dtype[Any]:
    if port.dtype == "bfloat16":
        import ml_dtypes  # noqa: PLC0415 - numpy lacks this type; a device pays for each import

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    try:
        dtype = np.dtype(port.dtype)
    except TypeError:
        dtype = np.dtype(np.void)
    if dtype.kind not in "fiub":
        raise DataError(
            f"Inputs have to be numbers of a type that NumPy has, or booleans. `{port.name}` is {port.dtype}.",
            hint="Export the model with float32 inputs.",
        )
    return dtype


def _cast(array: Array, port: Port, what: str) -> Array:
    """Return the array in the type of its input, C-contiguous, after checking that its values are finite."""
    wanted = _dtype(port)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise non_finite(array, what)
    if array.dtype == wanted:
        return np.ascontiguousarray(array).reshape(array.shape)
    refusal = DataError(
        f"{what} has to be {wanted}, and every value has to survive the cast. Received {array.dtype} "
        f"{list(array.shape)}.",
        hint=f"Convert the samples: array.astype('{wanted}').",
    )
    if array.dtype.kind not in "fiub" or (wanted.kind not in "fiub" and wanted.name != "bfloat16"):
        raise refusal
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted, order="C")
        if _narrows(array.dtype, wanted):
            survived = bool(np.isfinite(cast).all())
        else:
            survived = np.can_cast(array.dtype, wanted, "safe") or _same_values(cast, array)
    if not survived:
        raise refusal
    return cast


def _narrows(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Return whether floating-point numbers are rounded to fewer bits; numpy calls bfloat16 no float, but void."""
    is_float = wanted.kind == "f" or wanted.name == "bfloat16"
    return given.kind == "f" and is_float and wanted.itemsize < given.itemsize


def _same_values(cast: Array, array: Array) -> bool:
    """Return whether every value comes back from the cast."""
    if cast.dtype.kind in "iu" and array.dtype.kind in "iu":
        # int64 and uint64 compare exactly in NumPy 2.
        return bool((cast == array).all())
    if cast.dtype.kind in "iu" and array.dtype.kind == "f":
        limits = np.iinfo(cast.dtype)
        inside = (array >= float(limits.min)) & (array < float(limits.max) + 1)
        return bool((inside & (array == np.floor(array))).all())
    return bool((cast.astype(array.dtype) == array).all())


def _written(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
