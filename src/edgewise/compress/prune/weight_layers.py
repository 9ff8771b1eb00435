"""One linear layer whose single weights are pruned: its moments, the choice of settings, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgewise.analysis.values import is_standard, label
from edgewise.compress import solve
from edgewise.compress.gram import Moments, Summary, moments_for
from edgewise.compress.nodes import attribute, constant, has_subgraphs, required
from edgewise.compress.prune.weights import Pattern, magnitude_mask, prune_columns, saliency, why_not
from edgewise.compress.solve import Stack
from edgewise.compress.unfold import Rows, Unfolding
from edgewise.records.tensors import Array

LINEAR: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_RIDGES: Final = (0.01, 0.1, 1.0)
"""Dampings of the Gram matrix that the held-out rows choose from; relative to the mean of its diagonal."""

_SCORED_RIDGE: Final = 0.01  # For what is compared between layers. SparseGPT's damping.

_JUDGED_OUTPUTS: Final = 64
"""Outputs of each group, evenly spread, that settings are chosen on."""


@dataclass(frozen=True)
class Layer:
    """A layer that can be pruned.

    Attributes:
        node: The node, of the float model.
        weight: Its weights, float32.
        bias: Its bias, shape `[M]`, or None where it has none yet.
        has_bias: Whether it can take one.
        unfolding: How it is a product of matrices.
    """

    node: ir.Node
    weight: Array
    bias: Array | None
    has_bias: bool
    unfolding: Unfolding

    @property
    def name(self) -> str:
        """Label of the node."""
        return label(self.node)

    @property
    def source(self) -> str:
        """Name of the tensor that it reads."""
        return required(self.node.inputs[0]).name or ""

    @property
    def matrix(self) -> Stack:
        """Its weights, shape `[G, R, K]`."""
        return self.unfolding.matrix(self.weight)

    def moments(self) -> Moments:
        """Return empty moments of its inputs."""
        return Moments(self.unfolding)

    def gram(self, summary: Summary) -> tuple[Stack, Stack]:
        """Return Gram matrix and drift, about the means where the bias takes the means."""
        if self.has_bias:
            return summary.centred_gram, summary.centred_drift
        return summary.gram, summary.drift

    def variance(self, summary: Summary) -> float:
        """Return the variance of all outputs together (their power, where there is no bias)."""
        return float(solve.error(self.matrix, self.gram(summary)[0]).sum())

    def scores(self, summary: Summary) -> Stack:
        """Return what removing each weight alone costs, as a share of the variance of all outputs.

        With few rows, inputs look as if others could stand in for them, which is chance. So the Gram matrix is drawn
        towards a multiple of the identity with the same trace, the more, the more columns there are for each row: the
        form is that of Ledoit and Wolf 2004, "A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices",
        the weight is empirical.
        """
        ridge = max(_SCORED_RIDGE, self.unfolding.columns / summary.count)
        gram = solve.damped(self.gram(summary)[0], ridge) / (1 + ridge)
        return saliency(self.matrix, gram) / max(self.variance(summary), np.finfo(np.float64).tiny)


def layer_of(node: ir.Node, pattern: Pattern) -> Layer | str | None:
    """Return a layer of `node`, why its weights cannot be pruned as a clause, or None where it has none.

    Args:
        node: Any node.
        pattern: Where zeros may be.
    """
    if not is_standard(node, *LINEAR):
        return "it has subgraphs, which are left as they are" if has_subgraphs(node) else None
    value = node.inputs[1]
    weight = constant(value)
    if value is None or weight is None or constant(node.inputs[0]) is not None:
        return "its operands are not an activation and constant weights" if node.op_type != "MatMul" else None
    if reason := _why_not(node, value, weight):
        return reason
    moments = moments_for(node, weight)
    if isinstance(moments, str):
        return moments
    unfolding = moments.unfolding
    if reason := why_not(pattern, unfolding.columns // unfolding.kernel):
        return reason
    bias, has_bias = _bias(node, unfolding.groups * unfolding.outputs)
    return Layer(node, weight, bias, has_bias, unfolding)


def _why_not(node: ir.Node, value: ir.Value, weight: Array) -> str:
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, and only float32 is pruned"
    if weight.ndim < 2 or weight.size == 0:
        return f"its weights have the shape {list(weight.shape)}"
    if not np.isfinite(weight).all():
        return f"its weights `{value.name}` hold NaN or infinities"
    if len(list(value.uses())) > 1 or value.is_graph_output():
        return f"its weights `{value.name}` are read elsewhere, too"
    if required(node.inputs[0]).shape is None:
        return "the number of dimensions of its input is not known"
    return ""


def _bias(node: ir.Node, outputs: int) -> tuple[Array | None, bool]:
    """Return the bias of `node`, and whether it can take one."""
    if node.op_type == "MatMul" or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        return None, False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(value)
    if value is not None and (bias is None or bias.shape != (outputs,) or not np.isfinite(bias).all()):
        return None, False
    return bias, True


@dataclass(frozen=True)
class Fitted:
    """Pruned weights of one layer.

    Attributes:
        weight: In the layout of the layer's weights, float32.
        bias: float32, shape `[M]`; None where the layer takes none.
        error: Mean squared error of the output on held-out rows before the last fit, as a share of its variance, over
            at most 64 outputs of each group; None where none were held out.
        magnitude_error: The same where the smallest magnitudes go and nothing makes up for them.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    error: float | None
    magnitude_error: float | None


