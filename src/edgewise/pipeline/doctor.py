"""What this machine has, and which backends are ready on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgewise.backends import registry
from edgewise.errors import BackendMissingError, EdgewiseError
from edgewise.measure.energy import counters
from edgewise.measure.machine import describe
from edgewise.pipeline.ledger import ledger_path
from edgewise.records.codec import Record
from edgewise.records.machine import Machine


class BackendHealth(Record, frozen=True, kw_only=True):
    """One backend.

    Attributes:
        name: Its key.
        says: The runtime's own name.
        state: `ready`, `missing` or `broken`.
        version: Version of the runtime, or empty.
        precisions: Floating-point types that it honours here.
        exact_product_bits: Weight bits whose 8-bit products its kernels sum exactly here; 0 where unknown.
        exact_product_source: `measured`, or why it was not; empty where there are no 8-bit kernels.
        cure: What to do where it is not ready, or empty.
    """

    name: str
    says: str
    state: str
    version: str
    precisions: tuple[str, ...]
    exact_product_bits: int
    exact_product_source: str
    cure: str


class Diagnosis(Record, frozen=True, kw_only=True):
    """All that `edgewise doctor` says.

    Attributes:
        machine: The machine.
        backends: The backends, in the order of their table.
        energy: Which energy counters are read, or why there are none.
        gpus: What is known of graphics processors; no backend uses one yet.
        ledger: File in which opened certify sets are remembered.
    """

    machine: Machine
    backends: tuple[BackendHealth, ...]
    energy: str
    gpus: tuple[str, ...]
    ledger: str


def diagnose() -> Diagnosis:
    """Look at this machine; nothing is installed, written or sent."""
    found = counters()
    energy = found if isinstance(found, str) else ", ".join(str(counter.folder) for counter in found)
    return Diagnosis(
        machine=describe(),
        backends=tuple(_health(name) for name in registry.BACKENDS),
        energy=energy,
        gpus=_gpus(),
        ledger=str(ledger_path()),
    )


def _health(name: str) -> BackendHealth:
    says = registry.BACKENDS[name].says
    state, version, cure, bits, source = "ready", "", "", 0, ""
    precisions: tuple[str, ...] = ()
    try:
        backend = registry.get(name)
        version = backend.version()
        precisions = backend.precisions()
        target = backend.target()
        bits, source = target.exact_product_bits, target.exact_product_source
    except BackendMissingError as error:
        state, cure = "missing", error.hint or error.message
    except (EdgewiseError, ImportError, OSError) as error:
        # A runtime that is there but cannot be loaded: its own words say more than ours could.
        state, cure = "broken", str(error)
    return BackendHealth(
        name=name,
        says=says,
        state=state,
        version=version,
        precisions=precisions,
        exact_product_bits=bits,
        exact_product_source=source,
        cure=cure,
    )


def _gpus(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Return the NVIDIA processors that the driver lists, and whether its tool is there for the others."""
    names = []
    for information in sorted((proc / "driver/nvidia/gpus").glob("*/information")):
        model = next((line for line in information.read_text().splitlines() if line.startswith("Model:")), "")
        names.append(model.removeprefix("Model:").strip() or information.parent.name)
    if not names and shutil.which("nvidia-smi"):
        names.append("nvidia-smi is installed, but the driver lists no processor")
    return tuple(names)
