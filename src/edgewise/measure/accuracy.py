"""How good a model is: a score a sample, or what a whole-set metric keeps of each; then its interval."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edgewise.errors import DataError, ResourceError
from edgewise.measure import betting, bootstrap, scoring
from edgewise.measure.metrics import ALL, FIRST, Metric, PerSample, Whole
from edgewise.records.codec import Record
from edgewise.records.measurements import Accuracy
from edgewise.records.tensors import Array, Feeds, Outputs, Run
from edgewise.samples.state import run_sequence

WHOLE_LIMIT_BYTES: Final = 256 << 20
"""Most that is kept for a whole-set metric: about 60,000 samples of 1,000 classes."""

_FEWEST_DECISIONS: Final = 10
_VALUES_DRAWN: Final = 40_000_000
"""Numbers that all resamplings together may draw: some seconds."""

_FEWEST_RESAMPLES: Final = 199
_USER_RESAMPLES: Final = 499
_ARRAY: Final = 1
"""Code of an array among the items (msgpack extension type)."""


class Dataset(Protocol):
    """Samples, bound to a model's inputs: `samples.bind` makes one."""

    @property
    def state(self) -> Mapping[str, str]:
        """Outputs that are fed back, each with the input that takes it in the next step."""

    def __len__(self) -> int:
        """Number of samples."""

    def feeds(self, index: int) -> Feeds:
        """Return the feeds of one sample."""

    def label(self, index: int) -> Any:
        """Return its label, or None."""


class Scores(Record, frozen=True, kw_only=True):
    """What one model scored on some samples: enough to compare it with another one, sample by sample.

    Attributes:
        metric: Name of the metric.
        n: Number of samples.
        samples: Hash of the indices of the samples, in order; equal where two can be paired.
        value: The metric over all of them.
        values: One little-endian float64 a sample for a per-sample metric, else empty.
        items: What the whole-set metric keeps of each sample, as MessagePack, else empty.
        same_output: Whether the output was the same array for every sample, of which there are at least two.
        same_decision: Whether every sample got the same decision, although at least ten have different labels.
    """

    metric: str
    n: int
    samples: str
    value: float
    values: bytes
    items: bytes
    same_output: bool
    same_decision: bool

    def array(self) -> npt.NDArray[np.float64]:
        """Return the score of each sample, shape `[n]`; empty for a whole-set metric."""
        return np.frombuffer(self.values, dtype="<f8").astype(np.float64)

    def kept(self) -> list[Any]:
        """Return what the whole-set metric keeps of each sample; empty for a per-sample metric."""
        if not self.items:
            return []
        return list(msgspec.msgpack.decode(self.items, ext_hook=_decode_array))


