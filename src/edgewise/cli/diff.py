"""`edgewise diff`: where two models part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from edgewise.cli import options
from edgewise.cli.command import command, json_option
from edgewise.cli.console import progress
from edgewise.cli.quantities import seconds
from edgewise.cli.tables import table
from edgewise.pipeline.culprits import LEAST_SHARE_ALONE, Culprit, Culprits
from edgewise.pipeline.diff import Difference, TensorError
from edgewise.pipeline.diff import diff as run_diff
from edgewise.records.codec import encode, indent

WEIGHTS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Layers whose weights were rounded."""


@command(
    "edgewise diff model.onnx model.edgewise --data samples.npz",
    "edgewise diff model.onnx quantized.onnx --data samples.npz --costs 3",
)
@click.argument("first", metavar="A", type=Path, help="ONNX file or bundle: the reference.")
@click.argument("second", metavar="B", type=Path, help="ONNX file or bundle.")
@options.samples
@options.number("--samples", default=32, help="How many samples to run.")
@options.number("--top", default=20, help="How many tensors and layers to show.")
@click.option(
    "--costs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="K",
    help="Of how many of the worst quantized layers to measure what keeping them in floating point costs.",
)
@click.option("--time", default="10s", show_default=True, metavar="TIME", help="Time for measuring these costs: `10s`.")
@options.reading
@json_option
def diff(
    first: Path,
    second: Path,
    *,
    data: str,
    samples: int,
    top: int,
    costs: int,
    time: str,
    label: str | None,
    settings: Path | None,
    shape: tuple[str, ...],
    state: tuple[str, ...],
    json: bool,
) -> None:
    """Compare every tensor that two models share; the nodes that add most of the error come first.

    Where B is quantized, also measure what each of its layers does to the outputs, and say why: `gained` is the damage
    that goes away when this layer alone is in floating point.
    """
    with progress() as shown:
        result = run_diff(
            first,
            second,
            data=options.data_request(data, label=label, settings=settings, shape=shape, state=state),
            samples=samples,
            costs=costs,
            budget_s=seconds(time, "--time"),
            progress=shown,
        )
    click.echo(indent(encode(result)).decode() if json else render(result, top))


def render(result: Difference, top: int) -> str:
    """Return the culprits as tables, and how many tensors are equal."""
    off = result.culprits()
    equal = len(result.tensors) - len(off)
    parts = [f"{len(result.tensors)} shared tensors over {result.samples} samples: {equal} equal, {len(off)} off"]
    if result.rescaled:
        parts.append(
            "B's channels were scaled before it was quantized, without a change of the function. A's are scaled "
            f"likewise here, in {len(result.rescaled)} tensors, so that only errors differ."
        )
    if off:
        headings = ("tensor", "operator", "SQNR dB", "adds dB", "largest difference")
        parts.append(table(headings, [_row(error) for error in off[:top]], right=(2, 3, 4)))
    if result.quantization is not None:
        parts.extend(_quantization(result.quantization, top))
    return "\n\n".join(parts)


def _row(error: TensorError) -> tuple[str, ...]:
    return (
        error.tensor,
        error.operator,
        "-" if error.sqnr_db is None else f"{error.sqnr_db:.1f}",
        "-" if error.arises_db is None else f"{error.arises_db:+.1f}",
        f"{error.largest:.4g}",
    )


def _quantization(found: Culprits, top: int) -> Iterator[str]:
    whole = found.whole
    flips = "" if whole.flips is None else f", {whole.flips} of {whole.n} answers differ"
    noise = "the outputs are equal" if whole.sqnr_db is None else f"SQNR {whole.sqnr_db:.1f} dB"
    yield (
        f"{len(found.layers)} quantized layers, {len(found.floats)} in floating point: {found.measure} "
        f"{whole.damage:.3g}, {noise}{flips}; {found.rest:.3g} remains with all of them restored"
    )
    if found.weights_found < sum(layer.operator in WEIGHTS for layer in found.layers):
        yield (
            f"The weights before rounding were found in A for {found.weights_found} layers; the others are restored "
            "with rounded weights. Where A's weights are others than those that B was made of, tensors in between may "
            "differ for that alone: go by the outputs and by the layers below."
        )
    alone = sum(max(0.0, layer.gained or 0.0) for layer in found.layers)
    if alone < LEAST_SHARE_ALONE * whole.damage:
        yield (
            f"Restored one at a time, all layers together take away {alone / whole.damage:.0%} of the damage: several "
            "do it jointly, so that none of them alone in floating point helps, and they need not be those at the top."
            + _together(found)
        )
    costs = any(layer.cost is not None for layer in found.layers)
    headings = ["layer", "operator", "share", "gained", "flips"]
    headings += ([found.metric] if found.metric else []) + (["costs us"] if costs else [])
    rows = [_layer_row(layer, points=bool(found.metric), costs=costs) for layer in found.layers[:top]]
    yield table([*headings, "cause", "why"], rows, right=tuple(range(2, len(headings))))
    if found.floats:
        floats = [(layer.node, layer.operator, layer.why) for layer in found.floats[:top]]
        yield table(("in floating point", "operator", "why"), floats)


def _together(found: Culprits) -> str:
    if not found.joint:
        return ""
    names = ", ".join(f"`{name}`" for name in found.joint)
    return f" Together in floating point, {names} take away {found.joint_share:.0%}."


def _layer_row(layer: Culprit, *, points: bool, costs: bool) -> tuple[str, ...]:
    cells = [
        layer.node,
        layer.operator,
        "-" if layer.share is None else f"{layer.share:.1%}",
        "-" if layer.gained is None else f"{layer.gained:.3g}",
        "-" if layer.flips is None else f"{-layer.flips:+d}" if layer.flips else "0",
    ]
    if points:
        cells.append("-" if layer.points is None else f"{layer.points:+.4f}")
    if costs:
        cost = layer.cost
        cells.append("-" if cost is None else f"{cost.extra_us:+.1f} ({cost.low:+.1f} to {cost.high:+.1f})")
    return (*cells, layer.cause, layer.why)
