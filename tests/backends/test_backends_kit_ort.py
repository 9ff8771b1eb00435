"""The shipped kit, on backend `ort`."""

from __future__ import annotations

from edgewise.testing.backend_kit import BackendKit


class TestOrt(BackendKit):
    backend = "ort"
