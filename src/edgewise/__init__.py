"""edgewise makes a trained model as small, fast and frugal as the device allows, with proof; then it runs it there.

The public names are loaded on first use, so that `import edgewise` costs next to nothing on a device.
"""

from __future__ import annotations

__version__ = "0.1.0"
