"""`edgewise inspect`: what a model holds, costs, and what can be done with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from edgewise.cli import options
from edgewise.cli.command import command, json_option
from edgewise.cli.declines import grouped
from edgewise.cli.tables import table
from edgewise.pipeline.inspect import BackendView, Inspection
from edgewise.pipeline.inspect import inspect as run_inspect
from edgewise.records.codec import encode, indent
from edgewise.records.findings import Decline
from edgewise.records.tensors import Port

MOST_LAYERS: Final = 12


@command("edgewise inspect model.onnx", "edgewise inspect model.onnx --shape x=1,3,48,320 --verbose")
@options.model
@options.shape
@click.option("--verbose", is_flag=True, help="Name every node that was declined.")
@json_option
def inspect(model: Path, *, shape: tuple[str, ...], verbose: bool, json: bool) -> None:
    """Show what a model holds and costs, its least latency, and what fusion, int8, pruning and backends make of it."""
    inspection = run_inspect(model, options.shapes(shape))
    click.echo(indent(encode(inspection)).decode() if json else render(inspection, verbose=verbose))


def render(inspection: Inspection, *, verbose: bool) -> str:
    """Return the inspection as text."""
    facts = inspection.facts
    operators = ", ".join(f"{count} {name}" for name, count in sorted(facts.operators.items(), key=lambda i: -i[1]))
    gflops, gigabytes = inspection.macs_per_us * 2 / 1e3, inspection.bytes_per_us / 1e3
    bound = f"{inspection.least_us / 1e3:.3f} ms in float32 on one thread here"
    rows = [
        ("model", f"{facts.name}, opset {facts.opset}"),
        ("inputs", "; ".join(_port(port) for port in facts.inputs)),
        ("outputs", "; ".join(_port(port) for port in facts.outputs)),
        ("operators", operators),
        ("arithmetic", f"{facts.macs / 1e6:,.1f} million multiply-accumulates"),
        ("weights", f"{facts.parameters:,} in {facts.weight_bytes / 1e6:.2f} MB"),
        ("activations", f"peak {facts.activation_peak_bytes / 1e6:.2f} MB"),
        ("lower bound", f"{bound} ({gflops:.0f} GFLOP/s and {gigabytes:.0f} GB/s measured)"),
        ("fusion", _fusion(inspection)),
    ]
    parts = [table((), rows)]
    for index, view in enumerate(inspection.backends):
        parts.append(_backend(view, inspection.backends[:index], verbose=verbose))
    parts.append(_prunable(inspection, verbose=verbose))
    pruning = [decline for decline in inspection.quantization if decline.stage.startswith("prune")]
    if pruning:
        parts.append("declined when it was pruned:\n" + grouped(pruning, verbose=verbose))
    if rest := [decline for decline in inspection.quantization if decline not in pruning]:
        parts.append("float or wider when it was quantized:\n" + grouped(rest, verbose=verbose))
    if inspection.declines:
        parts.append("not fused:\n" + grouped(inspection.declines, verbose=verbose))
    parts.append(_layers(inspection))
    return "\n\n".join(parts)


def _port(port: Port) -> str:
    return f"{port.name} {port.dtype} [{', '.join(map(str, port.shape))}]"


def _fusion(inspection: Inspection) -> str:
    if inspection.fused_nodes is None:
        return "not possible"
    before = sum(inspection.facts.operators.values())
    return f"{before} nodes become {inspection.fused_nodes}, by {len(inspection.changes)} changes"


def _backend(view: BackendView, others: Sequence[BackendView], *, verbose: bool) -> str:
    """Return what a backend makes of the model; what holds of one of the `others` as well is not listed again."""
    lines = [f"{view.backend}: {view.state}"]
    if view.lacks:
        lines.append(grouped(view.lacks, verbose=verbose))
    if view.state != "missing":
        lines.append(f"  int8: {view.quantized} nodes")
    same = next((other.backend for other in others if other.floats == view.floats), None)
    if view.floats and same is not None:
        lines.append(f"  float: {len(view.floats)} nodes, as in {same}")
    elif view.floats:
        lines.append(f"  float: {len(view.floats)} nodes\n{grouped(view.floats, verbose=verbose)}")
    return "\n".join(lines)


def _prunable(inspection: Inspection, *, verbose: bool) -> str:
    """Return what can be pruned, and what cannot."""
    found = inspection.prunable
    if found is None:
        why = "it cannot be fused" if inspection.fused_nodes is None else "it is quantized already; prune the float one"
        return f"prunable: nothing of this model, because {why}"
    units = sum(group.size for group in found.groups)
    kinds = Counter(region.kind for region in found.regions)
    lines = [
        "prunable:",
        f"  units: {units} in {_counted(len(found.groups), 'group')}",
        f"  layers: {_counted(kinds['branch'], 'residual branch')} and {_counted(kinds['stretch'], 'other stretch')}",
    ]
    if verbose:
        lines += [f"  {one.name}: {one.size} units, made by {', '.join(one.makers)}" for one in found.groups]
        lines += [f"  {one.name}: {one.kind} of {_counted(one.nodes, 'node')}" for one in found.regions]
    if found.pinned:
        pinned = [Decline(stage="prune", node=p.node, operator=p.operator, reason=p.reason) for p in found.pinned]
        units = sum(one.units for one in found.pinned)
        lines.append(f"  pinned: {units} units of {_counted(len(pinned), 'node')}\n{grouped(pinned, verbose=verbose)}")
    return "\n".join(lines)


def _counted(count: int, what: str) -> str:
    ending = "es" if what.endswith("ch") else "s"
    return f"{count} {what}{'' if count == 1 else ending}"


def _layers(inspection: Inspection) -> str:
    total = max(1, sum(layer.macs for layer in inspection.layers))
    most = sorted(inspection.layers, key=lambda layer: -layer.macs)[:MOST_LAYERS]
    rows = [
        (layer.node, layer.operator, f"{layer.macs / 1e6:.2f}", f"{layer.macs / total:.1%}", f"{layer.weight_bytes:,}")
        for layer in most
        if layer.macs
    ]
    return table(("layer", "operator", "MMAC", "share", "weight bytes"), rows, right=(2, 3, 4))
