"""`edgewise eval`: the metric of one model; of two, what the second loses."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.cli import options
from edgewise.cli.command import command, json_option
from edgewise.cli.console import progress
from edgewise.cli.quantities import fraction
from edgewise.cli.tables import table
from edgewise.pipeline.evaluate import Evaluation
from edgewise.pipeline.evaluate import evaluate as run_evaluate
from edgewise.records.certificate import Certificate
from edgewise.records.codec import encode, indent
from edgewise.report import quantities


@command(
    "edgewise eval model.onnx --data samples.npz",
    "edgewise eval model.onnx model.edgewise --data samples.npz --metric top5",
    name="eval",
)
@click.argument("first", metavar="A", type=Path, help="ONNX file or bundle.")
@click.argument("second", metavar="[B]", required=False, type=Path, help="Another one, compared with A.")
@options.samples
@options.metric
@click.option("--max-drop", metavar="DROP", default="1%", show_default=True, help="The bound to compare with.")
@options.reading
@json_option
def evaluate(
    first: Path,
    second: Path | None,
    *,
    data: str,
    metric: str | None,
    max_drop: str,
    label: str | None,
    settings: Path | None,
    shape: tuple[str, ...],
    state: tuple[str, ...],
    json: bool,
) -> None:
    """Score one model on all samples, with an interval; of two, bound what the second loses."""
    with progress() as shown:
        result = run_evaluate(
            first,
            second,
            data=options.data_request(data, label=label, settings=settings, shape=shape, state=state),
            metric=metric,
            max_drop=fraction(max_drop),
            progress=shown,
        )
    click.echo(indent(encode(result)).decode() if json else render(result))


def render(result: Evaluation) -> str:
    """Return the scores as text."""
    rows = [
        (name, one.metric, f"{one.value:.4f}", f"{one.low:.4f} to {one.high:.4f}", str(one.n), one.method)
        for name, one in zip(result.names, result.accuracies, strict=True)
    ]
    text = table(("model", "metric", "value", "95 % interval", "n", "method"), rows, right=(2, 4))
    if result.comparison is None:
        return text
    return f"{text}\n\n{_compared(result.comparison)}\n{result.comparison.method}"


def _compared(found: Certificate) -> str:
    """Return what B loses against A in sentences."""
    what = "Share of answers that B changes" if found.claim == "flip-rate" else f"Loss of {found.metric} of B against A"
    unit = "% of the value" if found.relative else "points"
    pairs = "" if found.worse is None else f" Only A is right on {found.worse}, only B on {found.better} of {found.n}."
    observed = quantities.drop(found.drop, unit=unit)
    low = quantities.drop(found.lower, unit=unit, rounding="down")
    high = quantities.drop(found.upper, unit=unit, rounding="up")
    level = quantities.confidence(found.confidence)
    sentence = f"{what}: {observed} observed, at least {low} and at most {high} at {level} confidence each.{pairs}"
    sentence += "\nThis is a certificate only if none of these samples took part in making B."
    bound = f"The bound of {100 * found.max_drop:.3g} {unit}"
    if found.passed:
        return f"{sentence}\n{bound} is kept."
    if found.lower > found.max_drop:
        return f"{sentence}\n{bound} is NOT kept."
    if found.samples_needed is None:
        return f"{sentence}\n{bound} is NOT shown."
    more = f"about {found.samples_needed:,} samples would show it, if they are like these"
    return f"{sentence}\n{bound} is NOT shown: {more}."
