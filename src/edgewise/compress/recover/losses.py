"""How far the answers of a student are from those of its teacher, as losses that PyTorch can train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from edgewise.compress.quantize.sensitivity import SMALLEST_PROBABILITY, Kind, recognise
from edgewise.formats.torch_missing import missing

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise missing() from error

Tensor: TypeAlias = "torch.Tensor"
Tensors: TypeAlias = "Mapping[str, torch.Tensor]"

_SMALLEST_SIGNAL: Final = 1e-12
"""Floor of a mean square: an output that is always zero has no relative error."""


@dataclass(frozen=True)
class Targets:
    """What is compared: for each output of real numbers its kind, and the size of its signal.

    Attributes:
        kinds: By output.
        signals: Mean square of the teacher's answer around its mean over the samples, by output of numbers.
    """

    kinds: Mapping[str, Kind]
    signals: Mapping[str, float]

    def loss(self, student: Tensors, teacher: Tensors, temperature: float = 1.0) -> Tensor:
        """Return the mean over samples of what separates the answers, summed over the outputs.

        Divergence in nats for probabilities and scores, error relative to the signal for numbers.

        Args:
            student: Answers of shape `[B, ...]` by output.
            teacher: The same of the teacher.
            temperature: By which scores are divided before they are compared; the loss is multiplied by its square.

        Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
        """
        total = torch.zeros((), device=next(iter(student.values())).device)
        for name, kind in self.kinds.items():
            ours, theirs = student[name].float(), teacher[name].float()
            if kind == "numbers":
                total = total + (ours - theirs).square().mean() / self.signals[name]
            elif kind == "independent":
                total = total + _binary_divergence(ours, theirs)
            else:
                total = total + _divergence(_scores(ours, kind), _scores(theirs, kind), temperature)
        return total


def targets(teacher: Tensors, kinds: Mapping[str, Kind]) -> Targets:
    """Return what is compared, from the teacher's answers `[B, ...]` by output; `kinds` goes before what is seen."""
    found: dict[str, Kind] = {}
    signals = {}
    for name, answers in teacher.items():
        if not answers.is_floating_point() or not answers.numel():
            continue
        found[name] = kinds[name] if name in kinds else recognise([row.cpu().numpy() for row in answers])
        values = answers.float()
        spread = float((values - values.mean(dim=0, keepdim=True)).square().mean())
        signals[name] = max(spread or float(values.square().mean()), _SMALLEST_SIGNAL)
    return Targets(found, signals)


def feature_loss(student: Tensors, teacher: Tensors, names: tuple[str, ...]) -> Tensor:
    """Return the mean over values named in both graphs of sum (a - b)^2 / sum a^2.

    Source: Wang et al. 2022, "Practical Network Acceleration with Tiny Sets", section 3.3 (matching of block outputs).
    """
    terms = []
    for name in names:
        ours, theirs = student[name].float(), teacher[name].float()
        terms.append((ours - theirs).square().sum() / theirs.square().sum().clamp_min(_SMALLEST_SIGNAL))
    return torch.stack(terms).mean()


def task_loss(answers: Tensor, labels: Tensor, kind: Kind, signal: float) -> Tensor:
    """Return the loss against labels: cross entropy of class numbers `[B]`, relative squared error of numbers."""
    if kind in {"logits", "probabilities"}:
        scores = _scores(answers.float(), kind)
        return functional.cross_entropy(scores.reshape(len(labels), scores.shape[-1]), labels.long().reshape(-1))
    return (answers.float() - labels.float().reshape(answers.shape)).square().mean() / signal


def _scores(answers: Tensor, kind: Kind) -> Tensor:
    """Return class scores, of which the softmax is what a classifier says."""
    return answers if kind == "logits" else torch.log(answers.clamp_min(SMALLEST_PROBABILITY))


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    first = torch.log_softmax(teacher / temperature, dim=-1)
    second = torch.log_softmax(student / temperature, dim=-1)
    return (first.exp() * (first - second)).sum(dim=-1).mean() * temperature**2


def _binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    # Not closer to 1 than float32 can tell.
    smallest = max(SMALLEST_PROBABILITY, 2.0**-20)
    q, p = (x.clamp(smallest, 1 - smallest) for x in (student, teacher))
    terms = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    return terms.reshape(len(terms), -1).sum(dim=-1).mean()
