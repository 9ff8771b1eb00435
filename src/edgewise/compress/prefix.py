"""The part of a model that some of its tensors need: methods that go from layer to layer run no more than that."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.compress.statistics import observe


def prefix(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Return a copy of `model` that gives the tensors `names` alone; nodes that none of them needs are gone.

    Inputs of the model stay inputs, also those that are not read any more.

    Args:
        model: The model; not changed.
        names: Values of the main graph that nodes make, at least one.

    Raises:
        ContractError: If a name is no value of the main graph.
    """
    copy = observe(model, names)
    wanted = set(names)
    kept = [value for value in copy.graph.outputs if value.name in wanted]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(kept)
    common.RemoveUnusedNodesPass()(copy)
    return copy
