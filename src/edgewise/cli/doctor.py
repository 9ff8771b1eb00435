"""`edgewise doctor`: what this machine has."""

from __future__ import annotations

import click

from edgewise.backends.saturation import MEASURED
from edgewise.cli.command import command, json_option
from edgewise.cli.tables import table
from edgewise.pipeline.doctor import BackendHealth, Diagnosis, diagnose
from edgewise.records.codec import encode, indent


@command("edgewise doctor")
@json_option
def doctor(*, json: bool) -> None:
    """Show what this machine has, and which backends are ready or what brings them."""
    diagnosis = diagnose()
    click.echo(indent(encode(diagnosis)).decode() if json else render(diagnosis))


def render(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text."""
    machine = diagnosis.machine
    facts = [
        ("processor", f"{machine.cpu} ({machine.architecture})"),
        ("cores", str(machine.cores)),
        ("instruction sets", " ".join(machine.isa) or "none that matter here"),
        ("memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        ("system", f"{machine.system}, Python {machine.python}"),
        ("governor", machine.governor or "not readable"),
        ("load", "not readable" if machine.load is None else f"{machine.load:.2f}"),
        ("energy", diagnosis.energy),
        ("GPUs", "; ".join(diagnosis.gpus) or "none found"),
        ("certify sets", f"remembered in {diagnosis.ledger}"),
    ]
    backends = [
        (
            health.name,
            health.state,
            f"{health.says} {health.version}".strip(),
            " ".join(health.precisions) or "-",
            _exact(health),
            health.cure,
        )
        for health in diagnosis.backends
    ]
    headings = ("backend", "state", "runtime", "precisions", "exact weight bits", "cure")
    return f"{table((), facts)}\n\n{table(headings, backends)}"


def _exact(health: BackendHealth) -> str:
    """Return how wide weights may be, and how that is known where it was not measured."""
    if not health.exact_product_bits:
        return "-"
    known = health.exact_product_source
    return f"{health.exact_product_bits}" if known in {"", MEASURED} else f"{health.exact_product_bits} ({known})"
