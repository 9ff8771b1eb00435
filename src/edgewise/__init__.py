"""edgewise makes a trained model as small, fast and frugal as the device allows, with proof; then it runs it there.

The public names are loaded on first use, so that `import edgewise` costs next to nothing on a device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgewise.bundle.read import Bundle as Bundle
    from edgewise.errors import EdgewiseError as EdgewiseError
    from edgewise.pipeline.library import bench as bench
    from edgewise.pipeline.library import load as load
    from edgewise.pipeline.library import optimize as optimize
    from edgewise.pipeline.library import prune as prune
    from edgewise.pipeline.library import quantize as quantize
    from edgewise.runtime.engine import Engine as Engine

__version__ = "0.1.0"

_HOMES: Final = {
    "Bundle": "edgewise.bundle.read",
    "EdgewiseError": "edgewise.errors",
    "Engine": "edgewise.runtime.engine",
    "bench": "edgewise.pipeline.library",
    "load": "edgewise.pipeline.library",
    "optimize": "edgewise.pipeline.library",
    "prune": "edgewise.pipeline.library",
    "quantize": "edgewise.pipeline.library",
}

__all__ = ["Bundle", "EdgewiseError", "Engine", "__version__", "bench", "load", "optimize", "prune", "quantize"]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module `edgewise` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
