"""A whole run of the main job, as the report shows it."""

from __future__ import annotations

from edgewise.records.candidate import Candidate
from edgewise.records.certificate import Certificate, SyntheticCheck
from edgewise.records.codec import Record
from edgewise.records.findings import Change, Decline
from edgewise.records.machine import Machine
from edgewise.records.measurements import Accuracy, ColdStart, Energy, Latency, LayerCost, PeakMemory, Ratio
from edgewise.records.pruning import Pruning
from edgewise.records.quantization import QuantizationNoise
from edgewise.records.tensors import Port

RUN_SCHEMA = 1


class ModelFacts(Record, frozen=True, kw_only=True):
    """The user's model, as it was read.

    Attributes:
        name: File name.
        sha256: Hash of the model, weights included.
        opset: Version of the standard operator set in the file.
        inputs: Inputs after shapes were fixed.
        outputs: Outputs likewise.
        operators: Number of nodes by operator type.
        macs: Multiply-accumulates of one inference.
        parameters: Number of weights.
        weight_bytes: Bytes of the weights.
        activation_peak_bytes: Least memory for activations under the graph's own order.
    """

    name: str
    sha256: str
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: dict[str, int]
    macs: int
    parameters: int
    weight_bytes: int
    activation_peak_bytes: int


class DataFacts(Record, frozen=True, kw_only=True):
    """The samples: where they came from and how they were split.

    Attributes:
        source: What the user named.
        sha256: Fingerprint of the samples and labels.
        n: Samples in all.
        calibrate: Samples in the first split; select and certify likewise.
        labelled: Whether there are labels.
        metric: Name of the metric.
        seed: Seed of the split.
        synthetic: Whether there were no samples, so that synthetic ones were drawn: then nothing is certified, and
            `certify` counts those on which the rungs were compared with the untouched model at last.
    """

    source: str
    sha256: str
    n: int
    calibrate: int
    select: int
    certify: int
    labelled: bool
    metric: str
    seed: int
    synthetic: bool = False


class Outcome(Record, frozen=True, kw_only=True):
    """What became of one candidate.

    Attributes:
        candidate: The candidate.
        fate: `rejected` before it was measured in full, `measured`, `rung` of the ladder, or `chosen`.
        reason: Why it went no further, or why it was chosen.
        size_bytes: Bytes of its artifact.
        latency: Its latency, where it was measured.
        speedup: Against the untouched model in ONNX Runtime, from the same rounds.
        accuracy: On the select split.
        drop: Estimated drop on the select split against the untouched model (points, or relative; see Certificate).
        declines: What it could not do, node by node.
    """

    candidate: Candidate
    fate: str
    reason: str
    size_bytes: int | None = None
    latency: Latency | None = None
    speedup: Ratio | None = None
    accuracy: Accuracy | None = None
    drop: float | None = None
    declines: tuple[Decline, ...] = ()


class Rung(Record, frozen=True, kw_only=True):
    """One step of the ladder in the bundle, safest first.

    Attributes:
        candidate: The candidate.
        certificate: What was proven of it; None for the untouched model, which loses nothing.
        certified: Whether it is within the bound asked for (the untouched model always is).
        latency: Final latency, in one group with the untouched model.
        speedup: Final ratio to the untouched model in ONNX Runtime.
        cold_start: Cold start.
        memory: Peak memory of a fresh process.
        energy: Energy of one inference, or why not.
        size_bytes: Bytes of the artifact.
        layers: Cost of each layer, in graph order.
        check: What was seen on synthetic samples, where there were no others; None elsewhere.
    """

    candidate: Candidate
    certificate: Certificate | None
    certified: bool
    latency: Latency
    speedup: Ratio
    cold_start: ColdStart
    memory: PeakMemory
    energy: Energy
    size_bytes: int
    layers: tuple[LayerCost, ...]
    check: SyntheticCheck | None = None


class Run(Record, frozen=True, kw_only=True):
    """Everything that a report shows.

    Attributes:
        schema: Version of this record.
        edgewise: Version of edgewise.
        command: The command that reproduces the run.
        started: Start in UTC, ISO 8601.
        seconds: Wall-clock seconds that the run took, interruptions left out.
        model: The user's model.
        data: The samples.
        machine: The machine.
        changes: What the passes did.
        declines: What was not done and why, whole-model reasons first.
        outcomes: Every candidate, in the order in which they were tried.
        ladder: The untouched model first, then the rungs, safest first.
        chosen: Index into `ladder` of the default.
        verdict: The result in one sentence.
        notes: What the user should know, in full sentences.
        noise: Where quantization noise arises in the default, where that is quantized.
        pruning: What the default lost by pruning, where it was pruned.
    """

    schema: int
    edgewise: str
    command: str
    started: str
    seconds: float
    model: ModelFacts
    data: DataFacts
    machine: Machine
    changes: tuple[Change, ...]
    declines: tuple[Decline, ...]
    outcomes: tuple[Outcome, ...]
    ladder: tuple[Rung, ...]
    chosen: int
    verdict: str
    notes: tuple[str, ...]
    noise: QuantizationNoise | None = None
    pruning: Pruning | None = None
