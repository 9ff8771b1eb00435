"""Torch-Pruning on the zoo's ResNet56 at its documented best without labels, with recovery by distillation.

    python benchmarks/peers/torch_pruning_resnet.py --model resnet56.pt2 --samples samples.npz --macs 62000000 \
        --seconds 120 --out FOLDER

For a Python with torch and torch-pruning. It sees neither labels nor the samples that are scored: `samples.npz` has
prepared, unlabelled ones as `x [N, 3, 32, 32]`. It leaves `pruned.onnx`, `recovered.onnx` (where seconds are given)
and prints one JSON object.

What was chosen and why: structural pruning in one step, as its README has it; the ratio is bisected until the model
has as few multiply-accumulates as asked for and never fewer. All of its criteria that need no labels are tried: the
group magnitude that its README recommends, LAMP, Taylor and Hessian (gradients of the cross-entropy with the teacher's
own answers, because the divergence from itself has none), each uniform and global, on the blocks' inner channels, and
the first on the residual streams, too. (Its isomorphic ranking chooses here what its global one does.) Statistics of
batch normalization are estimated again; then the model closest to the teacher on the samples stays. The shortcuts
without weights are written as 1x1 convolutions, so that it can follow channels through them; their
multiply-accumulates do not count.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

BLOCKS: Final = 9
"""Blocks of each of the three stages of ResNet56 (He et al. 2016, section 4.2)."""

BISECTIONS: Final = 8
"""Halvings of the pruning ratio: the widths have at most 64 channels."""

MOST_OF_A_LAYER: Final = 0.9
"""Torch-Pruning's `max_pruning_ratio`: with global ranking it would otherwise empty layers."""

BATCH: Final = 64
LEARNING_RATE: Final = 0.02
TEMPERATURE: Final = 1.0
"""Of softmax (Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2): answers as they are."""

GRADIENT_SAMPLES: Final = 256
"""Samples whose gradients Taylor and Hessian use."""

SELECT_SAMPLES: Final = 500
"""Samples on which variants are told apart."""


class Block(nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """Two 3x3 convolutions and a shortcut without weights (option A), which is written as a convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = None if stride == 1 else _padding(inputs, outputs)

    def forward(self, x: Any) -> Any:
        """Return the block's output."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + (x if self.shortcut is None else self.shortcut(x)))


def _padding(inputs: int, outputs: int) -> Any:
    """Return a convolution that takes every other pixel and puts zero channels around the given ones."""
    convolution = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
    weight = torch.zeros_like(convolution.weight)
    first = (outputs - inputs) // 2
    weight[first + torch.arange(inputs), torch.arange(inputs)] = 1
    convolution.weight = nn.Parameter(weight)
    return convolution


class Resnet56(nn.Module):  # type: ignore[misc]  # as above
    """ResNet56 for 32 x 32 pictures with the names of the zoo's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(BLOCKS)))
        self.layer2 = nn.Sequential(Block(16, 32), *(Block(32, 32) for _ in range(BLOCKS - 1)))
        self.layer3 = nn.Sequential(Block(32, 64), *(Block(64, 64) for _ in range(BLOCKS - 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        """Return the logits `[N, 10]` of pictures `[N, 3, 32, 32]`."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def loaded(path: Path, x: Any) -> Resnet56:
    """Return the zoo's model as plain modules.

    Raises:
        ValueError: If it does not answer as the exported program does.
    """
    exported = torch.export.load(path).module()
    model = Resnet56()
    rest = model.load_state_dict(exported.state_dict(), strict=False)
    strange = [name for name in (*rest.missing_keys, *rest.unexpected_keys) if "shortcut" not in name]
    if strange:
        raise ValueError(f"the weights have other names: {strange[:4]}")
    model.eval()
    with torch.no_grad():
        difference = float((model(x[:8]) - exported(x[:8])).abs().max())
    if difference > 1e-3:  # logits are about 10; 57 layers of float32 sums
        raise ValueError(f"the model answers otherwise than the exported program, by {difference:.2g}")
    return model


@dataclass(frozen=True)
class Variant:
    """One way of Torch-Pruning to prune.

    Attributes:
        criterion: How units are ranked.
        ranking: Over which units: `uniform` (within each group) or `global`.
        streams: Whether residual streams are pruned, too.
    """

    criterion: str
    ranking: str
    streams: bool

    @property
    def name(self) -> str:
        """What the rows call it."""
        return f"{self.criterion}, {self.ranking}, {'streams, too' if self.streams else 'inner channels'}"


RANKINGS: Final = ("uniform", "global")

CRITERIA: Final[dict[str, Callable[[], Any]]] = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean"),
    "LAMP": lambda: tp.importance.LAMPImportance(p=2),
    "Taylor": tp.importance.GroupTaylorImportance,
    "Hessian": tp.importance.GroupHessianImportance,
}


