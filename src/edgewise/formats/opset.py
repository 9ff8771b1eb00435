"""Raising the version of the standard operators, so that newer operators can be used in old models."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from edgewise.errors import ModelError
from edgewise.formats import weightless
from edgewise.formats.onnx import node_name

MINIMUM_OPSET: Final = 17
"""The version that every model is raised to: it has LayerNormalization (17) and QuantizeLinear per channel (13).

Not 20, the version that has Gelu: from 19 on ONNX Runtime 1.32 runs a padded AveragePool 6 times slower (measured: 142
against 22 us on [1, 24, 44, 44], 3 x 3, stride 2). What makes a Gelu raises the version further by itself."""

_SMALLEST_IR_VERSION: Final = {
    opset: min(row[1] for row in onnx.helper.VERSION_TABLE if row[2] == opset)
    for opset in {row[2] for row in onnx.helper.VERSION_TABLE}
}
"""The first IR version that a model with this opset may have."""


def raise_opset(model: ir.Model, minimum: int = MINIMUM_OPSET) -> ir.Model:
    """Return `model` with version `minimum` of the standard operators, or `model` itself if it is as new.

    The work is done by onnx's version converter. Weights are shared; `model` is not changed. Names of inputs, outputs
    and nodes stay.

    Args:
        model: A model without functions of its own, as `load` gives it.
        minimum: The version to reach.

    Raises:
        ModelError: If an operator cannot be converted.
    """
    current = model.opset_imports.get("")
    if current is None or current >= minimum:
        return model
    resizes = _resizes(model) if current < 11 else {}
    try:
        converted = onnx.version_converter.convert_version(weightless.to_proto(model), minimum)
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise _failed(current, minimum, error) from error
    raised = weightless.restore(converted, model)
    raised.ir_version = max(model.ir_version, _SMALLEST_IR_VERSION.get(minimum, model.ir_version))
    _keep_coordinates(raised, resizes)
    for old, new in zip(
        (*model.graph.inputs, *model.graph.outputs), (*raised.graph.inputs, *raised.graph.outputs), strict=True
    ):
        # The converter infers shapes on its way and makes up names for open dimensions.
        new.shape = old.shape
    try:
        # The converter's own work is checked as well: an attribute that it forgot would change the model silently.
        weightless.check(raised)
    except onnx.checker.ValidationError as error:
        raise _failed(current, minimum, error) from error
    return raised


def _failed(current: int, minimum: int, error: Exception) -> ModelError:
    return ModelError(
        f"The operators have to be convertible from opset {current} to {minimum}, but onnx's converter refuses: "
        f"{' '.join(str(error).split())}",
        hint=f"Export the model with opset {minimum}.",
    )


def _resizes(model: ir.Model) -> dict[str, ir.Node]:
    """Return the nodes that resize in the manner of before opset 11, by output name.

    Raises:
        ModelError: If one shrinks to the nearest pixel, which the standard did not define then.
    """
    found = {}
    for node in model.graph.all_nodes():
        if node.domain not in {"", "ai.onnx"} or node.op_type not in {"Upsample", "Resize"}:
            continue
        if node.attributes.get_string("mode", "nearest") == "nearest" and not _enlarges(node):
            raise ModelError(
                f"`{node.op_type}` of before opset 11 has to enlarge by constant factors, because the standard did not "
                f"say then which pixel is the nearest when it shrinks. Node `{node_name(node)}` is not known to.",
                hint="Export the model with opset 11 or newer.",
            )
        found[node.outputs[0].name or ""] = node
    return found


def _enlarges(node: ir.Node) -> bool:
    """Return whether the factors of an old Upsample or Resize are known and at least 1."""
    if len(node.inputs) < 2:
        factors = node.attributes.get_floats("scales", [])
        return bool(factors) and min(factors) >= 1
    constant = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    return constant is not None and constant.size > 0 and bool(np.all(constant.numpy() >= 1))


def _keep_coordinates(raised: ir.Model, resizes: dict[str, ir.Node]) -> None:
    """Give each Resize that was made of an old Upsample or Resize the coordinates that those had.

    Before opset 11 there was one way, now named `asymmetric` with `floor`. onnx's converter (1.23) leaves the new
    default `half_pixel`, with which the numbers differ.
    """
    for node in raised.graph.all_nodes():
        if node.op_type == "Resize" and (node.outputs[0].name or "") in resizes:
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            node.attributes.add(ir.AttrString("nearest_mode", "floor"))
