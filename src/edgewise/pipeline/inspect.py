"""What a model holds, what it costs, and what can be done with it: without samples, and without changing anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.cost import layer_costs
from edgewise.analysis.roofline import PeakRates, lower_bound_us
from edgewise.backends import registry
from edgewise.compress.quantize.placement import place
from edgewise.compress.quantize.reasons import read_reasons
from edgewise.errors import BackendMissingError, ContractError, ModelError
from edgewise.passes.apply import optimize as fuse
from edgewise.pipeline.inputs import load_model
from edgewise.pipeline.judge import open_judge
from edgewise.pipeline.pruning import is_quantized
from edgewise.pipeline.pruning_choices import Parts
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import Record
from edgewise.records.findings import Change, Decline
from edgewise.records.measurements import LayerCost
from edgewise.records.run import ModelFacts

MATRIX: Final = 768
"""Side of the matrices whose product gives the peak rate: large enough to be bound by arithmetic, 0.45 GMAC."""

COPIED: Final = 1 << 27
"""Bytes that are copied to measure memory: more than any cache holds."""

REPEATS: Final = 20


class BackendView(Record, frozen=True, kw_only=True):
    """What one backend can do with a model.

    Attributes:
        backend: Its name.
        state: `runs`, `lacks operators`, or `missing`.
        lacks: The nodes that it cannot run, and why.
        quantized: How many nodes would become 8-bit.
        floats: Nodes with weights or reached by 8-bit ones that stay float, and why.
    """

    backend: str
    state: str
    lacks: tuple[Decline, ...] = ()
    quantized: int = 0
    floats: tuple[Decline, ...] = ()


class UnitGroup(Record, frozen=True, kw_only=True):
    """Units of which any may be removed.

    Attributes:
        name: Name of the value in which they first appear.
        size: How many there are.
        makers: Nodes that make them.
        readers: Nodes that sum over them.
    """

    name: str
    size: int
    makers: tuple[str, ...]
    readers: tuple[str, ...]


class LayerRegion(Record, frozen=True, kw_only=True):
    """Layers that can go together.

    Attributes:
        name: Name of the value that they make.
        kind: Whether they are a residual branch, or a stretch whose end can become its beginning.
        nodes: How many nodes they are.
        macs: Multiply-accumulates of one inference.
    """

    name: str
    kind: str
    nodes: int
    macs: int


class PinnedUnits(Record, frozen=True, kw_only=True):
    """Units that have to stay.

    Attributes:
        node: Node that makes them.
        operator: Its type.
        units: How many there are.
        reason: Why they stay.
    """

    node: str
    operator: str
    units: int
    reason: str


class Prunable(Record, frozen=True, kw_only=True):
    """What can be pruned, of the model after fusion.

    Attributes:
        groups: Channels, hidden units and heads that can go, each group independently of the others.
        regions: Residual branches and stretches of layers that can go, none inside of another.
        pinned: Units that have to stay, and why.
    """

    groups: tuple[UnitGroup, ...] = ()
    regions: tuple[LayerRegion, ...] = ()
    pinned: tuple[PinnedUnits, ...] = ()


class Inspection(Record, frozen=True, kw_only=True):
    """All that `edgewise inspect` says.

    Attributes:
        facts: The model.
        layers: Its nodes, in graph order.
        least_us: No float32 run on one thread of this machine can take less: its arithmetic at the peak rate. Memory is
            left out, because the weights of small models stay in the caches between runs.
        macs_per_us: Peak rate that was measured for it: a matrix product in ONNX Runtime on one thread.
        bytes_per_us: The same of memory: a copy in numpy, bytes read and written.
        fused_nodes: Nodes after the passes, or None where the model cannot be fused.
        changes: What the passes do.
        declines: What they decline, and operators outside of the standard.
        backends: What each backend can do.
        quantization: What stayed float when the model was quantized, and why, where the model says so; of a pruned
            model what was not made up for.
        prunable: What can be pruned; None where the model is quantized already or cannot be fused: nothing then.
    """

    facts: ModelFacts
    layers: tuple[LayerCost, ...]
    least_us: float
    macs_per_us: float
    bytes_per_us: float
    fused_nodes: int | None
    changes: tuple[Change, ...]
    declines: tuple[Decline, ...]
    backends: tuple[BackendView, ...]
    quantization: tuple[Decline, ...] = ()
    prunable: Prunable | None = None


def inspect(path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> Inspection:
    """Look at a model file.

    Raises:
        ModelError: If it cannot be read.
        RecipeError: If a dynamic dimension has to be given with `--shape`.
    """
    model = load_model(path, shapes)
    try:
        fused, findings = fuse(model.fixed)
        changes, declines = tuple(findings.changes), tuple(findings.declines)
    except (ModelError, ContractError) as error:
        fused, changes = None, ()
        declines = (Decline(stage="fuse", node="", operator="", reason=error.message),)
    rates = measure_peaks()
    facts = model.facts
    return Inspection(
        facts=facts,
        layers=layer_costs(model.fixed),
        least_us=lower_bound_us(facts.macs, 0, rates),
        macs_per_us=rates.macs_per_us,
        bytes_per_us=rates.bytes_per_us,
        fused_nodes=None if fused is None else len(fused.graph),
        changes=changes,
        declines=(*model.declines, *declines),
        backends=tuple(_view(name, model.fixed, fused) for name, entry in registry.BACKENDS.items() if entry.fast),
        quantization=read_reasons(model.fixed),
        prunable=None if fused is None or is_quantized(model.fixed) else _prunable(fused),
    )


def _prunable(model: ir.Model) -> Prunable:
    parts = Parts(model, step=1)
    return Prunable(
        groups=tuple(
            UnitGroup(
                name=group.name,
                size=group.size,
                makers=group.makers,
                readers=tuple(dict.fromkeys(reader.node for reader in group.readers)),
            )
            for group in parts.coupling.groups
        ),
        regions=tuple(
            LayerRegion(name=region.name, kind=region.kind, nodes=len(region.nodes), macs=region.macs)
            for region in parts.regions.values()
        ),
        pinned=tuple(
            PinnedUnits(node=one.node, operator=one.operator, units=one.units, reason=one.reason)
            for one in parts.coupling.pinned
        ),
    )


def _view(name: str, model: ir.Model, fused: ir.Model | None) -> BackendView:
    backend = registry.get(name)
    try:
        lacks = backend.why_not(model)
    except BackendMissingError as error:
        return BackendView(
            backend=name,
            state="missing",
            lacks=(Decline(stage=name, node="", operator="", reason=error.hint or error.message),),
        )
    if fused is None:
        return BackendView(backend=name, state="lacks operators" if lacks else "runs", lacks=lacks)
    placement = place(fused, backend.target())
    return BackendView(
        backend=name,
        state="lacks operators" if lacks else "runs",
        lacks=lacks,
        quantized=len(placement.weighted) + len(placement.others),
        floats=placement.declines,
    )


def measure_peaks() -> PeakRates:
    """Measure what one thread of this machine does at most: best of a few runs, since a peak is what is sought."""
    matrix = np.ones((MATRIX, MATRIX), np.float32)
    with closing(open_judge(_product(), RunOptions())) as session:
        product_s = _best_seconds(lambda: session.run({"a": matrix, "b": matrix}))
    source = np.ones(COPIED, np.uint8)
    target = np.empty_like(source)
    copy_s = _best_seconds(lambda: np.copyto(target, source))
    return PeakRates(macs_per_us=MATRIX**3 / product_s * 1e-6, bytes_per_us=2 * COPIED / copy_s * 1e-6)


def _best_seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _product() -> ir.Model:
    """Return a model that multiplies two matrices."""
    shape = ir.Shape([MATRIX, MATRIX])
    real = ir.TensorType(ir.DataType.FLOAT)
    a, b = (ir.Value(name=name, shape=shape, type=real) for name in ("a", "b"))
    node = ir.Node("", "MatMul", [a, b], outputs=[ir.Value(name="c", shape=shape, type=real)])
    return ir.Model(ir.Graph([a, b], node.outputs, nodes=[node], opset_imports={"": 17}, name="product"), ir_version=10)
