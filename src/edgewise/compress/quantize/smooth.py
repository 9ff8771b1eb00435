"""Smoothing: outlier channels of normalized activations move into the weights that read them.

`Y = (X / s) (s W)` with one factor for each channel of X, which the layer normalization (or the product with a vector)
that makes X takes into its constants (Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models", equations 3 and 4). All matrices that read X share the factors.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.compress.quantize.channel_groups import (
    Group,
    Refusal,
    divide,
    find_groups,
    largest_weights,
    magnitudes,
)
from edgewise.compress.quantize.channel_relations import read_linear
from edgewise.compress.quantize.equalize import nearest_powers_of_two
from edgewise.compress.quantize.weight_layout import LINEAR
from edgewise.compress.statistics import Statistics
from edgewise.errors import RecipeError
from edgewise.passes.protocol import Findings
from edgewise.passes.rewriting import Edit, constant, input_at, is_operator, label
from edgewise.records.findings import Change, Decline

STAGE: Final = "smooth"

_SOURCES: Final = frozenset({"LayerNormalization", "Mul", "Div"})

_VIEWS: Final = frozenset({"Reshape", "Transpose", "Identity", "Flatten", "Squeeze", "Unsqueeze"})


def smooth(
    model: ir.Model,
    statistics: Statistics,
    *,
    alpha: float = 0.5,
    powers_of_two: bool = False,
    branch: bool = False,
) -> tuple[ir.Model, Findings]:
    """Return a copy of `model` whose normalized activations are smoothed, and what was done and declined.

    Args:
        model: The model, with inferred shapes; not changed. Sub-graphs and quantized nodes stay as they are.
        statistics: Of `observed_tensors(model, branch=branch)`.
        alpha: How much of the difficulty moves from activations to weights, 0 to 1 (`smoothing_factors`).
        powers_of_two: Whether factors are rounded to powers of two, which keeps every result bit by bit.
        branch: Whether a normalized tensor that something else reads as well (the residual sum of a post-norm
            transformer) is smoothed for the weights alone; all others then read it through a product with the
            factors, which is one more float operator. Without, such a tensor is declined.

    Returns:
        The model, which shares what did not change, and the findings.

    Raises:
        RecipeError: If `alpha` is not between 0 and 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise RecipeError(f"`alpha` of smoothing has to be between 0 and 1. Received {alpha:g}.")
    copy = model.clone()
    branched = _branch(copy) if branch else {}
    groups, refusals = find_groups(copy)
    declined = [one for one in refusals if one.node.op_type in _SOURCES and one.node not in branched]
    findings = Findings(declines=[_decline(one) for one in declined])
    for group in groups:
        if not group.is_normalized:
            continue
        source = next(one.node for one in group.absorbers if one.node.op_type in _SOURCES)
        ranges = magnitudes(group, statistics)
        if ranges is None:
            findings.declines.append(_decline(Refusal(source, "its channels were not observed")))
            continue
        factors = smoothing_factors(ranges, largest_weights(group.readers, group.size), alpha)
        factors = nearest_powers_of_two(factors) if powers_of_two else factors
        reason = divide(copy, group, factors)
        if reason is not None:
            findings.declines.append(_decline(Refusal(source, reason)))
        elif np.any(factors != 1.0):
            findings.changes.append(_change(source, group, factors))
    _join(branched)
    return copy, findings


def smoothing_factors(
    activations: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], alpha: float
) -> npt.NDArray[np.float64]:
    """Return by what each channel of the activations is divided.

    Xiao et al. 2023, equation 4: `s = max |X| ** alpha / max |W| ** (1 - alpha)`, here relative to the largest of both,
    which changes no ratio.

    Args:
        activations: Largest magnitude of each channel, shape `[C]`.
        weights: Largest magnitude of the weights that read it, shape `[C]`.
        alpha: From 0 to 1.

    Returns:
        `s`, shape `[C]`, with a geometric mean of 1; 1 for channels that are always zero or that no weight reads.
    """
    alive = (activations > 0) & (weights > 0)
    if not alive.any():
        return np.ones_like(activations)
    logarithm = alpha * np.log2(activations, where=alive, out=np.zeros_like(activations))
    logarithm -= (1.0 - alpha) * np.log2(weights, where=alive, out=np.zeros_like(weights))
    logarithm -= logarithm[alive].mean()
    return np.where(alive, np.exp2(logarithm), 1.0)


def observed_tensors(model: ir.Model, *, branch: bool = False) -> dict[str, int]:
    """Return the tensors whose channels have to be observed, by name, each with the axis of its channels."""
    copy = model.clone()
    if branch:
        _branch(copy)
    names: dict[str, int] = {}
    for group in find_groups(copy)[0]:
        if group.is_normalized:
            names.update(group.observed())
    return names


def _branch(model: ir.Model) -> dict[ir.Node, ir.Value]:
    """Let all readers but weights read a normalized tensor through a product with ones, which can take factors.

    Returns:
        The products, each with the tensor that they multiply.
    """
    edit = Edit(model)
    products: dict[ir.Node, ir.Value] = {}
    for node in list(model.graph):
        gamma = constant(input_at(node, 1)) if is_operator(node, "LayerNormalization") else None
        if gamma is None or gamma.ndim != 1 or gamma.dtype != np.float32:
            continue
        output = node.outputs[0]
        if output.is_graph_output() or any(reader.graph is not model.graph for reader, _ in output.uses()):
            continue
        others = [(reader, slot) for reader, slot in output.uses() if not _ends_in_weights(reader, slot)]
        if not others or len(others) == len(output.uses()):
            continue
        ones = edit.constant(node, f"{output.name}_factors", np.ones(gamma.shape, np.float32))
        product = edit.node("Mul", [output, ones], name=f"{label(node)}/restored")
        product.outputs[0].type, product.outputs[0].shape = output.type, output.shape
        model.graph.insert_after(node, product)
        for reader, slot in others:
            reader.replace_input_with(slot, product.outputs[0])
        products[product] = output
    return products


def _join(branched: dict[ir.Node, ir.Value]) -> None:
    """Remove the products that got no factors."""
    for product, output in branched.items():
        factors = constant(product.inputs[1])
        ones = product.inputs[1]
        if factors is None or ones is None or np.any(factors != 1.0) or product.graph is None:
            continue
        graph = product.graph
        product.outputs[0].replace_all_uses_with(output)
        graph.remove(product, safe=True)
        if isinstance(graph, ir.Graph) and ones.name is not None:
            graph.initializers.pop(ones.name)


def _ends_in_weights(reader: ir.Node, slot: int) -> bool:
    """Whether what `reader` reads comes to weights, and to nothing else, on the way through views alone."""
    if slot != 0:
        return False
    if is_operator(reader, *LINEAR):
        return not isinstance(read_linear(reader), str)
    if not is_operator(reader, *_VIEWS):
        return False
    output = reader.outputs[0]
    uses = list(output.uses())
    return bool(uses) and not output.is_graph_output() and all(_ends_in_weights(node, index) for node, index in uses)


def _change(source: ir.Node, group: Group, factors: npt.NDArray[np.float64]) -> Change:
    names = ", ".join(f"`{label(reader.node)}`" for reader in group.readers)
    return Change(
        stage=STAGE,
        node=label(source),
        what=f"divided its channels by {factors.min():.3g} to {factors.max():.3g}, into the weights of {names}",
    )


def _decline(refusal: Refusal) -> Decline:
    return Decline(stage=STAGE, node=label(refusal.node), operator=refusal.node.op_type, reason=refusal.reason)
