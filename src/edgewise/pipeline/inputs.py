"""The user's model and samples, opened and checked against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.facts import model_facts
from edgewise.errors import DataError
from edgewise.formats import registry
from edgewise.formats.onnx import check_weights, foreign_operators
from edgewise.formats.shapes import dynamic_dimensions, fix_shapes, require_static
from edgewise.pipeline.request import DataRequest
from edgewise.records.findings import Decline
from edgewise.records.run import ModelFacts
from edgewise.records.tensors import Port
from edgewise.samples.bind import Dataset, bind
from edgewise.samples.folder import class_names
from edgewise.samples.open import open_source
from edgewise.samples.preprocessing import Preprocessing, read_settings
from edgewise.samples.split import split

Indices = npt.NDArray[np.int64]

SETTINGS_FILE = "edgewise.toml"


@dataclass(frozen=True)
class LoadedModel:
    """A model as the user gave it, its shapes fixed.

    Attributes:
        path: Where it came from.
        sha256: Hash of its file and of the weights beside it.
        fixed: The graph of the file with batch 1 and the shapes that were asked for, otherwise untouched.
        facts: What is known of `fixed`.
        open_batch: Name of the batch dimension that the file leaves open, or None.
        declines: Operators of other domains, which limit what can be done.
    """

    path: Path
    sha256: str
    fixed: ir.Model
    facts: ModelFacts
    open_batch: str | None
    declines: tuple[Decline, ...]


@dataclass(frozen=True)
class Split:
    """Some samples of a data set, by their indices."""

    dataset: Dataset
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Data:
    """The three disjoint sets.

    Attributes:
        calibrate: For statistics; labels are not read.
        select: For every decision of the search.
        certify: For the certificate alone.
        preprocessing: What was done to each sample; the bundle carries it.
        state: Input that each output feeds back, by output name.
        sha256: Fingerprint of all samples and of the split.
        certify_sha256: Fingerprint of the samples from which the certify set was taken: what must not be opened twice
            unnoticed. Not of the set alone: with another seed most of its samples would be the same.
        labelled: Whether the select and certify sets have labels.
        classes: Names of the classes, where the samples name them (one folder a class), else None.
        synthetic: What the samples were drawn from, a sentence an input, where there are none; else empty.
        unranged: Images among their inputs whose range nothing tells: by convention it may be 1 or 255.
    """

    calibrate: Split
    select: Split
    certify: Split
    preprocessing: Preprocessing
    state: Mapping[str, str]
    sha256: str
    certify_sha256: str
    labelled: bool
    classes: tuple[str, ...] | None
    synthetic: tuple[str, ...] = ()
    unranged: tuple[str, ...] = ()


def load_model(path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> LoadedModel:
    """Read a model and fix its shapes.

    Raises:
        ModelError: If the file is missing, damaged or not a model; the message says which.
        RecipeError: If a dynamic dimension has to be asked for with `--shape`.
    """
    original = registry.load(path)
    check_weights(original)
    require_static(original, shapes)
    fixed = fix_shapes(original, shapes)
    sha256 = _model_hash(path, original)
    return LoadedModel(
        path=path,
        sha256=sha256,
        fixed=fixed,
        facts=model_facts(fixed, name=path.name, sha256=sha256),
        open_batch=next((one.name or "?" for one in dynamic_dimensions(original) if one.is_batch), None),
        declines=foreign_operators(original),
    )


def _model_hash(path: Path, model: ir.Model) -> str:
    digest = hashlib.sha256()
    beside = {
        Path(value.const_value.path)
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    for file in (path, *sorted(beside)):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def open_data(request: DataRequest, inputs: tuple[Port, ...]) -> Data:
    """Open the samples, fit them to the model's inputs, and split them.

    Raises:
        DataError: If samples and inputs do not fit, or a set would be empty.
    """
    preprocessing = preprocessing_of(request)

    def opened(spec: str) -> Dataset:
        source = open_source(spec, preprocessing, label=request.label)
        return bind(source, inputs, state=request.state)

    main = opened(request.samples)
    if request.select is not None and request.certify is not None:
        select, certify = _whole(opened(request.select)), _whole(opened(request.certify))
        calibrate = _whole(opened(request.calibration)) if request.calibration else _whole(main)
    else:
        parts = split(len(main), main.labels(), request.seed)
        select, certify = Split(main, parts.select), Split(main, parts.certify)
        calibrate = _whole(opened(request.calibration)) if request.calibration else Split(main, parts.calibrate)
    for name, part in (("calibrate", calibrate), ("select", select), ("certify", certify)):
        if not len(part):
            raise DataError(
                f"The {name} set has to hold at least one sample, but it is empty.",
                hint="Give more samples with `--data`, or the three sets with --calibration, --select and --certify.",
            )
    _check_disjoint(calibrate, select, certify)
    return Data(
        calibrate=calibrate,
        select=select,
        certify=certify,
        preprocessing=preprocessing,
        state=dict(request.state),
        sha256=_digest(_split_hash(part) for part in (calibrate, select, certify)),
        certify_sha256=certify.dataset.fingerprint,
        labelled=select.dataset.labels() is not None and certify.dataset.labels() is not None,
        classes=_classes(request.select or request.samples),
    )


def _check_disjoint(calibrate: Split, select: Split, certify: Split) -> None:
    """Refuse certify samples that serve another purpose: a certificate on them would prove nothing."""
    for name, part in (("calibrate", calibrate), ("select", select)):
        if part.dataset.fingerprint == certify.dataset.fingerprint and np.isin(part.indices, certify.indices).any():
            raise DataError(
                f"The certify set must share no sample with the {name} set, but both have samples of "
                f"`{certify.dataset.name}`.",
                hint="Give other samples with `--certify` (and `--calibration`), or let `--data` be split.",
            )


def preprocessing_of(request: DataRequest) -> Preprocessing:
    """Return what is done to each sample: as `settings` says, else as `edgewise.toml` beside the samples says.

    Raises:
        RecipeError: If the settings cannot be read.
    """
    if request.settings is not None:
        return read_settings(Path(request.settings))
    if request.is_synthetic:
        return Preprocessing()
    samples = Path(request.samples)
    folder = samples if samples.is_dir() else samples.parent
    beside = folder / SETTINGS_FILE
    return read_settings(beside) if beside.is_file() else Preprocessing()


def _classes(spec: str) -> tuple[str, ...] | None:
    return class_names(Path(spec)) if Path(spec).is_dir() else None


def _whole(dataset: Dataset) -> Split:
    return Split(dataset, np.arange(len(dataset), dtype=np.int64))


def _split_hash(part: Split) -> str:
    return _digest((part.dataset.fingerprint, hashlib.sha256(part.indices.astype("<i8").tobytes()).hexdigest()))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def percent(fraction: float) -> str:
    """Return a fraction as people read it: 0.0123 is `1.23 %`."""
    return f"{100 * fraction:.3g} %"
