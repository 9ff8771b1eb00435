"""What code that compresses is handed to run the models that it makes: it never opens a runtime by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import onnx_ir as ir

from edgewise.records.tensors import Run

Opener: TypeAlias = Callable[[ir.Model], AbstractContextManager[Run]]
"""Opens a model and gives its `Run`, which is valid inside of the context alone."""