def variants(criteria: Sequence[str]) -> list[Variant]:
    """Return what is tried; residual streams with the criterion of its README alone, whose divergence they triple."""
    inner = [Variant(criterion, ranking, streams=False) for criterion in criteria for ranking in RANKINGS]
    return inner + [Variant("magnitude", ranking, streams=True) for ranking in RANKINGS if "magnitude" in criteria]


def macs_of(model: Any) -> int:
    """Return the multiply-accumulates of one picture; the shortcuts' do not count."""
    found = 0

    def count(module: Any, _inputs: Any, output: Any) -> None:
        nonlocal found
        found += module.weight[0].numel() * output[0].numel()

    free = {block.shortcut for block in model.modules() if isinstance(block, Block)}
    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in free
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return found


def with_gradients(teacher: Any, criterion: str, x: Any) -> Any:
    """Return a copy whose parameters have the gradients that a criterion reads.

    Hessian wants the mean of the squared gradients of single pictures. Its own `accumulate_grad` keeps the last picture
    alone (torch-pruning 1.6.1: it looks for a name among tensors), so that they are summed here.
    """
    model = copy.deepcopy(teacher)
    pictures = x[:GRADIENT_SAMPLES]
    if criterion == "Taylor":
        answers = model(pictures)
        functional.cross_entropy(answers, answers.argmax(1)).backward()
    if criterion == "Hessian":
        squares = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
        for picture in pictures.split(1):
            model.zero_grad()
            answers = model(picture)
            functional.cross_entropy(answers, answers.argmax(1)).backward()
            for parameter in squares:
                squares[parameter] += parameter.grad**2 / len(pictures)
        for parameter, total in squares.items():
            parameter.grad = total
    return model


def pruned(source: Any, variant: Variant, x: Any, ratio: float) -> Any:
    """Return the model without `ratio` of the units that may go, in eval mode.

    Args:
        source: What `with_gradients` returns.
        variant: How units are chosen.
        x: Pictures; the first one traces the model.
        ratio: Share of units that go.
    """
    model = copy.deepcopy(source)
    for own, given in zip(model.parameters(), source.parameters(), strict=True):
        own.grad = None if given.grad is None else given.grad.clone()
    blocks = [block for block in model.modules() if isinstance(block, Block)]
    kept = [model.linear]
    if not variant.streams:
        kept += [model.conv1, *(block.conv2 for block in blocks)]
        kept += [block.shortcut for block in blocks if block.shortcut is not None]
    tp.pruner.BasePruner(
        model,
        x[:1],
        importance=CRITERIA[variant.criterion](),
        pruning_ratio=ratio,
        max_pruning_ratio=MOST_OF_A_LAYER,
        global_pruning=variant.ranking != "uniform",
        ignored_layers=kept,
    ).step()
    model.zero_grad()
    return model.eval()


def at_macs(source: Any, variant: Variant, x: Any, macs: int) -> Any:
    """Return the most pruned model that has at least so many multiply-accumulates; None where there is none."""
    low, high = 0.0, 0.95
    found = None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        model = pruned(source, variant, x, middle)
        if macs_of(model) >= macs:
            low, found = middle, model
        else:
            high = middle
    return found


def estimate_normalization(model: Any, x: Any) -> None:
    """Put the statistics of the samples themselves, averaged over batches, in the place of the running ones."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
    model.train()
    with torch.no_grad():
        for part in x.split(4 * BATCH):
            model(part)
    for layer in layers:
        layer.momentum = 0.1
    model.eval()


def divergence(teacher: Any, model: Any, x: Any) -> float:
    """Return the mean Kullback-Leibler divergence from the teacher's answers, in nats."""
    with torch.no_grad():
        return float(
            functional.kl_div(
                functional.log_softmax(model(x), 1),
                functional.log_softmax(teacher(x), 1),
                log_target=True,
                reduction="batchmean",
            )
        )


