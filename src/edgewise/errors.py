"""Every error that edgewise raises on purpose.

    EdgewiseError
    |-- UserError            the user can fix it                     exit code 2
    |   |-- ModelError         the model file, its operators, its shapes
    |   |-- DataError          samples, labels, pre-processing
    |   |-- RecipeError        an option that cannot be met or does not exist
    |   |-- BackendMissingError  a package that is not installed
    |   |-- BundleError        a bundle that is damaged, tampered with or too new
    |   |-- OutputError        a place that cannot be written, or is in use
    |   `-- ResourceError      memory, disk or time ran out
    `-- InternalError        we must fix it                          exit code 70
        |-- BackendError       a runtime refused or failed on a model that it should run
        `-- ContractError      a pass, plan or backend broke its own contract

The message says what has to hold, what came instead, and where. The cure goes into `hint`.
The command line alone turns errors into exit codes.
"""

from __future__ import annotations

from typing import ClassVar


class EdgewiseError(Exception):
    """The root: catch it to catch everything that edgewise raises on purpose.

    Args:
        message: Full sentences: what has to hold, what came instead, where.
        hint: What the reader can do now, or None.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class UserError(EdgewiseError):
    """Something that the user can fix."""

    exit_code: ClassVar[int] = 2


class ModelError(UserError):
    """The model file is missing, damaged, or holds what edgewise cannot handle."""


class DataError(UserError):
    """Samples, labels or pre-processing do not fit the model or each other."""


class RecipeError(UserError):
    """An option that does not exist, or that cannot be met."""


class BackendMissingError(UserError):
    """A backend was asked for whose package is not installed."""


class BundleError(UserError):
    """A bundle is damaged, was changed after it was made, or is newer than this edgewise."""


class OutputError(UserError):
    """The place to write to exists, is in use, or cannot be written."""


class ResourceError(UserError):
    """Memory, disk or time did not suffice."""


class InternalError(EdgewiseError):
    """Something that only the authors of edgewise can fix."""


class BackendError(InternalError):
    """A runtime refused or failed on a model that it should run; its own words are in the message."""


class ContractError(InternalError):
    """A pass, a plan or a backend broke its own contract."""
