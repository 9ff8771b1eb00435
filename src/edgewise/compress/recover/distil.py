"""Trains a compressed model to answer as the original does, on samples without labels, for a given time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from edgewise.analysis.values import known_dims, with_inferred_shapes
from edgewise.compress.quantize.sensitivity import Kind
from edgewise.compress.recover.losses import Targets, feature_loss, targets, task_loss
from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.formats.torch import OnnxModule, stacked, to_model, to_module
from edgewise.formats.torch_missing import missing
from edgewise.records.tensors import Array, Feeds

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise missing() from error

Tensor: TypeAlias = "torch.Tensor"
Tensors: TypeAlias = "dict[str, torch.Tensor]"
Augmentation: TypeAlias = Literal["none", "shift", "flip and shift"]

_WARM_UP: Final = 0.03
"""Share of the training in which the steps grow to their full size, so that Adam's moments settle. Empirical."""

_CHECK_SHARE: Final = 0.1
"""Share of the time that held-out samples may take."""

_PATIENCE: Final = 12
"""Checks in a row without a better loss that end the second half of a training."""

_SHIFT: Final = 0.125
"""Largest shift, as a share of the height and width: 4 of 32 pixels, as is usual on small images."""


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        batch: Samples in a step.
        step: Size of a step relative to the root mean square of each tensor of weights.
        temperature: Of the softmax of teacher and student.
        features: Weight of the values inside that both graphs have; 0 leaves them out.
        points: How many of these values are compared, at most.
        labels: Weight of the task's own loss, where there are labels.
        augmentation: What is done to images `[1, 3, H, W]`. A flip is right only where left and right mean the same.
    """

    batch: int = 32
    step: float = 0.01
    temperature: float = 2.0
    features: float = 1.0
    points: int = 8
    labels: float = 0.5
    augmentation: Augmentation = "none"


@dataclass(frozen=True)
class Check:
    """The loss on held-out samples after some steps.

    Attributes:
        step: Steps so far.
        seconds: Time so far; 0 where the training is limited by steps.
        loss: Divergence from the teacher in nats, or relative squared error, summed over the outputs.
    """

    step: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Recovered:
    """What training made of a model.

    Attributes:
        model: The student with the weights of the best check; the student itself where none was better.
        curve: All checks; the first is before the first step.
        steps: Steps that were taken.
        stopped: Why it ended: `time`, `steps`, `no longer better`, or `diverged`.
        compared: Names of the values inside that were compared, beside the outputs.
    """

    model: ir.Model
    curve: tuple[Check, ...]
    steps: int
    stopped: str
    compared: tuple[str, ...]

    @property
    def before(self) -> float:
        """Loss before the first step."""
        return self.curve[0].loss

    @property
    def after(self) -> float:
        """Loss of `model`."""
        return min(check.loss for check in self.curve)


def distil(
    student: ir.Model,
    teacher: ir.Model,
    feeds: Sequence[Feeds],
    *,
    seconds: float | None = None,
    steps: int | None = None,
    held_out: Sequence[Feeds],
    seed: int = 0,
    device: str = "auto",
    clock: Callable[[], float] = time.monotonic,
    labels: Sequence[Array] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    training: Training | None = None,
) -> Recovered:
    """Return `student`, trained to answer as `teacher` does; never with a greater loss on `held_out` than before.

    Weights of matrices and kernels that are exactly zero stay so: they were pruned. Weights that are stored as
    integers behind a DequantizeLinear are trained in floating point and rounded at each use. On one CPU with one number
    of threads the same steps give the same model.

    Args:
        student: The compressed model; not changed. Its inputs and outputs are the teacher's.
        teacher: The original.
        feeds: Samples to train on, all of one shape; labels are not needed.
        seconds: Time for everything, compilation and checks included; this or `steps` has to be given.
        steps: Number of steps.
        held_out: Samples on which the best state is chosen; none of `feeds`.
        seed: Seed of the order of samples and of the augmentation.
        device: `auto`, `cpu` or a name that PyTorch knows.
        clock: Seconds from any start; not used with `steps`.
        labels: For each of `feeds` the right answer to the first output: a class number, or an array of its shape.
        kinds: What outputs hold, where it shall not be recognised.
        training: How it is trained.

    Raises:
        RecipeError: If not exactly one of `seconds` and `steps` is given, or a setting cannot be met.
        DataError: If there are no samples, or not one label for each.
        ModelError: If an operator is not known in PyTorch, or nothing can be trained or compared.
    """
    training = training or Training()
    _require(feeds, held_out, labels, seconds=seconds, steps=steps, training=training)
    budget = _Budget(seconds, steps, clock)
    where = _device(device)
    modules = to_module(student, quantized=True).to(where), to_module(teacher).to(where)
    if not modules[0].trained:
        raise ModelError("A model has to have weights in floating point to be trained, but this one has none.")
    names = _common(student, teacher, training.points) if training.features else ()
    run = _Run(*modules, training, names, where, np.random.default_rng(seed))
    run.begin(held_out, dict(kinds or {}))
    return run.train(student, feeds, labels, budget)


@dataclass
class _Budget:
    """How much training there may be: a time or a number of steps."""

    seconds: float | None
    steps: int | None
    clock: Callable[[], float]
    begun: float = 0.0

    def __post_init__(self) -> None:
        self.begun = self.clock() if self.seconds is not None else 0.0

    def elapsed(self) -> float:
        return 0.0 if self.seconds is None else self.clock() - self.begun

    def share(self, step: int, reserve: float) -> float:
        """Return how much of it is used after `step` steps; at 1 it is over. `reserve` seconds are kept back."""
        if self.steps is not None:
            return step / self.steps
        left = (self.seconds or 0.0) - reserve
        return self.elapsed() / left if left > 0 else 1.0


@dataclass
class _Run:
    """One training: the two modules, what is compared, and the best weights so far."""

    student: OnnxModule
    teacher: OnnxModule
    training: Training
    names: tuple[str, ...]
    device: Any
    random: np.random.Generator
    held: list[tuple[Tensors, Tensors]] = field(default_factory=list)
    targets: Targets = field(default_factory=lambda: Targets({}, {}))
    curve: list[Check] = field(default_factory=list)
    best: list[Tensor] = field(default_factory=list)
    kept: dict[int, Tensors] = field(default_factory=dict)
    check_seconds: float = 0.0

    def begin(self, held_out: Sequence[Feeds], kinds: Mapping[str, Kind]) -> None:
        """Let the teacher answer the held-out samples, and see what its answers are."""
        size = self.training.batch
        for first in range(0, len(held_out), size):
            inputs = stacked(held_out[first : first + size], self.device)
            with torch.no_grad():
                self.held.append((inputs, self.teacher(inputs)))
        whole = {name: torch.cat([answers[name] for _, answers in self.held]) for name in self.held[0][1]}
        self.targets = targets(whole, kinds)
        if not self.targets.kinds:
            raise ModelError("At least one output has to hold real numbers to be trained on, but none does.")

    def train(
        self, model: ir.Model, feeds: Sequence[Feeds], labels: Sequence[Array] | None, budget: _Budget
    ) -> Recovered:
        parameters = list(self.student.parameters())
        masks = [(p != 0).to(p.dtype) if p.dim() >= 2 else None for p in parameters]
        groups = [{"params": [p], "lr": 1.0} for p in parameters]
        sizes = [max(float(p.detach().square().mean().sqrt()), 1e-3) for p in parameters]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        interval = max(1, math.ceil(len(self.held) / 3 / _CHECK_SHARE))
        self._check(0, budget)
        step, stopped = 0, "time" if budget.steps is None else "steps"
        for indices in self._batches(len(feeds)):
            share = budget.share(step, self.check_seconds)
            if share >= 1:
                break
            for group, size in zip(optimizer.param_groups, sizes, strict=True):
                group["lr"] = size * self.training.step * _schedule(share)
            loss = self._loss(feeds, labels, indices)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            _hold(parameters, masks)
            step += 1
            if step % interval == 0:
                self._check(step, budget)
                if reason := self._over(share):
                    stopped = reason
                    break
        if self.curve[-1].step != step:
            self._check(step, budget)
        return self._result(model, step, stopped)

    def _loss(self, feeds: Sequence[Feeds], labels: Sequence[Array] | None, indices: Sequence[int]) -> Tensor:
        inputs = stacked([feeds[k] for k in indices], self.device)
        inputs = _augmented(inputs, self.training.augmentation, self.random)
        expected = self._expected(inputs, indices)
        given = self.student(inputs, self.names)
        loss = self.targets.loss(given, expected, self.training.temperature)
        if self.names:
            loss = loss + self.training.features * feature_loss(given, expected, self.names)
        if labels is not None:
            name, kind = next(iter(self.targets.kinds.items()))
            right = torch.from_numpy(np.stack([np.asarray(labels[k]) for k in indices])).to(self.device)
            task = task_loss(given[name], right, kind, self.targets.signals[name])
            loss = loss + self.training.labels * task
        return loss

    def _expected(self, inputs: Tensors, indices: Sequence[int]) -> Tensors:
        """Return the teacher's answers, kept where nothing but the outputs is compared and the samples stay as is."""
        keep = not self.names and self.training.augmentation == "none"
        if keep and all(k in self.kept for k in indices):
            return {name: torch.stack([self.kept[k][name] for k in indices]) for name in self.kept[indices[0]]}
        with torch.no_grad():
            answers: Tensors = self.teacher(inputs, self.names)
        if keep:
            for row, k in enumerate(indices):
                self.kept[k] = {name: answer[row] for name, answer in answers.items()}
        return answers

    def _batches(self, count: int) -> Any:
        """Yield batches for ever: every sample once before any comes again."""
        size = min(self.training.batch, count)
        order: list[int] = []
        while True:
            if len(order) < size:
                order += self.random.permutation(count).tolist()
            yield order[:size]
            del order[:size]

    def _check(self, step: int, budget: _Budget) -> None:
        """Add the loss on the held-out samples to the curve, and keep the weights where it is the least."""
        begun = budget.elapsed()
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, expected in self.held:
                n = len(next(iter(inputs.values())))
                total += n * float(self.targets.loss(self.student(inputs), expected))
                count += n
        loss = total / count
        if not math.isfinite(loss):
            loss = math.inf
        if not self.curve or loss < min(check.loss for check in self.curve):
            self.best = [p.detach().clone() for p in self.student.parameters()]
        self.curve.append(Check(step, budget.elapsed(), loss))
        self.check_seconds = budget.elapsed() - begun

    def _over(self, share: float) -> str | None:
        """Return why there is no use in going on, or None."""
        if self.curve[-1].loss == math.inf:
            return "diverged"
        losses = [check.loss for check in self.curve]
        waited = len(losses) - 1 - losses.index(min(losses))
        return "no longer better" if share > 0.5 and waited >= _PATIENCE else None

    def _result(self, model: ir.Model, steps: int, stopped: str) -> Recovered:
        better = min(check.loss for check in self.curve) < self.curve[0].loss
        if better:
            with torch.no_grad():
                for parameter, value in zip(self.student.parameters(), self.best, strict=True):
                    parameter.copy_(value)
        result = to_model(self.student) if better else model.clone()
        return Recovered(result, tuple(self.curve), steps, stopped, self.names)