def chosen(teacher: Any, x: Any, macs: int, criteria: Sequence[str]) -> tuple[Any, dict[str, float]]:
    """Return the pruned model that is closest to the teacher, and the divergence of each variant."""
    found: dict[str, float] = {}
    models = {}
    for criterion in criteria:
        source = with_gradients(teacher, criterion, x)
        for variant in variants([criterion]):
            model = at_macs(source, variant, x, macs)
            if model is None:
                continue
            estimate_normalization(model, x)
            found[variant.name] = divergence(teacher, model, x[:SELECT_SAMPLES])
            models[variant.name] = model
            print(f"{variant.name}: {macs_of(model)}, {found[variant.name]:.4f} nats", file=sys.stderr, flush=True)
    return models[min(found, key=lambda name: found[name])], found


def answered(teacher: Any, x: Any) -> Any:
    """Return the teacher's logits `[2, N, 10]` on all pictures and their mirror images."""
    with torch.no_grad():
        return torch.stack([torch.cat([teacher(part) for part in way.split(BATCH)]) for way in (x, x.flip(3))])


def distil(teacher: Any, model: Any, x: Any, seconds: float) -> int:
    """Train a model on the teacher's softened answers (Hinton et al. 2015) for a time; return the steps.

    Time is short, so that the teacher answers once for every picture and its mirror image, and nothing else is made of
    them; pictures lie channels last, and the products are bfloat16 where the processor has them: together 3 times as
    many steps. The rate falls along a half cosine over the time (Loshchilov and Hutter 2017, equation 5).
    """
    began, steps = time.monotonic(), 0
    logits = answered(teacher, x)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)
    short = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - torch has no public question for it
    model.train().to(memory_format=torch.channels_last)
    while (done := (time.monotonic() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
        chosen_ones = torch.randint(len(x), (BATCH,), generator=generator)
        mirrored = int(torch.randint(2, (1,), generator=generator))
        part = x[chosen_ones].flip(3) if mirrored else x[chosen_ones]
        with torch.autocast("cpu", torch.bfloat16, enabled=short):
            found = model(part.contiguous(memory_format=torch.channels_last))
        wanted = functional.log_softmax(logits[mirrored, chosen_ones] / TEMPERATURE, 1)
        answers = functional.log_softmax(found.float() / TEMPERATURE, 1)
        loss = TEMPERATURE**2 * functional.kl_div(answers, wanted, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    model.eval().to(memory_format=torch.contiguous_format)
    return steps


def export(model: Any, path: Path) -> None:
    """Write a model for single pictures as ONNX, its batch normalizations as nodes of their own."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, 32, 32),),
        path,
        input_names=["input"],
        output_names=["logits"],
        opset_version=18,
        external_data=False,
        verbose=False,
    )


def main() -> int:
    """Prune, recover, write both models, print what was done, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="resnet56.pt2")
    parser.add_argument("--samples", type=Path, required=True, help="npz with unlabelled `x [N, 3, 32, 32]`")
    parser.add_argument("--macs", type=int, required=True, help="multiply-accumulates that are left, at least")
    parser.add_argument("--seconds", type=float, default=0.0, help="time for distillation; none by default")
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x = torch.from_numpy(np.load(arguments.samples)["x"].astype(np.float32))
    teacher = loaded(arguments.model, x)
    began = time.monotonic()
    model, found = chosen(teacher, x, arguments.macs, arguments.criteria)
    said: dict[str, object] = {
        "version": version("torch-pruning"),
        "chosen": min(found, key=lambda name: found[name]),
        "divergences": found,
        "macs": macs_of(model),
        "seconds_to_prune": time.monotonic() - began,
    }
    export(model, arguments.out / "pruned.onnx")
    if arguments.seconds > 0:
        said["steps"] = distil(teacher, model, x, arguments.seconds)
        said["divergence_after"] = divergence(teacher, model, x[:SELECT_SAMPLES])
        export(model, arguments.out / "recovered.onnx")
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
