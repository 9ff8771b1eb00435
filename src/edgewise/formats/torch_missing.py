"""The error that says that PyTorch is not installed: the adapter files raise it, and it needs no PyTorch itself."""

from __future__ import annotations

from edgewise.errors import BackendMissingError


def missing() -> BackendMissingError:
    """Return the error; the cure is in its hint."""
    return BackendMissingError(
        "Recovery by training needs the package `torch`, which is not installed.", hint="pip install 'edgewise[torch]'"
    )