def _schedule(share: float) -> float:
    """Return the factor of the steps: a short rise, then half a cosine down to 0.

    Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5, one period.
    """
    return min(1.0, (share + 1e-3) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _hold(parameters: Sequence[Tensor], masks: Sequence[Tensor | None]) -> None:
    """Put pruned weights back to zero."""
    with torch.no_grad():
        for parameter, mask in zip(parameters, masks, strict=True):
            if mask is not None:
                parameter.mul_(mask)


def _augmented(inputs: Tensors, augmentation: Augmentation, random: np.random.Generator) -> Tensors:
    """Return images shifted, and mirrored if asked, each sample in its own way; other inputs as they are."""
    if augmentation == "none":
        return inputs
    return {
        name: _moved(x, random, flip=augmentation == "flip and shift") if _are_images(x) else x
        for name, x in inputs.items()
    }


def _are_images(x: Tensor) -> bool:
    return bool(x.dim() == 5 and x.shape[1] == 1 and x.shape[2] == 3 and x.is_floating_point())


def _moved(x: Tensor, random: np.random.Generator, *, flip: bool) -> Tensor:
    height, width = x.shape[-2:]
    most = [max(1, round(_SHIFT * n)) for n in (height, width)]
    padded = functional.pad(x[:, 0], (most[1], most[1], most[0], most[0]), mode="replicate")
    rows = []
    for image in padded:
        top, left = (int(random.integers(2 * n + 1)) for n in most)
        part = image[:, top : top + height, left : left + width]
        rows.append(part.flip(-1) if flip and random.random() < 0.5 else part)
    return torch.stack(rows)[:, None]


def _common(student: ir.Model, teacher: ir.Model, most: int) -> tuple[str, ...]:
    """Return names of values inside that both graphs have in one shape, where branches meet if there are such.

    Where branches meet is where blocks end. Of more than `most`, some are taken at equal distances, the last included.
    """
    shapes = {value.name: known_dims(value) for value in _inside(teacher)}
    both = [
        value for value in _inside(student) if value.shape is not None and known_dims(value) == shapes.get(value.name)
    ]
    meeting = [value for value in both if _joins(value)]
    chosen = meeting or both
    if len(chosen) > most:
        chosen = [chosen[round((k + 1) * len(chosen) / most) - 1] for k in range(most)]
    return tuple(str(value.name) for value in chosen)


def _inside(model: ir.Model) -> list[ir.Value]:
    """Return the values between the inputs and the outputs that hold real numbers."""
    found = with_inferred_shapes(model)
    return [
        value
        for node in found.graph
        for value in node.outputs
        if value.name and not value.is_graph_output() and value.dtype == ir.DataType.FLOAT
    ]


def _joins(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type not in {"Add", "Sum", "Concat"}:
        return False
    return sum(1 for operand in node.inputs if operand is not None and operand.const_value is None) > 1


def _device(asked: str) -> Any:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=asked).device
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"A device has to be one that PyTorch can use here. `{asked}`: {error}", hint="Use `auto` or `cpu`."
        ) from error


def _require(
    feeds: Sequence[Feeds],
    held_out: Sequence[Feeds],
    labels: Sequence[Array] | None,
    *,
    seconds: float | None,
    steps: int | None,
    training: Training,
) -> None:
    """Check what was asked for."""
    if (seconds is None) == (steps is None):
        raise RecipeError("A training has to be limited either by a time or by a number of steps.")
    limit = seconds if steps is None else steps
    if limit is None or not limit > 0:
        raise RecipeError(f"A training has to have more than 0 seconds or steps. Received {limit}.")
    if training.batch < 1 or not training.step > 0 or not training.temperature > 0:
        raise RecipeError(f"Batch, step and temperature of a training have to be greater than 0. Received {training}.")
    if not feeds or not held_out:
        raise DataError(
            f"A training needs samples to train on and others to choose by. Received {len(feeds)} and {len(held_out)}.",
            hint="Give more samples.",
        )
    if labels is not None and len(labels) != len(feeds):
        raise DataError(f"There has to be a label for every sample. Received {len(labels)} for {len(feeds)}.")
