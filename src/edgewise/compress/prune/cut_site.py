"""One node of a model that is cut: what it was, what stays, and how an operand or attribute is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut_keep import Kept, Mask
from edgewise.compress.prune.cut_sizes import Sizes, Term, sizes_of
from edgewise.errors import ContractError
from edgewise.passes.rewriting import Edit, graph_of, input_at, label
from edgewise.records.tensors import Array


@dataclass(frozen=True)
class Site:
    """One node of the model that is cut.

    Attributes:
        old: The node in the model as it was: its constants and shapes are read.
        new: The same node in the copy, which is mended.
        kept: What stays.
        traced: The integers that the model computes from shapes, before and after.
        edit: Changes the copy.
    """

    old: ir.Node
    new: ir.Node
    kept: Kept
    traced: Mapping[str, Sizes]
    edit: Edit

    def input(self, slot: int) -> ir.Value | None:
        """Return an operand in the model as it was, or None where it is left out."""
        return input_at(self.old, slot)

    def mask(self, slot: int, axis: int) -> Mask | None:
        """Return what stays of an operand along an axis, or None where all of it does."""
        return self.kept.mask(self.input(slot), axis)

    def out_mask(self, axis: int, index: int = 0) -> Mask | None:
        """Return what stays of an output along an axis, or None where all of it does."""
        return self.kept.mask(self.old.outputs[index], axis)

    def sizes(self, slot: int) -> Sizes | None:
        """Return the integers of a constant or traced operand, or None for any other."""
        return sizes_of(self.input(slot), self.traced)

    def numbers(self, slot: int) -> list[int]:
        """Return the integers that an operand holds in the model as it was.

        Raises:
            ContractError: If they are not known.
        """
        found = self.sizes(slot)
        terms = None if found is None or found.old is None else found.old.reshape(-1).tolist()
        if terms is None or not all(isinstance(term, int) for term in terms):
            raise self.failed(f"its input {slot} is known only when the model runs")
        return [int(term) for term in terms]

    def state(self, slot: int, wanted: Sequence[Term]) -> None:
        """Let an operand of integers hold `wanted`, unless it does so by itself.

        Raises:
            ContractError: If what it has to hold is known only when the model runs, and it does not.
        """
        sizes = self.sizes(slot)
        found = None if sizes is None or sizes.new is None else sizes.new.reshape(-1).tolist()
        if found == list(wanted):
            return
        if all(isinstance(term, int) for term in wanted):
            old = None if sizes is None or sizes.old is None else sizes.old.shape
            shape = (len(wanted),) if old is None or len(wanted) > 1 else old
            self.write(slot, np.asarray(wanted, self._dtype(slot)).reshape(shape))
            return
        if found is None or len(found) != len(wanted):
            raise self.failed(f"its input {slot} cannot be traced to shapes")
        differs = [term != other for term, other in zip(wanted, found, strict=True)]
        if any(wrong and not isinstance(term, int) for wrong, term in zip(differs, wanted, strict=True)):
            raise self.failed(f"what its input {slot} has to be is known only when the model runs")
        numbers = [term if wrong and isinstance(term, int) else 0 for wrong, term in zip(differs, wanted, strict=True)]
        self._replace(slot, np.asarray(differs), np.asarray(numbers, self._dtype(slot)))

    def write(self, slot: int, array: Array) -> None:
        """Let an operand of the copy be the constant `array`."""
        current = input_at(self.new, slot)
        if current is not None and constant(current) is not None:
            value = self.edit.update(self.new, current, array)
        else:
            value = self.edit.constant(self.new, f"{label(self.new)}/input_{slot}", array)
        if len(self.new.inputs) <= slot:
            self.new.resize_inputs(slot + 1)
        self.new.replace_input_with(slot, value)

    def set(self, name: str, number: int) -> None:
        """Set an attribute of the copy."""
        self.new.attributes[name] = ir.AttrInt64(name, number)

    def insert(self, slot: int, node: ir.Node) -> None:
        """Put a node of one output between an operand and the node of the copy."""
        source = input_at(self.new, slot)
        node.outputs[0].type = None if source is None else source.type
        graph_of(self.new).insert_before(self.new, node)
        self.new.replace_input_with(slot, node.outputs[0])

    def failed(self, reason: str) -> ContractError:
        """Return the error of a node that cannot be mended; `reason` follows "because"."""
        return ContractError(
            f"Every unit of a coupling has to be removable. `{label(self.old)}` ({self.old.op_type}) cannot become "
            f"shorter, because {reason}."
        )

    def _dtype(self, slot: int) -> np.dtype[Any]:
        value = self.input(slot)
        dtype = None if value is None else value.dtype
        return np.dtype(np.int64) if dtype is None else dtype.numpy()

    def _replace(self, slot: int, places: Mask, numbers: Array) -> None:
        """Let some places of an operand that is computed hold other numbers."""
        base = f"{label(self.new)}/input_{slot}"
        chosen = self.edit.constant(self.new, f"{base}/places", places)
        mended = self.edit.constant(self.new, f"{base}/sizes", numbers)
        where = self.edit.node("Where", [chosen, mended, input_at(self.new, slot)], name=f"{base}/mended")
        where.outputs[0].shape = ir.Shape(places.shape)
        self.insert(slot, where)
