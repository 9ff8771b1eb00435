"""Chooses ranges of activations by the error that they make at the outputs of the layers that read them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.target import Target
from edgewise.compress import nodes
from edgewise.compress.histogram import Histogram
from edgewise.compress.quantize import affine, ranges
from edgewise.compress.quantize.placement import Placement, Site, final, place
from edgewise.compress.quantize.ranges import Range
from edgewise.compress.runner import Opener
from edgewise.compress.statistics import Statistics, observe
from edgewise.errors import ContractError, DataError, RecipeError
from edgewise.records.tensors import Array, Feeds, Outputs, Run

SAMPLES: Final = 16
"""How many samples are enough to tell ranges apart.

Empirical, on three small networks: with clipping corrected to what all calibration samples say of it, 16 samples lead
to the same signal-to-noise ratio at the outputs of the model as 64, within 0.4 dB. Without it they clip too much:
1.7 dB worse for a residual network, 6 dB for one with rare large values, and 0.7 dB for the third.
"""

FloatArray = npt.NDArray[np.float32]
Sum = npt.NDArray[np.float64]
Parameters = tuple[float, int]


def choose_ranges(
    model: ir.Model,
    target: Target,
    statistics: Statistics,
    open_model: Opener,
    feeds: Iterable[Feeds],
    *,
    bits: int = 8,
    keep: Collection[str] = (),
    samples: int = SAMPLES,
) -> dict[str, Range]:
    """Return, for every tensor that becomes integers, the candidate range with the least error at its readers' outputs.

    Each candidate of `ranges.candidates` is tried on its own, every other tensor being exact: the tensor is rounded to
    integers and back, and the 8-bit nodes that read it, with the activations fused into them, are run on the result. A
    candidate's error is the sum over these nodes of the squared error of their outputs, divided by the outputs' squared
    norm. Errors that a Relu behind the layer cuts off do not count. Where a tensor goes to the model's outputs or to
    nodes that stay float, its own relative error counts as well. For tensors that have to share one range, the sum over
    them decides. (Nahshan et al. 2021, "Loss Aware Post-training Quantization", choose clipping by what comes out of
    the model; Nagel et al. 2020, "Up or Down?", section 3.2, show that the output of the layer stands in for it.)

    Memory: the observed tensors of one sample, and the weights of the readers once more.

    Args:
        model: The model, with inferred types; not changed.
        target: Where it will run.
        statistics: Of `observed_tensors(model, target)`.
        open_model: Opens the observed model, and one small model for each tensor.
        feeds: Samples; the first `samples` are read, each once.
        bits: Width of the activations' integers, 8 or 16.
        keep: Nodes that stay float, by `placement.label`.
        samples: Most samples to read, >= 1.

    Returns:
        `(low, high)` with `low <= 0 <= high` by tensor, for every site of the placement. The widest of the best where
        several candidates are equally good.

    Raises:
        RecipeError: If `bits` is neither 8 nor 16.
        DataError: If there is no sample.
        ContractError: If a tensor's statistics are missing, or a run does not give what was asked of it.
    """
    dtype = integer_type(target, bits)
    placement = place(model, target, keep=keep)
    groups = _groups(placement, statistics, levels=2**bits)
    undecided = [group for group in groups if len(group.candidates) > 1]
    if undecided:
        tried = [(_Trial(model, site, placement), group) for group in undecided for site in group.sites]
        _measure(model, tried, open_model, itertools.islice(feeds, samples), dtype)
        for trial, group in tried:
            histogram = statistics.tensors[trial.name].histogram
            group.errors += trial.relative_error([ranges.clipping_error(histogram, one) for one in group.candidates])
    return {_name(site.value): group.best() for group in groups for site in group.sites}


def integer_type(target: Target, bits: int) -> str:
    """Return the numpy name of the integers that activations of `bits` bits become on `target`.

    Raises:
        RecipeError: If `bits` is neither 8 nor 16.
    """
    if bits not in (8, 16):
        raise RecipeError(f"Activations have to have 8 or 16 bits. Received `bits={bits}`.")
    return target.activation_type if bits == 8 else target.activation_type.replace("8", "16")


@dataclass
class _Group:
    """Tensors that get one range, and the errors of its candidates.

    Attributes:
        sites: The tensors.
        candidates: Ranges, the widest first.
        errors: Sum of the relative errors of each candidate, shape `[len(candidates)]`.
    """

    sites: tuple[Site, ...]
    candidates: tuple[Range, ...]
    errors: Sum = field(init=False)

    def __post_init__(self) -> None:
        self.errors = np.zeros(len(self.candidates))

    def parameters(self, dtype: str) -> list[Parameters]:
        """Return scale and zero point of every candidate."""
        return [affine.parameters(low, high, dtype) for low, high in self.candidates]

    def best(self) -> Range:
        """Return the first of the best candidates; the widest where no error is a finite number."""
        return self.candidates[int(np.argmin(np.nan_to_num(self.errors, nan=np.inf, posinf=np.inf)))]


def _groups(placement: Placement, statistics: Statistics, *, levels: int) -> list[_Group]:
    """Return the tensors in graph order, together where they share a range, with its candidates."""
    members: dict[str, frozenset[str]] = {}
    sources: dict[str, frozenset[str]] = {}
    for names, makers in placement.shared:
        members.update(dict.fromkeys(names, names))
        sources.update(dict.fromkeys(names, makers))
    groups: dict[frozenset[str], list[Site]] = {}
    for site in placement.sites:
        name = _name(site.value)
        groups.setdefault(members.get(name, frozenset({name})), []).append(site)
    return [
        _Group(tuple(sites), ranges.candidates(*_seen(sources.get(_name(sites[0].value), names), statistics), levels))
        for names, sites in groups.items()
    ]


def _seen(names: Iterable[str], statistics: Statistics) -> tuple[Histogram, float, float]:
    """Return the histogram and the extremes of the tensors `names` together."""
    merged, low, high = Histogram(), 0.0, 0.0
    for name in sorted(names):
        if name not in statistics.tensors:
            raise ContractError(f"Ranges need the statistics of `observed_tensors`, but `{name}` has none.")
        part = statistics.tensors[name]
        if part.count:
            merged.merge(part.histogram)
            low, high = min(low, part.low), max(high, part.high)
    return merged, low, high


class _Trial:
    """Tries ranges of one tensor on the nodes that read it.

    Attributes:
        name: The tensor.
        graph: The readers as a model of their own, or None where none can be run on its own.
        operands: What `graph` takes.
        alone: Whether the tensor's own error counts.
        run: Runs `graph`; set while it is open.
    """

    def __init__(self, model: ir.Model, site: Site, placement: Placement) -> None:
        self.name = _name(site.value)
        integer = {node for node, _ in placement.weighted} | set(placement.others)
        known = {_name(other.value) for other in placement.sites}
        readers = dict.fromkeys(node for node, _ in site.readers or site.value.uses())
        runnable = [node for node in readers if node in integer and _needs(node) <= known]
        self.alone = (
            len(runnable) < len(readers) or not readers or (site.readers is None and site.value.is_graph_output())
        )
        self.graph = _cut(model, runnable) if runnable else None
        self.operands = {self.name} | {_name(value) for value in self.graph.graph.inputs} if self.graph else {self.name}
        self.run: Run | None = None
        self.sums: _Sums | None = None

    def add(
        self, values: Mapping[str, Array], candidates: Sequence[Range], parameters: Sequence[Parameters], dtype: str
    ) -> None:
        """Try every candidate on one sample.

        Args:
            values: All observed tensors.
            candidates: The ranges.
            parameters: Scale and zero point of every candidate.
            dtype: Type of the integers.
        """
        exact = _float32(values, self.name)
        feeds = {name: _found(values, name) for name in self.operands}
        truth = self._outputs(feeds, exact)
        if self.sums is None:
            self.sums = _Sums.zeros(truth, len(candidates))
        self.sums.count += exact.size
        self.sums.own_energy += _square(exact)
        for name, output in truth.items():
            self.sums.energy[name] += _square(output)
        extremes = (exact.min(initial=0.0), exact.max(initial=0.0))
        for index, (chosen, (scale, zero_point)) in enumerate(zip(candidates, parameters, strict=True)):
            rounded = affine.round_trip(exact, scale, zero_point, dtype)
            self.sums.own_error[index] += _square(rounded - exact)
            if extremes[0] < chosen[0] or extremes[1] > chosen[1]:
                low, high = np.float32(chosen[0]), np.float32(chosen[1])
                self.sums.clipped[index] += _square(exact - np.clip(exact, low, high))
            for name, output in self._outputs({**feeds, self.name: rounded}, rounded).items():
                self.sums.error[name][index] += _square(output - truth[name])

    def relative_error(self, expected: Sequence[float]) -> Sum:
        """Return the error of every candidate; `_Sums.relative_error` says of what."""
        return np.zeros(len(expected)) if self.sums is None else self.sums.relative_error(np.array(expected))

    def _outputs(self, feeds: Feeds, own: FloatArray) -> Outputs:
        outputs = dict(self.run(feeds)) if self.run is not None else {}
        if self.alone:
            outputs[""] = own
        return outputs


@dataclass
class _Sums:
    """What was seen of one tensor's candidates, summed over the samples; arrays have the shape `[candidates]`.

    Attributes:
        energy: Squared norm of each output.
        error: Squared error of each output.
        own_error: Squared error of the tensor itself.
        clipped: The part of it that clipping makes.
        own_energy: Squared norm of the tensor.
        count: Values of the tensor.
    """

    energy: dict[str, float]
    error: dict[str, Sum]
    own_error: Sum
    clipped: Sum
    own_energy: float = 0.0
    count: int = 0

    @classmethod
    def zeros(cls, outputs: Iterable[str], candidates: int) -> _Sums:
        names = list(outputs)
        return cls(
            energy=dict.fromkeys(names, 0.0),
            error={name: np.zeros(candidates) for name in names},
            own_error=np.zeros(candidates),
            clipped=np.zeros(candidates),
        )

    def relative_error(self, expected: Sum) -> Sum:
        """Return the sum over the outputs of squared error over squared norm.

        A few samples hold few of the values that are clipped, or too many. What clipping costs is therefore corrected
        to what it costs on all calibration samples, as their histogram has it, at the rate at which errors of the
        tensor became errors of the outputs here (a ratio estimate: Cochran 1977, "Sampling Techniques", chapter 6).

        Args:
            expected: Mean squared error of a value by clipping, for each candidate.
        """
        rate = np.full(len(expected), 1.0 / (self.own_energy or 1.0))
        with np.errstate(invalid="ignore"):  # Infinite errors make NaN, which `_Group.best` passes over.
            measured = sum((error / (self.energy[name] or 1.0) for name, error in self.error.items()), np.zeros(1))
            np.divide(measured, self.own_error, out=rate, where=self.own_error > 0.0)
            return np.maximum(measured + rate * (self.count * expected - self.clipped), 0.0)


def _measure(
    model: ir.Model, tried: Sequence[tuple[_Trial, _Group]], open_model: Opener, feeds: Iterable[Feeds], dtype: str
) -> None:
    """Run the samples through `model` and through the readers of every tensor, and sum the errors of all candidates."""
    names = sorted({name for trial, _ in tried for name in trial.operands})
    count = 0
    with ExitStack() as stack:
        whole = stack.enter_context(open_model(observe(model, names)))
        for trial, _ in tried:
            if trial.graph is not None:
                # Opened once for all samples and candidates: that takes longer than a run.
                trial.run = stack.enter_context(open_model(trial.graph))
        for feed in feeds:
            values = {**whole(feed), **feed}
            count += 1
            for trial, group in tried:
                trial.add(values, group.candidates, group.parameters(dtype), dtype)
    if not count:
        raise DataError(
            "Choosing ranges needs at least one sample, but there is none.",
            hint="Give more samples, or a larger calibration split.",
        )


def _needs(node: ir.Node) -> set[str]:
    """Return the operands of `node` that are not constant."""
    return {_name(value) for value in node.inputs if value is not None and nodes.constant(value) is None}


def _cut(model: ir.Model, readers: Iterable[ir.Node]) -> ir.Model:
    """Return a model of `readers` and the activations that are fused into them; weights are shared.

    Its inputs are the operands that are not constant, under their own names, also where another reader makes one. Its
    outputs are what the last activation behind each node gives.
    """
    cutter = _Cutter()
    for reader in readers:
        cutter.add(reader)
    return cutter.model(model)


class _Cutter:
    """The state of one call of `_cut`."""

    def __init__(self) -> None:
        self.inputs: dict[str, ir.Value] = {}
        self.constants: dict[str, ir.Value] = {}
        self.nodes: list[ir.Node] = []
        self.outputs: list[ir.Value] = []

    def add(self, reader: ir.Node) -> None:
        """Copy `reader` and the activations that are fused into it."""
        twin = self._copy(reader, {})
        for output, copied in zip(reader.outputs, twin.outputs, strict=True):
            value, given, last = output, copied, final(output)
            while value is not last:
                (activation, _), *_ = value.uses()
                given = self._copy(activation, {value: given}).outputs[0]
                value = activation.outputs[0]
            if value.name:
                self.outputs.append(given)

    def model(self, whole: ir.Model) -> ir.Model:
        """Return the model; its operators are those of `whole`'s opset."""
        taken = self.inputs.keys() | self.constants.keys()
        number = 0
        for value in [value for node in self.nodes for value in node.outputs if value.name]:
            while f"made_{number}" in taken:
                number += 1
            value.name = f"made_{number}"
            number += 1
        graph = ir.Graph(
            list(self.inputs.values()),
            self.outputs,
            nodes=self.nodes,
            initializers=list(self.constants.values()),
            opset_imports=whole.graph.opset_imports,
            name="readers",
        )
        return ir.Model(graph, ir_version=whole.ir_version)

    def _copy(self, node: ir.Node, made: Mapping[ir.Value, ir.Value]) -> ir.Node:
        """Copy `node`; `made` are operands that nodes copied before it make."""
        twin = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else made.get(value) or self._operand(value) for value in node.inputs],
            node.attributes.values(),
            num_outputs=len(node.outputs),
        )
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            new.name, new.shape, new.type = old.name, old.shape, _type(old)
        self.nodes.append(twin)
        return twin

    def _operand(self, value: ir.Value) -> ir.Value:
        name, array = _name(value), nodes.constant(value)
        if array is not None:
            tensor = ir.Tensor(array, name=name)
            constant = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            return self.constants.setdefault(name, constant)
        return self.inputs.setdefault(name, ir.Value(name=name, shape=value.shape, type=_type(value)))


def _type(value: ir.Value) -> ir.TypeProtocol:
    # Where inference knew no type it is float32: of other types it would have been written down.
    return value.type or ir.TensorType(ir.DataType.FLOAT)


def _square(values: Array) -> float:
    """Return the sum of the squares; infinity where float32 cannot hold it."""
    flat = np.asarray(values, np.float32).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.dot(flat, flat))
    return total if math.isfinite(total) else math.inf


def _float32(values: Mapping[str, Array], name: str) -> FloatArray:
    return np.asarray(_found(values, name), np.float32)


def _found(values: Mapping[str, Array], name: str) -> Array:
    if name not in values:
        raise ContractError(f"The observed model has to give `{name}`, but its run did not.")
    return values[name]


def _name(value: ir.Value | None) -> str:
    return nodes.required(value).name or ""
