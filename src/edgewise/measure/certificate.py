"""What was lost, with a stated confidence: paired, one-sided, on samples that no decision ever saw.

Which procedure bounds the loss follows from the metric:

- scores that are 0 or 1: the exact unconditional bound of `discordance.py`;
- other scores in [0, 1] (or in known bounds around an original of exactly 1, as `cosine`): betting, exact;
- `agreement`, without labels: an exact upper bound of the share of samples whose answer changes (Clopper-Pearson, or
  betting where a sample has several answers). Accuracy cannot fall by more than that;
- unbounded scores and metrics of the whole set: a paired BCa bootstrap, marked as not exact.

Measured in `benchmarks/certificate.py`: with 3,000 samples of which 5 % change, no true drop and one point allowed,
the exact unconditional bound certifies in 78 % of the cases, betting in 75 %, Clopper-Pearson on the two kinds of
change in 34 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from edgewise.errors import ContractError, DataError, RecipeError
from edgewise.measure import betting, bootstrap, discordance, planning
from edgewise.measure.accuracy import Scores, is_binary, resamples, statistic
from edgewise.measure.metrics import Metric, PerSample
from edgewise.records.certificate import Certificate, Claim

FloatArray = npt.NDArray[np.float64]
T = TypeVar("T")

MOST_RUNGS: Final = 4
"""Rungs that may be tested on one certify split (shared design: at most four, safest first)."""


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """A drop with its bounds and how they were found."""

    drop: float
    lower: float
    upper: float
    method: str
    exact: bool
    worse: int | None = None
    better: int | None = None
    claim: Claim = "drop"


def certify(
    original: Scores | None,
    optimized: Scores,
    *,
    metric: Metric,
    max_drop: float,
    confidence: float = 0.95,
    reused: int = 0,
    isa: str = "",
) -> Certificate:
    """Return the certificate of an optimized model against its original on the same samples.

    Args:
        original: What the original scored. None for metrics that compare with the original's outputs anyway.
        optimized: What the optimized model scored.
        metric: The metric of both.
        max_drop: The drop allowed, >= 0: in points for a metric in [0, 1] (0.01 is one point), as a share of the
            original's value for any other.
        confidence: Level of each one-sided bound, in (0.5, 1).
        reused: How many earlier runs have opened these samples.
        isa: Fingerprint of the instruction set on which the samples were run.

    Raises:
        RecipeError: If `max_drop` or `confidence` is out of range.
        DataError: If a bootstrap has fewer than ten samples, or the original's value is zero and the drop relative.
        ContractError: If the two were not scored with this metric on the same samples.
    """
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise RecipeError(f"`max_drop` has to be a number of at least 0. Received {max_drop}.")
    if not 0.5 < confidence < 1:
        raise RecipeError(f"`confidence` has to lie between 0.5 and 1. Received {confidence}.")
    _check_pairing(original, optimized, metric)
    found = _find(original, optimized, metric, max_drop, confidence)
    passed = found.upper <= max_drop
    return Certificate(
        claim=found.claim,
        metric=metric.name,
        max_drop=max_drop,
        relative=metric.relative,
        passed=passed,
        original=1.0 if original is None else original.value,
        optimized=optimized.value,
        drop=found.drop,
        lower=found.lower,
        upper=found.upper,
        confidence=confidence,
        method=found.method,
        exact=found.exact,
        n=optimized.n,
        worse=found.worse,
        better=found.better,
        samples_needed=None if passed else _needed(found, optimized.n, max_drop, confidence),
        reused=reused,
        isa=isa,
    )


def fixed_sequence(tests: Iterable[Callable[[], Certificate]]) -> tuple[Certificate, ...]:
    """Test rungs in a fixed order, safest first, until the first failure.

    Each is tested at the full level. A false certificate needs the first rung that truly loses too much to pass, which
    happens no more often than the error of one test (Maurer, Hothorn and Lehmacher 1995; fixed-sequence testing in
    Angelopoulos et al. 2021, "Learn then test").

    Args:
        tests: One function a rung; a rung after the first failure is never tested, so that nothing is spent on it.

    Returns:
        The certificates in order; all but the last have passed, and the last has unless it is the failure.

    Raises:
        ContractError: If more than four rungs would be tested.
    """
    certificates: list[Certificate] = []
    for test in tests:
        if len(certificates) == MOST_RUNGS:
            raise ContractError(f"At most {MOST_RUNGS} rungs may be fixed before the certify split is opened.")
        certificates.append(test())
        if not certificates[-1].passed:
            break
    return tuple(certificates)


def _check_pairing(original: Scores | None, optimized: Scores, metric: Metric) -> None:
    if original is None:
        if metric.against != "original":
            raise ContractError(f"The metric `{metric.name}` needs the scores of the original model.")
        original = optimized
    if not original.metric == optimized.metric == metric.name:
        raise ContractError(
            f"Scores have to be of the metric `{metric.name}`. Received `{original.metric}` and `{optimized.metric}`."
        )
    if original.samples != optimized.samples or original.n != optimized.n:
        raise ContractError("Scores can be paired only if they are of the same samples in the same order.")


def _find(original: Scores | None, optimized: Scores, metric: Metric, max_drop: float, confidence: float) -> _Finding:
    if isinstance(metric, PerSample) and metric.flips:
        return _flips(1 - optimized.array(), max_drop, confidence)
    if original is None or metric.against == "original":
        return _similarity(optimized.array(), metric, max_drop, confidence)
    if isinstance(metric, PerSample) and not metric.relative and not metric.root:
        return _paired(original.array(), optimized.array(), metric, max_drop, confidence)
    return _resampled(original, optimized, metric, confidence)


def _paired(before: FloatArray, after: FloatArray, metric: PerSample, max_drop: float, confidence: float) -> _Finding:
    """Bound the mean of paired differences of scores in [0, 1].

    Where all scores seen are 0 or 1 the trinomial bound holds even if others could have come: it then bounds the mean
    of the differences rounded up, which is no smaller.
    """
    drops = before - after if metric.higher_is_better else after - before
    if is_binary(before) and is_binary(after):
        worse, better, n = int((drops > 0).sum()), int((drops < 0).sum()), drops.size
        return _Finding(
            drop=(worse - better) / n,
            lower=discordance.lower(worse, better, n, confidence=confidence),
            upper=discordance.upper(worse, better, n, confidence=confidence),
            method=discordance.METHOD,
            exact=True,
            worse=worse,
            better=better,
        )
    low, high = metric.bounds or (0.0, 1.0)
    return _bet(drops, low - high, high - low, max_drop, confidence)


def _similarity(scores: FloatArray, metric: Metric, max_drop: float, confidence: float) -> _Finding:
    """Bound the mean distance from 1, which is what the original scores against itself."""
    low = -1.0 if metric.bounds is None else metric.bounds[0]
    return _bet(1 - scores, 0.0, 1 - low, max_drop, confidence)


def _flips(flips: FloatArray, max_drop: float, confidence: float) -> _Finding:
    if not is_binary(flips):
        found = _bet(flips, 0.0, 1.0, max_drop, confidence)
        return _Finding(
            drop=found.drop, lower=found.lower, upper=found.upper, method=found.method, exact=True, claim="flip-rate"
        )
    count, n = int(flips.sum()), flips.size
    return _Finding(
        drop=count / n,
        lower=betting.binomial_lower(count, n, confidence=confidence),
        upper=betting.binomial_upper(count, n, confidence=confidence),
        method=betting.BINOMIAL_METHOD,
        exact=True,
        claim="flip-rate",
    )


def _bet(drops: FloatArray, low: float, high: float, max_drop: float, confidence: float) -> _Finding:
    return _Finding(
        drop=float(drops.mean()),
        lower=betting.lower_mean(drops, low, high, confidence=confidence),
        upper=betting.upper_mean(drops, low, high, confidence=confidence, asked=max_drop),
        method=betting.METHOD,
        exact=True,
    )


def _resampled(original: Scores, optimized: Scores, metric: Metric, confidence: float) -> _Finding:
    before, after = statistic(original, metric), statistic(optimized, metric)
    if metric.relative and original.value == 0:
        raise DataError(
            f"A drop of `{metric.name}` is relative to the original's value, which must not be 0 here.",
            hint="Use a metric with bounds in [0, 1], whose drop is in points.",
        )
    sign = 1.0 if metric.higher_is_better else -1.0

    def drop(indices: npt.NDArray[np.int64]) -> float:
        old, new = before(indices), after(indices)
        lost = sign * (old - new)
        if not metric.relative:
            return lost
        return lost / abs(old) if old else math.nan

    low, high = bootstrap.bounds(drop, original.n, confidence=confidence, resamples=resamples(original, metric))
    observed = drop(np.arange(original.n))
    return _Finding(
        drop=observed, lower=min(low, observed), upper=max(high, observed), method=bootstrap.METHOD, exact=False
    )


def _needed(found: _Finding, n: int, max_drop: float, confidence: float) -> int | None:
    if found.drop >= max_drop:
        return None
    if found.method == discordance.METHOD and found.worse is not None and found.better is not None:
        return planning.samples_for_drop(found.worse / n, found.better / n, max_drop, confidence=confidence)
    if found.method == betting.BINOMIAL_METHOD:
        return planning.samples_for_flips(found.drop, max_drop, confidence=confidence)
    # Elsewhere the width of the bound falls with the square root of the number of samples.
    needed = n * ((found.upper - found.drop) / (max_drop - found.drop)) ** 2
    return None if needed > planning.MOST_SAMPLES else max(math.ceil(needed), n + 1)
