"""The machine on which something was measured or proven."""

from __future__ import annotations

import hashlib

import msgspec

from edgewise.records.codec import Record


class Machine(Record, frozen=True, kw_only=True):
    """A machine, as far as it decides about speed and about the exact results of 8-bit arithmetic.

    Attributes:
        cpu: The processor's own name.
        architecture: `x86_64`, `aarch64`, ...
        isa: The instruction-set extensions that matter for inference, sorted: `avx2`, `avx512_vnni`, `asimddp` ...
        cores: Logical processors that this process may use.
        memory_bytes: Memory in all.
        system: Operating system and its version.
        governor: Frequency governor of the first core, or None where there is none to read.
        load: Load average of the last minute when the record was made, or None.
        python: Version of Python.
        packages: Version of every package that takes part, by name.
        exact_product_bits: Weight bits up to which kernels sum 8-bit products exactly, by backend, as measured;
            backends that were not measured are left out.
    """

    cpu: str
    architecture: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    system: str
    governor: str | None
    load: float | None
    python: str
    packages: dict[str, str]
    exact_product_bits: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A short hash of the instruction set and of what was measured: where it is equal, integer sums are equal."""
        measured = (f"{name} {bits}" for name, bits in sorted(self.exact_product_bits.items()))
        return hashlib.sha256("\n".join((self.architecture, *self.isa, *measured)).encode()).hexdigest()[:16]
