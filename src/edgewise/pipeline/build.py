"""Candidate -> graph -> artifact. A new step is one method and one line in `_apply`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewise.analysis.integers import product_bits
from edgewise.analysis.target import Target
from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, ArtifactSpec, Session
from edgewise.compress.halve_weights import halve_weights
from edgewise.compress.quantize.apply import apply
from edgewise.errors import BackendError, ContractError, EdgewiseError, ModelError, OutputError, RecipeError
from edgewise.passes.apply import optimize as fuse
from edgewise.passes.protocol import Findings
from edgewise.pipeline.inputs import LoadedModel, Split
from edgewise.pipeline.judge import open_judge
from edgewise.pipeline.progress import Progress
from edgewise.pipeline.pruned_models import PrunedModels, key_of
from edgewise.pipeline.quantize import Decision, Material, Quantizer, gather, nothing_quantized
from edgewise.pipeline.workspace import Workspace
from edgewise.records.candidate import Candidate, Fuse, HalveWeights, Prune, Quantize, Step
from edgewise.records.codec import Record
from edgewise.records.findings import Decline
from edgewise.records.pruning import Pruning
from edgewise.records.tensors import Feeds, Outputs, Run
from edgewise.samples.state import run_sequence, steps

PROBES: Final = 2
"""Calibration samples on which every pass is checked against the model before it."""


class Build(Record, frozen=True, kw_only=True):
    """What became of a candidate when it was built.

    Attributes:
        spec: How to open its artifact, or None where it could not be built.
        size_bytes: Bytes of the artifact.
        declines: What a step or the backend could not do, node by node.
        failure: Why there is no artifact; empty where there is one.
        product_bits: See `analysis.integers`.
    """

    spec: ArtifactSpec | None
    size_bytes: int
    declines: tuple[Decline, ...]
    failure: str
    product_bits: int | None = None


@dataclass
class Workshop:
    """Builds candidates of one model; what several of them share is made once.

    Attributes:
        model: The user's model.
        calibrate: Samples for statistics.
        workspace: Where artifacts and finished records lie.
        progress: Hears of the long parts.
        left_s: Gives the seconds that are left of the budget.
    """

    model: LoadedModel
    calibrate: Split
    workspace: Workspace
    progress: Progress
    left_s: Callable[[], float]
    _notes: set[str] = field(default_factory=set, init=False, repr=False)
    _quantizers: dict[tuple[str, Prune | None], Quantizer] = field(default_factory=dict, init=False, repr=False)
    _checked: dict[Candidate, Build] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def fused(self) -> tuple[ir.Model, Findings]:
        """The fused model, each pass checked on real inputs."""
        self.progress.stage("Fusing")
        feeds = [self.calibrate.dataset.feeds(int(index)) for index in self.calibrate.indices[:PROBES]]

        def probe(model: ir.Model) -> Outputs:
            session = open_judge(model)
            try:
                results = [run_sequence(session.run, feed, self.calibrate.dataset.state) for feed in feeds]
            finally:
                session.close()
            return {name: np.stack([result[name] for result in results]) for name in results[0]}

        return fuse(self.model.fixed, probe=probe)

    @cached_property
    def _targets(self) -> dict[str, Target]:
        return {name: registry.get(name).target() for name in registry.ready()}

    @cached_property
    def material(self) -> Material:
        """What the calibration samples show of every tensor that any backend quantizes; one pass over them."""
        self.progress.stage("Calibrating", len(self.calibrate))
        return gather(self.fused[0], self._targets.values(), self._calibration_feeds)

    def _calibration_feeds(self, run: Run) -> Iterator[Feeds]:
        """Give every step of every calibration sample, a recurrent model's own states fed back."""
        for index in self.calibrate.indices:
            dataset = self.calibrate.dataset
            yield from steps(run, dataset.feeds(int(index)), dataset.state)
            self.progress.step()

    def _note_once(self, note: str) -> None:
        if note not in self._notes:
            self._notes.add(note)
            self.progress.note(note)

    def _quantizer(self, candidate: Candidate) -> Quantizer:
        """Return what quantizes a candidate's model for its backend; candidates that share both share it."""
        backend, pruned = candidate.backend, candidate.pruned
        if (backend, pruned) not in self._quantizers:
            material = self.material
            if pruned is not None:
                material = gather(self.pruned.model_of(candidate), [self._targets[backend]], self._calibration_feeds)
            self._quantizers[backend, pruned] = Quantizer(
                material, self._targets[backend], left_s=self.left_s, note=self._note_once
            )
        return self._quantizers[backend, pruned]

    def taken(self, candidate: Candidate) -> Pruning | None:
        """Return what was taken from a candidate that was built by pruning; None for one that is not pruned."""
        return None if candidate.pruned is None else self.pruned.account(candidate)

    @cached_property
    def pruned(self) -> PrunedModels:
        """The models that lost neurons and layers."""
        return PrunedModels(
            model=self.fused[0],
            feeds=lambda: self.material.feeds,
            target=self._targets.__getitem__,
            workspace=self.workspace,
            left_s=self.left_s,
        )

    def findings(self) -> Findings:
        """Return what the passes did and declined."""
        try:
            return self.fused[1]
        except (ModelError, ContractError, BackendError) as error:
            return Findings(declines=[Decline(stage="fuse", node="", operator="", reason=error.message)])

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Do what several candidates share: fuse once, and read the calibration samples once."""
        if not any(self._is_missing(candidate) for candidate in candidates):
            return
        steps_asked = {type(step) for candidate in candidates for step in candidate.steps}
        try:
            if Fuse in steps_asked:
                _ = self.fused
            if any(self._is_undecided(candidate) for candidate in candidates):
                _ = self.material
        except (ModelError, ContractError, BackendError) as error:
            # The candidates that need it will fail with the same words, one by one; the others are not concerned.
            self.progress.note(error.message)

    def _is_missing(self, candidate: Candidate) -> bool:
        return self.workspace.store.get("build", candidate.name, Build) is None

    def _is_undecided(self, candidate: Candidate) -> bool:
        return any(
            isinstance(step, Quantize)
            and self.workspace.store.get("plan", _decision_key(step, candidate), Decision) is None
            for step in candidate.steps
        )

    def graph(self, candidate: Candidate) -> tuple[ir.Model, tuple[Decline, ...]]:
        """Return the graph that a candidate asks for, and what its steps declined.

        Raises:
            EdgewiseError: If a step cannot be applied to this model.
        """
        model, declines = self.model.fixed, []
        for step in candidate.steps:
            model, declined = self._apply(step, model, candidate)
            declines.extend(declined)
        return model, tuple(declines)

    def _apply(self, step: Step, model: ir.Model, candidate: Candidate) -> tuple[ir.Model, list[Decline]]:
        match step:
            case Fuse():
                return self.fused[0], []
            case Prune():
                return self.pruned.model_of(candidate), []
            case HalveWeights():
                halved, findings = halve_weights(model)
                if not findings.changes:
                    raise RecipeError("No weight can be stored as float16.")
                return halved, findings.declines
            case Quantize():
                decision = self._decision(step, candidate)
                if not decision.plan.nodes:
                    raise nothing_quantized(decision.plan.declines)
                # How the model was prepared is not stored: calibration tells it again.
                as_it_is = decision.prepared == "as it is"
                made = apply(model, decision.plan) if as_it_is else self._quantizer(candidate).model(decision)
                return made, list(decision.plan.declines)

    def _decision(self, step: Quantize, candidate: Candidate) -> Decision:
        """Return how a recipe quantizes a model for a backend: the same for every precision and number of threads."""
        key = _decision_key(step, candidate)
        return self.workspace.store.recall("plan", key, Decision, lambda: self._quantizer(candidate).decide(step))

    def folder(self, candidate: Candidate) -> Path:
        """Return where the artifact of a candidate lies."""
        return self.workspace.work / candidate.name.replace(" ", "_")

    def build(self, candidate: Candidate) -> Build:
        """Build a candidate, or say why that cannot be done. Finished builds are not made again."""
        if candidate not in self._checked:  # once, since it reads and hashes the whole artifact
            self._checked[candidate] = self._checked_build(candidate)
        return self._checked[candidate]

    def _checked_build(self, candidate: Candidate) -> Build:
        stored = self.workspace.store.get("build", candidate.name, Build)
        if stored is not None and (stored.spec is None or _is_complete(self.folder(candidate), stored.spec)):
            return stored
        made = self._build(candidate)
        if made != stored:
            self.workspace.store.put("build", candidate.name, made)
        return made

    def _build(self, candidate: Candidate) -> Build:
        declines: tuple[Decline, ...] = ()
        try:
            backend = registry.get(candidate.backend)
            model, declines = self.graph(candidate)
            if lacking := backend.why_not(model):
                return Build(spec=None, size_bytes=0, declines=lacking, failure=_lacks(lacking))
            artifact = backend.compile(model, candidate.options)
        except (BackendError, ModelError, RecipeError, ContractError) as error:
            return Build(spec=None, size_bytes=0, declines=declines, failure=error.message)
        self._write(candidate, artifact)
        return Build(
            spec=artifact.spec,
            size_bytes=artifact.size_bytes,
            declines=declines,
            failure="",
            product_bits=product_bits(model),
        )

    def _write(self, candidate: Candidate, artifact: Artifact) -> None:
        folder = self.folder(candidate)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            artifact.write(folder)
        except OSError as error:
            raise OutputError(
                f"`{folder}` has to be writable and to have room for a candidate, but: {error.strerror}.",
                hint="Free some space, or choose another directory with `--out`.",
            ) from error

    def open(self, candidate: Candidate) -> Session:
        """Open the artifact of a candidate that was built."""
        build = self.build(candidate)
        if build.spec is None:
            raise ContractError(f"Only a candidate that was built can be opened, but `{candidate.name}` was not.")
        return registry.get(candidate.backend).open(Artifact.read(self.folder(candidate), build.spec))


def _decision_key(step: Quantize, candidate: Candidate) -> str:
    """Return what a decision depends on: the same for every precision and number of threads."""
    pruned = candidate.pruned
    words = [candidate.backend, step.scheme, step.ranges, step.rounding, f"{step.extra_time:g}", f"{step.extra_size:g}"]
    return " ".join(words if pruned is None else [*words, key_of(candidate)])


def _is_complete(folder: Path, spec: ArtifactSpec) -> bool:
    try:
        Artifact.read(folder, spec)
    except EdgewiseError:
        return False
    return True


def _lacks(declines: tuple[Decline, ...]) -> str:
    first, others = declines[0], len(declines) - 1
    where = f" at `{first.node}`" if first.node else ""
    more = f", and {others} more" if others else ""
    return f"{first.operator or 'the model'}{where}: {first.reason}{more}"
