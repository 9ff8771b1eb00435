"""`edgewise prune`: one kind of pruning alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from edgewise.cli import options
from edgewise.cli.command import command, json_option
from edgewise.cli.console import progress
from edgewise.cli.declines import grouped
from edgewise.cli.quantities import fraction, seconds
from edgewise.cli.tables import table
from edgewise.errors import RecipeError
from edgewise.pipeline.pruning import Ask, Layers, Neurons, PruneResult, Time, Way, Weights, prune_file
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import encode, indent
from edgewise.records.pruning import GroupWidth, Pruning

_TIMES: Final = re.compile(r"(\d*\.?\d+)\s*x")
_MOST_GROUPS: Final = 40


@command(
    "edgewise prune model.onnx --data samples.npz --latency 0.6x",
    "edgewise prune model.onnx --data samples.npz --neurons 0.3 --out narrow.onnx",
    "edgewise prune model.onnx --data samples.npz --weights 0.8 --pattern 1x4",
)
@options.model
@options.samples
@click.option("--neurons", metavar="SHARE", help="Share of the channels and hidden units to remove: `0.3`, `30%`.")
@click.option("--layers", type=options.count, metavar="N", help="Residual branches or blocks to remove.")
@click.option("--weights", metavar="SHARE", help="Share of the weights to set to zero: `0.8`.")
@click.option("--pattern", metavar="NAME", help="Where zeros may be: unstructured, 1x4, 2:4.  [default: unstructured]")
@click.option("--latency", metavar="RATIO", help="Time to reach, measured, against the model as it is: `0.6x`.")
@click.option("--recover", metavar="TIME", default="0s", show_default=True, help="Train the rest for so long: `5m`.")
@click.option("--backend", metavar="NAME", default="ort", show_default=True, help="Where the result will run.")
@options.number("--threads", default=1, help="Threads of one inference.")
@click.option("--float", "as_float", is_flag=True, help="Time the float model, not the one with 8-bit layers.")
@click.option("--out", type=Path, metavar="FILE", help="ONNX file to write.  [default: MODEL_pruned.onnx]")
@options.reading
@options.seed
@json_option
def prune(
    model: Path,
    *,
    data: str,
    neurons: str | None,
    layers: int | None,
    weights: str | None,
    pattern: str | None,
    latency: str | None,
    recover: str,
    backend: str,
    threads: int,
    as_float: bool,
    out: Path | None,
    label: str | None,
    settings: Path | None,
    shape: tuple[str, ...],
    state: tuple[str, ...],
    seed: int,
    json: bool,
) -> None:
    """Remove neurons, layers or weights from a model, and make up for them on unlabelled samples.

    Give one of --neurons, --layers, --weights and --latency. The result is ordinary ONNX. Nothing is certified: that
    is what `edgewise optimize` does.
    """
    asked = _asked(neurons, layers, weights, pattern, latency)
    way = Way(
        backend=backend,
        quantized=not as_float,
        options=RunOptions(threads=threads),
        recover_s=seconds(recover, "--recover"),
        seed=seed,
    )
    with progress() as shown:
        result = prune_file(
            model,
            options.data_request(data, label=label, settings=settings, shape=shape, state=state, seed=seed),
            asked,
            way,
            out=out or model.with_name(f"{model.stem}_pruned.onnx"),
            progress=shown,
        )
    click.echo(indent(encode(result)).decode() if json else render(result))


def _asked(
    neurons: str | None, layers: int | None, weights: str | None, pattern: str | None, latency: str | None
) -> Ask:
    """Return the one thing that was asked for.

    Raises:
        RecipeError: If it is none, or several, or a pattern of nothing.
    """
    found: list[Ask] = []
    if neurons is not None:
        found.append(Neurons(share=fraction(neurons, "--neurons")))
    if layers is not None:
        found.append(Layers(count=layers))
    if weights is not None:
        share = fraction(weights, "--weights")
        found.append(Weights(share=share, pattern=pattern or "unstructured"))  # type: ignore[arg-type]  # it is checked
    if latency is not None:
        found.append(Time(share=_ratio(latency)))
    if len(found) != 1:
        raise RecipeError(
            f"One of --neurons, --layers, --weights and --latency has to be given. Received {len(found)}.",
            hint="`--latency 0.6x` takes what does the least damage; `edgewise optimize` does everything together.",
        )
    if pattern is not None and weights is None:
        raise RecipeError(
            "`--pattern` says where zeros may be, but no `--weights` are set to zero.",
            hint="For example `--weights 0.5 --pattern 2:4`.",
        )
    return found[0]


def _ratio(text: str) -> float:
    """Return `0.6x` as a number.

    Raises:
        RecipeError: If it is no such ratio.
    """
    match = _TIMES.fullmatch(text.strip())
    if match is None:
        raise RecipeError(
            f"`--latency` has to be a ratio to the model as it is. Received `{text}`.",
            hint="For example `--latency 0.6x` for 60 % of its time.",
        )
    return float(match[1])


def render(result: PruneResult) -> str:
    """Return what was taken, and what is left, as text."""
    pruning = result.pruning
    parts = [table(("", "before", "after", "ratio"), _sizes(pruning), right=(1, 2, 3))]
    if pruning.layers:
        rows = [(one.name, one.operators, f"{one.macs / 1e6:.2f}", one.stand_in) for one in pruning.layers]
        parts.append(table(("removed layer", "operators", "MMAC", "in its place"), rows, right=(2,)))
    if narrowed := pruning.narrowed:
        shown = narrowed[:_MOST_GROUPS]
        groups = [(one.name, ", ".join(one.makers), str(one.before), str(one.after), _error(one)) for one in shown]
        parts.append(table(("units", "made by", "before", "after", "error"), groups, right=(2, 3, 4)))
        if len(shown) < len(narrowed):
            parts.append(f"and {len(narrowed) - len(shown)} more groups; `--json` lists all")
    if result.declines:
        parts.append("declined:\n" + grouped(result.declines))
    parts.append(" ".join(_says(result)))
    if result.open_batch is not None:
        parts.append(f"The batch `{result.open_batch}` is fixed to 1: the model takes one sample at a time.")
    parts.append(result.file)
    return "\n\n".join(parts)


def _error(group: GroupWidth) -> str:
    return "" if group.error is None else f"{group.error:.1%}"


def _sizes(pruning: Pruning) -> list[tuple[str, str, str, str]]:
    rows = [
        ("million multiply-accumulates", pruning.macs_before / 1e6, pruning.macs_after / 1e6),
        ("thousand weights", pruning.parameters_before / 1e3, pruning.parameters_after / 1e3),
    ]
    return [(what, f"{a:,.2f}", f"{b:,.2f}", f"{b / a:.2f}x" if a else "") for what, a, b in rows]


def _says(result: PruneResult) -> list[str]:
    """Return in sentences what it came to."""
    said = [_fidelity(result)]
    timed = [trial.time for trial in result.pruning.trials if trial.time is not None]
    if timed:
        said.append(f"Measured time: {timed[-1]:.2f}x of the whole model's.")
    if isinstance(result.asked, Weights):
        said.append(
            f"{result.zeros:.0%} of the weights are zero. Zeros make the archive of `edgewise bundle pack` smaller, "
            "not the model faster."
        )
    return said


def _fidelity(result: PruneResult) -> str:
    """Return in a sentence how far the result's answers are from the whole model's."""
    found = result.held_out
    noise = f"{100 * found.nsr:.2g} % noise at the outputs"
    if found.flips is None:
        return f"On {found.n} held-out samples: {noise}."
    return f"On {found.n} held-out samples: {found.flips} answers changed, {noise}."
