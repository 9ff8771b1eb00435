"""One-shot: half of every block's inner channels gone, from unlabelled samples alone, beside plain magnitude."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.coupling import Group, couple
from edgewise.analysis.values import label
from edgewise.compress.prune.cut import cut
from edgewise.passes.apply import optimize as fuse
from pruning_models import Extent, Split, accuracy_row, compiled, failure, macs, pruned, say, split, wanted
from quantized import ToolError
from rows import Row

SHARE: Final = 0.5
LEAST_ACCURACY: Final = 86.0
"""Per cent that are right, before any recovery."""

ONE_SHOT: Final = {"resnet56": LEAST_ACCURACY}


def one_shot(zoo: Path, names: Sequence[str] | None, *, command: str, left_out: list[str], extent: Extent) -> list[Row]:
    """Return the rows of pruning in one shot; the arguments are those of `beyond_int8`."""
    rows: list[Row] = []
    for name in wanted(ONE_SHOT, names):
        say(f"{name}: one shot")
        rows += _of_one(split(zoo, name, extent), ONE_SHOT[name], f"{command} --only {name}", left_out)
    return rows


def _of_one(parts: Split, least: float, command: str, left_out: list[str]) -> list[Row]:
    whole = parts.subject.model
    name = parts.subject.name
    rows = [accuracy_row(f"{name}: float", parts.score(compiled(whole, "ort")), None, command)]
    makers: dict[str, tuple[Callable[[], ir.Model], float | None]] = {
        "edgewise": (lambda: pruned(whole, parts.samples, neurons=SHARE), least),
        "magnitude without compensation": (lambda: by_magnitude(whole, SHARE), None),
    }
    for words, (make, ask) in makers.items():
        what = f"{name}: {100 * SHARE:.0f} % of the inner channels gone, {words}"
        try:
            model = make()
            rows.append(accuracy_row(what, parts.score(compiled(model, "ort")), ask, command))
            rows.append(Row(f"{what}, fewer MACs", macs(whole) / macs(model), "x", "none", True, 1, command))
        except ToolError as error:
            rows.append(failure(what, error, command, left_out))
    return rows


def by_magnitude(model: ir.Model, share: float) -> ir.Model:
    """Return the model without the units whose weights are smallest, and nothing made up for.

    A unit's size is the sum of its makers' absolute weights (Li et al. 2017, "Pruning filters for efficient ConvNets",
    section 3.1), after batch normalization went into them, which favours it.

    Args:
        model: The float model.
        share: Part of the units of every group with a single maker that goes: residual streams have several.

    Raises:
        ToolError: If no group has a single maker.
    """
    whole, _ = fuse(model)
    coupling = couple(whole)
    removed = {group.name: smallest(sizes(whole, group), share) for group in coupling.groups if len(group.makers) == 1}
    if not removed:
        raise ToolError("no group has a single maker")
    return cut(whole, removed, coupling)


def sizes(model: ir.Model, group: Group) -> npt.NDArray[np.float64]:
    """Return the sum of absolute weights of each unit, shape `[group.size]`."""
    inputs = {
        value.name: value.const_value.numpy()
        for node in model.graph
        if label(node) in group.makers
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    found = np.zeros(group.size)
    for axis in group.axes:
        if axis.value in inputs:
            weights = np.abs(inputs[axis.value].astype(np.float64))
            along = np.moveaxis(weights, axis.axis, 0).reshape(weights.shape[axis.axis], -1).sum(axis=1)
            np.add.at(found, axis.units[axis.units >= 0], along[axis.units >= 0])
    return found


def smallest(values: npt.NDArray[np.float64], share: float) -> list[int]:
    """Return the indices of the smallest values, `share` of them, rounded down, in ascending order."""
    return sorted(int(index) for index in np.argsort(values, kind="stable")[: int(share * len(values))])
