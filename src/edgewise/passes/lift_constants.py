"""Constant nodes become initializers.

Always legal (but for one that is an output itself). Worth it because every later rewrite, and the memory mapping of
weights, then has one place to look. Values that an initializer cannot hold, such as sparse tensors, stay.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.passes.wrapped import WrappedPass


class LiftConstants(WrappedPass):
    """Store every constant as an initializer."""

    name = "lift_constants"
    says = "made an initializer"
    says_of_weight = "moved"

    def passes(self) -> tuple[ir.passes.PassBase, ...]:
        """Return onnx-ir's pass, without a lower limit of size."""
        return (common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),)