def fit(layer: Layer, moments: Moments, pattern: Pattern, sparsity: float) -> Fitted:
    """Return the layer's weights, pruned so that its output stays as near to the float model's as it can.

    The held-out rows choose how far what is left is fitted to them: the damping, and with it the ridge of the fit to
    inputs that differ from float's. Then the same is done with all rows. Where no rows were seen, the smallest
    magnitudes go.

    Args:
        layer: The layer.
        moments: Of its inputs: in the float model, and behind the layers that were pruned before.
        pattern: Where zeros may be.
        sparsity: Share of zeros.
    """
    everything, fitted, held = moments.all(), moments.fit(), moments.held_out()
    if everything is None:
        plain = layer.matrix * magnitude_mask(layer.matrix, pattern, sparsity, kernel=layer.unfolding.kernel)
        return _fitted(layer, plain, None, None, None)
    ridge, error, plain_error = _RIDGES[-1] * max(1.0, layer.unfolding.columns / everything.count), None, None
    if held is not None and fitted is not None:
        ridge, error, plain_error = _choose(layer, fitted, held, pattern, sparsity)
    return _fitted(
        layer,
        _solved(layer, layer.matrix, everything, pattern=pattern, sparsity=sparsity, ridge=ridge),
        everything,
        error,
        plain_error,
    )


def _solved(layer: Layer, weight: Stack, summary: Summary, *, pattern: Pattern, sparsity: float, ridge: float) -> Stack:
    """Return `weight`, some rows of the layer, fitted to the inputs that there are and pruned."""
    gram, drift = layer.gram(summary)
    target = solve.refit(weight, gram, drift, ridge)
    return prune_columns(target, solve.damped(gram, ridge), pattern, sparsity, kernel=layer.unfolding.kernel)[0]


def _choose(
    layer: Layer, fitted: Summary, held: tuple[Rows, Rows], pattern: Pattern, sparsity: float
) -> tuple[float, float, float]:
    """Return the ridge with the least error on the held-out rows, that error, and that of magnitudes."""
    # Neighbouring rows: they may share blocks.
    weight = layer.matrix[:, :_JUDGED_OUTPUTS]
    x, x_hat = (np.asarray(rows.swapaxes(0, 1), np.float64) for rows in held)

    def error(real: Stack) -> float:
        lost = (x - x_hat) @ weight.swapaxes(1, 2) + x_hat @ (weight - real).swapaxes(1, 2)
        if layer.has_bias:
            lost -= _shift(weight, real, fitted)[:, None, :]
        return float(np.square(lost).mean())

    output = x @ weight.swapaxes(1, 2)
    power = float(output.var(axis=1).mean() if layer.has_bias else np.square(output).mean())
    power = max(power, float(np.finfo(np.float64).tiny))
    errors = {
        ridge: error(_solved(layer, weight, fitted, pattern=pattern, sparsity=sparsity, ridge=ridge))
        for ridge in _RIDGES
    }
    best = min(errors, key=lambda ridge: (errors[ridge], -ridge))
    plain = weight * magnitude_mask(weight, pattern, sparsity, kernel=layer.unfolding.kernel)
    return best, errors[best] / power, error(plain) / power


def _shift(weight: Stack, real: Stack, summary: Summary) -> Stack:
    """Return `mean W x - mean V x_hat`, shape `[G, R]`, drawn towards zero where there are few samples."""
    found: Stack = (weight @ summary.mean[:, :, None] - real @ summary.mean_hat[:, :, None])[:, :, 0]
    return found * (summary.samples / (summary.samples + 1))


def _fitted(
    layer: Layer, real: Stack, summary: Summary | None, error: float | None, plain_error: float | None
) -> Fitted:
    bias = None
    if layer.has_bias and summary is not None:
        before = 0.0 if layer.bias is None else layer.bias.astype(np.float64)
        bias = (before + _shift(layer.matrix, real, summary).reshape(-1)).astype(np.float32)
    return Fitted(layer.unfolding.restore(real.astype(np.float32)), bias, error, plain_error)
