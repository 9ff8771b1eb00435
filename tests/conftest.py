"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A deadline measures the machine's other work, not the code.
settings.register_profile("edgewise", deadline=None)
settings.load_profile("edgewise")