def scores(
    run: Run,
    dataset: Dataset,
    indices: Sequence[int] | npt.NDArray[np.int64],
    metric: Metric,
    *,
    reference: Run | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Run a model over samples, one at a time, and return what it scored.

    Args:
        run: The model.
        dataset: The samples.
        indices: Which of them, in order; at least one.
        metric: The metric.
        reference: The original model, for metrics that compare with it. `run` itself is not run twice.
        progress: Is called with the number of samples done, after each.

    Raises:
        DataError: If there are no samples, if a label does not fit the output, if an output holds NaN, or if a score
            is NaN or outside the metric's bounds; the message names the sample.
        ResourceError: If a whole-set metric would keep more than 256 MiB.
    """
    order = [int(index) for index in indices]
    if not order:
        raise DataError("At least one sample is needed to measure accuracy. Received none.")
    if metric.against == "original" and reference is None:
        raise DataError(
            f"The metric `{metric.name}` compares with the original model, which was not given.",
            hint="Name a metric that compares with labels, or compare two models.",
        )
    watch = _Watch()
    values: list[float] = []
    kept = _Kept(metric.name)
    for done, index in enumerate(order, 1):
        try:
            output, other = _answer(run, dataset, index, metric, reference=reference, watch=watch)
            if isinstance(metric, PerSample):
                values.append(_score(metric, output, other))
            else:
                kept.add(metric.item(output, other))
        except DataError as error:
            raise DataError(f"Sample {index}: {error.message}", hint=error.hint) from error
        if progress is not None:
            progress(done)
    value = metric.total(values) if isinstance(metric, PerSample) else _total(metric, kept)
    return Scores(
        metric=metric.name,
        n=len(order),
        samples=hashlib.sha256(np.asarray(order, dtype="<i8").tobytes()).hexdigest()[:16],
        value=value,
        values=np.asarray(values, dtype="<f8").tobytes(),
        items=kept.packed(),
        same_output=watch.same_output and len(order) > 1,
        same_decision=watch.same_decision and watch.labels_differ and len(order) >= _FEWEST_DECISIONS,
    )


def constant_output(found: Scores) -> str | None:
    """Return a sentence if the model gave the same answer for all samples, else None."""
    if found.same_output:
        return f"The model's output is the same for all {found.n} samples: it does not depend on its input."
    if found.same_decision:
        return f"The model decides the same for all {found.n} samples, although their labels differ."
    return None


def summarise(found: Scores, metric: Metric, *, confidence: float = 0.95) -> Accuracy:
    """Return the metric with its two-sided interval.

    Scores that are all 0 or 1 get the interval of Clopper and Pearson, other bounded scores a betting interval (both
    exact), the rest a BCa bootstrap. With fewer than ten samples a bootstrap is not tried: the interval is the
    metric's whole range, or the value alone where it has none, and `method` says so.
    """
    one_sided = 1 - (1 - confidence) / 2
    low, high, method = _interval(found, metric, one_sided)
    return Accuracy(
        metric=metric.name,
        value=found.value,
        low=low,
        high=high,
        confidence=confidence,
        method=method,
        n=found.n,
        higher_is_better=metric.higher_is_better,
    )


def statistic(found: Scores, metric: Metric) -> bootstrap.Statistic:
    """Return the metric as a function of the samples drawn, for resampling."""
    if isinstance(metric, PerSample):
        values = found.array()
        return lambda indices: metric.total(values[indices])
    kept = found.kept()
    if metric.stackable and len({item.shape for item in kept}) == 1:
        stacked = np.stack(kept)
        return lambda indices: metric.total(stacked[indices])
    return lambda indices: metric.total([kept[index] for index in indices])


def resamples(found: Scores, metric: Metric) -> int:
    """Return how many resamplings to draw: fewer where one is long, and a few hundred for a function of the user's."""
    if isinstance(metric, Whole) and not metric.stackable:
        return _USER_RESAMPLES
    size = max(len(found.values) // 8, len(found.items) // 4)
    return min(max(_VALUES_DRAWN // size, _FEWEST_RESAMPLES), bootstrap.RESAMPLES)


def is_binary(values: npt.NDArray[np.float64]) -> bool:
    """Return whether all values are 0 or 1."""
    return bool(np.all((values == 0) | (values == 1)))


def _interval(found: Scores, metric: Metric, one_sided: float) -> tuple[float, float, str]:
    if isinstance(metric, PerSample) and metric.bounds is not None and not metric.root:
        values = found.array()
        if metric.bounds == (0.0, 1.0) and is_binary(values):
            right = int(values.sum())
            return (
                betting.binomial_lower(right, found.n, confidence=one_sided),
                betting.binomial_upper(right, found.n, confidence=one_sided),
                betting.BINOMIAL_METHOD,
            )
        low = betting.lower_mean(values, *metric.bounds, confidence=one_sided)
        return low, betting.upper_mean(values, *metric.bounds, confidence=one_sided), betting.METHOD
    if found.n < bootstrap.FEWEST:
        low, high = metric.bounds or (found.value, found.value)
        return low, high, f"none: a bootstrap needs at least {bootstrap.FEWEST} samples"
    draws = resamples(found, metric)
    low, high = bootstrap.bounds(statistic(found, metric), found.n, confidence=one_sided, resamples=draws)
    return low, high, bootstrap.METHOD


class _Watch:
    """Notices whether a model answers every sample alike, without keeping the answers."""

    def __init__(self) -> None:
        self.same_output = True
        self.same_decision = True
        self.labels_differ = False
        self._output: Array | None = None
        self._decision: Array | None = None
        self._label: bytes | None = None

    def see(self, output: Array, label: Any) -> None:
        """Take note of one sample. `output` is the model's first output."""
        decision = scoring.decisions(output) if output.dtype.kind in "iubf" else None
        encoded = None if label is None else _encode(label)
        if self._output is None:
            self._output, self._decision, self._label = output, decision, encoded
            return
        self.labels_differ = self.labels_differ or encoded != self._label
        if self.same_output:
            self.same_output = _alike(output, self._output)
        if self.same_decision:
            before = self._decision
            self.same_decision = decision is not None and before is not None and np.array_equal(decision, before)


def _alike(first: Array, second: Array) -> bool:
    if first.shape != second.shape:
        return False
    if first.dtype.kind != "f":
        return bool(np.array_equal(first, second))
    return bool(np.allclose(first, second, rtol=1e-6, atol=0))


class _Kept:
    """What a whole-set metric keeps, packed as it comes, so that memory is counted."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._items: list[bytes] = []
        self._size = 0

    def add(self, item: Any) -> None:
        """Keep one item."""
        self._items.append(_encode(item))
        self._size += len(self._items[-1])
        if self._size > WHOLE_LIMIT_BYTES:
            raise ResourceError(
                f"The metric `{self._metric}` has to keep what it needs of all samples in "
                f"{WHOLE_LIMIT_BYTES >> 20} MiB, and {len(self._items)} samples are more.",
                hint="Use fewer samples, a metric with `per_sample`, or let `output` name a smaller output.",
            )

    def items(self) -> list[Any]:
        """Return the items as `Scores.kept` will."""
        return [msgspec.msgpack.decode(item, ext_hook=_decode_array) for item in self._items]

    def packed(self) -> bytes:
        """Return all items as one MessagePack array of binaries' contents, empty without items."""
        if not self._items:
            return b""
        return msgspec.msgpack.encode([msgspec.Raw(item) for item in self._items])


def _answer(
    run: Run, dataset: Dataset, index: int, metric: Metric, *, reference: Run | None, watch: _Watch
) -> tuple[Any, Any]:
    """Return what the metric reads of one sample, and what it compares that with."""
    feeds = dataset.feeds(index)
    outputs = run_sequence(run, feeds, dataset.state)
    label = dataset.label(index)
    sequence = bool(dataset.state)
    watch.see(_pick(outputs, FIRST, sequence=sequence), label)
    output = _pick(outputs, metric.output, sequence=sequence)
    if metric.against == "labels":
        return output, label
    if reference is None or reference is run:
        return output, output
    return output, _pick(run_sequence(reference, feeds, dataset.state), metric.output, sequence=sequence)


def _pick(outputs: Outputs, name: str, *, sequence: bool) -> Any:
    """Return the output `name` without its batch axis, which follows the time axis of a sequence."""
    if name == ALL:
        return {key: _pick(outputs, key, sequence=sequence) for key in outputs}
    if name == FIRST:
        name = next(iter(outputs))
    if name not in outputs:
        raise DataError(
            f"The metric reads the output `{name}`, which the model does not have: it has "
            f"{', '.join(f'`{key}`' for key in outputs)}."
        )
    array = np.asarray(outputs[name])
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise DataError(
            f"An output has to hold numbers, but `{name}` holds NaN.",
            hint="Look for Inf or NaN in the sample, the weights or the pre-processing.",
        )
    axis = 1 if sequence else 0
    return array.squeeze(axis) if array.ndim > axis and array.shape[axis] == 1 else array


def _score(metric: PerSample, output: Any, other: Any) -> float:
    score = float(metric.score(output, other))
    if math.isnan(score):
        raise DataError(f"A score of the metric `{metric.name}` has to be a number. Received NaN.")
    if metric.bounds is not None and not metric.bounds[0] <= score <= metric.bounds[1]:
        low, high = metric.bounds
        raise DataError(
            f"A score of the metric `{metric.name}` has to lie in its bounds, {low:g} to {high:g}. Received {score:g}.",
            hint="Set `bounds` of the metric to (lowest, highest), or to None where there are none.",
        )
    return score


def _total(metric: Whole, kept: _Kept) -> float:
    value = metric.total(kept.items())
    if math.isnan(value):
        raise DataError(
            f"The metric `{metric.name}` is not defined on these samples.",
            hint="It may need samples of more than one class.",
        )
    if metric.bounds is not None and not metric.bounds[0] <= value <= metric.bounds[1]:
        low, high = metric.bounds
        raise DataError(
            f"The metric `{metric.name}` has to lie in its bounds, {low:g} to {high:g}. Received {value:g}.",
            hint="Set `bounds` of the metric to (lowest, highest), or to None where there are none.",
        )
    return value


def _encode(item: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(item, enc_hook=_encode_array)
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise DataError(
            f"Labels and outputs that a metric keeps have to be numbers, strings, arrays, lists or dictionaries of "
            f"these. Received {type(item).__name__}: {error}."
        ) from error


def _encode_array(item: Any) -> Any:
    if isinstance(item, np.generic):
        return item.item()
    if isinstance(item, np.ndarray) and item.dtype.kind in "iufb":
        little = item.astype(item.dtype.newbyteorder("<"), order="C")
        header = msgspec.msgpack.encode((little.dtype.str, item.shape))
        return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode((header, little.tobytes())))
    raise NotImplementedError(f"an object of type {type(item).__name__}")


def _decode_array(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise DataError(f"Kept items hold only arrays as extensions. Received the code {code}.")
    header, content = msgspec.msgpack.decode(data, type=tuple[bytes, bytes])
    dtype, shape = msgspec.msgpack.decode(header, type=tuple[str, tuple[int, ...]])
    return np.frombuffer(content, dtype=dtype).reshape(shape)
