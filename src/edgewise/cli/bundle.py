"""`edgewise bundle`: what can be done with a bundle where it lies."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.bundle.pack import Packed
from edgewise.bundle.pack import pack as run_pack
from edgewise.bundle.pack import unpack as run_unpack
from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import Verification
from edgewise.bundle.verify import verify as run_verify
from edgewise.cli.command import CONTEXT, Command, json_option
from edgewise.cli.tables import table
from edgewise.errors import BundleError
from edgewise.records.codec import encode, indent


@click.group(context_settings=CONTEXT)
def bundle() -> None:
    """Check a bundle where it lies; pack it into one file, and unpack it."""


@bundle.command(cls=Command, examples=("edgewise bundle verify model.edgewise",), context_settings=CONTEXT)
@click.argument("path", metavar="BUNDLE", type=Path, help="Directory that `edgewise optimize` wrote.")
@json_option
def verify(path: Path, *, json: bool) -> None:
    """Check every hash, replay the test vectors, and say whether the proof holds here."""
    from edgewise.measure.machine import describe  # noqa: PLC0415  what unpacks on a device need not measure

    found = Bundle.load(path)
    machine = describe(backends={rung.artifact.backend for rung in found.manifest.ladder})
    verification = run_verify(found, machine=machine)
    click.echo(indent(encode(verification)).decode() if json else render(verification))
    default = verification.rungs[found.manifest.default]
    if default.saturates:
        raise BundleError(
            f"The accuracy of `{default.rung}`, the default of this bundle, was proven where 8-bit sums are exact "
            f"({verification.proven_on}), but on this machine they saturate: the proof does not carry over.",
            hint="Make the bundle here with `edgewise optimize`, which takes 7-bit weights on such a machine.",
        )
    if not verification.passed:
        raise BundleError(
            "A rung of this bundle does not answer here as it did where it was made.",
            hint="Do not use it on this machine; make the bundle here with `edgewise optimize`.",
        )


@bundle.command(
    cls=Command,
    examples=(
        "edgewise bundle pack model.edgewise --out model.edgewise.tar.xz",
        "edgewise bundle pack model.edgewise --out small.tar.xz --rung 'ort int8-mse' --without-vectors",
    ),
    context_settings=CONTEXT,
)
@click.argument("path", metavar="BUNDLE", type=Path, help="Directory that `edgewise optimize` wrote.")
@click.option("--out", type=Path, metavar="FILE", required=True, help="File to write; no file is ever replaced.")
@click.option("--rung", "rungs", multiple=True, metavar="NAME", help="Pack this rung alone; may be repeated.")
@click.option("--without-vectors", is_flag=True, help="Leave the test vectors out: answers cannot be compared then.")
@json_option
def pack(path: Path, *, out: Path, rungs: tuple[str, ...], without_vectors: bool, json: bool) -> None:
    """Write a bundle into one compressed file, for the way to the device."""
    packed = run_pack(Bundle.load(path), out, rungs=rungs or None, vectors=not without_vectors)
    say_packed(packed, json=json)


@bundle.command(
    cls=Command,
    examples=("edgewise bundle unpack model.edgewise.tar.xz --out model.edgewise",),
    context_settings=CONTEXT,
)
@click.argument("path", metavar="FILE", type=Path, help="File that `edgewise bundle pack` wrote.")
@click.option("--out", type=Path, metavar="DIR", required=True, help="Directory of the bundle, new or empty.")
@json_option
def unpack(path: Path, *, out: Path, json: bool) -> None:
    """Make a bundle of a packed file, and check every hash."""
    say_packed(run_unpack(path, out), json=json)


def say_packed(packed: Packed, *, json: bool) -> None:
    """Print what packing or unpacking moved."""
    if json:
        click.echo(indent(encode(packed)).decode())
        return
    share = packed.file_bytes / packed.bundle_bytes
    rows = [
        ("bundle", packed.bundle, f"{packed.bundle_bytes} bytes", f"{packed.files} files"),
        ("packed", packed.file, f"{packed.file_bytes} bytes", f"{share:.3f} of the bundle"),
    ]
    click.echo(table((), rows, right=(2,)))
    if packed.left_out:
        click.echo(f"left out: {', '.join(packed.left_out)}")


def render(verification: Verification) -> str:
    """Return the verification as text."""
    rows = [(check.rung, check.status, check.reason) for check in verification.rungs]
    lines = [table(("rung", "status", "remark"), rows), ""]
    if not verification.compared:
        lines.append(
            "The test vectors were left out when this bundle was packed: every file has its recorded hash and every "
            "rung opens, but no answer was compared with the one where the bundle was made."
        )
    if verification.left_out:
        rungs = ", ".join(f"`{name}`" for name in verification.left_out)
        lines.append(f"Packing left out {rungs}.")
    lines.append(_proof(verification))
    return "\n".join(lines)


def _proof(verification: Verification) -> str:
    """Return whether the certificates carry over, in words."""
    here, there = verification.here, verification.proven_on
    if verification.synthetic:
        return (
            "Nothing was certified: this bundle was made without samples. Its rungs were compared with the untouched "
            f"model on synthetic ones, on {there}."
        )
    if verification.proof == "same instructions":
        measured = "" if verification.exact_product_bits else " Its 8-bit sums could not be measured here."
        return f"This processor has the instructions on which the accuracy was proven.{measured}"
    if verification.proof == "same sums":
        return (
            f"The accuracy was proven on {there}, which has other instructions than this processor ({here}), but 8-bit "
            f"sums are exact on both, as measured: the certificate carries over up to rounding."
        )
    if verification.proof == "saturates":
        exact = ", ".join(f"{bits} bits in {name}" for name, bits in verification.exact_product_bits.items())
        rungs = ", ".join(f"`{check.rung}`" for check in verification.rungs if check.saturates)
        return (
            f"The accuracy was proven on {there}, where 8-bit sums are exact. Here ({here}) they are exact only for "
            f"weights of up to {exact}, as measured, and saturate beyond: the certificate of {rungs} does not carry "
            f"over."
        )
    return (
        f"The accuracy was proven on {there}, which has other instructions than this processor ({here}), and whether "
        f"8-bit sums are the same on both is not known: the certificate does not carry over. Run `edgewise eval` here."
    )
