"""What the integers that a graph computes from shapes are, in the model as it was and in the one that was cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.nodes import constant
from edgewise.compress.prune.cut_keep import Kept
from edgewise.passes.rewriting import all_nodes, is_operator

Term: TypeAlias = "int | tuple[Any, ...]"
"""An integer, or what stands for one that is known only when the model runs: equal terms are equal numbers."""

Terms: TypeAlias = npt.NDArray[np.object_]

_MOST_ELEMENTS: Final = 64
"""Shapes have few elements; larger integer constants are data."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """The content of a small tensor of integers.

    Attributes:
        old: Its terms in the model as it was, None where they cannot be traced.
        new: Its terms in the model that was cut; the shape of `old`, None with it.
        changes: Whether it may be another tensor in the model that was cut.
    """

    old: Terms | None
    new: Terms | None
    changes: bool


def trace(model: ir.Model, kept: Kept) -> dict[str, Sizes]:
    """Return what is known of the integers that the main graph and its bodies compute from shapes, by value.

    Constants themselves are not in it.
    """
    traced: dict[str, Sizes] = {}
    for node in all_nodes(model):
        if not is_operator(node, node.op_type):
            continue
        if node.op_type in {"Shape", "Size"}:
            found = _dims(node, kept)
        elif carries(node, traced) or (is_operator(node, *_OPERATORS) and all(map(_is_small, node.inputs))):
            found = _computed(_OPERATORS[node.op_type], node, [_terms(value, traced) for value in node.inputs])
        else:
            continue
        traced[node.outputs[0].name or ""] = found
    return traced


def carries(node: ir.Node, traced: Mapping[str, Sizes]) -> bool:
    """Return whether `node` hands on traced integers; every other reader of some has to get what it got before."""
    if not is_operator(node, *_OPERATORS):
        return False
    if node.op_type == "Cast" and not ir.DataType(node.attributes.get_int("to", 0)).is_integer():
        return False
    sources = node.inputs[:1] if node.op_type in _ONE_SOURCE else node.inputs
    return any(value is not None and value.name in traced for value in sources)


def sizes_of(value: ir.Value | None, traced: Mapping[str, Sizes]) -> Sizes | None:
    """Return the content of a constant or of a traced value; None for any other."""
    if value is None:
        return None
    found = _terms(value, traced)
    return None if found.old is None and not found.changes and value.name not in traced else found


def _is_small(value: ir.Value | None) -> bool:
    """Return whether an operand is left out or a constant of the kind that sizes are."""
    return value is None or _terms(value, {}).old is not None


def _terms(value: ir.Value | None, traced: Mapping[str, Sizes]) -> Sizes:
    if value is not None and value.name is not None and value.name in traced:
        return traced[value.name]
    array = constant(value)
    if array is None or array.size > _MOST_ELEMENTS or array.dtype.kind not in "iub":
        return Sizes(None, None, changes=False)
    terms = _array([int(item) for item in array.reshape(-1)], array.shape)
    return Sizes(terms, terms, changes=False)


def _array(items: Sequence[Term], shape: tuple[int, ...]) -> Terms:
    terms = np.empty(len(items), np.object_)
    for place, item in enumerate(items):
        terms[place] = item
    return terms.reshape(shape)


def _dims(node: ir.Node, kept: Kept) -> Sizes:
    """Trace Shape and Size."""
    value = node.inputs[0]
    name = "" if value is None else value.name or ""
    if value is None or value.shape is None:
        return Sizes(None, None, changes=bool(kept.axes(name)))
    old: list[Term] = [size if isinstance(size, int) else ("dim", name, axis) for axis, size in enumerate(value.shape)]
    axes = kept.axes(name)
    new: list[Term] = [int(axes[axis].sum()) if axis in axes else size for axis, size in enumerate(old)]
    if node.op_type == "Size":
        return _sizes(_array([_product(old)], ()), _array([_product(new)], ()))
    part = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(old)))
    return _sizes(_array(old[part], (len(old[part]),)), _array(new[part], (len(new[part]),)))


def _sizes(old: Terms, new: Terms) -> Sizes:
    same = old.shape == new.shape and old.reshape(-1).tolist() == new.reshape(-1).tolist()
    return Sizes(old, new, changes=not same)


def _product(terms: Sequence[Term]) -> Term:
    result: Term = 1
    for term in terms:
        result = _arithmetic("Mul", result, term)
    return result


def _computed(operator: _Operator, node: ir.Node, operands: Sequence[Sizes]) -> Sizes:
    unknown = Sizes(None, None, changes=any(operand.changes for operand in operands))
    old = [operand.old for operand in operands]
    new = [operand.new for operand in operands]
    try:
        found = operator(node, old), operator(node, new)
    except (_UntraceableError, ValueError, IndexError, TypeError, ZeroDivisionError):
        return unknown
    return _sizes(*found)


class _UntraceableError(Exception):
    """An operand is not known."""


_Operator: TypeAlias = Callable[[ir.Node, Sequence["Terms | None"]], Terms]


def _known(operands: Sequence[Terms | None], slot: int = 0) -> Terms:
    found = operands[slot] if slot < len(operands) else None
    if found is None:
        raise _UntraceableError
    return found


def _integers(operands: Sequence[Terms | None], slot: int) -> npt.NDArray[np.int64]:
    return np.asarray(_known(operands, slot).tolist(), np.int64)


def _gather(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    axis = node.attributes.get_int("axis", 0)
    return _as_terms(np.take(_known(operands), _integers(operands, 1), axis=axis))


def _concat(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    axis = node.attributes.get_int("axis", 0)
    return np.concatenate([_known(operands, slot) for slot in range(len(operands))], axis=axis)


def _slice(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    del node
    terms = _known(operands)
    starts, ends = _integers(operands, 1), _integers(operands, 2)
    axes = _integers(operands, 3) if len(operands) > 3 and operands[3] is not None else np.arange(len(starts))
    steps = _integers(operands, 4) if len(operands) > 4 else np.ones(len(starts), np.int64)
    parts = [slice(None)] * terms.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        parts[axis] = slice(int(start), int(end), int(step))
    return terms[tuple(parts)]


def _unsqueeze(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    stated = node.attributes.get_ints("axes", ())
    axes = tuple(stated) if stated else tuple(int(axis) for axis in _integers(operands, 1).reshape(-1))
    return np.expand_dims(_known(operands), axes)


def _squeeze(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    del node
    return _known(operands).reshape(()) if _known(operands).size == 1 else _known(operands).reshape(-1)


def _reshape(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    del node
    return _known(operands).reshape([int(size) for size in _integers(operands, 1).reshape(-1)])


def _same(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    del node
    return _known(operands)


def _elementwise(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    function = np.frompyfunc(lambda first, second: _arithmetic(node.op_type, first, second), 2, 1)
    return _as_terms(function(_known(operands), _known(operands, 1)))


def _where(node: ir.Node, operands: Sequence[Terms | None]) -> Terms:
    del node
    return _as_terms(np.where(_integers(operands, 0) != 0, _known(operands, 1), _known(operands, 2)))


def _as_terms(found: Any) -> Terms:
    """Return an array of objects: numpy gives a bare object where there is one element."""
    return found if isinstance(found, np.ndarray) else _array([found], ())


def _arithmetic(operator: str, first: Term, second: Term) -> Term:
    if not isinstance(first, int) or not isinstance(second, int):
        if operator == "Mul" and 1 in {first, second}:
            return second if first == 1 else first
        if operator == "Equal" and first == second:
            return 1
        return (operator, first, second)
    return _NUMBERS[operator](first, second)


def _quotient(first: int, second: int) -> int:
    """Divide as ONNX does integers: towards zero."""
    return abs(first) // abs(second) * (1 if (first < 0) == (second < 0) else -1)


_NUMBERS: Final[dict[str, Callable[[int, int], int]]] = {
    "Add": lambda first, second: first + second,
    "Sub": lambda first, second: first - second,
    "Mul": lambda first, second: first * second,
    "Div": _quotient,
    "Mod": lambda first, second: first % second,
    "Equal": lambda first, second: int(first == second),
}

_OPERATORS: Final[dict[str, _Operator]] = {
    "Cast": _same,
    "Concat": _concat,
    "Gather": _gather,
    "Identity": _same,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    **dict.fromkeys(_NUMBERS, _elementwise),
}
"""Operators that exporters compute shapes with."""

_ONE_SOURCE: Final = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
"""Operators whose first operand is handed on and whose others say how."""
