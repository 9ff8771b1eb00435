"""Runs a model part by part over all samples: what a part begins with is kept from the part before it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.analysis.values import bodies
from edgewise.compress.runner import Opener
from edgewise.errors import ContractError
from edgewise.records.tensors import Array, Feeds

MEMORY_BYTES: Final = 1 << 30
"""Most bytes of activations that are kept. Where they are more, a later part begins further in front."""


class Replay:
    """A model that is run from place to place.

    A place is an index into the nodes of the graph: everything in front of it was computed. The nodes behind the place
    that was reached last may be given other weights in between; their number and order have to stay.

    Args:
        model: The model, its nodes in topological order.
        open_model: Opens the parts.
        feeds: The samples.
        memory_bytes: Most bytes of activations that are kept.
    """

    def __init__(
        self, model: ir.Model, open_model: Opener, feeds: Sequence[Feeds], memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.model = model
        self._open = open_model
        self._memory_bytes = memory_bytes
        self._place = 0
        names = [str(value.name) for value in model.graph.inputs]
        self._kept: list[Mapping[str, Array]] = [{name: feed[name] for name in names} for feed in feeds]
        self._nodes = list(model.graph)
        self._can_stop = not any(True for node in self._nodes for _ in bodies(node))

    def run(self, wanted: Collection[str], place: int) -> Iterator[Mapping[str, Array]]:
        """Yield for every sample the values `wanted`; afterwards everything in front of `place` is known.

        Args:
            wanted: Names of values: inputs of the model, values at the present place, or values made behind it.
            place: Where the next part may begin, not in front of the present place.

        Raises:
            ContractError: If a value is not known at the present place and not made behind it.
        """
        live = self._live(max(place, self._place)) if self._can_stop else set()
        given = set(self._kept[0]) if self._kept else set()
        asked = [name for name in dict.fromkeys([*wanted, *live]) if name not in given]
        kept: list[Mapping[str, Array]] = []
        used_bytes = 0
        for before, outputs in self._outputs(asked):
            known = {**before, **outputs}
            if self._can_stop and used_bytes <= self._memory_bytes:
                kept.append({name: known[name] for name in live})
                used_bytes += sum(array.nbytes for array in kept[-1].values())
            yield {name: known[name] for name in wanted}
        if self._can_stop and used_bytes <= self._memory_bytes:
            self._kept, self._place = kept, max(place, self._place)

    def _outputs(self, asked: Sequence[str]) -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array]]]:
        if not asked:
            yield from ((before, {}) for before in self._kept)
            return
        with self._open(self._part(asked)) as run:
            for before in self._kept:
                yield before, run(before)

    def _live(self, place: int) -> set[str]:
        """Return the values that are known at `place` and read behind it."""
        made = {str(value.name) for value in self.model.graph.inputs}
        made.update(str(value.name) for node in self._nodes[:place] for value in node.outputs if value.name)
        return {
            str(value.name)
            for node in self._nodes[place:]
            for value in node.inputs
            if value is not None and value.name in made
        }

    def _part(self, asked: Sequence[str]) -> ir.Model:
        """Return the part of the model that makes `asked` of what is kept."""
        copy = self.model.clone()
        nodes = list(copy.graph)
        values = {value.name: value for node in nodes for value in node.outputs}
        missing = [name for name in asked if name not in values]
        if missing:
            raise ContractError(f"A value to observe has to be one of the main graph. Received `{missing[0]}`.")
        copy.graph.outputs.clear()
        inputs = {value.name: value for value in copy.graph.inputs}
        given = []
        for name, array in self._kept[0].items():
            if name in inputs:
                given.append(inputs[name])
                continue
            old = values[name]
            new = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=_shape(old, array))
            old.name = f"{name}_before"
            ir.convenience.replace_all_uses_with(old, new)
            given.append(new)
        copy.graph.inputs.clear()
        copy.graph.inputs.extend(given)
        for name in asked:
            if values[name].type is None:
                values[name].dtype = ir.DataType.FLOAT
            copy.graph.outputs.append(values[name])
        common.RemoveUnusedNodesPass()(copy)
        return copy


def _shape(value: ir.Value, array: Array) -> ir.Shape:
    """Return the dimensions of `value` that do not change from sample to sample."""
    if value.shape is None or len(value.shape) != array.ndim:
        return ir.Shape([None] * np.ndim(array))
    return ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])
