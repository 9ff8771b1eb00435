"""Applies passes one after another, checks each from the outside, and undoes what does not hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from edgewise.errors import ContractError, ModelError
from edgewise.passes.agreement import difference, tolerance
from edgewise.passes.contract import check, is_legal, signature
from edgewise.passes.defaults import DEFAULT_PASSES
from edgewise.passes.protocol import Findings, Pass
from edgewise.records.findings import Decline
from edgewise.records.tensors import Outputs

MOST_ROUNDS = 4
"""How often the passes are applied in turn while they still change something. Real models need two rounds."""


def optimize(
    model: ir.Model,
    passes: Sequence[Pass] = DEFAULT_PASSES,
    *,
    probe: Callable[[ir.Model], Outputs] | None = None,
) -> tuple[ir.Model, Findings]:
    """Return a model with the same function and a better graph, and what was done and declined.

    The model that was passed in is not changed; the result shares every weight with it that no pass had to change.

    Args:
        model: A legal model.
        passes: What is applied, in this order, and over again until nothing changes any more.
        probe: Runs a model on real inputs. Where it is given, the outputs after each pass that changed something are
            compared with those of `model` (not with those before the pass, so that small differences cannot add up
            unseen). A pass whose outputs differ by more than rounding explains is undone and listed as a decline.

    Raises:
        ModelError: If `model` is not legal ONNX.
        ContractError: If a pass broke its contract: an illegal model, another interface, changes that it did not
            report, or operators of a domain that the model did not use.
    """
    # Of a copy: the checker of onnx-ir takes large weights out and puts them back in another order.
    if not is_legal(model.clone()):
        raise ModelError(
            "A model has to be legal ONNX before it can be optimized; the ONNX checker refuses this one.",
            hint="python -c \"import onnx; onnx.checker.check_model('model.onnx')\" says why.",
        )
    current = with_shapes(model.clone())
    compare = None if probe is None else _Comparison(probe, current)
    findings, undone = Findings(), list[Decline]()
    left = list(passes)
    for _ in range(MOST_ROUNDS):
        # A decline of an earlier round may have been resolved since: those of the last one count.
        done, findings.declines = len(findings.changes), []
        for one in list(left):
            after, found = apply(current, one)
            if found.changes and compare is not None and (reason := compare(after)):
                undone.append(Decline(stage=one.name, node="", operator="", reason=f"it was undone: {reason}"))
                left.remove(one)
                continue
            findings.changes += found.changes
            findings.declines += found.declines
            current = after
        if len(findings.changes) == done:
            break
    findings.declines += undone
    return current, findings


class _Comparison:
    """Compares outputs on real inputs with those of the model that came in."""

    def __init__(self, probe: Callable[[ir.Model], Outputs], model: ir.Model) -> None:
        self._probe = probe
        self._expected = probe(model)
        self._bound = tolerance(model)

    def __call__(self, model: ir.Model) -> str | None:
        return difference(self._expected, self._probe(model), self._bound)


def apply(model: ir.Model, one: Pass) -> tuple[ir.Model, Findings]:
    """Return a copy of `model` with one pass applied, and what it did and declined.

    Raises:
        ContractError: If the pass broke its contract.
    """
    after = model.clone()
    findings = one.rewrite(after)
    if not findings.changes:
        if signature(after) != signature(model):
            raise ContractError(f"Pass `{one.name}` has to report what it changes. It reported nothing but did.")
        return model, findings
    _declare(model, after)
    check(one.name, model, after)
    return with_shapes(after), findings


def _declare(before: ir.Model, after: ir.Model) -> None:
    """Give the outputs the shapes that they were declared with, where a pass has only learned more about them."""
    for old, new in zip(before.graph.outputs, after.graph.outputs, strict=False):
        if old.shape is None or new.shape is None or len(old.shape) != len(new.shape):
            continue
        if all(was == now or not isinstance(was, int) for was, now in zip(old.shape, new.shape, strict=True)):
            new.shape = old.shape.copy()


def with_shapes(model: ir.Model) -> ir.Model:
    """Return `model`, in which value shapes are inferred as far as ONNX can. The interface stays as declared."""
    declared = [(value, value.shape, value.type) for value in (*model.graph.inputs, *model.graph.outputs)]
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for value, shape, kind in declared:
        value.shape, value.type = shape, kind
    return model
