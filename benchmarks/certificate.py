"""Does the certificate keep its word, and how often can it be had?

False certification: outcomes are drawn with a true drop equal to the bound, so that every certificate is false; 5 % are
allowed. Power: outcomes are drawn with a true drop of 0, and betting and Clopper-Pearson see the same draws.

    python benchmarks/certificate.py --zoo ../shared/zoo [--json FILE]
"""

from __future__ import annotations

import argparse
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgewise.measure import betting, bootstrap, discordance, planning
from edgewise.measure.machine import describe
from rows import Row, finish

IntArray: TypeAlias = npt.NDArray[np.int64]

BOUND: Final = 0.01
CONFIDENCE: Final = 0.95
SIZES: Final = (300, 1000, 3000)
RATES: Final = (0.01, 0.02, 0.05, 0.10)
DRAWS: Final = 20_000
BETTING_DRAWS: Final = 2_000
BOOTSTRAP_DRAWS: Final = 300
ALLOWED: Final = 6.0
SEED: Final = 20261122


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of the model zoo")
    parser.add_argument("--json", type=Path, default=None, help="file that gets the rows")
    arguments = parser.parse_args()
    command = f"python benchmarks/certificate.py --zoo {arguments.zoo}"
    rng = np.random.default_rng(SEED)
    limits = {n: _limits(n, BOUND, max(RATES)) for n in SIZES}
    rows = [
        *_false_certificates(limits, rng, command),
        _false_sequence(limits[3000], rng, command),
        _false_fractions(rng, command),
        _false_bootstrap(rng, command),
        *_powers(limits[3000], rng, command),
        *_times(command),
    ]
    left_out = []
    model, data = arguments.zoo / "cifar10" / "resnet56.onnx", arguments.zoo / "cifar10" / "cifar10_dev.npz"
    if model.is_file() and data.is_file():
        rows.append(_false_on_real_scores(arguments.zoo, rng, command))
    else:
        left_out.append(f"false certificates on resampled scores of real models, because `{model}` is absent")
    finish(rows, describe(), arguments.json, left_out=left_out)


def _false_certificates(limits: dict[int, IntArray], rng: np.random.Generator, command: str) -> Iterator[Row]:
    for n in SIZES:
        for rate in RATES:
            rates = ((rate + BOUND) / 2, (rate - BOUND) / 2)
            draws = _draw(rng, n, rates, DRAWS)
            share = 100 * float(np.mean(_passes(limits[n], draws)))
            expected = 100 * planning.passing_probability(n, limits[n], *rates)
            yield Row(
                row=f"false certificates, n={n}, rho={100 * rate:g} % (computed: {expected:.2f} %)",
                value=share, unit="%", ask=f"<= {ALLOWED:g}", met=share <= ALLOWED, n=DRAWS, command=command,
            )  # fmt: skip


def _false_sequence(limits: IntArray, rng: np.random.Generator, command: str) -> Row:
    """Four rungs on the same samples: true drops of 0, 1, 1 and 2 points, each sharing changes with the others."""
    # Kinds of sample by what becomes of them in the four rungs: 1 worse, -1 better.
    kinds = np.asarray(
        [(1, 1, 1, 1), (-1, -1, -1, -1), (0, 1, 1, 1), (0, 1, 0, 1), (0, 0, 1, 1), (0, 0, 0, 1), (0, 0, 0, 0)]
    )
    shares = np.asarray([0.01, 0.01, 0.005, 0.005, 0.005, 0.005])
    counts = rng.multinomial(3000, [*shares, 1 - shares.sum()], size=DRAWS)
    passes = np.stack(
        [
            _passes(limits, np.stack([counts @ (kinds[:, rung] == 1), counts @ (kinds[:, rung] == -1)], axis=1))
            for rung in range(4)
        ],
        axis=1,
    )
    certified = np.logical_and.accumulate(passes, axis=1)
    share = 100 * float(np.mean(certified[:, 1:].any(axis=1)))
    return Row(
        row="any false certificate in a fixed sequence of 4 rungs (drops 0, 1, 1, 2 points), n=3000",
        value=share, unit="%", ask=f"<= {ALLOWED:g}", met=share <= ALLOWED, n=DRAWS, command=command,
    )  # fmt: skip


def _false_fractions(rng: np.random.Generator, command: str) -> Row:
    """Scores that are fractions: a twentieth of the samples changes, by -0.6 to 1, and loses a fifth on average."""
    n = 1000
    drops = np.where(rng.random((n, BETTING_DRAWS)) < 0.05, rng.uniform(-0.6, 1.0, (n, BETTING_DRAWS)), 0.0)
    hypothesis = np.full(BETTING_DRAWS, (1 - 0.05 * 0.2) / 2)
    share = 100 * float(np.mean(betting.reaches((1 - drops) / 2, hypothesis, 1 - CONFIDENCE)))
    return Row(
        row=f"false certificates of fractional scores by betting, n={n}",
        value=share, unit="%", ask=f"<= {ALLOWED:g}", met=share <= ALLOWED, n=BETTING_DRAWS, command=command,
    )  # fmt: skip


