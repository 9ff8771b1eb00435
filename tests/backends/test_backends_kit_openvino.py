"""The shipped kit, on backend `openvino`."""

from __future__ import annotations

from edgewise.testing.backend_kit import BackendKit


class TestOpenVino(BackendKit):
    backend = "openvino"
