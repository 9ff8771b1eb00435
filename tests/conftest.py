"""What holds for every test."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

PROFILE: Final = "HYPOTHESIS_PROFILE"
"""Environment variable with the profile's name: `landing` draws the same examples at every run."""

# A deadline measures the machine's other work, not the code.
settings.register_profile("edgewise", deadline=None)
settings.register_profile("landing", deadline=None, derandomize=True)
settings.load_profile(os.environ.get(PROFILE, "edgewise"))