def _false_bootstrap(rng: np.random.Generator, command: str) -> Row:
    """Root-mean-square error, relative: squared errors of normal residuals, the second model's 2 % larger in scale."""
    n, false = 500, 0
    for _ in range(BOOTSTRAP_DRAWS):
        residuals = rng.normal(size=n)
        noise = rng.normal(size=n) * np.sqrt(1.02**2 - 1)
        before, after = residuals**2, (residuals + noise) ** 2

        def drop(indices: IntArray, before: Any = before, after: Any = after) -> float:
            return float(np.sqrt(after[indices].mean() / before[indices].mean()) - 1)

        false += bootstrap.bounds(drop, n, confidence=CONFIDENCE, resamples=399)[1] <= 0.02
    share = 100 * false / BOOTSTRAP_DRAWS
    return Row(
        row=f"false certificates of rmse by bootstrap (marked approximate), n={n}",
        value=share, unit="%", ask="<= 10", met=share <= 10, n=BOOTSTRAP_DRAWS, command=command,
    )  # fmt: skip


def _powers(limits: IntArray, rng: np.random.Generator, command: str) -> Iterator[Row]:
    n = 3000
    for rate in RATES[:3]:
        draws = _draw(rng, n, (rate / 2, rate / 2), BETTING_DRAWS)
        ours = 100 * float(np.mean(_passes(limits, draws)))
        tail = (1 - CONFIDENCE) / 2
        pearson = 100 * float(np.mean([_clopper_pearson(b, c, n, tail) <= BOUND for b, c in draws.tolist()]))
        bets = 100 * float(np.mean(_betting(draws, n, rng)))
        expected = 100 * planning.passing_probability(n, limits, rate / 2, rate / 2)
        yield Row(
            row=f"power, n={n}, rho={100 * rate:g} %, true drop 0 (computed: {expected:.1f} %)",
            value=ours, unit="%", ask=f">= betting {bets:.1f}, Clopper-Pearson {pearson:.1f}",
            met=ours >= max(bets, pearson), n=BETTING_DRAWS, command=command,
        )  # fmt: skip


def _times(command: str) -> Iterator[Row]:
    for n in (3000, 20000):
        worse = better = n // 20
        start = time.perf_counter()
        discordance.upper(worse, better, n, confidence=CONFIDENCE)
        discordance.lower(worse, better, n, confidence=CONFIDENCE)
        seconds = time.perf_counter() - start
        yield Row(
            row=f"time of both bounds, n={n}, rho=10 %",
            value=seconds, unit="s", ask="<= 2", met=seconds <= 2, n=1, command=command,
        )  # fmt: skip


def _false_on_real_scores(zoo: Path, rng: np.random.Generator, command: str) -> Row:
    """Resample the paired scores of ResNet-56 and ResNet-20; the bound is the drop between them on all samples."""
    before, after = (_correct(zoo, name) for name in ("resnet56", "resnet20"))
    worse, better = float(np.mean(before & ~after)), float(np.mean(~before & after))
    n = 1000
    limits = _limits(n, worse - better, worse + better)
    chosen = rng.integers(0, before.size, (DRAWS, n))
    draws = np.stack([(before & ~after)[chosen].sum(axis=1), (~before & after)[chosen].sum(axis=1)], axis=1)
    share = 100 * float(np.mean(_passes(limits, draws)))
    rate, drop = 100 * (worse + better), 100 * (worse - better)
    return Row(
        row=f"false certificates, resnet56 against resnet20 resampled, n={n}, rho={rate:.1f} %, drop {drop:.2f}",
        value=share, unit="%", ask=f"<= {ALLOWED:g}", met=share <= ALLOWED, n=DRAWS, command=command,
    )  # fmt: skip


def _correct(zoo: Path, name: str) -> npt.NDArray[np.bool_]:
    entries = tomllib.loads((zoo / "zoo.toml").read_text(encoding="utf-8"))["model"]
    entry = next(entry for entry in entries if entry["name"] == name)
    how = entry["preprocessing"]
    with np.load(zoo / entry["data"]) as data:
        images, labels = data["x"], data["y"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(zoo / entry["path"], options, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0].name
    answers = []
    for start in range(0, len(images), 100):
        batch = (images[start : start + 100] * how["scale"] - how["mean"]) / how["std"]
        answers.append(session.run(None, {port: batch.transpose(0, 3, 1, 2).astype(np.float32)})[0].argmax(axis=1))
    return np.asarray(np.concatenate(answers) == labels.ravel())


def _limits(n: int, bound: float, most_rate: float) -> IntArray:
    """Return what certifies `bound`, for every count of `better` that rates up to `most_rate` make likely."""
    mean = n * most_rate / 2
    return planning.most_worse_passing(n, bound, int(mean + 6 * np.sqrt(mean) + 10), confidence=CONFIDENCE)


def _draw(rng: np.random.Generator, n: int, rates: tuple[float, float], draws: int) -> IntArray:
    """Return counts of worse and better, shape `[draws, 2]`."""
    return np.asarray(rng.multinomial(n, [*rates, 1 - sum(rates)], size=draws)[:, :2])


def _passes(limits: IntArray, draws: IntArray) -> npt.NDArray[np.bool_]:
    return np.asarray(draws[:, 0] <= limits[draws[:, 1]])


def _betting(draws: IntArray, n: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    positions = np.arange(n)[None, :]
    drops = np.where(positions < draws[:, :1], 1.0, np.where(positions < draws.sum(axis=1, keepdims=True), -1.0, 0.0))
    values = (1 - rng.permuted(drops, axis=1).T) / 2
    return betting.reaches(values, np.full(len(draws), (1 - BOUND) / 2), 1 - CONFIDENCE)


def _clopper_pearson(worse: int, better: int, n: int, tail: float) -> float:
    """Return the difference of the two rates' bounds, each with half of the error (Bonferroni)."""
    high = betting.binomial_upper(worse, n, confidence=1 - tail)
    return high - betting.binomial_lower(better, n, confidence=1 - tail)


if __name__ == "__main__":
    main()
