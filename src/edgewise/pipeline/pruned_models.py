"""The pruned models of one run, each made once and kept as a file: a resumed run finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import onnx_ir as ir

from edgewise.analysis.target import Target
from edgewise.errors import ContractError, ModelError
from edgewise.formats.onnx import load, save
from edgewise.pipeline.prune import Pruned, Pruner
from edgewise.pipeline.workspace import Workspace
from edgewise.records.candidate import Candidate, Quantize
from edgewise.records.pruning import Pruning
from edgewise.records.tensors import Feeds

RECOVERY_SHARE: Final = 0.3
"""Share of the time left that training a pruned model may take."""


@dataclass
class PrunedModels:
    """Prunes one model, for every backend by its own times.

    Attributes:
        model: The fused float model.
        feeds: Gives the calibration samples.
        target: Gives what a backend's kernels do, by its name.
        workspace: Where files and records lie.
        left_s: Gives the seconds that are left of the budget.
    """

    model: ir.Model
    feeds: Callable[[], Sequence[Feeds]]
    target: Callable[[str], Target]
    workspace: Workspace
    left_s: Callable[[], float]
    _pruners: dict[str, Pruner] = field(default_factory=dict, init=False, repr=False)

    def model_of(self, candidate: Candidate) -> ir.Model:
        """Return the pruned model of a candidate, before any further step.

        Raises:
            RecipeError: If nothing can be pruned, or not so much.
        """
        path = self.workspace.work / "pruned" / f"{key_of(candidate).replace(' ', '_')}.onnx"
        if self.account(candidate) is not None:
            try:
                return load(path)
            except ModelError:
                path.unlink(missing_ok=True)  # it was removed or damaged: it is made again
        pruned = self._pruned(candidate)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(pruned.model, path)
        self.workspace.store.put("pruning", key_of(candidate), pruned.account)
        return pruned.model

    def account(self, candidate: Candidate) -> Pruning | None:
        """Return what was taken from a candidate's model; None where it was not pruned, or not yet."""
        if candidate.pruned is None:
            return None
        return self.workspace.store.get("pruning", key_of(candidate), Pruning)

    def _pruned(self, candidate: Candidate) -> Pruned:
        step = candidate.pruned
        if step is None:
            raise ContractError(f"Only a candidate that is to be pruned can be, and `{candidate.name}` is not.")
        pruner = self._pruner(candidate)
        pruned = pruner.at(step.time)
        return pruner.recovered(pruned, RECOVERY_SHARE * self.left_s()) if step.recovered else pruned

    def _pruner(self, candidate: Candidate) -> Pruner:
        """Return what prunes for a backend: what it measured serves all goals in time."""
        key = f"{candidate.backend} {_arithmetic(candidate)}"
        if key not in self._pruners:
            self._pruners[key] = Pruner(
                self.model,
                self.feeds(),
                self.target(candidate.backend),
                quantized=_is_quantized(candidate),
                options=candidate.options,
                left_s=self.left_s,
            )
        return self._pruners[key]


def key_of(candidate: Candidate) -> str:
    """Return the name under which the pruned model of a candidate is kept."""
    step = candidate.pruned
    words = [candidate.backend, _arithmetic(candidate)]
    if step is not None:
        words += [f"{100 * step.time:g}", *(["recovered"] if step.recovered else [])]
    return " ".join(words)


def _is_quantized(candidate: Candidate) -> bool:
    return any(isinstance(step, Quantize) for step in candidate.steps)


def _arithmetic(candidate: Candidate) -> str:
    return "int8" if _is_quantized(candidate) else "float"
