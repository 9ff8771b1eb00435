"""What a change to a model does to its outputs, without labels: how much each quantized node damages them.

The distances are second order in a small error, so the damages of independent errors add up: the sum over the nodes
stands for the whole, and `Additivity` says how well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.quantize.restore import quantized_nodes, restored
from edgewise.compress.runner import Opener
from edgewise.errors import ContractError, DataError, ModelError, UserError
from edgewise.records.codec import Record
from edgewise.records.tensors import Array, Feeds, Outputs, Run

Kind: TypeAlias = Literal["probabilities", "logits", "independent", "numbers"]
"""What an output holds: class probabilities, class scores before a softmax, probabilities that need not sum to 1
(sigmoids), or numbers of any other sort."""

Floats: TypeAlias = npt.NDArray[np.float64]

CACHE_BYTES: Final = 64 << 20
"""Outputs of the reference that are kept; where they are larger the reference runs again beside each variant."""

SMALLEST_PROBABILITY: Final = 1e-9
"""Floor of a probability in a divergence: integers make exact zeros of small ones, which would count as infinite."""

FURTHEST_SCORE: Final = 1e300
"""Magnitude of a score that stands for an infinite one: its exponential is zero, and differences of two are finite."""

SUM_TOLERANCE: Final = 1e-3
"""How far probabilities may be from summing to 1: 1,000 classes in float16 come this far."""


class Sensitivity(Record, frozen=True, kw_only=True):
    """How far the outputs of one variant are from those of the reference.

    Attributes:
        node: Name of the variant: the node that was changed.
        kl: Mean over samples and positions of the divergence KL(reference || variant) in nats, summed over the
            outputs that hold probabilities or class scores; None where none does.
        nsr: Noise-to-signal ratio: sum (a - b)^2 / sum a^2 over all samples, averaged over the outputs.
        cosine: Mean over samples and outputs of 1 - cos(a, b).
        flips: Samples with another decision anywhere; None where no output holds decisions.
        sqnr_db: -10 log10(nsr); None where the outputs are equal.
        n: Samples.
    """

    node: str
    kl: float | None
    nsr: float
    cosine: float
    flips: int | None
    sqnr_db: float | None
    n: int

    @property
    def damage(self) -> float:
        """The scalar that adds up over nodes: `kl` where there is one, else `nsr`."""
        return self.nsr if self.kl is None else self.kl


class Additivity(Record, frozen=True, kw_only=True):
    """How well single damages add up to that of all changes together.

    Attributes:
        whole: Damage of all together.
        summed: Sum of the single ones.
        error: `summed / whole - 1`; 0 where both are 0, None where only the whole is.
    """

    whole: float
    summed: float
    error: float | None


class Damages(Record, frozen=True, kw_only=True):
    """What each quantized node does to the outputs of a model.

    Attributes:
        whole: The quantized model against the reference.
        floor: The model with all nodes restored against the reference: what no node answers for. Above 0 where its
            weights are not those of the reference.
        alone: Each node quantized, all others in floating point (leave one in), in graph order.
        without: Each node in floating point, all others quantized (leave one out), in graph order.
        additivity: Of the nodes alone, above the floor.
    """

    whole: Sensitivity
    floor: Sensitivity
    alone: tuple[Sensitivity, ...]
    without: tuple[Sensitivity, ...]
    additivity: Additivity


def sensitivities(
    reference: ir.Model,
    variants: Mapping[str, Callable[[], ir.Model]],
    open_model: Opener,
    feeds: Sequence[Feeds],
    *,
    kinds: Mapping[str, Kind] | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Sensitivity, ...]:
    """Return how far each variant's outputs are from those of `reference`, in the order of `variants`.

    One variant is made and open at a time. Memory: at most `CACHE_BYTES` of the reference's outputs, and one sample.

    Args:
        reference: The model whose outputs are right.
        variants: Names, and functions that make a model with the same outputs.
        open_model: Runs models.
        feeds: The samples, read once for the reference and once for each variant.
        kinds: What outputs hold, by name; those left out are recognised by the reference's outputs (`recognise`).
        progress: Hears the name of each variant that is done.

    Raises:
        DataError: If there is no sample, or the reference gives NaN in one.
        ModelError: If no output holds real numbers, or a variant gives NaN where the reference gives none; the message
            names variant and sample.
        ContractError: If a variant lacks an output, or gives one of another shape.
    """
    with _Teacher(reference, open_model, feeds, kinds or {}) as teacher:
        found = []
        for name, make in variants.items():
            with open_model(make()) as run:
                found.append(teacher.compare(name, run))
            if progress is not None:
                progress(name)
    return tuple(found)


def damages(
    model: ir.Model,
    reference: ir.Model,
    open_model: Opener,
    feeds: Sequence[Feeds],
    *,
    nodes: Collection[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Damages:
    """Measure what each quantized node of `model` does to its outputs, alone and among the others.

    Args:
        model: A QDQ graph.
        reference: The model from which it was made.
        open_model: Runs models: two for each node, one at a time.
        feeds: The samples.
        nodes: Nodes by label; None for all that work on integers. The others stay quantized among the others, and
            count as the floor.
        kinds: See `sensitivities`.
        progress: See `sensitivities`.

    Raises:
        UserError: See `sensitivities`.
        ContractError: If a name is no node that works on integers.
    """
    every = quantized_nodes(model)
    asked = every if nodes is None else tuple(name for name in every if name in set(nodes))
    if nodes is not None and (unknown := sorted(set(nodes) - set(every))):
        raise ContractError(f"Only a node that works on integers does damage. Received `{unknown[0]}`.")

    def version(floats: Collection[str]) -> Callable[[], ir.Model]:
        return lambda: restored(model, floats, reference=reference)

    variants = {"whole": lambda: model, "floor": version(asked)}
    variants.update({f"alone {name}": version([other for other in asked if other != name]) for name in asked})
    variants.update({f"without {name}": version([name]) for name in asked})
    found = sensitivities(reference, variants, open_model, feeds, kinds=kinds, progress=progress)
    whole, floor, *others = found
    alone, without = others[: len(asked)], others[len(asked) :]
    return Damages(
        whole=whole,
        floor=floor,
        alone=tuple(_renamed(one, "alone ") for one in alone),
        without=tuple(_renamed(one, "without ") for one in without),
        additivity=additivity(whole.damage - floor.damage, [max(one.damage - floor.damage, 0.0) for one in alone]),
    )


def additivity(whole: float, parts: Sequence[float]) -> Additivity:
    """Return how well `parts` add up to `whole`."""
    summed = math.fsum(parts)
    if whole <= 0:
        return Additivity(whole=whole, summed=summed, error=0.0 if summed == whole else None)
    return Additivity(whole=whole, summed=summed, error=summed / whole - 1)


def recognise(outputs: Sequence[Array]) -> Kind:
    """Return what an output holds, from all of its values that were seen.

    Probabilities: real numbers in [0, 1] of at least two classes on the last axis that always sum to 1. Independent
    ones: in [0, 1] otherwise, one row of them. Logits: any other single row of at least two numbers, since a classifier
    without its softmax is by far the most frequent such model. Anything else is numbers: boxes, images, sequences.

    Args:
        outputs: The output for each sample, with or without a batch axis of 1, at least one array.
    """
    kind = _Recogniser()
    for output in outputs:
        kind.see(output)
    return kind.found()


def divergence(reference: Array, other: Array, kind: Kind) -> float:
    """Return KL(reference || other) in nats, averaged over positions; for independent probabilities summed over them.

    Args:
        reference: The output that is right, classes on the last axis.
        other: The output of the same shape.
        kind: What both hold; not `numbers`.

    Source: Kullback and Leibler 1951, "On Information and Sufficiency", equation 2.4.
    """
    if kind == "independent":
        p, q = (
            np.clip(np.asarray(x, np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
            for x in (reference, other)
        )
        return float(np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))
    if kind == "logits":
        first, second = log_softmax(reference), log_softmax(other)
    else:
        first, second = _log_probabilities(reference), _log_probabilities(other)
    terms = np.sum(np.exp(first) * (first - second), axis=-1)
    # A divergence is at least 0; rounding alone makes less of it.
    return max(float(np.mean(terms)), 0.0)


def log_softmax(scores: Array) -> Floats:
    """Return the logarithm of the softmax over the last axis, in float64, of any scores but NaN.

    Infinite scores count as `FURTHEST_SCORE`, so that a class that both models rule out makes no difference.
    """
    values = np.clip(np.asarray(scores, np.float64), -FURTHEST_SCORE, FURTHEST_SCORE)
    shifted = values - values.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def noise_to_signal(reference: Array, other: Array) -> tuple[float, float]:
    """Return sum (a - b)^2 and sum a^2 over the values that are finite in the reference."""
    finite = np.isfinite(reference)
    a, b = reference[finite].astype(np.float64), other[finite].astype(np.float64)
    return float(np.sum(np.square(a - b))), float(np.sum(np.square(a)))


def cosine_distance(reference: Array, other: Array) -> float:
    """Return 1 - cos(a, b), in [0, 2]; 0 where both are zero, 1 where one is."""
    finite = np.isfinite(reference)
    a, b = reference[finite].astype(np.float64), other[finite].astype(np.float64)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths == 0:
        return 1.0 if a.any() or b.any() else 0.0
    return min(max(1.0 - float(a @ b) / lengths, 0.0), 2.0)


def decisions(output: Array, kind: Kind) -> Array:
    """Return what an output decides: the best class of each position, or which independent ones are from 0.5 on."""
    return output >= 0.5 if kind == "independent" else output.argmax(axis=-1)


@dataclass
class _Recogniser:
    """What has been seen of one output."""

    real: bool = True
    bounded: bool = True
    sums_to_one: bool = True
    row: bool = True
    classes: int = 0

    def see(self, output: Array) -> None:
        self.real &= output.dtype.kind in "fV" and output.size > 0
        if not self.real:
            return
        values = output.astype(np.float64)
        self.classes = output.shape[-1] if output.ndim else 1
        self.row &= output.size == self.classes
        self.bounded &= bool(np.all((values >= 0) & (values <= 1)))
        if self.bounded and self.classes >= 2:
            self.sums_to_one &= bool(np.all(np.abs(values.sum(axis=-1) - 1) <= SUM_TOLERANCE))

    def found(self) -> Kind:
        if not self.real:
            return "numbers"
        if self.bounded and self.sums_to_one and self.classes >= 2:
            return "probabilities"
        if not self.row:
            return "numbers"
        if self.bounded:
            return "independent"
        return "logits" if self.classes >= 2 else "numbers"


@dataclass
class _Sums:
    """Distances of one output, summed over the samples."""

    divergence: float = 0.0
    noise: float = 0.0
    signal: float = 0.0
    cosine: float = 0.0

    def nsr(self) -> float:
        if self.signal == 0:
            return 0.0 if self.noise == 0 else 1.0
        return self.noise / self.signal


@dataclass
class _Teacher:
    """The reference: its outputs, kept or made again, and what they hold."""

    model: ir.Model
    open_model: Opener
    feeds: Sequence[Feeds]
    asked: Mapping[str, Kind]
    kinds: dict[str, Kind] = field(default_factory=dict)
    kept: list[Outputs] = field(default_factory=list)

    def __enter__(self) -> _Teacher:
        recognisers: dict[str, _Recogniser] = {}
        size, fits = 0, True
        with self.open_model(self.model) as run:
            for sample, feed in enumerate(self.feeds):
                outputs = _real(run(feed))
                _refuse_nan(outputs, sample)
                for name, output in outputs.items():
                    recognisers.setdefault(name, _Recogniser()).see(output)
                size += sum(output.nbytes for output in outputs.values())
                fits = fits and size <= CACHE_BYTES
                self.kept = [*self.kept, outputs] if fits else []
        if not recognisers:
            raise self._nothing_to_compare()
        self.kinds = {name: self.asked.get(name, found.found()) for name, found in recognisers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self.kept = []

    def _nothing_to_compare(self) -> UserError:
        if not self.feeds:
            return DataError(
                "Outputs are compared on at least one sample, but there is none.", hint="Give more samples."
            )
        names = ", ".join(f"`{value.name}`" for value in self.model.graph.outputs)
        return ModelError(
            f"At least one output has to hold real numbers, for how far they are off is what is measured. "
            f"Those of {names} are whole numbers, or there are none.",
            hint="Let the model give the scores from which it makes them, too.",
        )

    def compare(self, name: str, run: Run) -> Sensitivity:
        """Return how far the outputs of `run` are off."""
        sums = {output: _Sums() for output in self.kinds}
        flips = 0
        for sample, (feed, right) in enumerate(self._outputs()):
            given = run(feed)
            flipped = False
            for output, expected in right.items():
                found = _checked(given.get(output), expected, where=(name, output, sample))
                flipped |= self._add(sums[output], expected, found, self.kinds[output])
            flips += flipped
        return self._sensitivity(name, sums, flips)

    def _outputs(self) -> Iterator[tuple[Feeds, Outputs]]:
        if self.kept:
            yield from zip(self.feeds, self.kept, strict=True)
            return
        with self.open_model(self.model) as run:
            for feed in self.feeds:
                yield feed, _real(run(feed))

    @staticmethod
    def _add(sums: _Sums, expected: Array, found: Array, kind: Kind) -> bool:
        """Add one sample, and return whether the decision is another one."""
        noise, signal = noise_to_signal(expected, found)
        sums.noise += noise
        sums.signal += signal
        sums.cosine += cosine_distance(expected, found)
        if kind == "numbers":
            return False
        sums.divergence += divergence(expected, found, kind)
        return bool(np.any(decisions(expected, kind) != decisions(found, kind)))

    def _sensitivity(self, name: str, sums: Mapping[str, _Sums], flips: int) -> Sensitivity:
        n = len(self.feeds)
        deciding = [output for output, kind in self.kinds.items() if kind != "numbers"]
        nsr = math.fsum(one.nsr() for one in sums.values()) / len(sums)
        return Sensitivity(
            node=name,
            kl=math.fsum(sums[output].divergence for output in deciding) / n if deciding else None,
            nsr=nsr,
            cosine=math.fsum(one.cosine for one in sums.values()) / (n * len(sums)),
            flips=flips if deciding else None,
            sqnr_db=-10 * math.log10(nsr) if nsr > 0 else None,
            n=n,
        )


def _real(outputs: Outputs) -> dict[str, Array]:
    """Return the outputs of real numbers as float32; whole numbers (indices, counts) have no distance."""
    return {
        name: np.asarray(output).astype(np.float32, copy=False)
        for name, output in outputs.items()
        if output.dtype.kind in "fV" and output.size
    }


def _refuse_nan(outputs: Outputs, sample: int) -> None:
    for name, output in outputs.items():
        if np.isnan(output).any():
            raise DataError(
                f"The outputs of the reference have to be numbers, but sample {sample} makes NaN in `{name}`.",
                hint="Look for NaN or extreme values in that sample, and for a wrong pre-processing.",
            )


def _checked(found: Array | None, expected: Array, *, where: tuple[str, str, int]) -> Array:
    variant, output, sample = where
    if found is None or found.shape != expected.shape:
        came = "nothing" if found is None else f"shape {found.shape}"
        raise ContractError(f"`{variant}` has to give `{output}` with shape {expected.shape}, but gives {came}.")
    if not np.isfinite(found[np.isfinite(expected)]).all():
        raise ModelError(
            f"`{variant}` has to give numbers where the reference does, but sample {sample} makes NaN or an infinity "
            f"in `{output}`."
        )
    return found


def _log_probabilities(values: Array) -> Floats:
    probabilities = np.maximum(np.asarray(values, np.float64), SMALLEST_PROBABILITY)
    # Integers do not sum to exactly 1, and only distributions have a divergence of at least 0.
    result: Floats = np.log(probabilities / probabilities.sum(axis=-1, keepdims=True))
    return result


def _renamed(one: Sensitivity, prefix: str) -> Sensitivity:
    return msgspec.structs.replace(one, node=one.node.removeprefix(prefix))
