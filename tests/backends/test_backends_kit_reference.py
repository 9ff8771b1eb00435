"""The shipped kit, on backend `reference`."""

from __future__ import annotations

from edgewise.testing.backend_kit import BackendKit


class TestReference(BackendKit):
    backend = "reference"
