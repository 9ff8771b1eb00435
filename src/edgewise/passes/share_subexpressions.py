"""Nodes that compute the same thing from the same values become one, and equal initializers become one.

Always legal for deterministic operators. Bodies of If, Loop and Scan are left alone. onnx-ir's passes do the work.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.passes.protocol import Findings
from edgewise.passes.rewriting import all_nodes
from edgewise.passes.wrapped import WrappedPass

BIGGEST_WEIGHT = 1 << 28
"""Elements of the largest initializer that is compared: one GiB of float32, hashed at about a second a GiB."""


class ShareSubexpressions(WrappedPass):
    """Compute common sub-expressions once and store equal initializers once."""

    name = "share_subexpressions"
    says = "removed: another node computes the same"
    says_of_weight = "removed: another initializer is equal to it"

    def passes(self) -> tuple[ir.passes.PassBase, ...]:
        """Return onnx-ir's passes: initializers first, so that nodes that read equal ones become equal."""
        return (
            common.DeduplicateHashedInitializersPass(size_limit=BIGGEST_WEIGHT),
            common.CommonSubexpressionEliminationPass(),
        )

    def rewrite(self, model: ir.Model) -> Findings:
        """Share what can be shared.

        onnx-ir keeps the name of an output that equals another by an Identity, and then takes two such Identities for
        equal: a trial on a copy tells whether anything but that would happen.
        """
        _make_contiguous(model)
        trial = model.clone()
        weights = sum(len(graph.initializers) for graph in (trial.graph, *trial.graph.subgraphs()))
        before = Counter(node.op_type for node in all_nodes(trial))
        for wrapped in self.passes():
            wrapped(trial)
        after = Counter(node.op_type for node in all_nodes(trial))
        left = sum(len(graph.initializers) for graph in (trial.graph, *trial.graph.subgraphs()))
        return super().rewrite(model) if before != after or weights != left else Findings()


def _make_contiguous(model: ir.Model) -> None:
    """Copy the constants that are views of other arrays (a folded Transpose is one): onnx-ir cannot hash them."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if not isinstance(value.const_value, ir.Tensor):
                continue  # the others are bytes, of a file or of a protobuf message
            array = value.const_value.numpy()
            if not array.flags.c_contiguous:
                value.const_value = ir.tensor(np.asarray(array, order="C"), value.const_value.dtype, name=value.name)
