"""`edgewise bundle`: what can be done with a bundle where it lies."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import Verification
from edgewise.bundle.verify import verify as run_verify
from edgewise.cli.command import CONTEXT, Command, json_option
from edgewise.cli.tables import table
from edgewise.errors import BundleError
from edgewise.measure.machine import describe
from edgewise.records.codec import encode, indent


@click.group(context_settings=CONTEXT)
def bundle() -> None:
    """Check a bundle where it lies."""


@bundle.command(cls=Command, examples=("edgewise bundle verify model.edgewise",), context_settings=CONTEXT)
@click.argument("path", metavar="BUNDLE", type=Path, help="Directory that `edgewise optimize` wrote.")
@json_option
def verify(path: Path, *, json: bool) -> None:
    """Check every file's hash and replay the test vectors on this machine."""
    verification = run_verify(Bundle.load(path), machine=describe())
    click.echo(indent(encode(verification)).decode() if json else render(verification))
    if not verification.passed:
        raise BundleError(
            "A rung of this bundle does not answer here as it did where it was made.",
            hint="Do not use it on this machine; make the bundle here with `edgewise optimize`.",
        )


def render(verification: Verification) -> str:
    """Return the verification as text."""
    rows = [(check.rung, check.status, check.reason) for check in verification.rungs]
    lines = [table(("rung", "status", "remark"), rows), ""]
    if verification.same_isa:
        lines.append("This processor has the instructions on which the accuracy was proven.")
    else:
        lines.append(
            f"The accuracy was proven on {verification.proven_on}, which has other instructions than this processor "
            f"({verification.here}): the certificate does not carry over. Run `edgewise eval` here."
        )
    return "\n".join(lines)
