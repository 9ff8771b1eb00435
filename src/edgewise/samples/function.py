"""Samples from the user's own Python: `package.module:function`."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgewise.errors import DataError, EdgewiseError
from edgewise.records.tensors import Array
from edgewise.samples.finite import non_finite
from edgewise.samples.preprocessing import Preprocessing, prepare
from edgewise.samples.rows import Spool
from edgewise.samples.source import Sample

_SPEC: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PROBES: Final = 16


def is_function(spec: str) -> bool:
    """Return whether `spec` has the form `package.module:function`."""
    return _SPEC.fullmatch(spec) is not None


class SequenceSource:
    """Samples of an object with a length and an index; each is made when it is asked for.

    Args:
        name: What the user named.
        items: The object. Each item is `(inputs, label)` or `inputs`: an array, or arrays by input name.
        preprocessing: What is done to each array.
        module: File of the module, or None.

    Raises:
        DataError: If there are no samples.
    """

    def __init__(self, name: str, items: Sequence[Any], preprocessing: Preprocessing, module: Path | None) -> None:
        if not len(items):
            raise _no_samples(name)
        self.name = name
        self._items = items
        self._preprocessing = preprocessing
        self._module = module

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the module's file, the number of samples, and 16 of them: reading all would make all twice."""
        digest = hashlib.sha256(f"{self.name} {len(self)}".encode())
        if self._module is not None and self._module.is_file():
            digest.update(self._module.read_bytes())
        for index in sorted({int(at) for at in np.linspace(0, len(self) - 1, _PROBES)}):
            _digest(digest, self[index])
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: If the user's code fails, or gives something else than a sample.
        """
        with _users_code(self.name):
            item = self._items[index]
        return _sample(item, index, self.name, self._preprocessing)

    def labels(self) -> list[Any] | None:
        """Return all labels: the object's attribute `labels`; without one, every sample is made once for its label."""
        return self._all_labels

    @cached_property
    def _all_labels(self) -> list[Any] | None:
        known = getattr(self._items, "labels", None)
        labels = list(known) if known is not None and not callable(known) else None
        if labels is None:
            labels = [self[index].label for index in range(len(self))]
        return _checked_labels(labels, self.name)


class SpooledSource:
    """Samples of an iterator, written to a temporary file once, so that memory stays bounded.

    Args:
        name: What the user named.
        items: As in `SequenceSource`.
        preprocessing: What is done to each array.

    Raises:
        DataError: If there are no samples, the user's code fails, or it gives something else than samples.
        ResourceError: If there is no room for the temporary file.
    """

    def __init__(self, name: str, items: Iterable[Any], preprocessing: Preprocessing) -> None:
        self.name = name
        self._spool = Spool()
        self._tickets: list[dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]]] = []
        labels: list[Any] = []
        digest = hashlib.sha256()
        for index, item in enumerate(_guarded(items, name)):
            sample = _sample(item, index, name, preprocessing)
            _digest(digest, sample)
            self._tickets.append({key: self._spool.add(array) for key, array in sample.arrays.items()})
            labels.append(sample.label)
        if not self._tickets:
            raise _no_samples(name)
        self._labels = _checked_labels(labels, name)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._tickets)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        arrays = {key: self._spool.get(ticket) for key, ticket in self._tickets[index].items()}
        return Sample(arrays, None if self._labels is None else self._labels[index])

    def labels(self) -> list[Any] | None:
        """Return all labels, or None."""
        return None if self._labels is None else list(self._labels)


def open_function(spec: str, preprocessing: Preprocessing) -> SequenceSource | SpooledSource:
    """Return the samples that `package.module:function` gives; the function is called without arguments.

    The current directory can be imported from. What has a length and an index is used as it is; what can only be
    iterated, a generator for example, is written to a temporary file once.

    Raises:
        DataError: If there is no such function, it fails, or it gives something else than samples.
    """
    module_name, _, attribute = spec.partition(":")
    module = _imported(module_name, spec)
    try:
        function: Any = module
        for part in attribute.split("."):
            function = getattr(function, part)
    except AttributeError as error:
        raise DataError(f"`{module_name}` has to have `{attribute}`, which `{spec}` names. It does not.") from error
    items = _called(function, spec)
    file = getattr(module, "__file__", None)
    if hasattr(items, "__len__") and hasattr(items, "__getitem__") and not isinstance(items, Mapping):
        return SequenceSource(spec, items, preprocessing, Path(file) if file else None)
    if not isinstance(items, Iterable) or isinstance(items, Mapping):
        raise DataError(
            f"`{spec}` has to give samples one after another. It gave {type(items).__name__}.",
            hint="Yield (inputs, label) for each sample.",
        )
    return SpooledSource(spec, items, preprocessing)


def _imported(name: str, spec: str) -> object:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with _users_code(spec):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(
            f"`{spec}` has to name a file, a folder, or a function of a module. There is no module `{error.name}`.",
            hint="Run the command in the folder of the module, or install the package.",
        ) from error


def _called(function: Any, spec: str) -> Any:
    if not callable(function):
        return function
    call: Callable[[], Any] = function
    with _users_code(spec):
        return call()


@contextmanager
def _users_code(spec: str) -> Iterator[None]:
    """Turn whatever the user's code raises into an error that says that it was the user's code."""
    try:
        yield
    except (EdgewiseError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise DataError(
            f"`{spec}` has to run, but it raised {type(error).__name__}: {error}.",
            hint="This comes from your own code; call it in Python to see the traceback.",
        ) from error


def _guarded(items: Iterable[Any], spec: str) -> Iterator[Any]:
    iterator = iter(items)
    while True:
        with _users_code(spec):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def _sample(item: Any, index: int, spec: str, preprocessing: Preprocessing) -> Sample:
    """Return what the user's code gave as a sample."""
    inputs, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    arrays = {}
    for key, value in named.items():
        where = f"Sample {index} of `{spec}`" + (f", input `{key}`" if key else "")
        array = _array(value, where)
        try:
            arrays[str(key)] = prepare(array, preprocessing)
        except DataError as error:
            raise DataError(f"{where}: {error.message}", hint=error.hint) from error
    if not arrays:
        raise DataError(f"Sample {index} of `{spec}` has to have at least one input. It has none.")
    if isinstance(label, np.generic) or (isinstance(label, np.ndarray) and label.ndim == 0):
        label = label.item()
    return Sample(arrays, label)


def _array(value: Any, where: str) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} has to be an array, but: {error}.") from error
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{where} has to be an array of numbers. It is {type(value).__name__} (as an array: {array.dtype}).",
            hint="Yield (inputs, label), the inputs being an array or a dict of arrays by input name.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise non_finite(array, where)
    return array


def _checked_labels(labels: list[Any], spec: str) -> list[Any] | None:
    """Return the labels; None if no sample has one."""
    missing = sum(label is None for label in labels)
    if missing == len(labels):
        return None
    if missing:
        index = next(index for index, label in enumerate(labels) if label is None)
        raise DataError(
            f"Either all samples or none have to have a label. {missing:,} of {len(labels):,} samples of `{spec}` have "
            f"none, sample {index} for example."
        )
    for index, label in enumerate(labels):
        if isinstance(label, float) and not np.isfinite(label):
            raise DataError(f"Labels have to be finite. Label {index} of `{spec}` is {label}.")
    return labels


def _digest(digest: Any, sample: Sample) -> None:
    for key, array in sorted(sample.arrays.items()):
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(repr(sample.label).encode())


def _no_samples(spec: str) -> DataError:
    return DataError(f"`{spec}` has to give at least one sample. It gave none.", hint="Yield (inputs, label).")
