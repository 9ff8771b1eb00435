"""Samples that no file format of edgewise holds: pictures with boxes, and audio made here. Given to `--data` by name.

The folder of the zoo is in the environment variable `EDGEWISE_ZOO`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Sample = tuple[Any, Any]

RATE = 16_000
CHUNK = 512
CONTEXT = 64
STEPS = 24
SEQUENCES = 400


def coco128() -> Iterator[Sample]:
    """Yield pictures `[H, W, 3]` uint8 and their boxes `[K, 5]`: class, then corners as fractions of the picture."""
    folder = Path(os.environ["EDGEWISE_ZOO"]) / "detection" / "coco128"
    for path in sorted((folder / "images").glob("*.jpg")):
        rows = np.loadtxt(folder / "labels" / f"{path.stem}.txt", ndmin=2).reshape(-1, 5)
        centre, size = rows[:, 1:3], rows[:, 3:]
        label = np.concatenate([rows[:, :1], centre - size / 2, centre + size / 2], axis=1)
        with Image.open(path) as picture:
            yield np.asarray(picture.convert("RGB")), label


def voices() -> Iterator[Sample]:
    """Yield sequences of audio windows `[STEPS, CONTEXT + CHUNK]`, half of them with a synthetic voice.

    A voice here is a harmonic tone whose pitch glides, shaped by two formants and by syllables, in noise. There are no
    labels: what is measured is whether the optimized model decides as the original does.
    """
    draw = np.random.default_rng(20261122)
    for _ in range(SEQUENCES):
        samples = draw.standard_normal(STEPS * CHUNK + CONTEXT) * 10 ** draw.uniform(-3.0, -1.5)
        if draw.random() < 0.5:
            samples += _voice(draw, len(samples))
        audio = np.clip(samples, -1, 1).astype(np.float32)
        windows = np.stack([audio[step * CHUNK : step * CHUNK + CHUNK + CONTEXT] for step in range(STEPS)])
        yield {"input": windows, "sr": np.array(RATE, np.int64)}, None


def _voice(draw: np.random.Generator, length: int) -> npt.NDArray[np.float64]:
    time = np.arange(length) / RATE
    pitch = draw.uniform(90, 240) * (1 + 0.15 * np.sin(2 * np.pi * draw.uniform(0.5, 2) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formants = draw.uniform(300, 900), draw.uniform(1000, 2500)
    voice = np.zeros(length)
    for harmonic in range(1, 30):
        frequency = harmonic * pitch.mean()
        gain = sum(1 / (1 + ((frequency - formant) / 150) ** 2) for formant in formants)
        voice += gain * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * draw.uniform(2, 5) * time + draw.uniform(0, 6)), 0, 1)
    begin = draw.integers(0, length // 2)
    syllables[:begin] = 0
    return np.asarray(0.2 * voice * syllables)
