"""The backends, as a table. Adding one is a folder and a line here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from edgewise.errors import BackendMissingError, RecipeError

if TYPE_CHECKING:
    from edgewise.backends.protocol import Backend


@dataclass(frozen=True)
class Entry:
    """One backend.

    Attributes:
        module: The module that holds `BACKEND`.
        extra: The extra of edgewise that installs the runtime, or None where edgewise itself brings it.
        says: The runtime's own name.
        fast: Whether it is meant for use; the reference is not.
    """

    module: str
    extra: str | None
    says: str
    fast: bool = True


BACKENDS: Final = {
    "ort": Entry("edgewise.backends.ort", extra=None, says="ONNX Runtime"),
    "openvino": Entry("edgewise.backends.openvino", extra="openvino", says="OpenVINO"),
    "reference": Entry("edgewise.backends.reference", extra=None, says="ONNX reference evaluator", fast=False),
}


def get(name: str) -> Backend:
    """Return the backend `name`, whether or not its runtime is installed.

    Raises:
        RecipeError: If there is no backend of that name.
    """
    entry = BACKENDS.get(name)
    if entry is None:
        raise RecipeError(
            f"A backend has to be one of {', '.join(f'`{known}`' for known in BACKENDS)}. Received `{name}`.",
            hint="`edgewise doctor` lists the backends and says which are ready.",
        )
    return cast("Backend", importlib.import_module(entry.module).BACKEND)


def missing(name: str, package: str) -> BackendMissingError:
    """Return the error that says that the runtime of backend `name` is not installed."""
    extra = BACKENDS[name].extra
    target = "edgewise" if extra is None else f"edgewise[{extra}]"
    return BackendMissingError(
        f"Backend `{name}` needs the package `{package}`, which is not installed.",
        hint=f"pip install '{target}'",
    )


def ready() -> tuple[str, ...]:
    """Return the names of the fast backends whose runtime is installed, in the order of the table."""
    names = []
    for name, entry in BACKENDS.items():
        if not entry.fast:
            continue
        try:
            get(name).version()
        except BackendMissingError:
            continue
        names.append(name)
    return tuple(names)
