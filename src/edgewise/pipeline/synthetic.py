"""Samples for a model that comes without any: what its graph says of each input becomes a law to draw from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.facts import port
from edgewise.analysis.moments import Moments, input_moments, unit_moments
from edgewise.analysis.reading import Reading, compared_with, reading, table_rows
from edgewise.analysis.values import with_inferred_shapes
from edgewise.errors import DataError
from edgewise.pipeline.inputs import Data, LoadedModel, Split, preprocessing_of
from edgewise.pipeline.request import DataRequest
from edgewise.records.tensors import Array, Feeds, Port
from edgewise.samples.bind import bind
from edgewise.samples.fields import natural_exponent
from edgewise.samples.preprocessing import Preprocessing
from edgewise.samples.synthetic import STEPS, Choice, Field, Law, SyntheticSource

FloatArray = npt.NDArray[np.float64]

CALIBRATE: Final = 200
SELECT: Final = 100
CHECK: Final = 100
"""Synthetic samples for statistics, for the search, and for the last comparison."""

PIXEL_MEAN: Final = 0.45 * 255
PIXEL_DEVIATION: Final = 0.23 * 255
"""Of photographs: the three channels of ImageNet have 0.41 to 0.49 and 0.22 to 0.23 of the full range."""

REACH: Final = 2.2
"""Standard deviations at which images end: pixels end at (0 - 0.45) / 0.23 and (1 - 0.45) / 0.23. Gaussian tails beyond
would widen the range of the input, and cost 1 to 4 dB of signal-to-noise ratio at 8 bits."""

GUESSED_SPREAD: Final = 0.5
"""Standard deviation of the logarithm of a sample's contrast, where the scale of the input is guessed: it was found
within about 2.5x of the true scale on 7 of 8 networks that were checked (empirical)."""

MISFIT: Final = 0.4
"""Relative error of the remembered variances beyond which the moments behind them are a guess as well: photographs
leave 0.05 to 0.24, cepstral coefficients, of which the first is far larger than the others, 0.6 (empirical)."""

_GIVE_SAMPLES: Final = "Give samples with `--data`."
_NO_STATE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Origin:
    """What the samples of one model are drawn from.

    Attributes:
        laws: The law of each input that is not fed back, by name.
        sentences: Where each comes from, for people.
        unranged: Images whose scale is a guess.
    """

    laws: Mapping[str, Law]
    sentences: tuple[str, ...]
    unranged: tuple[str, ...]


def origin(model: ir.Model, preprocessing: Preprocessing, state: Mapping[str, str] = _NO_STATE) -> Origin:
    """Find out what samples of a model may look like.

    Args:
        model: The model, its shapes fixed.
        preprocessing: What the user says is done to pixels; it gives the range of images.
        state: Input that each output feeds back, by output name; such inputs begin with zeros.

    Raises:
        DataError: If the graph does not tell what an input is, or a dimension is not fixed; the message names it.
    """
    shaped = with_inferred_shapes(model)
    laws: dict[str, Law] = {}
    sentences = []
    for value in shaped.graph.inputs:
        name = value.name or ""
        if name in shaped.graph.initializers or name in state.values():
            continue
        laws[name], sentence = _law(value, port(value), preprocessing)
        sentences.append(f"Synthetic samples of `{name}`: {sentence}.")
    unranged = [name for name, law in laws.items() if isinstance(law, Field) and law.leaves and law.spread > 0]
    return Origin(laws, tuple(sentences), tuple(unranged))


def synthetic_samples(
    model: ir.Model,
    count: int = CALIBRATE,
    *,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    state: Mapping[str, str] = _NO_STATE,
) -> list[Feeds]:
    """Return synthetic samples, ready to be fed: what `quantize` calibrates on where it is given no samples.

    Args:
        model: The model, its shapes fixed.
        count: How many, at least 1.
        seed: Equal seeds give equal samples.
        preprocessing: What is done to pixels, if the model takes images; None where that is not known.
        state: Input that each output feeds back, by output name.

    Raises:
        DataError: As `origin`.
    """
    source = _source(origin(model, preprocessing or Preprocessing(), state), count, seed, state)
    dataset = bind(source, _ports(model), state=state)
    return [dataset.feeds(index) for index in range(count)]


def synthetic_data(request: DataRequest, model: LoadedModel) -> Data:
    """Return the three disjoint sets for a model without samples. None of them is real, and no label is there.

    Raises:
        DataError: As `origin`.
        RecipeError: If the settings cannot be read, or `state` names no input.
    """
    preprocessing = preprocessing_of(request)
    found = origin(model.fixed, preprocessing, request.state)
    source = _source(found, CALIBRATE + SELECT + CHECK, request.seed, request.state)
    dataset = bind(source, model.facts.inputs, state=request.state)
    parts = np.split(np.arange(len(dataset), dtype=np.int64), [CALIBRATE, CALIBRATE + SELECT])
    calibrate, select, check = (Split(dataset, part) for part in parts)
    return Data(
        calibrate=calibrate,
        select=select,
        certify=check,
        preprocessing=preprocessing,
        state=dict(request.state),
        sha256=dataset.fingerprint,
        certify_sha256=dataset.fingerprint,
        labelled=False,
        classes=None,
        synthetic=found.sentences,
        unranged=found.unranged,
    )


def _source(found: Origin, count: int, seed: int, state: Mapping[str, str]) -> SyntheticSource:
    return SyntheticSource(found.laws, count, seed=seed, steps=STEPS if state else None)


def _ports(model: ir.Model) -> tuple[Port, ...]:
    return tuple(port(value) for value in model.graph.inputs if value.name not in model.graph.initializers)


def _law(value: ir.Value, described: Port, preprocessing: Preprocessing) -> tuple[Law, str]:
    """Return the law of an input, and where it comes from, as a part of a sentence."""
    name, dtype = described.name, described.dtype
    sizes = tuple(size for size in described.shape if isinstance(size, int))
    if len(sizes) < len(described.shape):
        raise DataError(
            f"The input `{name}` has to have a fixed shape for synthetic samples, but it is {list(described.shape)}.",
            hint=f"Fix it with `--shape {name}=...`.",
        )
    if dtype == "bool":
        return Choice(sizes, dtype, (1.0,)), "true everywhere, as a mask that hides nothing"
    if dtype in {"float16", "bfloat16", "float32", "float64", "uint8", "int8"}:
        return _field(value, sizes, dtype, preprocessing)
    if dtype in {"int16", "uint16", "int32", "uint32", "int64", "uint64"}:
        return _whole_numbers(value, sizes, dtype)
    raise DataError(
        f"The input `{name}` is of the type {dtype}, of which no synthetic samples can be made: they are numbers or "
        f"booleans.",
        hint=_GIVE_SAMPLES,
    )


def _whole_numbers(value: ir.Value, sizes: tuple[int, ...], dtype: str) -> tuple[Law, str]:
    rows = table_rows(value)
    if rows is not None:
        return Choice(sizes, dtype, range(rows)), f"whole numbers below {rows:,}, the rows of the table that they index"
    compared = compared_with(value)
    if compared and math.prod(sizes) == 1:
        listed = ", ".join(f"{number:g}" for number in compared)
        return Choice(sizes, dtype, compared, together=True), f"{listed}, with which the graph compares it"
    if len(sizes) >= 2:
        return Choice(sizes, dtype, (1.0,)), "1 everywhere, as a mask that hides nothing; it indexes no table"
    raise DataError(
        f"What the whole number `{value.name}` means cannot be told from the graph: it indexes no table and is "
        f"compared with no constant, so no synthetic samples can be made of it.",
        hint=_GIVE_SAMPLES,
    )


def _field(value: ir.Value, sizes: tuple[int, ...], dtype: str, preprocessing: Preprocessing) -> tuple[Law, str]:
    """Return the law of an input of real numbers or pixels."""
    read = reading(value, sizes) or _assumed(sizes)
    steps = read.places.shape[1:]
    extended = sum(size > 1 for size in steps)
    pixels = _pixel_limits(read, dtype, preprocessing)
    # One channel may as well be a spectrogram, unless something says that it holds pixels.
    is_image = extended == 2 and (len(read.places) == 3 or (len(read.places) in {1, 4} and pixels is not None))
    limits = pixels if is_image else None
    spread = 0.0
    if read.normalization is not None:
        behind = read.normalization
        moments = input_moments(behind.weights, behind.bias, behind.mean, behind.variance, steps)
        moments = _before(moments, read)
        source = f"mean and covariance as the batch normalization `{behind.node}` remembers them"
        if moments.misfit > MISFIT and limits is None:
            source += ", which one distribution for all places explains badly"
            spread = GUESSED_SPREAD
    elif limits is not None:
        moments = _pixel_moments(limits, natural_exponent(extended))
        source = "photographs' mean and contrast in the range that the pre-processing gives pixels"
    elif read.layer is not None:
        moments = _before(unit_moments(*read.layer, steps, natural_exponent(extended)), read)
        source = (
            "a guess. No batch normalization tells its mean and scale, so they were chosen to give the first layer "
            "outputs of about unit variance, which holds within a factor of 3 for most networks and not for all"
        )
        spread = GUESSED_SPREAD
    else:
        channels = len(read.places)
        moments = Moments(np.zeros(channels), np.eye(channels), natural_exponent(extended), 0.0)
        source = "a guess. Nothing tells its mean and scale, so they are 0 and 1"
        spread = GUESSED_SPREAD
    law = _drawn(sizes, dtype, read, moments, limits=limits, is_image=is_image, spread=spread)
    what = "occluding shapes like those of photographs" if is_image else "random numbers"
    if not is_image and moments.exponent > 0:
        what = "random signals"
    return law, f"{what}; {source}"


def _drawn(
    sizes: tuple[int, ...],
    dtype: str,
    read: Reading,
    moments: Moments,
    *,
    limits: tuple[FloatArray, FloatArray] | None,
    is_image: bool,
    spread: float,
) -> Field:
    values, vectors = np.linalg.eigh(moments.covariance)
    deviation = np.sqrt(np.diag(moments.covariance))
    if limits is None:
        reach = REACH if is_image else np.inf
        limits = moments.mean - reach * deviation, moments.mean + reach * deviation
    low, high = limits
    if dtype in {"int8", "uint8"}:
        info = np.iinfo(dtype)
        low, high = np.maximum(low, info.min), np.minimum(high, info.max)
    return Field(
        shape=sizes,
        dtype=dtype,
        places=read.places,
        mean=moments.mean,
        mixing=vectors * np.sqrt(np.maximum(values, 0.0)),
        exponent=moments.exponent,
        low=low,
        high=high,
        leaves=is_image,
        spread=spread,
    )


def _assumed(sizes: tuple[int, ...]) -> Reading:
    """Return how an input is read where the graph does not tell: channels first, if it has three dimensions or more."""
    behind = sizes[1:] if len(sizes) >= 3 else (1, math.prod(sizes))  # one signal, where there is no other axis
    places = np.arange(math.prod(sizes), dtype=np.int64).reshape(behind)
    return Reading(places, np.ones(len(places)), np.zeros(len(places)))


def _before(moments: Moments, read: Reading) -> Moments:
    """Return the moments of the input itself from those behind the scaling on its way."""
    covariance = moments.covariance / np.outer(read.scale, read.scale)
    return Moments((moments.mean - read.offset) / read.scale, covariance, moments.exponent, moments.misfit)


def _pixel_limits(read: Reading, dtype: str, preprocessing: Preprocessing) -> tuple[FloatArray, FloatArray] | None:
    """Return the values of pixels 0 and 255 in each channel, or None where the pre-processing is not known."""
    channels = len(read.places)
    p = preprocessing
    if dtype in {"uint8", "int8"}:
        return np.zeros(channels), np.full(channels, 255.0)
    if p.scale == 1 and p.mean is None and p.mean_image is None and p.std is None:
        return None
    if p.mean_image is not None:
        image = p.mean_image.array()
        axes = (0, 1) if image.shape[-1] == channels else (1, 2)
        mean: Array = image.mean(axis=axes)
    else:
        mean = np.array(p.mean or (0.0,))
    std = np.array(p.std or (1.0,))
    ends = [np.broadcast_to((pixel * p.scale - mean) / std, (channels,)).astype(np.float64) for pixel in (0, 255)]
    return np.minimum(*ends), np.maximum(*ends)


def _pixel_moments(limits: tuple[FloatArray, FloatArray], exponent: float) -> Moments:
    low, high = limits
    unit = (high - low) / 255
    deviation = PIXEL_DEVIATION * unit
    channels = len(low)
    correlation = np.full((channels, channels), 0.9) + 0.1 * np.eye(channels)
    return Moments(low + PIXEL_MEAN * unit, correlation * np.outer(deviation, deviation), exponent, 0.0)
